"""Filling the arrays of a result, one (chain, draw, batch) at a time."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro.poutine as poutine
import torch
import xarray as xr
from torch import Tensor

from ppl_med.dims import site_dims
from ppl_med.inference.function_draw import Sampler
from ppl_med.inference.programs import Program, batch_size
from ppl_med.likelihoods import in_double, stored_parameters
from ppl_med.weights import RandomWeights, random_weights

SMALL_SITE = 1000
Key = tuple[str, str]  # group, variable


@dataclass
class Chunk:
    """Results of some consecutive cases.

    Attributes:
        start: Position of the first case.
        num_cases: How many.
        ids: Their ids.
        arrays: Values by (group, variable).
        dims: Dims by (group, variable).
        coords: Coordinates shared by all groups.
    """

    start: int
    num_cases: int
    ids: list[Any]
    arrays: dict[Key, np.ndarray] = field(default_factory=dict)
    dims: dict[Key, tuple[str, ...]] = field(default_factory=dict)
    coords: dict[str, Any] = field(default_factory=dict)

    def datasets(self) -> dict[str, xr.Dataset]:
        """One Dataset a group."""
        groups: dict[str, dict[str, Any]] = {}
        for (group, name), values in self.arrays.items():
            groups.setdefault(group, {})[name] = (self.dims[group, name], values)
        result = {}
        for group, variables in groups.items():
            used = {dim for dims, _ in variables.values() for dim in dims}
            coords = {n: (n, np.asarray(v)) for n, v in self.coords.items() if n in used}
            result[group] = xr.Dataset(variables, coords=coords)
        return result


class Recorder:
    """Knows a program's sites and how they are stored.

    Args:
        model: The model.
        sampler: A sampler of it, for the names of its sites.
        chains: Number of chains.
        draws: Draws per chain.
    """

    def __init__(self, model: Program, sampler: Sampler, chains: int, draws: int) -> None:
        self.chains, self.draws = chains, draws
        self.observed, self.local = sampler.observed, sampler.local
        self.coords = dict(getattr(model, "coords", {}))
        self.layouts: dict[str, RandomWeights] = random_weights([model])
        self.group = "posterior" if sampler.guide is not None else "prior"

    def start(self, start: int, group: list[dict[str, Any]], inputs: list[dict[str, Any]]) -> Chunk:
        """An empty chunk with ids, observations and metadata filled in."""
        num_cases = sum(batch_size(values) for values in inputs)
        ids: list[Any] = []
        for batch, values in zip(group, inputs, strict=True):
            own = batch.get("id")
            size = batch_size(values)
            position = start + len(ids)
            ids += list(range(position, position + size)) if own is None else _plain(own)
        chunk = Chunk(start, num_cases, ids)
        chunk.coords = {
            "chain": range(self.chains),
            "draw": range(self.draws),
            "case": ids,
            **self.coords,
        }
        for name in self.observed:
            if all(name in values for values in inputs):
                joined = torch.cat([values[name].cpu() for values in inputs]).numpy()
                chunk.arrays["observed_data", name] = joined
        for name in group[0].keys() - {"id", *inputs[0]}:
            column = np.concatenate([np.asarray(_plain(batch[name])) for batch in group])
            if len(column) == num_cases and column.ndim == 1:
                chunk.arrays["constant_data", name] = column
                chunk.dims["constant_data", name] = ("case",)
        return chunk

    def record(
        self,
        chunk: Chunk,
        trace: poutine.Trace,
        inputs: dict[str, Any],
        chain: int,
        draw: int,
        offset: int,
    ) -> None:
        """Store one draw of one batch."""
        where = (chain, draw, offset)
        for name in self.observed:
            node = trace.nodes[name]
            names, fn = site_dims(trace, name), in_double(node["fn"])
            prefix = "" if len(self.observed) == 1 else f"{name}_"
            for parameter, (dims, value) in stored_parameters(fn, names).items():
                self._put(chunk, (self.group, prefix + parameter), dims, value, where)
            value = node["value"]
            discrete = node["fn"].support.is_discrete
            drawn = value.to(torch.int64) if discrete else value
            self._put(chunk, (f"{self.group}_predictive", name), names, drawn, where)
            if name in inputs and self.group == "posterior":
                log_prob = fn.log_prob(inputs[name])
                dims = names[: log_prob.dim()]
                self._put(chunk, ("log_likelihood", name), dims, log_prob, where)
                chunk.dims["observed_data", name] = tuple(names)
        for name in self.local:
            value = trace.nodes[name]["value"]
            self._put(chunk, (self.group, name), site_dims(trace, name), value, where)

    def _put(
        self,
        chunk: Chunk,
        key: Key,
        dims: list[str],
        value: Tensor,
        where: tuple[int, int, int],
    ) -> None:
        if not dims or dims[0] != "case":
            raise ValueError(
                f"{key[1]!r} has the dims {dims}; observations and local latents must stand in "
                "pyro.plate('case', num_cases or len(image), subsample=image)"
            )
        chain, draw, offset = where
        values = value.cpu().numpy()
        if key not in chunk.arrays:
            shape = (self.chains, self.draws, chunk.num_cases, *values.shape[1:])
            chunk.arrays[key] = np.empty(shape, dtype=values.dtype)
            chunk.dims[key] = ("chain", "draw", *dims)
        chunk.arrays[key][chain, draw, offset : offset + len(values)] = values

    def record_globals(
        self, chunk: Chunk, values: dict[str, Tensor], chain: int, draw: int
    ) -> None:
        """Store a summary of the global latents: norms per layer, small sites whole."""
        for name, value in values.items():
            if name in self.layouts:
                layout = self.layouts[name].layout
                label = "layer" if len(self.layouts) == 1 else f"{name}_layer"
                stored = torch.stack([view.norm() for view in layout.views(value).values()])
                key, dims = name.removesuffix("s") + "_norm", [label]
                chunk.coords[label] = layout.names
            elif value.numel() <= SMALL_SITE:
                stored, key = value, name
                dims = [f"{name}_dim_{axis}" for axis in range(value.dim())]
            else:
                stored, key, dims = value.norm(), f"{name}_norm", []
            where = (self.group, key)
            if where not in chunk.arrays:
                shape = (self.chains, self.draws, *stored.shape)
                chunk.arrays[where] = np.empty(shape, dtype=np.float64)
                chunk.dims[where] = ("chain", "draw", *dims)
            chunk.arrays[where][chain, draw] = stored.double().cpu().numpy()


def _plain(values: Any) -> list[Any]:
    return values.tolist() if isinstance(values, Tensor | np.ndarray) else list(values)
