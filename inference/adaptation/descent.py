"""Gradient descent in scales and shifts of BatchNorm on what needs no labels, and its brakes.

    loss_s  =  mean over a batch of a loss of its predictions, of draw s by the batch's statistics
    one step of gradient descent in (weight, bias) of every BatchNorm layer a batch

Less entropy, or less disagreement, is not more accuracy: carried on, every case gets the same
class. Brakes, the first two on by default:

    most_entropy   cases, or pixels, with entropy above this share of ln K take no part (EATA)
    guard          a draw goes back to its start and stays there, where the entropy of the mean
                   prediction of a batch, which is high while several classes are in use, falls
                   below this share of what it was in the first pass over the domain
    reset_every    a draw goes back to its start after so many steps, and goes on (RDumb)
    floor          a draw goes back, and goes on, where the moving mean of the entropy falls below
                   this (SAR, with its momentum of 0.9)

Sources: Niu et al., EATA, ICML 2022, arXiv:2204.02610; Niu et al., SAR, ICLR 2023,
arXiv:2302.12400; Press et al., RDumb, NeurIPS 2023, arXiv:2306.05401. Departure from all: after the
steps the statistics are those of the whole domain, so that a prediction does not depend on the
cases beside it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import nn
from tqdm.auto import tqdm

from ppl_med.axes import SAMPLES
from ppl_med.checks import finite, positive, share, whole
from ppl_med.data.reversible import Augmentation
from ppl_med.inference.adaptation.adapting import AdaptedDraws, joined
from ppl_med.inference.adaptation.domain import Domain, entropy_of
from ppl_med.inference.adaptation.statistic_sites import (
    Statistics,
    StatisticSites,
    as_sites,
    by_batch,
    norm_layers,
    scaled_layers,
    scaling_by,
)
from ppl_med.inference.adapted import adapted
from ppl_med.inference.batches import check_iterable, check_seed, choose_device
from ppl_med.inference.guides.ensemble import members_of
from ppl_med.programs.isolation import preserved_state
from ppl_med.programs.sites import Program

MOMENTUM = 0.9  # of the moving mean of the entropy
TOLD = ("entropy", "marginal_entropy", "share_used", "disagreement")


class Brakes(NamedTuple):
    """What stops a descent, as the module says; None or 0 leaves a brake off."""

    most_entropy: float | None
    guard: float
    reset_every: int | None
    floor: float | None

    def checked(self) -> "Brakes":
        """The same, or a ValueError that names what is wrong."""
        return Brakes(
            None if self.most_entropy is None else positive("most_entropy", self.most_entropy),
            share("guard", self.guard),
            None if self.reset_every is None else whole("reset_every", self.reset_every),
            None if self.floor is None else finite("floor", self.floor, 0),
        )


def descend(
    model: Program,
    guide: Program,
    batches: Any,
    views: Sequence[Augmentation],
    brakes: Brakes,
    *,
    learning_rate: float,
    epochs: int,
    keys: Mapping[str, str] | None,
    draws: int,
    seed: int,
    device: str | torch.device | None,
    progress: bool,
) -> tuple[nn.Module, Any, xr.Dataset]:
    """Adapt scales and shifts by entropy, or with several views by what they disagree in.

    Arguments and results as of ``minimise_entropy`` and ``minimise_disagreement``.
    """
    learning_rate = positive("learning_rate", learning_rate)
    epochs, draws, seed = whole("epochs", epochs), whole("draws", draws), check_seed(seed)
    brakes = brakes.checked()
    pairs = members_of(model, guide)
    for one, _ in pairs:
        scaled_layers(norm_layers(one))
    batches = adapted(batches, keys)
    number = check_iterable(batches)
    chosen = choose_device(device)
    total = len(pairs) * draws * number * (epochs + len(norm_layers(pairs[0][0])))
    found: list[tuple[nn.Module, Any]] = []
    shape = len(pairs), draws, epochs * number
    told, restored = np.full((len(TOLD), *shape), np.nan), np.zeros(shape, bool)
    collapsed = np.zeros(shape[:2], bool)
    with tqdm(total=total, desc="adapt", unit="batch", disable=not progress) as bar:
        for chain, pair in enumerate(pairs):
            domain = Domain(pair, batches, chosen, seed, chain, bar)
            values = []
            for draw in range(draws):
                descent = _Descent(domain, draw, learning_rate, views, brakes)
                descent.run(epochs, told[:, chain, draw], restored[chain, draw])
                collapsed[chain, draw] = descent.collapsed
                statistics = domain.statistics(draw, 0.0, descent.scales)
                values.append(as_sites(statistics, descent.scales))
            sites = StatisticSites(pair[0], scales=True)
            found.append((sites, AdaptedDraws(domain.sampler, values)))
    history = xr.Dataset(
        {name: ((*SAMPLES, "step"), array) for name, array in zip(TOLD, told, strict=True)}
    )
    for name in ("entropy", "marginal_entropy", "disagreement"):
        history[name].attrs["units"] = "nats"
    history["restored"] = ((*SAMPLES, "step"), restored)
    history["collapsed"] = (SAMPLES, collapsed)
    return (*joined(found), history if len(views) > 1 else history.drop_vars("disagreement"))


class _Descent:
    """Gradient descent of one draw."""

    def __init__(
        self,
        domain: Domain,
        draw: int,
        learning_rate: float,
        views: Sequence[Augmentation],
        brakes: Brakes,
    ) -> None:
        self.domain, self.draw, self.rate = domain, draw, learning_rate
        self.views, self.brakes = views, brakes
        self.layers = norm_layers(domain.pair[0])
        self.values = domain.sampler.draw(draw)
        self.scales = self._start()
        self.moving: float | None = None
        self.collapsed = False

    def _start(self) -> Statistics:
        """Copies of the layers' own."""
        return {
            name: (one.weight.detach().clone(), one.bias.detach().clone())
            for name, one in scaled_layers(self.layers).items()
        }

    def run(self, epochs: int, told: np.ndarray, restored: np.ndarray) -> None:
        """Take all steps; write the figures (figure, step) and where the draw went back (step)."""
        before: list[float] = []
        with preserved_state(*self.domain.pair):
            for step, (at, inputs, cases) in enumerate(
                (at, *batch) for _ in range(epochs) for at, batch in enumerate(self.domain.passed())
            ):
                if self.collapsed:
                    continue
                every = self.brakes.reset_every
                if every is not None and step and step % every == 0:
                    self.scales, restored[step] = self._start(), True
                told[:, step] = self._step(inputs, cases)
                entropy, marginal = told[:2, step]
                if at == len(before):
                    before.append(marginal)
                first = before[at] if step > at else before[0]
                if marginal < self.brakes.guard * first:
                    self.collapsed, self.scales, restored[step] = True, self._start(), True
                elif self._below_floor(entropy):
                    self.scales, restored[step] = self._start(), True

    def _below_floor(self, entropy: float) -> bool:
        """Whether the moving mean of the entropy is too low, which then starts anew."""
        if self.brakes.floor is None:
            return False
        last = entropy if self.moving is None else self.moving
        self.moving = MOMENTUM * last + (1 - MOMENTUM) * entropy
        if self.moving >= self.brakes.floor:
            return False
        self.moving = None
        return True

    def _step(self, inputs: dict[str, Any], cases: np.ndarray) -> tuple[float, ...]:
        """Entropy, marginal entropy, share used and disagreement before a step that is taken."""
        if len(cases) < 2:
            raise ValueError(
                "a batch of one case has no statistics over cases; use another batch size, so that "
                "the last batch has two or more"
            )
        pairs: Any = {
            n: tuple(v.clone().requires_grad_() for v in p) for n, p in self.scales.items()
        }
        with torch.enable_grad(), by_batch(self.layers), scaling_by(self.layers, pairs):
            views = self.domain.views(self.values, self.draw, inputs, cases, self.views)
            parts = torch.stack([entropy_of(one) for one in views]).mean(0)
            mean = torch.stack(views).logsumexp(0) - math.log(len(views))
            entropy = entropy_of(mean)
            probs = mean.exp().mean((0, *range(2, mean.ndim)))
            marginal = entropy_of(probs.clamp(min=1e-30).log(), 0)
            used = torch.ones_like(entropy, dtype=torch.bool)
            if self.brakes.most_entropy is not None:
                used = entropy.detach() <= self.brakes.most_entropy * math.log(mean.shape[1])
            loss = entropy - parts if len(self.views) > 1 else entropy
            if used.any():
                flat = [value for pair in pairs.values() for value in pair]
                slopes = iter(torch.autograd.grad(loss[used].mean(), flat))
                self.scales = {
                    name: tuple((v - self.rate * next(slopes)).detach() for v in pair)
                    for name, pair in pairs.items()
                }
        means = entropy.mean(), marginal, used.double().mean(), (entropy - parts).mean()
        return tuple(float(one.detach()) for one in means)
