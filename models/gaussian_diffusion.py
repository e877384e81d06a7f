"""Gaussian diffusion: masks as numbers -1 and +1 out of normal noise, the net's weights random.

Program, for a case with image x and T steps:

    weights             ~  prior                               one vector for all cases
    x_T                 ~  Normal(0, 1)                        every pixel
    x_(t-1) | x_t, x    ~  Normal(a_t m + b_t x_t, v_t)        t = T, ..., 2
    mask | x_1, x       ~  Categorical(softmax(c m))           c > 0 is learnt

where m = m(x, x_t, t; weights) is the net's mean of x_0, a_t and b_t make the posterior mean of the
noising process out of it, and the variance lies between the posterior's and the process's own,

    log v_t = u log beta_t + (1 - u) log (beta_t (1 - kept_(t-1)) / (1 - kept_t)),

u in (0, 1) a second output of the net. With ``variance="least"`` it is the smaller one, which costs
about a nat a pixel at 25 steps where a pixel's own law is a normal; with "most" the larger.

Sites and their dimensions: weights (weight); x<t> (case, channel, row, col), not stored; mask
(case, row, col) or (case, depth, row, col), integer in 0..K-1, or -1 where not
annotated. Training by one random step as in ``ppl_med.programs.noising.chain``.

Guide: ``Guides(weight_guide, Noising(model.noising))``. Only a bound of the log-density of a mask
is known: ``predict`` stores that as ``evidence_bound/mask``, and no log-likelihood.

Input: ``image`` (case, channel, row, col) or (case, channel, depth, row, col), float, standardised.

References: Ho, Jain and Abbeel, NeurIPS 2020; learnt variance: Nichol and Dhariwal, ICML 2021
(eq. 15); targets: Salimans and Ho, ICLR 2022. Departs from them: the loss is the bound itself, not
its reweighted form; the last step gives classes; the weights are random.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_med.checks import choice
from ppl_med.models.denoising_chain import DenoisingChain
from ppl_med.programs.noising import Form, GaussianNoise, Schedule, Transition, over_space
from ppl_med.weights import Prior, Where

Target = Literal["x", "v"]
Variance = Literal["learnt", "least", "most"]


class GaussianDiffusion(DenoisingChain):
    """The joint p(mask, x_1, ..., x_T, weights | image).

    Args:
        net: ``networks.DenoisingUNet`` with C noised channels and C outputs, 2 C where the variance
            is learnt, or any other net that is called as it is. C is 1 for two classes, else K.
        classes: Class names, the background first, K of them.
        num_steps: T.
        sampling_steps: Steps in which ``predict`` goes through the chain, evenly spaced; None for
            T. Fewer make another model of the same net, whose masks are less true.
        target: What the net gives: "x", the mean of x_0, or "v", the velocity sqrt(kept) noise -
            sqrt(1 - kept) x_0, out of which the mean is made.
        variance: Of a reverse step: "learnt", or "least" or "most" of the two ends.
        schedule: See ``programs.noising.signal_kept``.
        hardening: See ``programs.noising.signal_kept``; the larger the regions, the smaller.
        form: "fast": training takes one random step of every case; "slow": the whole chain, T
            times the cost of the same bound.
        bound_steps: Steps of every case by which ``predict`` estimates the bound.
        prior: Prior over the random weights; He-scaled normals by default.
        where: Which parameters are random; see ``RandomWeights``.
        spatial_dims: 2 for images, 3 for volumes.

    Raises:
        ValueError: On numbers of steps that do not fit each other, or unknown choices; on a run, if
            the net's output does not fit.
    """

    noising: GaussianNoise

    def __init__(
        self,
        net: nn.Module,
        classes: Sequence[str],
        num_steps: int = 100,
        sampling_steps: int | None = None,
        target: Target = "x",
        variance: Variance = "learnt",
        schedule: Schedule = "cosine",
        hardening: float = 1.0,
        form: Form = "fast",
        bound_steps: int = 1,
        prior: Prior | None = None,
        where: Where = None,
        spatial_dims: int = 2,
    ) -> None:
        noising = GaussianNoise(
            len(classes), num_steps, schedule, hardening, form, bound_steps, spatial_dims
        )
        choice("variance", variance, get_args(Variance))
        outputs = noising.num_channels * (2 if variance == "learnt" else 1)
        super().__init__(net, classes, noising, outputs, sampling_steps, prior, where)
        self.target, self.variance = choice("target", target, get_args(Target)), variance
        self.log_sharpness = nn.Parameter(torch.zeros(()))

    def reset_parameters(self) -> None:
        """Put the sharpness of the last step back to its start, as an ensemble does."""
        nn.init.zeros_(self.log_sharpness)

    def settings(self) -> str:
        """What a resumed run must share."""
        return f"GaussianDiffusion(target={self.target!r}, variance={self.variance!r})"

    def trained_for(self) -> dict[str, Any]:
        """How the net's output is read."""
        return {"target": self.target, "variance": self.variance}

    def shown(self, state: Tensor) -> Tensor:
        """The state itself."""
        return state

    def mean(self, output: Tensor, state: Tensor, kept: Tensor) -> Tensor:
        """The net's mean of x_0, dims as the state."""
        first, _ = self._parts(output)
        if self.target == "x":
            return first
        share = over_space(kept, state).to(first.dtype)
        return share.sqrt() * state - (1 - share).sqrt() * first

    def reverse(self, output: Tensor, state: Tensor, at: Transition) -> Any:
        """A normal around the posterior mean of the noising process at the net's mean of x_0."""
        mean = self.noising.mean(state, self.mean(output, state, at.later), at)
        least, most = (
            over_space(variance.log(), state).to(mean.dtype)
            for variance in (self.noising.least_variance(at), self.noising.most_variance(at))
        )
        if self.variance == "learnt":
            share = self._parts(output)[1].sigmoid()
            log_variance = share * most + (1 - share) * least
        else:
            log_variance = (least if self.variance == "least" else most).expand_as(mean)
        law = dist.Normal(mean, (0.5 * log_variance).exp())
        return law.to_event(1 + self.noising.spatial_dims)

    def read_mask(self, output: Tensor, state: Tensor, kept: Tensor) -> Tensor:
        """Logits of the mask: the mean of x_0 times a learnt sharpness."""
        mean = self.mean(output, state, kept) * self.log_sharpness.exp()
        axis = -1 - self.noising.spatial_dims
        return torch.cat([-mean, mean], axis) if self.noising.num_channels == 1 else mean

    def _parts(self, output: Tensor) -> tuple[Tensor, Tensor]:
        channels = self.noising.num_channels
        axis = -1 - self.noising.spatial_dims
        return output.narrow(axis, 0, channels), output.narrow(
            axis, output.shape[axis] - channels, channels
        )
