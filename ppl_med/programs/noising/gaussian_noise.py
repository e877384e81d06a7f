"""Normal noise on maps of numbers: images, or masks whose classes are numbers -1 and +1.

    x_t | x_0  ~  Normal(sqrt(kept_t) x_0, 1 - kept_t)

A step without random numbers, down the chain or up, leaves the noise that a state is said to have:

    x_s = composed(m, e, kept_s),    e = noise_in(x_t, m, kept_t),    m the mean of x_0 given x_t

A mask of two classes is one channel, -1 in the first class and +1 in the second; of K > 2 classes
K channels, +1 in the pixel's class and -1 in the others.

References: Ho, Jain and Abbeel, "Denoising diffusion probabilistic models", NeurIPS 2020 (eqs. 4
and 7); without random numbers: Song, Meng and Ermon, "Denoising diffusion implicit models", ICLR
2021 (eq. 12, sigma = 0).
"""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_med.axes import SPACE
from ppl_med.checks import choice, whole
from ppl_med.programs.noising.chain import Chain, Form, Transition, in_classes, over_space
from ppl_med.programs.noising.schedules import Schedule


class NormalNoise(Chain):
    """The process over maps of numbers (case, channel, *space), such as images.

    Args:
        num_channels: Channels of a map.
        num_steps: T.
        schedule: Of the kept share, see ``signal_kept``.
        hardening: See ``signal_kept``.
        form: See ``Chain``.
        bound_steps: See ``Chain``.
        spatial_dims: 2 for images, 3 for volumes.
    """

    def __init__(
        self,
        num_channels: int,
        num_steps: int,
        schedule: Schedule = "cosine",
        hardening: float = 1.0,
        form: Form = "fast",
        bound_steps: int = 1,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__(num_steps, schedule, hardening, form, bound_steps)
        self.num_channels = whole("num_channels", num_channels)
        self.spatial_dims = choice("spatial_dims", spatial_dims, SPACE)

    @property
    def event(self) -> tuple[str, ...]:
        """Channel and the spatial axes."""
        return ("channel", *SPACE[self.spatial_dims])

    def encode(self, mask: Tensor) -> Tensor:
        """The numbers themselves."""
        return mask.float()

    def seen(self, mask: Tensor) -> Tensor:
        """Everywhere, bool (case, 1, *space)."""
        return torch.ones_like(mask[:, :1], dtype=torch.bool)

    def start(self, image: Tensor) -> Any:
        """Standard normals."""
        shape = (len(image), self.num_channels, *image.shape[2:])
        return self._law(
            torch.zeros(shape, device=image.device), torch.ones((), device=image.device)
        )

    def noised(self, state: Tensor, kept: Tensor, seen: Tensor) -> Any:
        """The law of x_t given x_0."""
        kept = over_space(kept, state) * seen  # rounded last: little is gone after one step
        return self._law(kept.sqrt().float() * state, (1 - kept).sqrt().float())

    def posterior(self, noised: Tensor, state: Tensor, at: Transition, seen: Tensor) -> Any:
        """The law of x_s given x_t and x_0, whose variance is the least that a reverse step has."""
        scale = over_space(self.least_variance(at).sqrt(), noised).float()
        mean = self.mean(noised, state, at) * seen
        return self._law(mean, torch.where(seen, scale, torch.ones_like(scale)))

    def mean(self, noised: Tensor, state: Tensor, at: Transition) -> Tensor:
        """Mean of x_s given x_t and x_0, dims as x_t."""
        beta, rest = 1 - at.between, 1 - at.later
        of_state = at.earlier.sqrt() * beta / rest
        of_noised = at.between.sqrt() * (1 - at.earlier) / rest
        return over_space(of_state, noised).float() * state + (
            over_space(of_noised, noised).float() * noised
        )

    def least_variance(self, at: Transition) -> Tensor:
        """Variance of x_s given x_t and x_0: right where x_0 is known, dims as the steps."""
        return (1 - at.earlier) / (1 - at.later) * (1 - at.between)

    def most_variance(self, at: Transition) -> Tensor:
        """Variance of x_t given x_s: right where x_0 is standard normal, dims as the steps."""
        return 1 - at.between

    def _law(self, mean: Tensor, scale: Tensor) -> Any:
        return dist.Normal(mean, scale.expand_as(mean)).to_event(1 + self.spatial_dims)


class GaussianNoise(NormalNoise):
    """The process over masks of K classes; a state is a map of numbers (case, channel, *space).

    Args:
        num_classes: K.
        num_steps: T.
        schedule: Of the kept share, see ``signal_kept``.
        hardening: See ``signal_kept``.
        form: See ``Chain``.
        bound_steps: See ``Chain``.
        spatial_dims: 2 for images, 3 for volumes.

    Attributes:
        num_channels: Channels of a state.
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
        channels = 1 if whole("num_classes", num_classes, 2) == 2 else num_classes
        super().__init__(channels, num_steps, schedule, hardening, form, bound_steps, spatial_dims)
        self.num_classes = num_classes

    def encode(self, mask: Tensor) -> Tensor:
        """Classes as numbers -1 and +1, dims (case, channel, *space)."""
        return signed(mask, self.num_classes, self.spatial_dims)

    def seen(self, mask: Tensor) -> Tensor:
        """Where a mask is known, bool (case, 1, *space)."""
        return (mask >= 0).unsqueeze(1)


def composed(clean: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    """The state of an x_0 and a noise at a step; ``kept`` is that of the step, one number."""
    return kept.sqrt() * clean + (1 - kept).sqrt() * noise


def noise_in(state: Tensor, clean: Tensor, kept: Tensor) -> Tensor:
    """The noise in a state of this x_0, dims as the state; not at step 0, which has none."""
    return (state - kept.sqrt() * clean) / (1 - kept).sqrt()


def clean_in(state: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    """The x_0 in a state of this noise, dims as the state."""
    return (state - (1 - kept).sqrt() * noise) / kept.sqrt()


def signed(mask: Tensor, num_classes: int, spatial_dims: int) -> Tensor:
    """Classes as numbers -1 and +1, dims (..., channel, *space).

    Args:
        mask: Dims (..., *space); -1, not known, is as the first class.
        num_classes: Two are one channel, -1 in the first class; more are a channel each.
        spatial_dims: 2 for images, 3 for volumes.
    """
    mask = mask.clamp(min=0)
    if num_classes == 2:
        return (2 * mask.float() - 1).unsqueeze(-1 - spatial_dims)
    return (2 * in_classes(mask, num_classes).float() - 1).movedim(-1, -1 - spatial_dims)
