"""Diffusion chains whose every step is known: of normal images, and of two classes of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ppl_med.programs.noising import NormalNoise


class NormalImages:
    """Images with independent normal intensities, and the best denoiser of them."""

    def __init__(self, mean: Tensor, variance: float) -> None:
        self.mean, self.variance = mean, variance

    def posterior_mean(self, state: Tensor, kept: Tensor) -> Tensor:
        """Mean of the image given x_t, which is linear in it."""
        gain = kept.sqrt() * self.variance / (kept * self.variance + 1 - kept)
        return self.mean + gain * (state - kept.sqrt() * self.mean)


class TwoClasses:
    """Images of two classes, as many of each, that differ in their mean alone."""

    def __init__(self, means: Tensor, variance: float) -> None:
        self.means, self.variance = means, variance
        self.parts = [NormalImages(mean, variance) for mean in means]

    def log_odds(self, image: Tensor) -> Tensor:
        """Of class 1, dims (case), by Bayes' rule."""
        slope = (self.means[1] - self.means[0]) / self.variance
        return ((image - self.means.mean(0)) * slope).flatten(1).sum(1)

    def posterior_mean(self, state: Tensor, kept: Tensor) -> Tensor:
        """Of both classes, each weighed by its probability given x_t."""
        spread = kept * self.variance + 1 - kept
        far = [(state - kept.sqrt() * mean).square().flatten(1).sum(1) for mean in self.means]
        weight = (-0.5 * torch.stack(far) / spread).softmax(0).view(2, -1, 1, 1, 1)
        means = torch.stack([part.posterior_mean(state, kept) for part in self.parts])
        return (weight * means).sum(0)

    def sample(self, label: Tensor) -> Tensor:
        """One image of each label."""
        mean = self.means[label]
        return mean + self.variance**0.5 * torch.randn_like(mean)


class _Network:
    def drawn(self, num_examples: int) -> Callable[..., Any]:
        return lambda *inputs: None


class KnownChain(nn.Module):
    """What ``diffusion_counterfactual`` needs of a model, with a known denoiser for its net."""

    def __init__(self, images: Any, num_steps: int) -> None:
        super().__init__()
        self.images, self.network = images, _Network()
        self.noising = NormalNoise(1, num_steps)

    def mean_image(self, net: Any, state: Tensor, step: int) -> Tensor:
        """Dims as the state."""
        found: Tensor = self.images.posterior_mean(state, self.noising.kept[step])
        return found


def no_guide(image: Tensor) -> None:
    """A guide for a net without random weights."""
