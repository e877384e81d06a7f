"""Categorical diffusion: masks out of noise, one Pyro site a step, the weights of the net random.

Program, for a case with image x and T steps:

    weights              ~  prior                                   one vector for all cases
    x_T                  ~  uniform classes                         every pixel
    x_(t-1) | x_t, x     ~  sum_k p(k | x_t, x) q(x_(t-1) | x_t, x_0 = k)         t = T, ..., 2
    mask | x_1, x        ~  Categorical(p(. | x_1, x))

    p(k | x_t, x)  proportional to  exp(net(x, x_t, t; weights)_k) q(x_t | x_0 = k)

so the net says what the image and the other pixels tell; what the pixel itself tells is known.

Sites and their dimensions: weights (weight); x<t> (case, row, col), integer classes, not stored;
mask (case, row, col) or (case, depth, row, col), integer in 0..K-1, or -1 where not
annotated. Training by one random step (``form="fast"``) has x<T>, at_step, noised, earlier and
mask, see ``ppl_med.programs.noising.chain``.

Guide: ``Guides(weight_guide, Noising(model.noising))``. Only a bound of the log-density of a mask
is known: ``predict`` stores that as ``evidence_bound/mask``, and no log-likelihood.

Input: ``image`` (case, channel, row, col) or (case, channel, depth, row, col), float, standardised.

References: Austin et al., NeurIPS 2021 (D3PM); Zbinden et al., ICCV 2023 (masks of several
graders). Departs from them: the reverse step is the exact average over the net's p(x_0), in
training and sampling; the loss is the bound itself; the weights are random.
"""

from collections.abc import Sequence
from typing import Any

import pyro
from torch import Tensor, nn

from ppl_med.checks import finite
from ppl_med.models.denoising_chain import DenoisingChain
from ppl_med.programs.noising import CategoricalNoise, Form, Schedule, Transition, in_classes
from ppl_med.weights import Prior, Where


class CategoricalDiffusion(DenoisingChain):
    """The joint p(mask, x_1, ..., x_T, weights | image).

    Args:
        net: ``networks.DenoisingUNet`` with K noised channels and K outputs, or any other net that
            is called as it is.
        classes: Class names, the background first, K of them.
        num_steps: T.
        sampling_steps: Steps in which ``predict`` goes through the chain, evenly spaced; None for
            T. Fewer make another model of the same net, whose masks are less true.
        schedule: See ``programs.noising.signal_kept``.
        hardening: See ``programs.noising.signal_kept``; the larger the regions, the smaller.
        form: "fast": training takes one random step of every case; "slow": the whole chain, T
            times the cost of the same bound.
        bound_steps: Steps of every case by which ``predict`` estimates the bound.
        guess_weight: Training adds this times log p(mask | x_t, x), the mean over steps: the
            auxiliary loss of Austin et al. (eq. 5). At the best net it changes nothing; before, it
            teaches steps of nearly pure noise, whose terms of the bound are tiny though they
            decide what samples become. With it the loss is no bound, and the posterior over the
            weights a generalised one; 0 leaves it out.
        prior: Prior over the random weights; He-scaled normals by default.
        where: Which parameters are random; see ``RandomWeights``.
        spatial_dims: 2 for images, 3 for volumes.

    Raises:
        ValueError: On numbers of steps that do not fit each other, or unknown choices; on a run, if
            the net's output does not fit.
    """

    noising: CategoricalNoise

    def __init__(
        self,
        net: nn.Module,
        classes: Sequence[str],
        num_steps: int = 100,
        sampling_steps: int | None = None,
        schedule: Schedule = "cosine",
        hardening: float = 1.0,
        form: Form = "fast",
        bound_steps: int = 1,
        guess_weight: float = 0.0,
        prior: Prior | None = None,
        where: Where = None,
        spatial_dims: int = 2,
    ) -> None:
        noising = CategoricalNoise(
            len(classes), num_steps, schedule, hardening, form, bound_steps, spatial_dims
        )
        super().__init__(net, classes, noising, len(classes), sampling_steps, prior, where)
        self.guess_weight = finite("guess_weight", guess_weight, 0)
        if guess_weight:
            self.training_loss = (
                f"bound + {guess_weight:g} x log-probability of the mask given a noised one"
            )

    def settings(self) -> str:
        """What a resumed run must share."""
        return f"CategoricalDiffusion(guess_weight={self.guess_weight:g})"

    def assist(self, found: Tensor, value: Tensor) -> None:
        """Add the weighted log-probability of the mask to the bound."""
        if self.guess_weight:
            law = self.likelihood.distribution(found).to_event(self.noising.spatial_dims)
            weight = self.guess_weight / self.noising.num_steps
            pyro.factor("guess", weight * law.log_prob(value))

    def shown(self, state: Tensor) -> Tensor:
        """Classes as numbers -1 and 1, one channel a class."""
        onehot = in_classes(state, self.noising.num_classes).float()
        return 2 * onehot.movedim(-1, -1 - self.noising.spatial_dims) - 1

    def reverse(self, output: Tensor, state: Tensor, at: Transition) -> Any:
        """The exact average over what the mask may be."""
        probs = self.read_mask(output, state, at.later).softmax(-1 - self.noising.spatial_dims)
        return self.noising.reverse(state, probs.movedim(-1 - self.noising.spatial_dims, -1), at)

    def read_mask(self, output: Tensor, state: Tensor, kept: Tensor) -> Tensor:
        """Logits of p(mask | state, image): the net's, and what the pixel's own state tells."""
        told = self.noising.log_weight(state, kept).to(output.dtype)
        return output + told.movedim(-1, -1 - self.noising.spatial_dims)
