"""Focal loss: cases that are right already count less."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_med.likelihoods.class_loss import LossLikelihood
from ppl_med.likelihoods.loss_distribution import log_prob_of

FLSD_53 = ((0.2, 5.0), (1.0, 3.0))
"""Schedule of Mukhoti et al.: exponent 5 below a probability of 0.2 of the true class, else 3."""


class FocalLoss(LossLikelihood):
    """``-w_y (1 - p_y)^gamma log p_y`` for the label y; a loss, no density.

    Lin et al., "Focal loss for dense object detection", ICCV 2017, eq. 5; as a means of calibration
    Mukhoti et al., "Calibrating deep neural networks using focal loss", NeurIPS 2020. It bounds the
    cross-entropy less gamma times the entropy of p from above (their eq. 3), and so keeps
    probabilities from 0 and 1. With gamma above 0 it is not proper: where the truth is q, the
    smallest loss is at a p less sure than q, and only a recalibration mends that. For what a loss
    does to the posterior see ``class_loss``.

    Args:
        gamma: 0 or more; 0 without weights is ``Categorical``. Or pairs (bound, gamma) with rising
            bounds, the last one 1: the exponent of cases whose true class has a probability below
            the bound, such as ``FLSD_53``.
        class_weights: w, one per class, above 0; None for ones.
        classes, event, site, partial: As in ``Categorical``.
    """

    bounds: Tensor
    exponents: Tensor

    def __init__(
        self,
        classes: Sequence[str],
        gamma: float | Sequence[tuple[float, float]] = 2.0,
        class_weights: Sequence[float] | NDArray[Any] | Tensor | None = None,
        event: Sequence[str] = (),
        site: str = "label",
        *,
        partial: bool = False,
    ) -> None:
        super().__init__(classes, event, site, partial=partial, class_weights=class_weights)
        steps = tuple(gamma) if isinstance(gamma, Sequence) else ((1.0, gamma),)
        steps = tuple((float(bound), float(exponent)) for bound, exponent in steps)
        _check_steps(steps)
        self.register_buffer("bounds", torch.tensor([b for b, _ in steps[:-1]]), persistent=False)
        self.register_buffer("exponents", torch.tensor([g for _, g in steps]), persistent=False)
        below = [f"{exponent:g} below {bound:g}" for bound, exponent in steps[:-1]]
        self.training_loss = f"focal loss, gamma {', '.join([*below, f'{steps[-1][1]:g}'])}"
        if self.class_weights is not None:
            weights = " ".join(f"{weight:g}" for weight in self.class_weights.tolist())
            self.training_loss += f", weighted {weights}"

    def loss(self, logits: Tensor, label: Tensor, seen: Tensor) -> Tensor:
        """Focal loss, in nats."""
        log_probs = logits.log_softmax(-1)
        of_label = log_prob_of(log_probs, label)
        # log(1 - p) from the other classes: exact near p = 1, and its gradient is finite there.
        others = log_probs.scatter(-1, label.unsqueeze(-1), -math.inf).logsumexp(-1)
        step = torch.bucketize(of_label.detach().exp(), self.bounds, right=True)
        loss = -(self.exponents[step] * others).exp() * of_label
        return loss if self.class_weights is None else self.class_weights[label] * loss


def _check_steps(steps: Sequence[tuple[float, float]]) -> None:
    bounds = [bound for bound, _ in steps]
    rising = bounds == sorted(set(bounds)) and bounds and bounds[0] > 0 and bounds[-1] == 1
    if not rising or not all(math.isfinite(g) and g >= 0 for _, g in steps):
        raise ValueError(
            "gamma must be a finite number, 0 or more, or pairs (bound, gamma) with bounds that "
            f"rise from above 0 to 1, got {steps}"
        )
