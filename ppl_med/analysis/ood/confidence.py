"""Scores of a network's outputs alone; nothing is learnt. Larger: more unlike training.

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

Three are of models that store more than probabilities (``models.DUQClassifier``,
``models.GeneralizedODINClassifier``), of whose trees alone they are:

    duq                        1 - max_c k_c, k the mean kernel over draws       kernel, 0 to 1
    generalized_odin           mean over draws of -max_c h_s,c, the dividend     of h
    generalized_odin_divisor   mean over draws of -g_s, the divisor              -1 to 0

Sources: Hendrycks and Gimpel, ICLR 2017, arXiv:1610.02136; Houlsby et al., arXiv:1112.5745; Liu et
al., NeurIPS 2020, arXiv:2010.03759; Hendrycks et al., ICML 2022, arXiv:1911.11132; van Amersfoort
et al., ICML 2020, arXiv:2003.02037; Hsu et al., CVPR 2020, arXiv:2002.11297.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import xarray as xr
from scipy.special import logsumexp, xlogy

from ppl_med.analysis.ood.outputs import Outputs, table

Found = tuple[np.ndarray, np.ndarray]
"""The score (case,), and that of every draw (sample, case)."""


def _draws(outputs: Outputs, array: xr.DataArray) -> Iterator[np.ndarray]:
    """Values (case, ...) of one draw after the other, checked."""
    read = array.compute()
    return (table(read, place) for place in outputs.places())


def _probs(outputs: Outputs) -> np.ndarray:
    """Probabilities (sample, case, *space, class)."""
    return np.moveaxis(np.stack([*_draws(outputs, outputs.probs)]), 2, -1)


def _over_pixels(mean: np.ndarray, single: np.ndarray) -> Found:
    """Scores (case, *space) and (sample, case, *space), averaged over space."""
    return mean.reshape(len(mean), -1).mean(1), single.reshape(*single.shape[:2], -1).mean(2)


def _mean_over_draws(single: Iterable[np.ndarray]) -> Found:
    """The mean over draws of their scores (case, *space), and each, averaged over space."""
    stacked = np.stack([*single])
    return _over_pixels(stacked.mean(0), stacked)


def _entropy(probs: np.ndarray) -> np.ndarray:
    return -xlogy(probs, probs).sum(-1)


def mcp(outputs: Outputs) -> Found:
    """One minus the largest probability."""
    probs = _probs(outputs)
    return _over_pixels(1 - probs.mean(0).max(-1), 1 - probs.max(-1))


def entropy(outputs: Outputs) -> Found:
    """Entropy of the mean over draws."""
    probs = _probs(outputs)
    return _over_pixels(_entropy(probs.mean(0)), _entropy(probs))


def expected_entropy(outputs: Outputs) -> Found:
    """Mean entropy of the draws."""
    single = _entropy(_probs(outputs))
    return _mean_over_draws(single)


def mutual_information(outputs: Outputs) -> Found:
    """Mean divergence of the draws from their mean, and that of every draw."""
    probs = _probs(outputs)
    mean = probs[0] + (probs - probs[0]).mean(0)  # of equal draws exactly theirs, so exactly 0
    divergence = (xlogy(probs, probs) - xlogy(probs, mean)).sum(-1)
    return _over_pixels(divergence.mean(0).clip(min=0), divergence)


def energy(outputs: Outputs) -> Found:
    """Free energy of the logits at temperature 1."""
    draws = _draws(outputs, outputs.logit())
    return _mean_over_draws(-logsumexp(logit, axis=-1) for logit in draws)


def max_logit(outputs: Outputs) -> Found:
    """The largest logit, with a minus sign."""
    return _mean_over_draws(-logit.max(-1) for logit in _draws(outputs, outputs.logit()))


def duq(outputs: Outputs) -> Found:
    """One minus the largest kernel."""
    stored = outputs.stored("kernel", "class", model="DUQClassifier")
    kernel = np.stack([*_draws(outputs, stored)])
    return _over_pixels(1 - kernel.mean(0).max(-1), 1 - kernel.max(-1))


def generalized_odin(outputs: Outputs) -> Found:
    """The largest dividend of the logits, with a minus sign."""
    stored = outputs.stored("dividend", "class", model="GeneralizedODINClassifier")
    return _mean_over_draws(-dividend.max(-1) for dividend in _draws(outputs, stored))


def generalized_odin_divisor(outputs: Outputs) -> Found:
    """The divisor of the logits, with a minus sign."""
    stored = outputs.stored("divisor", model="GeneralizedODINClassifier")
    return _mean_over_draws(-divisor for divisor in _draws(outputs, stored))


SCORES: dict[str, Callable[[Outputs], Found]] = {
    "mcp": mcp,
    "entropy": entropy,
    "expected_entropy": expected_entropy,
    "mutual_information": mutual_information,
    "energy": energy,
    "max_logit": max_logit,
    "duq": duq,
    "generalized_odin": generalized_odin,
    "generalized_odin_divisor": generalized_odin_divisor,
}
