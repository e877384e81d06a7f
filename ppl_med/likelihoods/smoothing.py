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

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_med.likelihoods.class_loss import LossOfClasses, log_prob_of
from ppl_med.likelihoods.classes import Categorical, PartialCategorical
from ppl_med.likelihoods.statement import precision, state


class LabelSmoothing(LossOfClasses):
    """Cross-entropy against ``(1 - smoothing) * one-hot + smoothing / K``; a loss, no density.

    Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016,
    section 7. The other form in use, e / (K - 1) for every wrong class, is this one with
    ``smoothing = e K / (K - 1)``. For what a loss does to the posterior see ``class_loss``.

    Args:
        classes: Class names, K >= 2 of them.
        smoothing: In [0, 1); 0 is ``Categorical``.
        event: Names of the axes after the class axis.
        site: Name of the observed site.
        partial: Whether a value of -1 says that an entry was not observed.
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
        _check_share("smoothing", smoothing)
        self.smoothing = smoothing
        self.training_loss = f"label smoothing, {smoothing:g}"

    def loss(self, logits: Tensor, label: Tensor, seen: Tensor) -> Tensor:
        """Cross-entropy against the smoothed label, in nats."""
        log_probs = logits.log_softmax(-1)
        of_label, of_all = log_prob_of(log_probs, label), log_probs.mean(-1)
        return -(1 - self.smoothing) * of_label - self.smoothing * of_all


class MarginSmoothing(LossOfClasses):
    """Cross-entropy plus ``weight * mean_k max(0, max(logits) - logit_k - margin)``; a loss.

    Liu, Ben Ayed, Galdran and Dolz, "The devil is in the margin: margin-based label smoothing for
    network calibration", CVPR 2022, eq. 8; the mean over classes in place of their sum is that of
    the authors' code. For what a loss does to the posterior see ``class_loss``.

    Args:
        classes: Class names, K >= 2 of them.
        margin: Distance of logits that costs nothing, 0 or more; infinite is ``Categorical``.
        weight: Of the penalty, 0 or more.
        event: Names of the axes after the class axis.
        site: Name of the observed site.
        partial: Whether a value of -1 says that an entry was not observed.
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
            raise ValueError(f"margin must be 0 or more, got {margin!r}")
        check_weight(weight)
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
        classes: Class names, K >= 2 of them.
        noise: In [0, 1); 0 is ``Categorical``.
        event: Names of the axes after the class axis.
        site: Name of the observed site.
        partial: Whether a value of -1 says that an entry was not observed.
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
        _check_share("noise", noise)
        self.noise = noise

    def forward(self, output: Tensor, label: Tensor | None) -> None:
        """State the site.

        Args:
            output: Logits, dims (case, class, *event), perhaps with dims before the case.
            label: Observed classes, dims (case, *event), or None.
        """
        logits = output.movedim(-1 - len(self.event), -1)
        log_probs = logits.to(precision(output, training=self.training)).log_softmax(-1)
        if self.noise:
            uniform = log_probs.new_full((), math.log(self.noise / len(self.classes)))
            log_probs = torch.logaddexp(log_probs + math.log1p(-self.noise), uniform)
        kind: Any = PartialCategorical if self.partial else dist.Categorical
        state(self.site, kind(logits=log_probs), self.event, label)


def check_weight(weight: float) -> None:
    """Raise unless the weight of a penalty is a finite number, 0 or more."""
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"weight must be a finite number, 0 or more, got {weight!r}")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value!r}")
