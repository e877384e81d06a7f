"""Uniform noise of classes: at every step, a pixel is replaced by a random class, or left.

    x_t | x_0  ~  Categorical(kept_t onehot(x_0) + (1 - kept_t) / K)

Reference: Austin et al., "Structured denoising diffusion models in discrete state-spaces", NeurIPS
2021; of masks: Zbinden et al., "Stochastic segmentation with conditional categorical diffusion
models", ICCV 2023.
"""

from typing import Any

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
)
from ppl_med.programs.noising.class_map import TINY, ClassMap
from ppl_med.programs.noising.schedules import Schedule


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

    def signal(self) -> Tensor:
        """The root of the chance that a pixel in a class of x_t has it of x_0, T + 1 of them.

        The evidence of a region for one class grows with this; see ``networks.DenoisingUNet``.
        """
        told = self.num_classes * self.kept
        return (told / (told + 1 - self.kept)).sqrt()

    def start(self, image: Tensor) -> Any:
        """Uniform classes."""
        shape = (len(image), *image.shape[2:], self.num_classes)
        return self._law(torch.ones(shape, dtype=self._kind, device=image.device))

    def noised(self, state: Tensor, kept: Tensor, seen: Tensor) -> Any:
        """The law of x_t given x_0, in which the class of a pixel is kept or drawn anew."""
        return self._law(self._known(self._spread(self._onehot(state), kept), seen))

    def posterior(self, noised: Tensor, state: Tensor, at: Transition, seen: Tensor) -> Any:
        """The law of x_s given x_t and x_0: both say something about each pixel."""
        later = self._spread(self._onehot(noised), at.between)
        both = later * self._spread(self._onehot(state), at.earlier)
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
        # The weight of x_0 = k in q(x_s | x_t, x_0 = k) is its chance to have come to x_t.
        other, same = self._chances(at.later)
        weight = probs.to(onehot) * _by_class(onehot, 1 / other, 1 / same)
        other, same = self._chances(at.earlier)
        total = weight.sum(-1, keepdim=True) * over_space(other, onehot).to(onehot)
        earlier = total + weight * over_space(same - other, onehot).to(onehot)
        return self._law(self._spread(onehot, at.between) * earlier)

    def log_weight(self, noised: Tensor, kept: Tensor) -> Tensor:
        """Log q(x_t | x_0 = k) of every class k, dims (..., case, *space, class): what x_t says."""
        other, same = self._chances(kept)
        return _by_class(self._onehot(noised), other.clamp(min=TINY).log(), same.log())

    @property
    def _kind(self) -> torch.dtype:
        return torch.float32 if self.training else torch.float64

    def _chances(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Chance of any other class, and of the same one, where a share is kept."""
        other = (1 - kept) / self.num_classes
        return other, kept + other

    def _known(self, weights: Tensor, seen: Tensor) -> Tensor:
        """The same where the mask is known; any class where it is not."""
        return torch.where(seen.unsqueeze(-1), weights, torch.ones_like(weights))

    def _onehot(self, state: Tensor) -> Tensor:
        return in_classes(state, self.num_classes).to(self._kind)

    def _spread(self, onehot: Tensor, kept: Tensor) -> Tensor:
        """Chance of every class where a share of a state is kept, dims (..., class)."""
        return _by_class(onehot, *self._chances(kept))

    def _law(self, weights: Tensor) -> Any:
        return ClassMap(probs=weights).to_event(self.spatial_dims)


def _by_class(onehot: Tensor, other: Tensor, same: Tensor) -> Tensor:
    """One number (..., case) at the class of a pixel and another at the other classes."""
    step = over_space(same - other, onehot).to(onehot)
    return over_space(other, onehot).to(onehot) + step * onehot
