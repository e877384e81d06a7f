"""``predict``: from a trained program to an ``xarray.DataTree`` in ArviZ's schema.

Draw s of chain c is one function of the image: its weights serve every case and every batch. A
draw is reproducible by (seed, chain, draw), whatever the batch size; what is drawn per case
(a latent code, a predicted label) belongs to the case's position in the data set.
"""

import importlib.metadata
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import nn
from tqdm.auto import tqdm

from ppl_med.inference.ensemble import members_of
from ppl_med.inference.function_draw import Sampler
from ppl_med.inference.loader import as_loader, model_limits
from ppl_med.inference.programs import (
    Program,
    batch_size,
    full_name,
    select_arguments,
    to_device,
    without_observations,
)
from ppl_med.inference.records import Chunk, Recorder
from ppl_med.inference.sinks import open_sink

CHUNK_CASES = 512
CACHED_WEIGHTS = 256 * 1024**2  # numbers kept over chunks: 1 GiB of float32


def predict(
    model: Program,
    guide: Program | None,
    batches: Any,
    *,
    draws: int = 32,
    seed: int = 0,
    store: str | Path | None = None,
    resume: bool = False,
    log_likelihood_of: Literal["held-out", "training"] = "held-out",
    prior_draws: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> xr.DataTree:
    """Draw functions from the guide and observations from the model.

    Args:
        model: A Pyro program ``model(image, label=None, *, num_cases=None)``.
        guide: Its guide, trained; an ``Ensemble``; or None to draw from the prior.
        batches: Re-iterable of dicts. Where they hold observations (``label``), the result gets
            ``log_likelihood`` and ``observed_data``. Keys the model does not take become
            coordinates (``id``) or ``constant_data``.
        draws: Draws per chain. At least 32 if PSIS-LOO is wanted.
        seed: Seed of all draws.
        store: None keeps the result in memory; ``"run.nc"`` also writes it; ``"run.zarr"`` writes
            while predicting, with bounded memory, and gives a lazy tree.
        resume: Go on with an interrupted ``store="*.zarr"``.
        log_likelihood_of: What the cases are. Of training cases, ``log_likelihood`` may go to
            ``loo``; of held-out ones, read it by ``analysis.scoring.elpd_heldout``.
        prior_draws: Draws from the prior for the groups ``prior`` and ``prior_predictive``.
        device: Where to run; a GPU where there is one, by default.
        progress: Show a bar with ETA.

    Returns:
        DataTree with the groups ``posterior`` (likelihood parameters such as ``probs``, local
        latents, ``weight_norm`` per layer), ``posterior_predictive``, ``log_likelihood`` and
        ``observed_data`` where observations were given, ``constant_data`` where there is metadata.
        Dims (chain, draw, case, …); ``case`` carries the ids.

    Raises:
        ValueError: On batches that do not fit the model, and on fewer than one draw.
        FileExistsError: If ``store`` exists.
    """
    started = time.time()
    _check(draws, prior_draws, log_likelihood_of, seed)
    loader = as_loader(batches, getattr(batches, "num_cases", None) or 1)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    pairs = members_of(model, guide)
    run = _Run(pairs, batches, chosen, draws, seed)
    attrs = _attributes(pairs[0], seed, draws, log_likelihood_of, len(pairs))
    sink = open_sink(store, attrs, resume=resume, chunk_cases=CHUNK_CASES)
    total = len(pairs) * draws * loader.num_batches
    with tqdm(total=total, desc="predict", unit="batch", disable=not progress) as bar:
        for chunk in run.chunks(bar, skip=sink.cases_done):
            sink.append(chunk)
    if prior_draws and guide is not None:
        prior = _Run([(pairs[0][0], None)], batches, chosen, prior_draws, seed)
        for chunk in prior.chunks(None, skip=0):
            sink.append_prior(chunk)
    return sink.finish(wall_time=time.time() - started)


def _check(draws: int, prior_draws: int, log_likelihood_of: str, seed: int) -> None:
    if draws < 1 or prior_draws < 0:
        raise ValueError(f"draws must be at least 1 and prior_draws 0, got {draws}, {prior_draws}")
    if log_likelihood_of not in ("held-out", "training"):
        raise ValueError(
            f"log_likelihood_of must be 'held-out' or 'training', got {log_likelihood_of!r}"
        )
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")


class _Run:
    """Draws of every chain over all batches."""

    def __init__(
        self,
        pairs: list[tuple[Program, Program | None]],
        batches: Any,
        device: torch.device,
        draws: int,
        seed: int,
    ) -> None:
        self.pairs, self.batches, self.device, self.draws = pairs, batches, device, draws
        first = next(iter(batches), None)
        if first is None:
            raise ValueError("batches is empty: it yields no batch")
        model = pairs[0][0]
        self.limits = model_limits(model)
        self.limits.check(first)
        for program in (program for pair in pairs for program in pair):
            if isinstance(program, nn.Module):
                program.to(device).eval()
        one = {
            name: value[:1]
            for name, value in to_device(select_arguments(model, first), device).items()
        }
        bare = without_observations(model, one)
        self.samplers = [Sampler(*pair, bare, seed, chain) for chain, pair in enumerate(pairs)]
        self.cache: dict[tuple[int, int], dict[str, torch.Tensor]] = {}
        self.cached = 0
        self.recorder = Recorder(model, self.samplers[0], len(pairs), draws)

    def chunks(self, bar: Any, skip: int) -> Iterator[Chunk]:
        """Yield results for about ``CHUNK_CASES`` cases at a time."""
        for start, group in self._groups():
            size = sum(batch_size(select_arguments(self.pairs[0][0], b)) for b in group)
            if start + size <= skip:
                if bar is not None:
                    bar.update(len(group) * len(self.pairs) * self.draws)
                continue
            yield self._chunk(start, group, bar)

    def _groups(self) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        group: list[dict[str, Any]] = []
        start = size = 0
        for batch in self.batches:
            self.limits.check(batch)
            group.append(batch)
            size += batch_size(select_arguments(self.pairs[0][0], batch))
            if size >= CHUNK_CASES:
                yield start, group
                group, start, size = [], start + size, 0
        if group:
            yield start, group

    def _chunk(self, start: int, group: list[dict[str, Any]], bar: Any) -> Chunk:
        model = self.pairs[0][0]
        inputs = [to_device(select_arguments(model, batch), self.device) for batch in group]
        chunk = self.recorder.start(start, group, inputs)
        observed = self.samplers[0].observed
        with torch.no_grad():
            for chain, sampler in enumerate(self.samplers):
                for draw in range(self.draws):
                    values = self._globals(chain, draw)
                    offset = 0
                    for values_in in inputs:
                        size = batch_size(values_in)
                        cases = np.arange(start + offset, start + offset + size)
                        bare = {n: v for n, v in values_in.items() if n not in observed}
                        trace = sampler.run(values, draw, bare, cases)
                        self.recorder.record(chunk, trace, values_in, chain, draw, offset)
                        offset += size
                        if bar is not None:
                            bar.update()
                    if start == 0:
                        self.recorder.record_globals(chunk, values, chain, draw)
        return chunk

    def _globals(self, chain: int, draw: int) -> dict[str, torch.Tensor]:
        """A draw's latents, kept for the next chunk while memory allows."""
        if (chain, draw) in self.cache:
            return self.cache[chain, draw]
        values = self.samplers[chain].draw(draw)
        size = sum(value.numel() for value in values.values())
        if self.cached + size <= CACHED_WEIGHTS:
            self.cache[chain, draw] = values
            self.cached += size
        return values


def _attributes(
    pair: tuple[Program, Program | None], seed: int, draws: int, origin: str, chains: int
) -> dict[str, Any]:
    versions = {
        f"{name.replace('-', '_')}_version": importlib.metadata.version(name)
        for name in ("torch", "pyro-ppl", "xarray")
    }
    return {
        "model": full_name(pair[0]),
        "guide": "prior" if pair[1] is None else full_name(pair[1]),
        "network": _network_name(pair[0]),
        "seed": seed,
        "draws": draws,
        "chains": chains,
        "log_likelihood_of": origin,
        "inference_library": "ppl_med",
        **versions,
    }


def _network_name(model: Any) -> str:
    network = getattr(getattr(model, "network", None), "net", None)
    return type(network).__name__ if network is not None else full_name(model)
