"""Uniform noise of classes: at every step, a pixel is replaced by a random class, or left.

    x_t | x_0  ~  Categorical(kept_t onehot(x_0) + (1 - kept_t) / K)

Reference: Austin et al., "Structured denoising diffusion models in discrete state-spaces", NeurIPS
2021; of masks: Zbinden et al., "Stochastic segmentation with conditional categorical diffusion
models", ICCV 2023.
"""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_med.axes import SPACE
from ppl_med.checks import choice, whole
from ppl_med.programs.noising.chain import (
    Chain,
    Form,
    Transition,
    in_classes,
    over_space,
    uniform_classes,
)
from ppl_med.programs.noising.schedules import Schedule

TINY = 1e-30  # probabilities that are 0 get this, so that their logarithm is finite


class CategoricalNoise(Chain):
    """The process over masks of K classes; a state is a map of classes (case, *space).

    Args:
        num_classes: K.
        num_steps: T.
        schedule: Of the kept share, see ``signal_kept``.
        hardening: See ``signal_kept``.
        form: See ``Chain``.
        bound_steps: See ``Chain``.
        spatial_dims: 2 for images, 3 for volumes.
    """

    def __init__(
        self,
        num_classes: int,
        num_steps: int,
        schedule: Schedule = "cosine",
        hardening: float = 1.0,
        form: Form = "fast",
        bound_steps: int = 1,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__(num_steps, schedule, hardening, form, bound_steps)
        self.num_classes = whole("num_classes", num_classes, 2)
        self.spatial_dims = choice("spatial_dims", spatial_dims, SPACE)

    @property
    def event(self) -> tuple[str, ...]:
        """The spatial axes."""
        return SPACE[self.spatial_dims]

    def encode(self, mask: Tensor) -> Tensor:
        """The mask itself."""
        return mask.long().clamp(min=0)

    def seen(self, mask: Tensor) -> Tensor:
        """Where a mask is known, bool (case, *space)."""
        return mask >= 0

    def start(self, image: Tensor) -> Any:
        """Uniform classes."""
        shape = (len(image), *image.shape[2:])
        law = uniform_classes(shape, self.num_classes, image.device)
        return law.to_event(self.spatial_dims)

    def noised(self, state: Tensor, kept: Tensor, seen: Tensor) -> Any:
        """The law of x_t given x_0, in which the class of a pixel is kept or drawn anew."""
        return self._law(self._known(self._spread(self._onehot(state), kept), seen))

    def posterior(self, noised: Tensor, state: Tensor, at: Transition, seen: Tensor) -> Any:
        """The law of x_s given x_t and x_0: both say something about each pixel."""
        both = self._from_later(noised, at) * self._spread(self._onehot(state), at.earlier)
        return self._law(self._known(both, seen))

    def reverse(self, noised: Tensor, probs: Tensor, at: Transition) -> Any:
        """The law of x_s given x_t where x_0 is known by its probabilities: the exact average.

            p(x_s | x_t) = sum_k p(x_0 = k | x_t) q(x_s | x_t, x_0 = k)

        Args:
            noised: x_t (..., case, *space).
            probs: Of x_0, dims (..., case, *space, class).
            at: The two steps, each (..., case).
        """
        onehot = self._onehot(noised)
        share = over_space(at.later, onehot)
        # The weight of x_0 = k in q(x_s | x_t, x_0 = k) is its chance to have come to x_t.
        weight = probs.double() / (share * onehot + (1 - share) / self.num_classes)
        total = weight.sum(-1, keepdim=True)
        kept = over_space(at.earlier, onehot)
        earlier = kept * weight + (1 - kept) / self.num_classes * total
        return self._law(self._from_later(noised, at) * earlier)

    def log_weight(self, noised: Tensor, kept: Tensor) -> Tensor:
        """Log q(x_t | x_0 = k) of every class k, dims (..., case, *space, class): what x_t says."""
        return self._spread(self._onehot(noised), kept).clamp(min=TINY).log()

    def _known(self, weights: Tensor, seen: Tensor) -> Tensor:
        """The same where the mask is known; any class where it is not."""
        return torch.where(seen.unsqueeze(-1), weights, torch.ones_like(weights))

    def _onehot(self, state: Tensor) -> Tensor:
        return in_classes(state, self.num_classes).double()

    def _spread(self, onehot: Tensor, kept: Tensor) -> Tensor:
        kept = over_space(kept, onehot)
        return kept * onehot + (1 - kept) / self.num_classes

    def _from_later(self, noised: Tensor, at: Transition) -> Tensor:
        """Chance of x_t given every x_s, dims (..., case, *space, class)."""
        return self._spread(self._onehot(noised), at.between)

    def _law(self, weights: Tensor) -> Any:
        logits = weights.clamp(min=TINY).log().float()
        return dist.Categorical(logits=logits).to_event(self.spatial_dims)
