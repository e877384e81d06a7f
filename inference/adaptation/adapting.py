"""``adapt``: statistics of BatchNorm over all images of a domain, for every posterior draw.

Layer by layer in the order in which they run: with everything before it adapted, the inputs of a
layer over all batches are summed up, channel by channel, in float64,

    mean = sum x / n        variance = sum x^2 / n - mean^2

so the variance between batches counts, and the result is exactly what BatchNorm in training mode
gives on the whole domain as one batch. Each draw of the weights has statistics of its own.

With a source share w, a layer normalises by the statistics of w source and 1 - w domain cases
pooled (Schneider et al., NeurIPS 2020, arXiv:2006.16971; departure: the pooled variance counts the
distance between the two means). ``prior_cases`` N gives w = N / (N + n). ``Beta(a, b)`` draws w
anew for every draw, so that the posterior predictive integrates over how far to adapt (as InTEnt
does with equal weights, arXiv:2402.09604).
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import pyro.poutine as poutine
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm

from ppl_med.checks import choice, positive, reject, whole
from ppl_med.inference.adaptation.statistic_sites import (
    BatchStatistics,
    Statistics,
    StatisticSites,
    as_sites,
    norm_layers,
    normalising_by,
    pooled,
    scaling_by,
    source_statistics,
)
from ppl_med.inference.adapted import adapted
from ppl_med.inference.batches import check_iterable, check_seed, choose_device, first_batch
from ppl_med.inference.guides.ensemble import Ensemble, members_of
from ppl_med.inference.guides.kept_draws import KeptDraws
from ppl_med.inference.prediction.case_noise import derive_seed
from ppl_med.inference.prediction.posterior_sampler import PosteriorSampler
from ppl_med.programs.isolation import preserved_state
from ppl_med.programs.parameters import move, set_mode
from ppl_med.programs.sites import (
    Program,
    batch_size,
    select_arguments,
    to_device,
    without_observations,
)


class Beta(NamedTuple):
    """Prior of the source share: 1 keeps the source, 0 takes the domain.

    Attributes:
        a: Towards the source.
        b: Towards the domain.
    """

    a: float = 1.0
    b: float = 1.0


class _Found(Exception):
    """Nothing after this layer is needed."""


class AdaptedDraws(KeptDraws):
    """The draws of a guide, with statistics of BatchNorm beside them."""

    def __init__(self, sampler: PosteriorSampler, statistics: list[dict[str, Tensor]]) -> None:
        super().__init__({name: torch.stack([one[name] for one in statistics])
                          for name in statistics[0]})  # fmt: skip
        self.sampler, self.guide = sampler, sampler.guide  # the guide moves along

    def draw(self, draw: int) -> dict[str, Tensor]:
        """Values of all sites in one draw."""
        with poutine.block():  # the guide runs; what it proposes is proposed here once
            weights = self.sampler.draw(draw)
        return weights | super().draw(draw)


class AdaptedMembers(Ensemble):
    """Adapted pairs, one a chain."""

    def __init__(self, pairs: list[tuple[nn.Module, Any]]) -> None:
        nn.Module.__init__(self)
        self.models = nn.ModuleList(model for model, _ in pairs)
        self.guides = nn.ModuleList(guide for _, guide in pairs)


def joined(pairs: list[tuple[nn.Module, Any]]) -> tuple[nn.Module, Any]:
    """The one pair, or the first model with all pairs as its guide, as ``predict`` takes them."""
    return pairs[0] if len(pairs) == 1 else (pairs[0][0], AdaptedMembers(pairs))


def adapt(
    model: Program,
    guide: Program,
    batches: Any,
    *,
    statistics: Literal["domain", "batch"] = "domain",
    prior_cases: float | None = None,
    source_share: Beta | None = None,
    keys: Mapping[str, str] | None = None,
    draws: int = 32,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> tuple[nn.Module, Any]:
    """Adapt BatchNorm to the images of a domain; labels are not read.

    Args:
        model: The model, trained.
        guide: Its guide, trained, or an ``Ensemble``. Both stay as they are.
        batches: Images of the domain, as in ``predict``.
        statistics: "domain", of all its images together; or "batch", of every batch by itself, for
            which a prediction depends on the cases beside it.
        prior_cases: How many cases the source statistics count as, beside those of the domain.
        source_share: Beta prior of the share of the source, drawn for every posterior draw.
        keys: As in ``predict``.
        draws: Draws per chain, as many as will be predicted with.
        seed: Seed of all draws: that of ``predict`` without adaptation, for the same weights.
        device: Where to run; a GPU where there is one, by default.
        progress: Show a bar with ETA.

    Returns:
        Model and guide for ``predict(model, guide, ..., draws=draws)``: draw s has the weights of
        draw s of the guide under ``seed``, and statistics of its own; with "batch", the guide is
        the one given.

    Raises:
        ValueError: The model has no BatchNorm, the guide proposes latents of every case, the
            domain has one case, or arguments exclude each other.
    """
    choice("statistics", statistics, ("domain", "batch"))
    draws, seed = whole("draws", draws), check_seed(seed)
    if prior_cases is not None and source_share is not None:
        reject("prior_cases", "left out where source_share is given", prior_cases)
    if prior_cases is not None:
        prior_cases = positive("prior_cases", prior_cases)
    if source_share is not None:
        source_share = Beta(*(positive("source_share", one) for one in source_share))
    pairs = members_of(model, guide)
    for one, _ in pairs:
        norm_layers(one)
    if statistics == "batch":
        if prior_cases is not None or source_share is not None:
            reject("statistics", '"domain" to be pooled with the source', statistics)
        found: list[tuple[nn.Module, Any]] = [(BatchStatistics(one), own) for one, own in pairs]
        return joined(found)
    batches = adapted(batches, keys)
    number = check_iterable(batches)
    chosen = choose_device(device)
    adapted_pairs: list[tuple[nn.Module, Any]] = []
    layers = len(norm_layers(pairs[0][0]))
    with tqdm(
        total=len(pairs) * draws * layers * number, desc="adapt", disable=not progress
    ) as bar:
        for chain, pair in enumerate(pairs):
            domain = Domain(pair, batches, chosen, seed, chain, bar)
            values = []
            for draw in range(draws):
                random = np.random.default_rng(derive_seed(seed, chain, draw))
                share = 0.0 if source_share is None else float(random.beta(*source_share))
                if prior_cases is not None:
                    share = prior_cases / (prior_cases + domain.num_cases)
                values.append(as_sites(domain.statistics(draw, share)))
            adapted_pairs.append((StatisticSites(pair[0]), AdaptedDraws(domain.sampler, values)))
    return joined(adapted_pairs)


class Domain:
    """All images of a domain, seen by one pair."""

    def __init__(
        self,
        pair: tuple[Any, Any],
        batches: Any,
        device: torch.device,
        seed: int,
        chain: int,
        bar: Any,
    ) -> None:
        self.pair, self.batches, self.device, self.bar = pair, batches, device, bar
        self.layers = norm_layers(pair[0])
        move(pair, device)
        set_mode(pair, False)
        self.scales: Statistics = {}  # weights and biases of layers in the place of their own
        first = to_device(select_arguments(pair[0], first_batch(batches)), device)
        one = {n: v[:1] if isinstance(v, Tensor) else v for n, v in first.items()}
        with preserved_state(*pair), torch.no_grad():
            bare = without_observations(pair[0], one)
        self.names = set(bare)
        self.sampler = PosteriorSampler(*pair, bare, seed, chain)
        if self.sampler.guide_has_local:
            raise ValueError(
                "guide proposes latents of every case (a conditional guide), which is not adapted; "
                "adapt a model whose weights are random, or its network alone"
            )
        self.num_cases = sum(batch_size(self.images(batch)) for batch in batches)
        if self.num_cases < 2:
            raise ValueError("batches hold one case: a domain needs two or more")

    def statistics(self, draw: int, share: float) -> Statistics:
        """Statistics of every layer, in the order in which they run."""
        source, found = source_statistics(self.layers), Statistics()
        values = self.sampler.draw(draw)
        waiting = dict(self.layers)
        with preserved_state(*self.pair), torch.no_grad():
            while waiting:
                name, own = self._next(values, draw, waiting, found)
                found |= pooled(source, {name: own}, share)
                del waiting[name]
        return found

    def _next(
        self,
        values: dict[str, Tensor],
        draw: int,
        waiting: Mapping[str, _BatchNorm],
        known: Statistics,
    ) -> tuple[str, tuple[Tensor, Tensor]]:
        """The layer that runs first among those that wait, and the statistics of its inputs."""
        sums: dict[str, list[Any]] = {}
        position = 0
        for batch in self.batches:
            inputs = self.images(batch)
            at = np.arange(position, position + batch_size(inputs))
            position += len(at)
            with ExitStack() as stack:
                stack.enter_context(_summing(waiting, sums))
                stack.enter_context(normalising_by(self.layers, known))
                stack.enter_context(scaling_by(self.layers, self.scales))
                try:
                    self.sampler.run(values, draw, inputs, at)
                except _Found:
                    pass
                else:
                    raise ValueError(
                        f"the BatchNorm layers {sorted(waiting)} do not run when the model "
                        "predicts; they cannot be adapted"
                    )
            self.bar.update()
        if len(sums) != 1:
            raise ValueError(
                f"the layers {sorted(sums)} run in another order from batch to batch; the network "
                "must do the same with every batch"
            )
        name, (count, total, squares) = next(iter(sums.items()))
        mean = total / count
        return name, (mean, (squares / count - mean.square()).clamp(min=0))

    def images(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What the program reads of a batch, without observations, on the device."""
        chosen = select_arguments(self.pair[0], batch)
        return to_device({n: v for n, v in chosen.items() if n in self.names}, self.device)


@contextmanager
def _summing(waiting: Mapping[str, _BatchNorm], sums: dict[str, list[Any]]) -> Iterator[None]:
    """Add up the inputs of the first of these layers that runs, and stop there."""

    def hook_of(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            value = inputs[0].detach().double()
            flat = value.transpose(0, 1).flatten(1)
            before = sums.setdefault(name, [0, 0.0, 0.0])
            sums[name] = [
                before[0] + flat.shape[1],
                before[1] + flat.sum(1),
                before[2] + flat.square().sum(1),
            ]
            raise _Found

        return hook

    with ExitStack() as stack:
        for name, layer in waiting.items():
            stack.callback(layer.register_forward_pre_hook(hook_of(name)).remove)
        yield
