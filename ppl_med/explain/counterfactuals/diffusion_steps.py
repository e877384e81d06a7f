"""Deterministic steps through a diffusion chain: an image to its code, and a code to an image.

With m the net's mean of the image given x_t and kept_t the share of signal, the noise in x_t is

    e = (x_t - sqrt(kept_t) m) / sqrt(1 - kept_t)

and a step to s, earlier or later, keeps it:

    x_s = sqrt(kept_s) (x_t - sqrt(1 - kept_t) e) / sqrt(kept_t) + sqrt(1 - kept_s) e

Down the chain this generates. Up it inverts, with the noise of the state that is left in the place
of the one that is reached, so the way back does not end where it began: its error falls as the
number of steps grows. Corrections solve each step of the way up for the state whose step down leads
back, by as many fixed-point iterations.

References: Song, Meng and Ermon, "Denoising diffusion implicit models", ICLR 2021 (eqs. 12 to 14);
corrections: Pan et al., "Effective real image editing with accelerated iterative diffusion
inversion", ICCV 2023; guidance: Dhariwal and Nichol, NeurIPS 2021 (algorithm 2), by the slope of a
classifier at the mean: Chung et al., "Diffusion posterior sampling", ICLR 2023 (eq. 16).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_med.programs.noising import clean_in, composed, noise_in

Slope = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Denoiser:
    """A chain's net under one draw of its weights, and the steps to go.

    Attributes:
        mean: Mean of the image given x_t and t, from 1 to T.
        kept: Share of signal after 0, ..., T steps.
        pairs: Later and earlier step, from the code down to the image, whose step is 0.
    """

    mean: Callable[[Tensor, int], Tensor]
    kept: Tensor
    pairs: list[tuple[int, int]]

    def noise_in(self, state: Tensor, step: int, mean: Tensor) -> Tensor:
        """The noise in x_t, given the mean of the image."""
        return noise_in(state, mean, self.kept[step])

    def moved(self, state: Tensor, noise: Tensor, start: int, end: int) -> Tensor:
        """The state at another step that has the same noise."""
        clean = clean_in(state, noise, self.kept[start])
        return composed(clean, noise, self.kept[end])


@torch.no_grad()
def invert(denoiser: Denoiser, image: Tensor, corrections: int = 0) -> Tensor:
    """The code of images: up the chain, deterministically. Dims as the image.

    The image itself has no noise for the net to find; of it the net is asked at step 1.
    """
    state = image
    for later, earlier in reversed(denoiser.pairs):
        asked = max(earlier, 1)
        seen = state if earlier else denoiser.kept[1].sqrt() * state
        noise = denoiser.noise_in(seen, asked, denoiser.mean(seen, asked))
        above = denoiser.moved(state, noise, earlier, later)
        for _ in range(corrections):
            noise = denoiser.noise_in(above, later, denoiser.mean(above, later))
            above = denoiser.moved(state, noise, earlier, later)
        state = above
    return state


@torch.no_grad()
def generate(denoiser: Denoiser, code: Tensor) -> Tensor:
    """The images of codes: down the chain, deterministically. Dims as the code."""
    state = code
    for later, earlier in denoiser.pairs:
        mean = denoiser.mean(state, later)
        noise = denoiser.noise_in(state, later, mean)
        state = composed(mean, noise, denoiser.kept[earlier])
    return state


def generate_towards(
    denoiser: Denoiser, code: Tensor, loss_and_slope: Slope, scale: float
) -> Tensor:
    """The images of codes, pulled on the way by a class: ``scale`` times the slope of log p.

    Args:
        denoiser: The chain.
        code: Dims as the image.
        loss_and_slope: ``-log p(class | image)``, dims (case,), and its slope in the image.
        scale: Weight of the classifier; 1 is Bayes' rule, where the classifier at the mean of the
            image stands for the one of x_t.

    Returns:
        Dims as the code.
    """
    state = code
    for later, earlier in denoiser.pairs:
        with torch.enable_grad():
            point = state.detach().clone().requires_grad_()
            mean = denoiser.mean(point, later)
        _, slope = loss_and_slope(mean.detach())
        (push,) = torch.autograd.grad(mean, point, slope.to(mean))
        noise = denoiser.noise_in(state, later, mean.detach())
        noise = noise + scale * (1 - denoiser.kept[later]).sqrt() * push
        state = denoiser.moved(state, noise, later, earlier)
    return state
