"""Gradient methods, which need no more of a network than its gradient.

    saliency               a(x) = ∇f(x)                                   signed
    input × gradient       a(x) = x · ∇f(x)
    integrated gradients   a(x) = ∫₀¹ ∇f(γ(t)) · γ'(t) dt                 γ from the baseline to x
    SmoothGrad             a(x) = E ∇f(x + ε),  ε ~ Normal(0, σ²)
    VarGrad                a(x) = Var ∇f(x + ε)

Integrated gradients are complete: Σ a(x) = f(x) - f(baseline). The straight path is integrated by
the Gauss-Legendre rule; any other by the midpoint rule on its increments, which needs no derivative
of the path.

References: Simonyan, Vedaldi and Zisserman, "Deep inside convolutional networks", 2014; Shrikumar
et al., "Not just a black box", 2016; Sundararajan, Taly and Yan, "Axiomatic attribution for deep
networks", ICML 2017; Smilkov et al., "SmoothGrad", 2017; Adebayo et al., "Local explanation methods
for deep neural networks lack sensitivity to parameter values", 2018.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ppl_med.checks import finite, reject, whole
from ppl_med.explain.attribution.draw_groups import DrawGroup, in_batches
from ppl_med.explain.attribution.method import Maps, Method, Task
from ppl_med.explain.function_checks import per_case

Path = Callable[[Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class Saliency(Method):
    """The signed gradient."""

    name = "saliency"
    unit = "{} per unit of intensity"
    takes_groups = True
    is_linear = True

    def maps(self, draws: DrawGroup, task: Task) -> Maps:
        """One gradient per case."""
        return Maps(in_batches(draws.gradient, task.image, task.rows, task.batch_size))


@dataclass(frozen=True)
class InputXGradient(Method):
    """The gradient times the image, both at the image."""

    name = "input_x_gradient"
    takes_groups = True
    is_linear = True

    def maps(self, draws: DrawGroup, task: Task) -> Maps:
        """One gradient per case; ``conservation`` is Σ attribution / f(image)."""
        slope = in_batches(draws.gradient, task.image, task.rows, task.batch_size)
        value = in_batches(draws.value, task.image, task.rows, task.batch_size)
        maps = task.image * slope
        return Maps(maps, checks={"conservation": maps.flatten(2).sum(2) / value})


@dataclass(frozen=True)
class IntegratedGradients(Method):
    """Gradients integrated along a path from the baseline to the image.

    Attributes:
        steps: Nodes of the rule.
        path: ``"straight"``, or a function (baseline, image, t) to the images at t in 0 to 1,
            with path(baseline, image, 1) = image; what it starts from takes the baseline's place.
    """

    steps: int = 32
    path: Literal["straight"] | Path = "straight"
    name = "integrated_gradients"
    is_complete = True
    uses_baseline = True
    takes_groups = True
    is_linear = True
    advice = "raise steps"

    @property
    def points_per_case(self) -> int:
        """All nodes of the rule."""
        return self.steps

    def validate(self, image: Tensor) -> None:
        """Raise unless the options are a count and a known path."""
        whole("steps", self.steps)
        if not (callable(self.path) or self.path == "straight"):
            reject("path", "'straight' or a function", self.path)

    def maps(self, draws: DrawGroup, task: Task) -> Maps:
        """Sum over nodes, as many at once as a batch holds."""
        total: Any = 0.0
        for points, increments in self._nodes(task):
            num = len(points)
            slope = draws.gradient(points.flatten(0, 1), task.rows.repeat(num))
            slope = slope.unflatten(1, (num, len(task.rows)))
            total = total + (slope * increments).sum(1, dtype=torch.float64)
        start = self._at(task, 0.0)
        ends = [in_batches(draws.value, x, task.rows, task.batch_size) for x in (task.image, start)]
        return Maps(total, total=ends[0].double() - ends[1].double())

    def _nodes(self, task: Task) -> Any:
        """Yield points and increments of the path, each (node, case, channel, ...)."""
        at_once = max(1, task.batch_size // len(task.rows))
        difference = task.image - task.baseline
        nodes, weights = np.polynomial.legendre.leggauss(self.steps)
        for first in range(0, self.steps, at_once):
            part = range(first, min(first + at_once, self.steps))
            if self.path == "straight":
                points = [self._at(task, (nodes[k] + 1) / 2) for k in part]
                increments = [difference * (weights[k] / 2) for k in part]
            else:
                points = [self._at(task, (k + 0.5) / self.steps) for k in part]
                edges = [self._at(task, k / self.steps) for k in (*part, part.stop)]
                increments = [edges[i + 1] - edges[i] for i in range(len(part))]
            yield torch.stack(points), torch.stack(increments)

    def _at(self, task: Task, t: float) -> Tensor:
        if not callable(self.path):
            return task.baseline + t * (task.image - task.baseline)
        point = self.path(task.baseline, task.image, float(t))
        if point.shape != task.image.shape:
            raise ValueError(
                f"path returned {tuple(point.shape)} for images {tuple(task.image.shape)}"
            )
        if t == 1.0 and not torch.allclose(point, task.image, atol=1e-4):
            raise ValueError("path does not end at the image: path(baseline, image, 1) differs")
        return point.detach()


@dataclass(frozen=True)
class SmoothGrad(Method):
    """Mean gradient under normal noise on the image, the same noise for every draw.

    Attributes:
        samples: Noisy copies of a case.
        noise_scale: Standard deviation of the noise, as a share of the case's intensity range.
        seed: Seed of the noise.
    """

    samples: int = 32
    noise_scale: float = 0.15
    seed: int = 0
    name = "smooth_grad"
    unit = "{} per unit of intensity"
    takes_groups = True
    is_linear = True

    def validate(self, image: Tensor) -> None:
        """Raise unless the options are counts and a scale from 0."""
        whole("samples", self.samples)
        finite("noise_scale", self.noise_scale, 0)

    def maps(self, draws: DrawGroup, task: Task) -> Maps:
        """The mean; ``noise_error`` is the root mean square over pixels of its standard error."""
        mean, variance = self._moments(draws, task)
        error = (variance / self.samples).flatten(2).mean(2).sqrt()
        return Maps(mean, checks={"noise_error": error})

    def _moments(self, draws: DrawGroup, task: Task) -> tuple[Tensor, Tensor]:
        """Mean and variance of the gradient over noise, by Welford's update."""
        flat = task.image.flatten(1)
        spread = per_case(self.noise_scale * (flat.max(1).values - flat.min(1).values), task.image)
        # A generator for each case, so that the batch size does not change the noise.
        generators = [torch.Generator().manual_seed(self.seed + int(row)) for row in task.rows]
        mean: Any = torch.zeros((), dtype=torch.float64, device=task.image.device)
        squares: Any = mean
        for count in range(1, self.samples + 1):
            noise = torch.stack(
                [torch.randn(task.image.shape[1:], generator=g) for g in generators]
            ).to(task.image)
            points = task.image + spread * noise
            slope = in_batches(draws.gradient, points, task.rows, task.batch_size).double()
            difference = slope - mean
            mean = mean + difference / count
            squares = squares + difference * (slope - mean)
        return mean, squares / max(self.samples - 1, 1)


@dataclass(frozen=True)
class VarGrad(SmoothGrad):
    """Variance of the gradient under normal noise on the image; never negative."""

    name = "var_grad"
    unit = "({} per unit of intensity)²"
    is_linear = False

    def validate(self, image: Tensor) -> None:
        """Raise unless there are two samples or more."""
        super().validate(image)
        whole("samples", self.samples, 2)

    def maps(self, draws: DrawGroup, task: Task) -> Maps:
        """The variance; ``noise_error`` is that of a variance of normal gradients."""
        _, variance = self._moments(draws, task)
        error = variance * (2 / (self.samples - 1)) ** 0.5
        return Maps(variance, checks={"noise_error": error.flatten(2).square().mean(2).sqrt()})
