"""``predict``: from a trained program to an ``xarray.DataTree`` in ArviZ's schema.

Draw s of chain c is one function of the image: its weights serve every case and every batch. A
draw is reproducible by (seed, chain, draw), whatever the batch size; what is drawn per case
(a latent code, a predicted label) belongs to the sample and to the case's place in the data set.
"""

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from ppl_med.checks import a_path, choice, whole
from ppl_med.inference.adapted import adapted
from ppl_med.inference.batches import (
    batch_spec,
    check_iterable,
    check_seed,
    choose_device,
    first_batch,
    first_grader,
    num_cases_in,
)
from ppl_med.inference.case_order import check_order
from ppl_med.inference.crops import check_whole
from ppl_med.inference.data_digest import DATA, data_digest
from ppl_med.inference.guides.ensemble import members_of
from ppl_med.inference.guides.kept_draws import taken_draws
from ppl_med.inference.loader_generators import loader_generators
from ppl_med.inference.prediction.attributes import attributes, where_given
from ppl_med.inference.prediction.case_densities import case_bounds
from ppl_med.inference.prediction.case_groups import CaseGroup, case_groups, check_ids
from ppl_med.inference.prediction.kept_outputs import KeptOutputs, check_keep
from ppl_med.inference.prediction.lossy import Lossy
from ppl_med.inference.prediction.posterior_sampler import PosteriorSampler
from ppl_med.inference.prediction.regions import Regions, check_same_call
from ppl_med.inference.prediction.sinks import check_ranks, open_sink
from ppl_med.inference.prediction.tree_builder import Chunk, TreeBuilder
from ppl_med.inference.prediction.weight_draws import repeated
from ppl_med.inference.process_group import num_ranks, rank
from ppl_med.inference.training.dry_run import not_running
from ppl_med.inference.training.interrupts import stopped_prediction, telling_interrupts
from ppl_med.programs import protocol
from ppl_med.programs.isolation import alone, private_store, torch_defaults
from ppl_med.programs.parameters import move, set_mode
from ppl_med.programs.rng import seed_torch, torch_restored
from ppl_med.programs.sites import (
    Program,
    batch_size,
    full_name,
    select_arguments,
    to_device,
    without_observations,
)
from ppl_med.weights.call_cache import caching
from ppl_med.weights.mirroring import Mirroring, mirrored
from ppl_med.weights.sliding_window import Blend, SlidingWindow, sliding

CHUNK_CASES, CHUNK_NUMBERS = 512, 2**26


