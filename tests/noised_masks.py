"""Chains of few states, and everything that can be summed over all of their paths."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ppl_med.inference import Guides, Noising, PointEstimate

Matrix = NDArray[np.float64]


class TableNet(nn.Module):
    """Logits by (t, x_t) from a table, and a part of every pixel's noise and of the image.

    Args:
        num_noised: Channels of a noised mask.
        num_outputs: Outputs.
        num_steps: T.
        size: Of the logits.
    """

    def __init__(self, num_noised: int, num_outputs: int, num_steps: int, size: float = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(11)
        table = torch.randn(num_steps + 1, num_noised, num_outputs, generator=generator)
        shared = torch.randn(num_noised, num_outputs, generator=generator)
        self.table, self.shared = nn.Parameter(size * table), nn.Parameter(size * shared)
        self.of_image = nn.Parameter(size * torch.randn(num_outputs, generator=generator))

    def forward(
        self,
        image: Tensor | None = None,
        *,
        features: Tensor | None = None,
        noised: Tensor | None = None,
        step: Tensor | None = None,
    ) -> Tensor:
        if image is not None:
            return image
        assert features is not None and noised is not None and step is not None
        at = (step * (len(self.table) - 1)).round().long()
        own = torch.einsum("nio,ni...->no...", self.table[at], noised)
        mean = noised.flatten(2).mean(-1) @ self.shared
        axes = [1] * (noised.dim() - 2)
        return own + mean.view(*mean.shape, *axes) + features * self.of_image.view(-1, *axes)


def point(model: Any) -> Guides:
    """One value for the weights, and the noising process."""
    return Guides(PointEstimate(model, use_prior=False), Noising(model.noising))


class Classes:
    """The chain of a ``CategoricalDiffusion`` by matrices, in NumPy, for one pixel.

    Args:
        kept: Share of the signal after every step.
        num_classes: K.
    """

    def __init__(self, kept: Any, num_classes: int) -> None:
        self.kept, self.num_classes = np.asarray(kept, float), num_classes
        self.num_steps = len(self.kept) - 1

    def step(self, later: int, earlier: int) -> Matrix:
        """q(x_later | x_earlier), a product over single steps, dims (earlier, later)."""
        found = np.eye(self.num_classes)
        for t in range(earlier + 1, later + 1):
            stay = self.kept[t] / self.kept[t - 1]
            found = found @ (stay * np.eye(self.num_classes) + (1 - stay) / self.num_classes)
        return found

    def posterior(self, later: int, earlier: int) -> NDArray[np.float64]:
        """q(x_earlier | x_later, x_0) by Bayes' rule, dims (x_0, later, earlier)."""
        joint = self.step(earlier, 0)[:, None, :] * self.step(later, earlier).T[None]
        return joint / joint.sum(-1, keepdims=True)

    def paths(self, num_pixels: int) -> Iterator[tuple[tuple[int, ...], ...]]:
        """All x_1, ..., x_T of some pixels."""
        states = list(itertools.product(range(self.num_classes), repeat=num_pixels))
        return itertools.product(states, repeat=self.num_steps)

    def bound(self, logits: Any, mask: tuple[int, ...]) -> float:
        """The ELBO of a mask, summed over all paths.

        Args:
            logits: The net's, a function of (t, x_t): dims (pixel, class).
            mask: x_0 of every pixel; -1 of one that nobody annotated, which is noise at every step.
        """
        total = 0.0
        for path in self.paths(len(mask)):
            states = [mask, *path]
            q, unseen = self._noising(states), mask.count(-1) * self.num_steps
            chance = np.exp(q) / self.num_classes**unseen
            total += chance * (self._model(logits, states) - q)
        return total

    def log_evidence(self, logits: Any, mask: tuple[int, ...]) -> float:
        """Log p(mask), summed over all paths."""
        found = [self._model(logits, [mask, *path]) for path in self.paths(len(mask))]
        return float(np.logaddexp.reduce(found))

    def _noising(self, states: list[Any]) -> float:
        log_q = 0.0
        for t in range(1, self.num_steps + 1):
            step = self.step(t, t - 1)
            log_q += sum(
                np.log(step[a, b])
                for a, b, seen in zip(states[t - 1], states[t], states[0], strict=True)
                if seen >= 0
            )
        return log_q

    def _model(self, logits: Any, states: list[Any]) -> float:
        seen = [i for i, k in enumerate(states[0]) if k >= 0]
        log_p = -len(seen) * np.log(self.num_classes)
        for t in range(self.num_steps, 0, -1):
            law = self.reverse(logits(t, states[t]), states[t], t)
            log_p += sum(np.log(law[i, states[t - 1][i]]) for i in seen)
        return float(log_p)

    def reverse(self, logits: Any, state: tuple[int, ...], t: int) -> Matrix:
        """p(x_(t-1) | x_t), the average over the net's x_0, dims (pixel, class)."""
        told = self.step(t, 0)[:, list(state)].T  # (pixel, x_0)
        weight = np.exp(np.asarray(logits, float)) * told
        probs = weight / weight.sum(1, keepdims=True)
        by_start = self.posterior(t, t - 1)[:, list(state)].transpose(1, 0, 2)
        return np.einsum("pk,pks->ps", probs, by_start)


def normal_bound(model: Any, image: float, nodes: int = 60) -> float:
    """The ELBO of one pixel of the second class under a ``GaussianDiffusion`` of a ``TableNet``.

    Every term is an integral over one normal x_t, by Gauss-Hermite quadrature.
    """
    kept, net = model.noising.kept.numpy(), model.network.net
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    weights = weights / weights.sum()
    total = -0.5 * (kept[-1] + (1 - kept[-1]) - 1 - np.log(1 - kept[-1]))
    for t in range(model.noising.num_steps, 0, -1):
        k, before = kept[t], kept[t - 1]
        x = np.sqrt(k) + np.sqrt(1 - k) * points
        noised = torch.tensor(x, dtype=torch.float32).view(-1, 1, 1, 1)
        with torch.no_grad():
            step = torch.full((nodes,), t / model.noising.num_steps)
            features = torch.full((nodes, 1, 1, 1), image)
            output = net(features=features, noised=noised, step=step).flatten(1).double().numpy()
        mean = output[:, 0]
        if model.target == "v":
            mean = np.sqrt(k) * x - np.sqrt(1 - k) * mean
        if t == 1:
            sharpness = float(model.log_sharpness.detach().exp())
            total += weights @ -np.log1p(np.exp(-2 * sharpness * mean))
            continue
        beta = 1 - k / before
        least = beta * (1 - before) / (1 - k)
        share = {"least": 0.0, "most": 1.0}.get(model.variance)
        u = 1 / (1 + np.exp(-output[:, -1])) if share is None else share
        variance = np.exp(u * np.log(beta) + (1 - u) * np.log(least))
        apart = np.sqrt(before) * beta / (1 - k) * (1 - mean)
        kl = 0.5 * ((least + apart**2) / variance - 1 + np.log(variance / least))
        total -= weights @ kl
    return float(total)
