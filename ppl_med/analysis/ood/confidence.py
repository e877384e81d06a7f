"""Scores of probabilities and logits alone; nothing is learnt. Larger: more unlike training.

    mcp                  1 - max_c p_c, p the mean over draws                    probability
    entropy              H(p)                                                    nats
    expected_entropy     mean H(p_s)                                             nats
    mutual_information   H(p) - mean H(p_s)                                      nats
    energy               mean over draws of -logsumexp(z_s)                      nats
    max_logit            mean over draws of -max_c z_s,c                         nats

Of masks, the score is the mean over the pixels of the image; for another way see
``ppl_med.analysis.aggregation`` and `with_pvalues`.

Logits have a constant of their own in every draw, which the softmax does not see and the prior ties
down only weakly: compare energies within one fit.

Sources: Hendrycks and Gimpel, ICLR 2017, arXiv:1610.02136; Houlsby et al., arXiv:1112.5745; Liu et
al., NeurIPS 2020, arXiv:2010.03759; Hendrycks et al., ICML 2022, arXiv:1911.11132.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import logsumexp, xlogy

from ppl_med.analysis.ood.outputs import Outputs, table

Found = tuple[np.ndarray, np.ndarray]
"""The score (case,), and that of every draw (sample, case)."""


def _per_draw(outputs: Outputs) -> np.ndarray:
    """Probabilities (sample, case, *space, class)."""
    probs = outputs.probs.compute()
    own = [table(probs, place) for place in outputs.places()]
    return np.moveaxis(np.stack(own), 2, -1)


def _over_pixels(mean: np.ndarray, single: np.ndarray) -> Found:
    """Scores (case, *space) and (sample, case, *space), averaged over space."""
    return mean.reshape(len(mean), -1).mean(1), single.reshape(*single.shape[:2], -1).mean(2)


def _by_logit(outputs: Outputs, of_draw: Callable[[np.ndarray], np.ndarray]) -> Found:
    logit = outputs.logit().compute()
    single = np.stack([of_draw(table(logit, place)) for place in outputs.places()])
    return single.mean(0), single


def _entropy(probs: np.ndarray) -> np.ndarray:
    return -xlogy(probs, probs).sum(-1)


def mcp(outputs: Outputs) -> Found:
    """One minus the largest probability."""
    probs = _per_draw(outputs)
    return _over_pixels(1 - probs.mean(0).max(-1), 1 - probs.max(-1))


def entropy(outputs: Outputs) -> Found:
    """Entropy of the mean over draws."""
    probs = _per_draw(outputs)
    return _over_pixels(_entropy(probs.mean(0)), _entropy(probs))


def expected_entropy(outputs: Outputs) -> Found:
    """Mean entropy of the draws."""
    single = _entropy(_per_draw(outputs))
    return _over_pixels(single.mean(0), single)


def mutual_information(outputs: Outputs) -> Found:
    """Mean divergence of the draws from their mean, and that of every draw."""
    probs = _per_draw(outputs)
    mean = probs.mean(0)
    safe = np.log(np.where(mean > 0, mean, 1.0))
    divergence = (xlogy(probs, probs) - probs * safe).sum(-1)
    return _over_pixels(divergence.mean(0).clip(min=0), divergence)


def energy(outputs: Outputs) -> Found:
    """Free energy of the logits at temperature 1."""
    return _by_logit(outputs, lambda logit: -logsumexp(logit, axis=-1))


def max_logit(outputs: Outputs) -> Found:
    """The largest logit, with a minus sign."""
    return _by_logit(outputs, lambda logit: -logit.max(-1))


SCORES: dict[str, Callable[[Outputs], Found]] = {
    "mcp": mcp,
    "entropy": entropy,
    "expected_entropy": expected_entropy,
    "mutual_information": mutual_information,
    "energy": energy,
    "max_logit": max_logit,
}
