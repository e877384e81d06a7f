"""Reverse steps out of normal noise: what models of masks and of images share.

    x_(t-1) | x_t  ~  Normal(a_t m + b_t x_t, v_t),    m the net's mean of x_0

``ppl_med.models.GaussianDiffusion`` says what a_t, b_t and v_t are.
"""

from typing import Any, Literal

import pyro.distributions as dist
from torch import Tensor

from ppl_med.programs.noising import NormalNoise, Transition, over_space

Target = Literal["x", "v"]
Variance = Literal["learnt", "least", "most"]


class GaussianSteps:
    """Reads a net's output as the mean of x_0, and makes the law of a step of it.

    Attributes:
        noising: The process whose steps are undone.
        target: What the net gives: "x", the mean of x_0, or "v", the velocity.
        variance: Of a step: "learnt", or "least" or "most" of its two ends.
    """

    noising: NormalNoise
    target: Target
    variance: Variance

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

    def _parts(self, output: Tensor) -> tuple[Tensor, Tensor]:
        channels = self.noising.num_channels
        axis = -1 - self.noising.spatial_dims
        return output.narrow(axis, 0, channels), output.narrow(
            axis, output.shape[axis] - channels, channels
        )
