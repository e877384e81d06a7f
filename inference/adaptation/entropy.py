"""``minimise_entropy``: scales and shifts of BatchNorm that make predictions of a domain certain.

    H_s = mean over a batch of -sum_c p_s log p_s    of posterior draw s, by statistics of the batch
    one step of gradient descent in (weight, bias) of every BatchNorm layer a batch

Less entropy is not more accuracy: carried on, every case gets the same class. The brakes are on by
default. Cases with entropy above ``most_entropy`` ln K take no part (EATA). A draw goes back to its
start where the entropy of the mean prediction of a batch, which is high while several classes are
in use, falls below ``guard`` times what it was in the first pass over the domain. What happened is
in the Dataset that is returned, draw by draw and step by step.

Sources: Wang et al., TENT, ICLR 2021, arXiv:2006.10726; Niu et al., EATA, ICML 2022,
arXiv:2204.02610. Departure: after the steps the statistics are those of the whole domain, so that
a prediction does not depend on the cases beside it.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from tqdm.auto import tqdm

from ppl_med.axes import SAMPLES
from ppl_med.checks import positive, share, whole
from ppl_med.inference.adaptation.adapting import AdaptedDraws, Domain, joined
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
from ppl_med.likelihoods import site_logits
from ppl_med.likelihoods.stored import class_logits
from ppl_med.programs.isolation import preserved_state
from ppl_med.programs.sites import Program, batch_size


def minimise_entropy(
    model: Program,
    guide: Program,
    batches: Any,
    *,
    learning_rate: float = 1e-3,
    epochs: int = 1,
    most_entropy: float | None = 0.4,
    guard: float = 0.5,
    keys: Mapping[str, str] | None = None,
    draws: int = 32,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> tuple[nn.Module, Any, xr.Dataset]:
    """Adapt scales and shifts of BatchNorm to a domain by the entropy of its predictions.

    Args:
        model: A model of classes, trained.
        guide: Its guide, trained, or an ``Ensemble``. Both stay as they are.
        batches: Images of the domain, as in ``predict``, two cases a batch or more.
        learning_rate: Of gradient descent without momentum.
        epochs: Passes over the domain.
        most_entropy: Cases above this share of ln K take no part; None takes all (TENT).
        guard: Share in (0, 1) of the first pass's marginal entropy below which a draw goes back
            to its start and stays there; 0 never.
        keys: As in ``predict``.
        draws: Draws per chain, as many as will be predicted with.
        seed: Seed of all draws.
        device: Where to run; a GPU where there is one, by default.
        progress: Show a bar with ETA.

    Returns:
        Model and guide for ``predict``, as of ``adapt``, and a Dataset over (chain, draw, step):
        ``entropy`` and ``marginal_entropy`` (nats) before each step, ``share_used`` of the cases;
        ``collapsed`` (chain, draw), whether the guard took the draw back.

    Raises:
        ValueError: As for ``adapt``; the model has no site of classes, or a batch has one case.
    """
    learning_rate = positive("learning_rate", learning_rate)
    epochs, draws, seed = whole("epochs", epochs), whole("draws", draws), check_seed(seed)
    guard = share("guard", guard)
    if most_entropy is not None:
        most_entropy = positive("most_entropy", most_entropy)
    pairs = members_of(model, guide)
    for one, _ in pairs:
        scaled_layers(norm_layers(one))
    batches = adapted(batches, keys)
    number = check_iterable(batches)
    chosen = choose_device(device)
    total = len(pairs) * draws * number * (epochs + len(norm_layers(pairs[0][0])))
    found: list[tuple[nn.Module, Any]] = []
    told = np.full((3, len(pairs), draws, epochs * number), np.nan)
    collapsed = np.zeros((len(pairs), draws), bool)
    with tqdm(total=total, desc="adapt", unit="batch", disable=not progress) as bar:
        for chain, pair in enumerate(pairs):
            domain = Domain(pair, batches, chosen, seed, chain, bar)
            values = []
            for draw in range(draws):
                descent = _Descent(domain, draw, learning_rate, most_entropy, guard)
                told[:, chain, draw] = descent.run(epochs, number)
                collapsed[chain, draw] = descent.collapsed
                domain.scales = descent.scales
                values.append(as_sites(domain.statistics(draw, 0.0), descent.scales))
            sites = StatisticSites(pair[0], scales=True)
            found.append((sites, AdaptedDraws(domain.sampler, values)))
    history = xr.Dataset(
        {
            name: ((*SAMPLES, "step"), array)
            for name, array in zip(("entropy", "marginal_entropy", "share_used"), told, strict=True)
        }
    )
    for name in ("entropy", "marginal_entropy"):
        history[name].attrs["units"] = "nats"
    history["collapsed"] = (SAMPLES, collapsed)
    return (*joined(found), history)


class _Descent:
    """Gradient descent of one draw."""

    def __init__(
        self,
        domain: Domain,
        draw: int,
        learning_rate: float,
        most_entropy: float | None,
        guard: float,
    ) -> None:
        self.domain, self.draw, self.rate = domain, draw, learning_rate
        self.most_entropy, self.guard = most_entropy, guard
        self.layers = norm_layers(domain.pair[0])
        self.values = domain.sampler.draw(draw)
        self.scales = self._start()
        self.collapsed = False

    def _start(self) -> Statistics:
        """Copies of the layers' own."""
        return {
            name: (one.weight.detach().clone(), one.bias.detach().clone())
            for name, one in scaled_layers(self.layers).items()
        }

    def run(self, epochs: int, number: int) -> np.ndarray:
        """Entropy, marginal entropy and the share of cases used, dims (3, step)."""
        told = np.full((3, epochs * number), np.nan)
        before: list[float] = []
        with preserved_state(*self.domain.pair):
            for epoch in range(epochs):
                position = 0
                for at, batch in enumerate(self.domain.batches):
                    inputs = self.domain.images(batch)
                    cases = np.arange(position, position + batch_size(inputs))
                    position += len(cases)
                    self.domain.bar.update()
                    if self.collapsed:
                        continue
                    told[:, epoch * number + at] = self._step(inputs, cases)
                    marginal = float(told[1, epoch * number + at])
                    if epoch == 0:
                        before.append(marginal)
                    first = before[at] if epoch else before[0]
                    if marginal < self.guard * first:
                        self.collapsed, self.scales = True, self._start()
        return told

    def _step(self, inputs: dict[str, Any], cases: np.ndarray) -> tuple[float, float, float]:
        if len(cases) < 2:
            raise ValueError(
                "a batch of one case has no statistics over cases; use another batch size, so that "
                "the last batch has two or more"
            )
        pairs = {n: tuple(v.clone().requires_grad_() for v in p) for n, p in self.scales.items()}
        with torch.enable_grad(), by_batch(self.layers), scaling_by(self.layers, pairs):  # type: ignore[arg-type]
            log_probs = self._log_probs(inputs, cases)
            entropy = -(log_probs.exp() * log_probs).sum(1)
            mean = log_probs.exp().mean((0, *range(2, log_probs.ndim)))
            marginal = -(mean * mean.clamp(min=1e-30).log()).sum()
            used = torch.ones_like(entropy, dtype=torch.bool)
            if self.most_entropy is not None:
                used = entropy.detach() <= self.most_entropy * math.log(log_probs.shape[1])
            if used.any():
                flat = [value for pair in pairs.values() for value in pair]
                slopes = iter(torch.autograd.grad(entropy[used].mean(), flat))
                self.scales = {
                    name: tuple((v - self.rate * next(slopes)).detach() for v in pair)  # type: ignore[misc]
                    for name, pair in pairs.items()
                }
        means = entropy.mean(), marginal, used.double().mean()
        return tuple(float(one.detach()) for one in means)  # type: ignore[return-value]

    def _log_probs(self, inputs: dict[str, Any], cases: np.ndarray) -> Tensor:
        """Log-probabilities of the observed site, dims (case, class, *space)."""
        sampler = self.domain.sampler
        nodes: dict[str, Any] = dict(sampler.run(self.values, self.draw, inputs, cases).nodes)
        for name in sampler.observed:
            logits = site_logits(nodes[name]["fn"])
            if logits is not None:
                return class_logits(logits).log_softmax(1)
        raise ValueError("model has no site of classes, whose entropy could be minimised")
