"""Labels that are not taken at their word: smoothed, noisy, or pressed only up to a margin.

    LabelSmoothing    loss      cross-entropy against labels mixed with the uniform one
    MarginSmoothing   loss      a penalty on logits farther below the largest than a margin
    LabelNoise        density   the true class, or with a known probability any class

Label smoothing has no density of its own. Its penalty is the same for every label, so dividing
exp(-loss) by its sum over labels leaves softmax((1 - smoothing) * logits): a temperature, and no
smoothing. What a label that may be wrong says about the class is ``LabelNoise``.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_med.checks import finite, reject, share
from ppl_med.likelihoods.class_loss import LossLikelihood
from ppl_med.likelihoods.classes import Categorical
from ppl_med.likelihoods.loss_distribution import log_prob_of


class LabelSmoothing(LossLikelihood):
    """Cross-entropy against ``(1 - smoothing) * one-hot + smoothing / K``; a loss, no density.

    Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016,
    section 7. The other form in use, e / (K - 1) for every wrong class, is this one with
    ``smoothing = e K / (K - 1)``. For what a loss does to the posterior see ``class_loss``.

    Args:
        smoothing: In [0, 1); 0 is ``Categorical``.
        classes, event, site, partial: As in ``Categorical``.
    """

    def __init__(
        self,
        classes: Sequence[str],
        smoothing: float = 0.05,
        event: Sequence[str] = (),
        site: str = "label",
        *,
        partial: bool = False,
    ) -> None:
        super().__init__(classes, event, site, partial=partial)
        share("smoothing", smoothing)
        self.smoothing = smoothing
        self.training_loss = f"label smoothing, {smoothing:g}"

    def loss(self, logits: Tensor, label: Tensor, seen: Tensor) -> Tensor:
        """Cross-entropy against the smoothed label, in nats."""
        log_probs = logits.log_softmax(-1)
        of_label, of_all = log_prob_of(log_probs, label), log_probs.mean(-1)
        return -(1 - self.smoothing) * of_label - self.smoothing * of_all


class MarginSmoothing(LossLikelihood):
    """Cross-entropy plus ``weight * mean_k max(0, max(logits) - logit_k - margin)``; a loss.

    Liu, Ben Ayed, Galdran and Dolz, "The devil is in the margin: margin-based label smoothing for
    network calibration", CVPR 2022, eq. 8; the mean over classes in place of their sum is that of
    the authors' code. For what a loss does to the posterior see ``class_loss``.

    Args:
        margin: Distance of logits that costs nothing, 0 or more; infinite is ``Categorical``.
        weight: Weight of the penalty, 0 or more.
        classes, event, site, partial: As in ``Categorical``.
    """

    def __init__(
        self,
        classes: Sequence[str],
        margin: float = 10.0,
        weight: float = 0.1,
        event: Sequence[str] = (),
        site: str = "label",
        *,
        partial: bool = False,
    ) -> None:
        super().__init__(classes, event, site, partial=partial)
        if not margin >= 0:
            reject("margin", "0 or more", margin)
        finite("weight", weight, 0)
        self.margin, self.weight = margin, weight
        self.training_loss = f"margin-based label smoothing, margin {margin:g}, weight {weight:g}"

    def loss(self, logits: Tensor, label: Tensor, seen: Tensor) -> Tensor:
        """Cross-entropy and penalty, in nats."""
        distance = logits.max(-1, keepdim=True).values - logits
        penalty = (distance - self.margin).relu().mean(-1)
        return self.weight * penalty - log_prob_of(logits.log_softmax(-1), label)


class LabelNoise(Categorical):
    """``label ~ Categorical((1 - noise) * softmax(logits) + noise / K)``; a density.

    The label is the network's class, or with probability ``noise`` one of all K at random. So the
    posterior is one, the ELBO bounds the evidence, and leave-one-out is what it says. Stored
    ``probs`` are of the label that is seen, mistakes included: none leaves
    [noise / K, 1 - noise + noise / K].

    Args:
        noise: In [0, 1); 0 is ``Categorical``.
        classes, event, site, partial: As in ``Categorical``.
    """

    def __init__(
        self,
        classes: Sequence[str],
        noise: float = 0.05,
        event: Sequence[str] = (),
        site: str = "label",
        *,
        partial: bool = False,
    ) -> None:
        super().__init__(classes, event, site, partial=partial)
        share("noise", noise)
        self.noise = noise

    def distribution(self, output: Tensor) -> Any:
        """Categorical of the label that is seen."""
        log_probs = self.class_last(output).log_softmax(-1)
        if self.noise:
            uniform = log_probs.new_full((), math.log(self.noise / len(self.classes)))
            log_probs = torch.logaddexp(log_probs + math.log1p(-self.noise), uniform)
        return self.categorical(log_probs)
