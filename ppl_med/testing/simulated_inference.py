"""One simulation: a truth from the prior, data from it, an inference, and draws to compare."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppl_med.inference.guides.bernoulli_dropout import FlatDropout
from ppl_med.inference.guides.ensemble import members_of
from ppl_med.inference.guides.kept_draws import KeptDraws
from ppl_med.inference.prediction.case_noise import derive_seed
from ppl_med.programs import rng
from ppl_med.programs.isolation import torch_defaults
from ppl_med.programs.parameters import move, named_modules_of, set_mode
from ppl_med.programs.sites import (
    Program,
    argument_names,
    factors,
    full_name,
    sample_sites,
    select_arguments,
    stated_sites,
    without_observations,
)
from ppl_med.testing.simulated_quantities import (
    Evaluation,
    Quantities,
    Values,
    one_case_sampler,
)


@dataclass
class Simulator:
    """What every simulation shares; it goes to other processes as a whole.

    Attributes:
        model: The program.
        inference: ``inference(model, batches, seed)`` -> guide, or draws by site.
        quantities: What to rank, as in ``simulation_based_calibration``.
        batch: The design.
        at: Where to predict; None: the first cases of the design.
        draws: Draws of each simulation.
        seed: Seed of all.
        given: Observed cases that every simulation also fits, if any.
        truths: Of each simulation, the latents to start from; drawn from the prior if empty.
    """

    model: Program
    inference: Callable[..., Any]
    quantities: Quantities | None
    batch: dict[str, Any]
    at: Mapping[str, Any] | None
    draws: int
    seed: int
    given: dict[str, Any] | None = None
    truths: list[Values] = field(default_factory=list)

    def run(self, simulation: int) -> dict[str, np.ndarray]:
        """Draw a truth and data, infer, and evaluate every quantity.

        Returns:
            Arrays by name, dims (1 + draw, ...): the truth stands first.

        Raises:
            ValueError: The model or the inference cannot be checked like this, or a quantity is
                NaN.
        """
        with isolated(derive_seed(self.seed, simulation)):
            try:
                return self._run((self.seed, simulation))
            except Exception as error:
                error.add_note(f"in simulation {simulation} of seed {self.seed}")
                raise

    def _run(self, keys: tuple[int, int]) -> dict[str, np.ndarray]:
        model = copy.deepcopy(self.model)  # nothing that an earlier simulation learned
        start = self.truths[keys[1]] if self.truths else None
        truth, data = simulate(model, self.batch, start)
        data = data if self.given is None else joined(self.given, data)
        fixed = unlearned(model)
        found = infer(self.inference, model, data, derive_seed(*keys, 1))
        drawn = posterior_draws(model, found, data, self.draws, derive_seed(*keys, 2), fixed)
        evaluation = Evaluation(model, data, self.at, self.quantities)
        if self.given is not None and evaluation.sampler.local:
            raise ValueError(
                f"around: the model has a latent of every case, {evaluation.sampler.local[0]!r}; "
                "those of the observed cases are not known, so calibrate without around"
            )
        values = [evaluation(one) for one in (truth, *drawn)]
        result = {name: np.stack([one[name] for one in values]) for name in values[0]}
        for name, array in result.items():
            if np.isnan(array).any():
                raise ValueError(f"{name!r} is NaN for the truth or for a draw; it has no rank")
        return result


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Run from a seed of all generators, on one thread, with an empty parameter store."""
    threads = torch.get_num_threads()
    try:
        with rng.restored(), pyro.get_param_store().scope():
            torch.set_num_threads(1)
            rng.seed_all(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def infer(inference: Callable[..., Any], model: Program, data: Mapping[str, Any], seed: int) -> Any:
    """Run an inference on one batch; its seed is below 2^31, which every generator takes."""
    with torch_defaults():
        return inference(model, [dict(data)], seed % 2**31)


def simulate(
    model: Program, batch: Mapping[str, Any], start: Values | None = None
) -> tuple[Values, dict[str, Any]]:
    """Latents, and the batch with observations that follow from them.

    Args:
        model: The program; it is put into evaluation mode.
        batch: Its inputs; observations among them are replaced.
        start: Values of latents; the others are drawn.

    Raises:
        ValueError: If the program has factors or observed constants, or observes something else
            than its arguments.
    """
    set_mode([model], False)
    bare = without_observations(model, select_arguments(model, batch))
    program = poutine.condition(poutine.uncondition(model), data=start or {})
    known = argument_names(model)
    with torch.no_grad():
        sites = stated_sites(poutine.trace(program).get_trace(**bare))
        drawn = {name: site["value"] for name, site in sites.items() if name in known}
        again = poutine.trace(model).get_trace(**{**bare, **drawn})
    observed = stated_sites(again, observed=True)
    constant = [*factors(again), *(site for name, site in observed.items() if name not in drawn)]
    if constant or not drawn:
        what = f"the factor {constant[0]['name']!r}" if constant else "no site that is an argument"
        raise ValueError(
            f"{full_name(model)} has {what}: no data can be drawn from it; calibrate a model whose "
            "observations are sample sites that bear the names of its arguments"
        )
    for name, value in drawn.items():
        if not torch.equal(observed[name]["value"], value):
            raise ValueError(
                f"the site {name!r} observes something else than the argument {name!r} as it is "
                "given, so that a draw of it is no argument; observe the argument itself"
            )
    latents = {name: site["value"] for name, site in sites.items() if name not in drawn}
    return latents, {**batch, **drawn}


def joined(given: Mapping[str, Any], simulated: Mapping[str, Any]) -> dict[str, Any]:
    """Observed cases and simulated ones, one after the other: the tensors that both have."""
    both = {n: v for n, v in simulated.items() if isinstance(v, Tensor) and n in given}
    return {name: torch.cat([torch.as_tensor(given[name]), v]) for name, v in both.items()}


def posterior_draws(
    model: Program,
    found: Any,
    data: Mapping[str, Any],
    draws: int,
    seed: int,
    fixed: Mapping[str, Tensor],
) -> list[Values]:
    """Latents of so many draws of what an inference has left.

    Args:
        model: The program that was fitted.
        found: A guide, or samples by site, dims (draw, ...), of which evenly spaced ones are taken.
        data: What was fitted.
        draws: How many; of an ensemble, as many of every member.
        seed: Seed of the draws.
        fixed: ``unlearned`` of the model before the inference.

    Raises:
        TypeError: ``found`` is neither.
        ValueError: There are too few draws, they do not fit the program, or it cannot be checked.
    """
    check_unlearned(fixed, model)
    if isinstance(found, Mapping):
        found = KeptDraws({n: torch.as_tensor(v).detach().cpu() for n, v in found.items()})
    if not callable(found):
        raise TypeError(
            "inference must return a guide, or draws by site (draw, ...), got "
            f"{type(found).__name__}"
        )
    pairs = members_of(model, found)
    arguments = select_arguments(model, data)
    drawers = []
    for chain, (member, guide) in enumerate(pairs):
        move((member, guide), torch.device("cpu"))
        set_mode((member, guide), False)
        check_unlearned(fixed, member)
        drawers.append(_Drawer(member, guide, arguments, seed, chain))
    return [drawers[chain].draw(draw) for chain, draw in _places(pairs, draws)]


def _places(pairs: list[tuple[Any, Any]], draws: int) -> list[tuple[int, int]]:
    """Chain and draw of each draw."""
    kept = [guide.num_draws for _, guide in pairs if isinstance(guide, KeptDraws)]
    if len(kept) == len(pairs):
        every = [(chain, draw) for chain, count in enumerate(kept) for draw in range(count)]
        if len(every) < draws:
            raise ValueError(f"the inference left {len(every)} draws; draws={draws} needs as many")
        return [every[i] for i in np.linspace(0, len(every) - 1, draws).round().astype(int)]
    if draws % len(pairs):
        raise ValueError(
            f"draws={draws} cannot be shared equally by {len(pairs)} members; pass a multiple"
        )
    return [(chain, draw) for draw in range(draws // len(pairs)) for chain in range(len(pairs))]


class _Drawer:
    """Draws the latents of one pair: the global ones as ``predict``, those of cases given data."""

    def __init__(
        self, model: Program, guide: Program, arguments: Values, seed: int, chain: int
    ) -> None:
        self.guide, self.arguments = guide, arguments
        self.keys = (seed, chain)
        self.sampler = one_case_sampler(model, guide, arguments, seed, chain)
        sites = {} if isinstance(guide, KeptDraws) else self._propose(0)
        if any(isinstance(site["fn"], FlatDropout) for site in sites.values()):
            raise ValueError(
                f"{type(guide).__name__} cannot be calibrated by simulation: it masks weights at a "
                "fixed rate, and the masks have no prior in the model, so that no truth can be "
                "drawn from what it believes before data; use a guide with a density, such as "
                "MeanFieldNormal"
            )
        known = guide.sites if isinstance(guide, KeptDraws) else sites
        absent = [
            name for name in [*self.sampler.globals, *self.sampler.local] if name not in known
        ]
        if absent:
            raise ValueError(
                f"the inference leaves no draws of {absent}, latents of the model; a latent of "
                "every case must be proposed given its observation"
            )

    def draw(self, draw: int) -> Values:
        """All latents in one draw."""
        if isinstance(self.guide, KeptDraws) or not self.sampler.local:
            return self.sampler.draw(draw)
        chosen = {*self.sampler.globals, *self.sampler.local}
        return {n: s["value"] for n, s in self._propose(draw).items() if n in chosen}

    def _propose(self, draw: int) -> dict[str, Any]:
        with torch.no_grad(), rng.torch_restored():
            rng.seed_torch(derive_seed(*self.keys, draw))
            return sample_sites(poutine.trace(self.guide).get_trace(**self.arguments))


def unlearned(model: Program) -> dict[str, Tensor]:
    """What of a program an inference must leave as it is: copies by name.

    Parameters with a gradient and buffers of its modules; and what ``pyro.param`` has stored.
    """
    found = {}
    for path, module in named_modules_of(model).items():
        moving = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        for name, value in [*moving, *module.named_buffers()]:
            found[".".join(filter(None, (path, name)))] = value.detach().cpu().clone()
    for name, value in pyro.get_param_store().get_state()["params"].items():
        found.setdefault(name, value.detach().cpu().clone())
    return found


def check_unlearned(before: Mapping[str, Tensor], model: Program) -> None:
    """Raise where an inference has changed what has no prior.

    Raises:
        ValueError: If it has: the data were drawn from another program than was fitted.
    """
    now = unlearned(model)
    for name, value in before.items():
        if name in now and not torch.equal(now[name], value):
            raise ValueError(
                f"the inference has changed {name!r} of the model, which has no prior: the data "
                "came from another value, so ranks would say nothing; give it a prior "
                "(RandomWeights(where=...)), or freeze it (requires_grad_(False), "
                'batch_norm="frozen")'
            )