@alone()
@torch_defaults()
def predict(
    model: Program,
    guide: Program | None,
    batches: Any,
    *,
    keys: Mapping[str, str] | None = None,
    draws: int | None = None,
    samples: int = 1,
    seed: int = 0,
    store: str | Path | None = None,
    resume: bool = False,
    log_likelihood_of: Literal["held-out", "training"] = "held-out",
    prior_draws: int = 0,
    window: Sequence[int] | None = None,
    overlap: float = 0.25,
    blend: Blend = "gaussian",
    mirror: bool | Sequence[str] = False,
    keep: Sequence[str] = (),
    lossy: Lossy | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> xr.DataTree:
    """Draw functions from the guide and observations from the model.

    Model and guide, and networks in the closure of a plain function, are left in evaluation mode on
    the device; nothing else about them changes, BatchNorm statistics included. Random number
    generators of the process are left as they were.

    Args:
        model: A Pyro program ``model(image, label=None, *, num_cases=None)``.
        guide: Its guide, trained; an ``Ensemble``; or None to draw from the prior.
        batches: As in ``fit``; a data set in its order. Where they hold observations (``label``),
            the result gets ``log_likelihood`` and ``observed_data``. Keys the model does not take
            become coordinates (``id``) or ``constant_data``.
        keys: Names in the batches -> names of the model's arguments, as in ``fit``.
        draws: Draws per chain, 32 by default: PSIS-LOO needs as many. Of chains that a sampler
            kept, all by default, and fewer are taken evenly spaced over the chain.
        samples: Samples with each draw of the global latents, the weights, that differ in what is
            drawn per case (codes, labels); the prior's draws have as many. The axis ``draw`` has
            draws x samples entries, its coordinate ``weights`` says which draw of the weights each
            has: analyses count these as functions, and ``segmentation.rater_and_weight_variance``
            tells raters from weights. The first sample is what ``samples=1`` gives.
        seed: Seed of all draws.
        store: None keeps the result in memory; ``"run.nc"`` also writes it; ``"run.zarr"`` writes
            while predicting, with bounded memory, and gives a lazy tree. Under ``torchrun``, and
            in any other group of processes, it must be this: all call predict alike, every one
            fills regions of its own, and the numbers are those of one process.
        resume: Go on with an interrupted ``store="*.zarr"``, on any number of processes; a complete
            one is opened.
        log_likelihood_of: What the cases are. Of training cases, ``log_likelihood`` may go to
            ``loo``, unless the model was trained by a loss, or has a latent of every case, which is
            drawn from its prior here, so that no draw has seen the case: the tree's attributes
            then say so. Of held-out ones, read it by ``analysis.scoring.elpd_heldout``, unless it
            is a loss at prediction, too, as of most detectors.
        prior_draws: Draws from the prior for the groups ``prior`` and ``prior_predictive``.
        window: For images and volumes whose features do not fit into memory: pixels of a patch
            along every spatial axis, such as (64, 64, 32). Networks with random weights run by
            overlapping patches, one weight draw a draw for all patches of all cases; their outputs
            are blended to the map of the whole image, which the program then uses. See
            ``ppl_med.weights.sliding_window``. Memory holds the features of one patch per case of
            the batch, the maps of one draw of the batch and, without a Zarr store, the result;
            ``store="run.zarr"`` keeps the draws of a large case on disk meanwhile, so batches of
            one volume need little memory whatever the number of draws.
        overlap: Share of a patch that it has in common with the next one, in [0, 1).
        blend: Weights of overlapping patches, "gaussian" (less towards the border of a patch) or
            "constant".
        mirror: True, or axes such as ("row", "col"): each draw of the weights sees images mirrored
            in its own way, its maps turned back, so that a posterior costs what a mirrored
            prediction does. For nets trained on such images; see ``ppl_med.weights.mirroring``.
        keep: What else to store of every draw, such as ("logit", "feature:layer4"): the output of
            the network with random weights (case, class), and that of the layer of that name,
            averaged over space, as ``posterior/logit`` and ``posterior/feature:layer4``. It is what
            ``analysis.ood`` reads.
        lossy: A form of the result that is smaller and not exact, such as ``Lossy("float16")``,
            whose errors are bounded, or ``Lossy(whole_draws=8)``, with moments of all draws.
        device: Where to run; a GPU where there is one, by default.
        progress: Show a bar with ETA.

    Returns:
        DataTree with the groups ``posterior`` (likelihood parameters such as ``probs``, local
        latents, ``weight_norm`` per layer), ``posterior_predictive``, ``log_likelihood`` and
        ``observed_data`` where observations were given, ``constant_data`` where there is metadata.
        Of a model whose density of an observation is known by a bound alone, as of a diffusion,
        ``evidence_bound`` in the place of ``log_likelihood``: nats, one estimate a draw.
        Of a model that generates what its guide reads, such as the image, ``log_prior`` and
        ``log_guide``: densities of the latents of every case, nats. ``pyro.deterministic`` sites of
        every case (``event_dim`` given, in the plate of cases) stand in ``posterior``.
        Dims (chain, draw, case, …); ``case`` carries the ids. Of chains of a sampler,
        ``sample_stats`` (chain, draw), see ``sample``.

    Raises:
        TypeError: On batches that cannot be iterated again and again.
        ValueError: On arguments or batches that do not fit; on several samples of a model without
            latents of a case, which would be copies; on ``keep`` of a layer that the network does
            not have, or that does not give one output of a case; on a window for a model that
            runs no network of one image with random weights (``RandomWeights``); on a store to
            resume that was made with other arguments, other parameters or other cases. Of several
            processes, on a ``store`` that is no Zarr store, on what differs between them, and on
            batches of unequal size.
        FileExistsError: If ``store`` exists.
        BlockingIOError: If another process or thread writes to ``store``.
        OSError: If ``store`` cannot be written, which is tried before any work; what a Zarr store
            holds so far can be resumed, and a tree that fits into no ``*.nc`` any more is written
            to the folder of temporary files, or returned with a warning.

    Warns:
        UserWarning: On entries of a batch that ``constant_data`` cannot hold.
    """
    started = time.time()
    guide, draws = taken_draws(guide, draws)
    prior_draws = whole("prior_draws", prior_draws, least=0)
    samples = whole("samples", samples)
    seed = check_seed(seed)
    store = None if store is None else a_path("store", store)
    check_ranks(store, batches)
    choice("log_likelihood_of", log_likelihood_of, ("held-out", "training"))
    windowed = None if window is None else SlidingWindow(window, overlap, blend)
    mirroring = None if mirror is False else Mirroring(mirror)
    keep = check_keep(keep)
    if keep and windowed is not None:
        raise ValueError("keep: by a window, layers see patches, not cases; leave one out")
    batches = adapted(batches, keys)
    num_batches = check_iterable(batches)
    chosen = choose_device(device)
    pairs = members_of(model, guide)
    own = [(generator, generator.get_state()) for generator in loader_generators(batches)]
    with torch_restored(), sliding(windowed), mirrored(mirroring), ExitStack() as held:
        held.enter_context(telling_interrupts(stopped_prediction(store)))
        seed_torch(seed)  # the order of a shuffled DataLoader
        run = _Run(pairs, batches, chosen, (draws, samples), seed, keep=keep)
        _check_used(windowed, mirroring, model)
        Lossy.check_asked(lossy, draws, samples, run.builder)
        attrs = attributes(pairs, seed, draws, log_likelihood_of, run.samplers[0])
        attrs["prior_draws"] = prior_draws if guide is not None else 0
        attrs["observations"] = ", ".join(sorted(run.observed & run.given))
        if store is not None and Path(store).suffix == ".zarr":
            attrs[DATA] = data_digest(batches, run.spec.arguments)
        attrs |= where_given(samples, keep, window=windowed, mirror=mirroring, lossy=lossy)
        check_same_call(
            {"store": str(store), "device": chosen.type, "batches": num_batches, **attrs}
        )
        opened = open_sink(store, attrs, resume=resume, from_prior=guide is None)
        sink = held.enter_context(opened)  # nobody else writes to the store until it is whole
        if sink.complete:
            tree = sink.open()
            done: Any = tree[f"{run.builder.group}/case"]
            check_ids(model, batches, done.values.tolist())
            return tree
        regions, total = sink.regions(run.room), len(pairs) * draws * samples * num_batches
        quiet = not progress or rank() > 0
        with tqdm(total=total, desc="predict", unit="batch", disable=quiet) as bar:
            run.builder.scratch = sink.scratch
            for chunk in run.chunks(bar, regions):
                sink.append(chunk if lossy is None else lossy.applied(chunk))
        sink.meet(regions)
        if prior_draws and guide is not None:
            sink.start_prior()
            seed_torch(seed)  # the same cases in the same order
            for generator, state in own:
                generator.set_state(state)
            number = (prior_draws, samples)
            prior = _Run([(pairs[0][0], None)], batches, chosen, number, seed, len(pairs))
            prior.builder.scratch = sink.scratch
            of_prior = Regions()
            for chunk in prior.chunks(None, of_prior):
                sink.append_prior(chunk)
            sink.meet(of_prior)
        if (stats := protocol.sample_stats(guide)) is not None:
            stats = stats if lossy is None else lossy.chosen(stats)
            sink.add_stats(repeated(stats, samples))
        return sink.finish(time.time() - started, regions.num_cases)


def _check_used(
    windowed: SlidingWindow | None, mirroring: Mirroring | None, model: Program
) -> None:
    for name, found, how in (("window", windowed, "by patches"), ("mirror", mirroring, "mirrored")):
        if found is not None and not found.used:
            raise ValueError(
                f"{name}: {full_name(model)} runs no network with random weights (RandomWeights) "
                f"of one image, the only ones that run {how}; leave {name} out"
            )


class _Run:
    """Draws of every chain over all batches."""

    def __init__(
        self,
        pairs: Sequence[tuple[Program, Program | None]],
        batches: Any,
        device: torch.device,
        number: tuple[int, int],
        seed: int,
        first_chain: int | None = None,
        keep: Sequence[str] = (),
    ) -> None:
        self.model = pairs[0][0]
        self.kept = KeptOutputs([model for model, _ in pairs], keep)
        self.batches, self.device, self.number = batches, device, number
        first = first_batch(batches)
        self.spec = batch_spec(self.model)
        check_whole(first)
        self.spec.check(first)
        check_order(batches, first)
        for pair in pairs:
            move(pair, device)
            set_mode(pair, False)
        values = to_device(select_arguments(self.model, first), device)
        one = {n: v[:1] if isinstance(v, torch.Tensor) else v for n, v in values.items()}
        try:
            with private_store():
                bare = without_observations(self.model, first_grader(one))
            chains = range(first_chain or 0, (first_chain or 0) + len(pairs))
            self.samplers = [
                PosteriorSampler(*pair, bare, seed, chain)
                for pair, chain in zip(pairs, chains, strict=True)
            ]
            self.samplers[0].check_function()
        except (ArithmeticError, LookupError, RuntimeError, TypeError) as error:
            raise not_running(error, one) from error
        self.observed, self.given = set(self.samplers[0].observed), set(values)
        self.room = len(batches) * num_cases_in(first)  # cases, if no batch is larger
        stored = self.samplers[0].numbers_per_case * number[0] * number[1] * len(pairs)
        most = min(CHUNK_CASES, -(-self.room // num_ranks()))
        self.chunk_cases = min(most, max(1, CHUNK_NUMBERS // max(stored, 1)))
        self.with_observations = first_chain is None
        about = (self.samplers[0], first, self._inputs(first), len(pairs))
        self.builder = TreeBuilder(self.model, *about, *number)

    def _inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        values = to_device(select_arguments(self.model, batch), self.device)
        return values if self.with_observations else self.samplers[0].bare(values)

    def chunks(self, bar: Any, regions: Regions) -> Iterator[Chunk]:
        """Results of ``chunk_cases`` cases or a little more, those that are this process's."""
        size = regions.grid or self.chunk_cases
        for group in case_groups(self.model, self.spec, self.batches, size):
            if group.start == 0:
                self._see(group.batches[0])
            if regions.is_mine(group.start, group.ids):
                yield self._chunk(group, bar)
            elif bar is not None:
                bar.update(len(group.batches) * len(self.samplers) * self.builder.draws)

    def _see(self, first: Mapping[str, Any]) -> None:
        """Have it decided by the first batch of all how observations are read."""
        inputs = self._inputs(first)
        with torch.no_grad():
            self.samplers[0].observations(inputs, np.arange(batch_size(inputs)))

    def _chunk(self, group: CaseGroup, bar: Any) -> Chunk:
        start, inputs = group.start, [self._inputs(batch) for batch in group.batches]
        ends = start + np.cumsum([batch_size(given) for given in inputs])
        cases = [np.arange(end - batch_size(v), end) for v, end in zip(inputs, ends, strict=True)]
        # A layer that runs once for all draws would be caught once.
        once = caching() if not self.kept.names else nullcontext()
        numbers = list(enumerate(itertools.product(*map(range, self.number))))
        with torch.no_grad(), once:
            observations = list(map(self.samplers[0].observations, inputs, cases))
            chunk = self.builder.start(start, group.batches, inputs, observations)
            for chain, own in enumerate(self.samplers):
                values: dict[str, torch.Tensor] = {}
                with own.held():
                    for draw, (of, sample) in numbers:
                        values = values if sample else own.kept(of)
                        for given, observed, at in zip(inputs, observations, cases, strict=True):
                            where = chain, draw, int(at[0]) - start
                            with self.kept.caught():
                                trace = own.run(values, of, own.bare(given), at, sample)
                            self.builder.record(chunk, trace, observed, *where)
                            if self.builder.bounded and self.builder.group == "posterior":
                                bounds = case_bounds(own, values, of, given, observed, at, sample)
                                self.builder.record_bounds(chunk, bounds, where)
                            self.kept.record(self.builder, chunk, where, len(at))
                            if bar is not None:
                                bar.update()
                        if start == 0:
                            self.builder.record_globals(chunk, values, chain, draw)
        return chunk
