"""SWAG: a normal with the moments of the points that training visits late in its course.

    weights  ~  Normal( mean, 1/2 diag(variance) + 1/(2 (K - 1)) D D' )

``mean`` and ``variance`` are those of iterates evenly spaced over the last part of training, the
columns of D the last K of them less the mean so far. While it trains, it is the point estimate that
``fit`` moves, so choose a constant learning rate, high enough that the iterates move about: under
one that falls to 0 they stand still, and so does the posterior.

It is no exact posterior: the spread is that of the optimizer's noise, which step size, batch size
and optimizer set as much as the data do, and nothing corrects it for the prior, which is a penalty
in training alone. Running statistics of BatchNorm are those of the last step, for all draws.

Reference: Maddox et al., "A simple baseline for Bayesian uncertainty in deep learning", NeurIPS
2019, eq. 1 and algorithm 1.
"""

import math
from typing import Any

import torch
from pyro.distributions import LowRankMultivariateNormal
from torch import Tensor, nn

from ppl_med.checks import inside, reject, whole
from ppl_med.inference.guides.weight_guide import WeightGuide, WeightPart
from ppl_med.weights import FlatDistribution, FlatPoint, RandomWeights
from ppl_med.weights.distributions import Shape

SMALLEST_VARIANCE = 1e-12  # of a weight that never moved, in the density alone


class FlatIterates(FlatDistribution):
    """The normal above; its density is computed in double precision.

    Args:
        mean: Dims (weight,).
        variance: Dims (weight,).
        deviations: D, dims (weight, K).
    """

    def __init__(self, mean: Tensor, variance: Tensor, deviations: Tensor) -> None:
        super().__init__(mean.numel())
        self.loc, self.diagonal = mean, 0.5 * variance
        self.factor = deviations / math.sqrt(2 * (deviations.shape[1] - 1))

    def _draw(self, shape: torch.Size) -> Tensor:
        own = torch.randn(shape).to(self.loc)
        shared = torch.randn((*shape[:-1], self.factor.shape[1])).to(self.loc)
        return self.loc + self.diagonal.sqrt() * own + shared @ self.factor.T

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008
        """Draws of the vector."""
        return self._draw(self._extended_shape(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of the vector, in nats."""
        diagonal = self.diagonal.double().clamp_min(SMALLEST_VARIANCE)
        q: Any = LowRankMultivariateNormal(self.loc.double(), self.factor.double(), diagonal)
        return q.log_prob(value.double())


class _IteratesPart(WeightPart):
    mean: Tensor
    square: Tensor
    deviations: Tensor
    count: Tensor

    def __init__(
        self, weights: RandomWeights, use_prior: bool, start: float, iterates: int, rank: int
    ) -> None:
        super().__init__(weights)
        self.use_prior, self.start, self.iterates = use_prior, start, iterates
        value = weights.initial()
        self.value = nn.Parameter(value)
        self.register_buffer("mean", torch.zeros_like(value, dtype=torch.float64))
        self.register_buffer("square", torch.zeros_like(value, dtype=torch.float64))
        self.register_buffer("deviations", value.new_zeros((len(value), rank)))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def center(self) -> Tensor:
        return self.mean.to(self.value) if int(self.count) else self.value

    def forward(self) -> FlatDistribution:
        if self.training or int(self.count) < 2:
            return FlatPoint(self.value, use_prior=self.use_prior)
        variance = (self.square - self.mean.square()).clamp_min(0)
        used = min(int(self.count), self.deviations.shape[1])
        mean, variance = self.mean.to(self.value), variance.to(self.value)
        return FlatIterates(mean, variance, self.deviations[:, :used])

    def shortfall(self) -> str | None:
        """What ``fit`` warns of: fewer than two iterates, which have no spread."""
        if (count := int(self.count)) >= 2:
            return None
        return (
            f"SWAG has {count} iterates of the training, so that its posterior is a point: the "
            "training ended, or the epoch that is kept came, before there were two from the "
            f"finished fraction start={self.start:g} on; lower start, train longer, or leave "
            "stopping and keep='best' out"
        )

    def follow(self, done: float) -> None:
        """Take the present point where the time has come, at a finished fraction of the run."""
        due = math.floor((done - self.start) / (1 - self.start) * self.iterates + 1e-9)
        count = int(self.count)
        if count > due + 1 or due < 1:  # a run that was made longer collects anew
            self.count.zero_()
            count = 0
        if due <= count:
            return
        value, share = self.value.detach(), 1 / (count + 1)
        self.mean.lerp_(value.double(), share)
        self.square.lerp_(value.double().square(), share)
        self.deviations[:, count % self.deviations.shape[1]] = (value - self.mean).to(value)
        self.count.add_(1)


class SWAG(WeightGuide):
    """A normal from the iterates of training.

    Args:
        model: A model with ``RandomWeights``.
        use_prior: Whether the prior is a penalty in training, as in ``PointEstimate``.
        start: Finished fraction of the run from which iterates count, in [0, 1).
        iterates: How many are taken, evenly spaced from there to the end, or as many as there are
            steps.
        rank: K, how many of the last of them give correlations, from 2 to ``iterates``.

    Raises:
        ValueError: On an argument that does not fit.
    """

    def __init__(
        self,
        model: Any,
        *,
        use_prior: bool = True,
        start: float = 0.5,
        iterates: int = 40,
        rank: int = 20,
    ) -> None:
        if start != 0:
            inside("start", start)
        iterates = whole("iterates", iterates, least=2)
        rank = whole("rank", rank, least=2)
        if rank > iterates:
            reject("rank", f"at most iterates, {iterates}", rank)
        super().__init__(
            model, lambda found: _IteratesPart(found, use_prior, start, iterates, rank)
        )

    @torch.no_grad()
    def follow_step(self, done: float) -> None:
        """Called by ``fit`` after every step, with the finished fraction of the run."""
        for part in self.parts.values():
            part.follow(done)  # type: ignore[operator]
