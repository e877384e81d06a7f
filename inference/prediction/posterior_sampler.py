"""One draw of a program's global latents, and running the program with it.

Draw s of chain c is one function: the same weights serve every case, patch and batch.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import torch
from numpy.typing import NDArray
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution

from ppl_med.inference.batches import has_graders
from ppl_med.inference.guides.kept_draws import KeptDraws
from ppl_med.inference.guides.stock import check_stock_guide
from ppl_med.inference.prediction.case_noise import Keys, derive_seed, sample_by_case
from ppl_med.likelihoods import stored_parameters
from ppl_med.programs import protocol
from ppl_med.programs.elbo import latent_faults
from ppl_med.programs.isolation import private_store
from ppl_med.programs.rng import seed_torch, torch_restored
from ppl_med.programs.sites import (
    Program,
    Site,
    argument_names,
    case_dim,
    is_local,
    required_arguments,
    sample_sites,
    site_dims,
)
from ppl_med.weights.mirroring import mirror_as

TELLING_CASES = 8  # on which it is seen how a program reads its observations
# Above this change between two equal runs, relative to the largest entry, a distribution is random.
RANDOMNESS = 1e-4
KEPT_NUMBERS = 256 * 1024**2  # numbers of drawn latents kept for the next batch: 1 GiB of float32

Inputs = Mapping[str, Any]
Globals = dict[str, Tensor]


class Substitute(Messenger):
    """Give latent sites their values; draw the others by numbers that belong to the case."""

    def __init__(
        self, values: Mapping[str, Tensor], keys: Keys, cases: NDArray[np.integer]
    ) -> None:
        super().__init__()
        self.values, self.keys, self.cases = values, keys, cases

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or site_is_subsample(msg):
            return
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True
        elif is_local(msg):
            value = sample_by_case(msg["fn"], self.keys, msg["name"], self.cases, case_dim(msg))
            if value is not None:
                msg["value"], msg["done"] = value, True


class PosteriorSampler:
    """Draws functions of one (model, guide) pair.

    Neither parameters nor random number generators of the process are changed.

    Args:
        model: The model, in evaluation mode.
        guide: The guide, in evaluation mode; None draws from the prior.
        example: Inputs of one case, without observations.
        seed: Seed of all draws.
        chain: Index of the member.

    Raises:
        ValueError: If the guide proposes not all of the model's global latents, or a site that the
            model does not have.
    """

    def __init__(
        self, model: Program, guide: Program | None, example: Inputs, seed: int, chain: int
    ) -> None:
        self.model, self.guide, self.example = model, guide, example
        self.seed, self.chain = seed, chain
        self._kept: dict[int, Globals] = {}
        self._num_kept = 0
        self._as_given: bool | None = None
        self._held = False
        with torch_restored(), torch.no_grad(), private_store():
            seed_torch(derive_seed(seed, chain))
            trace = trace_of(model, example)
            check_stock_guide(guide)
            proposed = {} if guide is None else sample_sites(trace_of(guide, example))
        check_stock_guide(guide)
        sites = sample_sites(trace)
        arguments = set(argument_names(model))
        # Steps of a chain are particles of one observation, no axis of it.
        self.observed = {
            n: [dim for dim in site_dims(trace, n) if dim != "step"]
            for n in sites
            if n in arguments
        }
        self.discrete = {n for n in self.observed if sites[n]["fn"].support.is_discrete}
        self.examples = {n: sites[n] for n in self.observed}
        self.generated = required_arguments(model) & self.observed.keys()
        latents = [n for n, s in sites.items() if n not in arguments and not s["is_observed"]]
        named = [(sites[n]["infer"] or {}).get("classes") for n in self.observed]
        self.class_names = {"class": list(named[0])} if named and named[0] else {}
        self.local = [name for name in latents if is_local(sites[name])]
        self.noted = [n for n, s in sites.items() if _is_noted(s) and n not in arguments]
        self.globals = {n: site_dims(trace, n) for n in latents if n not in self.local}
        of_case = {n: n in self.observed for n in [*self.observed, *self.local]}
        self.numbers_per_case = sum(_num_stored(sites[n], seen) for n, seen in of_case.items())
        self.guide_has_local = any(is_local(site) for site in proposed.values())
        if guide is not None:
            shared = {n: s for n, s in sites.items() if not is_local(s) or n in proposed}
            for fault in latent_faults(shared, proposed, frozenset()):
                raise ValueError(fault)

    def check_function(self) -> None:
        """Raise where a draw is no function: random numbers are drawn outside of sample sites.

        The example is run twice with the same latents and other generators; dropout that a network
        calls itself, ``F.dropout(x, 0.5)``, shows in the distributions of the observed sites.
        """
        values, case = self.draw(0), np.zeros(1, dtype=int)
        with torch.no_grad():
            nodes: dict[str, Any] = dict(self.run(values, 0, self.example, case).nodes)
            values = values | {name: nodes[name]["value"] for name in self.local}
            again: dict[str, Any] = dict(self.run(values, 0, self.example, case, salt=1).nodes)
        for name in self.observed:
            pairs = zip(*(_tensors_of(one[name]["fn"]) for one in (nodes, again)), strict=False)
            if not all(_close(here, there) for here, there in pairs):
                raise ValueError(
                    f"with the same weights, the distribution of {name!r} differs from run to run: "
                    "the network draws random numbers that no guide proposes, such as "
                    "F.dropout(x, 0.5), which is always on; write F.dropout(x, 0.5, self.training) "
                    "or nn.Dropout, or take it out and put dropout into the guide "
                    "(BernoulliDropout)"
                )

    def draw(self, draw: int) -> Globals:
        """Global latents of one draw; the same for the same (seed, chain, draw)."""
        if isinstance(self.guide, KeptDraws):
            return self.guide.draw(draw)
        program = self.guide if self.guide is not None else self.model
        with nullcontext() if self._held else self.held(), torch.no_grad():
            seed_torch(derive_seed(self.seed, self.chain, draw))
            sites = sample_sites(trace_of(program, self.example))
        chosen = self.globals if not self.guide_has_local else sites
        found = {name: site for name, site in sites.items() if name in chosen}
        return {name: site["value"] for name, site in found.items() if not is_local(site)}

    def kept(self, draw: int) -> Globals:
        """As ``draw``, kept for the next time while memory allows."""
        if draw in self._kept:
            return self._kept[draw]
        values = self.draw(draw)
        size = sum(value.numel() for value in values.values())
        if self._num_kept + size <= KEPT_NUMBERS:
            self._kept[draw] = values
            self._num_kept += size
        return values

    def bare(self, inputs: Inputs) -> dict[str, Any]:
        """Inputs without observations, but for those that the program cannot do without."""
        left_out = self.observed.keys() - self.generated
        return {name: value for name, value in inputs.items() if name not in left_out}

    def keys(self, draw: int, sample: int = 0) -> Keys:
        """What the noise of every case belongs to; that of the first sample is the draw's."""
        return (self.seed, self.chain, draw, *((sample,) if sample else ()))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Put generators and parameter store back once, after all runs of the block, not each.

        The block may run no other pair: programs of the same names would share parameters.
        """
        before = self._held
        with torch_restored(), private_store():
            self._held = True
            try:
                yield
            finally:
                self._held = before

    def run(
        self,
        values: Globals,
        draw: int,
        inputs: Inputs,
        cases: NDArray[np.integer],
        sample: int = 0,
        salt: int | None = None,
    ) -> poutine.Trace:
        """Trace the model on a batch without observations, with the latents that ``draw`` gave.

        A node of a latent that the guide proposed has the guide's distribution as ``proposal``, and
        one of an observation that is among the inputs a draw of it as ``drawn``, if that is stored.
        ``sample`` is which of several samples with these latents it is: the noise is its own.
        ``salt`` changes the seed of what cannot be drawn case by case, if given.
        """
        mirror_as(draw)
        keys, proposed = self.keys(draw, sample), dict[str, Site]()
        with nullcontext() if self._held else self.held():
            # For what cannot be drawn case by case: the same for the same batch at least.
            seed_torch(derive_seed(*keys, int(cases[0]), *(() if salt is None else (salt,))))
            if self.guide_has_local and not set(self.local) <= values.keys():
                with Substitute(values, keys, cases):
                    sites = sample_sites(trace_of(self.guide, inputs))
                proposed = {name: site for name, site in sites.items() if is_local(site)}
                values = values | {name: site["value"] for name, site in proposed.items()}
            with Substitute(values, keys, cases):
                trace = trace_of(self.model, inputs)
            nodes: dict[str, Any] = trace.nodes
            for name in self.generated:
                if is_stored(nodes[name]):
                    fn, dim = nodes[name]["fn"], case_dim(nodes[name])
                    drawn = sample_by_case(fn, keys, name, cases, dim)
                    nodes[name]["drawn"] = fn.sample() if drawn is None else drawn
        for name in proposed.keys() & nodes.keys():
            nodes[name]["proposal"] = proposed[name]["fn"]
        return trace

    def observations(self, inputs: Inputs, cases: NDArray[np.integer]) -> Globals:
        """What a batch's observed sites condition on, in the site's layout.

        That is mostly the argument as it was given; but a program may transpose or transform it.
        A run on a few cases of the first batch, of observations as different as there are, shows
        whether it does. Masks of several graders, (case, grader, ...), are turned into (grader,
        case, ...): each is scored under the draw of its case.
        """
        given = {n: self._whole(n, inputs[n]) for n in self.observed if n in inputs}
        inputs = {**inputs, **given}
        if has_graders(inputs) and "mask" in given:
            return {**given, "mask": given["mask"].movedim(1, 0)}
        if given and self._as_given is None:
            few = _few_cases(given)
            some = {
                name: value[few]
                if isinstance(value, Tensor) and len(value) == len(cases)
                else value
                for name, value in inputs.items()
            }
            taken = self._taken(some, cases[few.cpu().numpy()], given)
            self._as_given = all(_same(taken[name], some[name]) for name in given)
        return given if not given or self._as_given else self._taken(inputs, cases, given)

    def _whole(self, name: str, value: Any) -> Any:
        """Counts and classes that a loader gave as floats, as integers; NaN, not known, as -1."""
        if name not in self.discrete or not isinstance(value, Tensor):
            return value
        if name == protocol.partial_site(self.model) and value.is_floating_point():
            value = value.nan_to_num(nan=-1.0)
        is_whole = value.is_floating_point() and bool((value == value.round()).all())
        return value.long() if is_whole else value

    def _taken(self, inputs: Inputs, cases: NDArray[np.integer], names: Inputs) -> Globals:
        """Values of the observed sites in one run."""
        nodes: dict[str, Any] = dict(self.run(self.kept(0), 0, inputs, cases).nodes)
        return {name: nodes[name]["value"] for name in names}


def _is_noted(site: Mapping[str, Any]) -> bool:
    """Whether a site is ``pyro.deterministic``, of each case by its ``event_dim``."""
    known = is_local(site) and (site["infer"] or {}).get("_deterministic")
    return bool(known) and site["value"].dim() == len(site["fn"].shape())


def is_stored(site: Mapping[str, Any]) -> bool:
    """Whether ``predict`` keeps the values of a site."""
    return bool((site["infer"] or {}).get("stored", True))


def _num_stored(site: Mapping[str, Any], parameters: bool) -> int:
    """Numbers that ``predict`` keeps of a site in one draw of one case."""
    if not is_stored(site):
        return 0
    stored = stored_parameters(site["fn"], []) if parameters else {}
    return int(site["value"].numel()) + sum(values.numel() for _, values in stored.values())


def _few_cases(given: Mapping[str, Tensor]) -> Tensor:
    """Positions of cases whose observations differ, up to ``TELLING_CASES`` of each name."""
    found = []
    for value in given.values():
        size = value.flatten(1).double().nan_to_num().sum(1) if value.ndim > 1 else value.double()
        order = size.argsort()
        ranked = size[order]
        new = torch.cat([ranked.new_ones(1, dtype=torch.bool), ranked[1:] != ranked[:-1]])
        distinct = order[new]
        steps = torch.linspace(0, len(distinct) - 1, min(TELLING_CASES, len(distinct)))
        found.append(distinct[steps.round().long().to(distinct.device)])
    return torch.cat(found).unique()


def _tensors_of(fn: Any) -> Iterator[Tensor]:
    """What a distribution is made of, and those inside it."""
    for value in vars(fn).values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Distribution):
            yield from _tensors_of(value)


def _close(here: Tensor, there: Tensor) -> bool:
    if here.shape != there.shape:
        return False
    here, there = here.detach().double(), there.detach().double()
    size = float(here.abs().nan_to_num(posinf=0).amax()) if here.numel() else 0.0
    return torch.allclose(here, there, rtol=0, atol=RANDOMNESS * size, equal_nan=True)


def _same(taken: Tensor, given: Tensor) -> bool:
    """Whether two arrays agree entry by entry, NaN with NaN."""
    return taken.shape == given.shape and torch.allclose(
        taken.double(), given.double(), rtol=0.0, atol=0.0, equal_nan=True
    )


def trace_of(program: Any, inputs: Inputs) -> poutine.Trace:
    """One run of a program on a batch."""
    with pyro.validation_enabled(False):
        return poutine.trace(program).get_trace(**inputs)
