"""Filling the arrays of a result, one (chain, draw, batch) at a time."""

import math
import numbers
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyro.poutine as poutine
import torch
import xarray as xr
from torch import Tensor

from ppl_med.checks import present
from ppl_med.inference.batches import has_graders
from ppl_med.inference.prediction.case_densities import local_densities
from ppl_med.inference.prediction.columns import as_column, column_dims, find_columns
from ppl_med.inference.prediction.posterior_sampler import PosteriorSampler, is_stored
from ppl_med.inference.prediction.weight_draws import ALONG, check_samples, weights_of
from ppl_med.likelihoods import (
    in_double,
    log_prob_in_double,
    stored_parameters,
    stored_values,
)
from ppl_med.programs import protocol
from ppl_med.programs.sites import (
    Program,
    argument_names,
    batch_size,
    case_dim,
    check_densities,
    site_dims,
)
from ppl_med.storage.padding import in_room, join_padded
from ppl_med.weights import RandomWeights, find_random_weights

SMALL_SITE = 1000
LARGE_ARRAY = 2**29  # bytes from which on an array is filled on the disk, where there is a store
Key = tuple[str, str]  # group, variable


@dataclass
class Chunk:
    """Results of some consecutive cases, with values and dims by (group, variable).

    ``coords`` are shared by all groups. ``scratch`` is the folder whose disk holds large arrays
    while they are filled; None for memory.
    """

    start: int
    num_cases: int
    ids: list[Any]
    arrays: dict[Key, np.ndarray] = field(default_factory=dict)
    dims: dict[Key, tuple[str, ...]] = field(default_factory=dict)
    attrs: dict[Key, dict[str, str]] = field(default_factory=dict)
    coords: dict[str, Any] = field(default_factory=dict)
    scratch: Path | None = None

    def make(self, key: Key, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Make an array that is to be filled; an OSError where the disk cannot hold it."""
        size = math.prod(shape) * dtype.itemsize
        if self.scratch is None or size < LARGE_ARRAY:
            self.arrays[key] = np.empty(shape, dtype)
            return
        with tempfile.TemporaryFile(dir=self.scratch) as file:  # it lives as long as the array
            if hasattr(os, "posix_fallocate"):  # a full disk is an error now, a crash later
                os.posix_fallocate(file.fileno(), 0, size)
            self.arrays[key] = np.memmap(file, dtype, "w+", shape=shape)

    def datasets(self) -> dict[str, xr.Dataset]:
        """One Dataset a group."""
        groups: dict[str, dict[str, Any]] = {}
        for (group, name), values in self.arrays.items():
            attrs = self.attrs.get((group, name), {})
            groups.setdefault(group, {})[name] = (self.dims[group, name], values, attrs)
        result = {}
        for group, variables in groups.items():
            used = {dim for dims, *_ in variables.values() for dim in dims}
            given = {n: (ALONG.get(n, n), np.asarray(v)) for n, v in self.coords.items()}
            coords = {name: pair for name, pair in given.items() if pair[0] in used}
            result[group] = xr.Dataset(variables, coords=coords)
        return result


class TreeBuilder:
    """Knows a program's sites and how they are stored.

    The first batch fixes what there is of observations and metadata; ``inputs`` are its arguments
    of the model. Large arrays are filled in the folder ``scratch``, where there is one.

    Warns:
        UserWarning: On entries of the batch that no array can hold; they are left out.
    """

    def __init__(
        self,
        model: Program,
        sampler: PosteriorSampler,
        first: Mapping[str, Any],
        inputs: Mapping[str, Any],
        chains: int,
        draws: int,
        samples: int = 1,
    ) -> None:
        self.chains, self.draws, self.samples = chains, draws * samples, samples
        self.scratch: Path | None = None
        self.observed, self.local, self.globals = sampler.observed, sampler.local, sampler.globals
        self.given, self.noted = [n for n in self.observed if n in inputs], sampler.noted
        local = f"of each case {', '.join(self.local)}" if self.local else ""
        self.attrs = {"draws_of": "; ".join(filter(None, [", ".join(self.globals), local]))}
        unseen = protocol.told_by_image(model) & set(self.local)
        if unseen and not sampler.guide_has_local:
            self.attrs["given"] = ", ".join(sorted(unseen))
        self.bounded = protocol.evidence_bound(model)
        own = bool(sampler.generated) and sampler.guide_has_local
        self.generates = own and not self.bounded  # a bound has its latents' densities in it
        if self.generates:
            self.attrs["given_itself"] = ", ".join(self.local)
        self.scored = not (self.bounded or protocol.loss_alone(model))
        self.coords = sampler.class_names | protocol.coords(model)
        self.layouts: dict[str, RandomWeights] = find_random_weights([model])
        self.group = "posterior" if sampler.guide is not None else "prior"
        self.by_graders = has_graders(first)
        # Inputs such as the number of a site are metadata too; further pictures are not.
        pictures = {n for n, v in inputs.items() if isinstance(v, Tensor) and v.dim() > 2}
        self.kinds, shown = {n: site["fn"] for n, site in sampler.examples.items()}, set[str]()
        for name, site in sampler.examples.items():
            shown |= stored_values(site["fn"], name, site["value"], self.observed[name]).keys()
        taken = {"id", "image", argument_names(model)[0], *self.observed, *pictures, *shown}
        self.columns = find_columns(first, taken, batch_size(inputs))
        check_samples(samples, sampler, {*self.coords, *self.globals} - self.layouts.keys())

    def start(
        self,
        start: int,
        group: Sequence[Mapping[str, Any]],
        inputs: Sequence[Mapping[str, Any]],
        observations: Sequence[Mapping[str, Tensor]],
    ) -> Chunk:
        """An empty chunk of some batches with ids, observations and metadata filled in.

        Raises:
            ValueError: If batches differ in what they hold.
        """
        ids = case_ids(start, group, inputs)
        chunk = Chunk(start, sum(map(batch_size, inputs)), ids, scratch=self.scratch)
        chunk.coords = {
            "chain": range(self.chains),
            "draw": range(self.draws),
            "case": chunk.ids,
            **weights_of(self.draws, self.samples),
            **self.coords,
        }
        for name in self.observed:
            with_it = sum(name in values for values in observations)
            if with_it != (len(inputs) if name in self.given else 0):
                raise ValueError(
                    f"some batches have {name!r} and some have not; predict the cases with and "
                    "without observations apart"
                )
        self.by_graders = has_graders(inputs[0])
        for name in self.given:
            own, kind = self._observation_dims(name), self.kinds[name]
            split = [stored_values(kind, name, v[name].detach(), own) for v in observations]
            for part, (names, _) in split[0].items():
                dims, axis = _case_first(names)
                arrays = [one[part][1].movedim(axis, 0).cpu().numpy() for one in split]
                chunk.arrays["observed_data", part] = join_padded(arrays, dims)
                chunk.dims["observed_data", part] = dims
        for name in self.columns:
            parts = [
                as_column(batch.get(name), batch_size(v))
                for batch, v in zip(group, inputs, strict=True)
            ]
            found = [part for part in parts if part is not None]
            dims = column_dims(name, found[0], group[0].get("image")) if found else ()
            try:
                if len(found) < len(parts):
                    raise ValueError("a batch lacks it")
                chunk.arrays["constant_data", name] = join_padded(found, dims)
            except ValueError as error:
                raise ValueError(
                    f"{name!r} is missing from a batch, or its shape differs between batches "
                    f"({error}); give every case the same, or leave it out"
                ) from error
            chunk.dims["constant_data", name] = dims
        return chunk

    def record(
        self,
        chunk: Chunk,
        trace: poutine.Trace,
        observations: Mapping[str, Tensor],
        chain: int,
        draw: int,
        offset: int,
    ) -> None:
        """Store one draw of one batch."""
        where = (chain, draw, offset)
        for name in self.observed:
            node: Any = trace.nodes[name]
            case_dim(node)  # raises on a site outside the plate of cases
            names, fn = site_dims(trace, name), in_double(node["fn"])
            if is_stored(node):
                self._record_prediction(chunk, name, node, names, where)
            front = int(self.by_graders and name == "mask" and name in observations)
            check_densities({name: node}, observations, front)
            if name in observations and self.group == "posterior" and self.scored:
                log_prob = log_prob_in_double(fn, observations[name])
                if self.by_graders and name == "mask":
                    absent = (observations[name] < 0).flatten(2).all(2)
                    log_prob = torch.where(absent, torch.nan, log_prob)
                dims = self._observation_dims(name)[: log_prob.dim()]
                self.put(chunk, ("log_likelihood", name), dims, log_prob, where, self.attrs)
        for name in self.local:
            local: Any = trace.nodes[name]
            check_densities({name: local})
            if is_stored(local):
                value = local["value"]
                self.put(chunk, (self.group, name), site_dims(trace, name), value, where)
        for name in self.noted:
            noted: Any = trace.nodes[name]
            self.put(chunk, (self.group, name), site_dims(trace, name), noted["value"], where)
        if self.generates:
            for name, prior, guide in local_densities(trace, self.local):
                self.put(chunk, ("log_prior", name), ["case"], prior, where)
                self.put(chunk, ("log_guide", name), ["case"], guide, where)

    def record_bounds(
        self, chunk: Chunk, bounds: Mapping[str, Tensor], where: tuple[int, int, int]
    ) -> None:
        """Store bounds of log-densities where these are not known, in a group of their own."""
        attrs = {**self.attrs, "units": "nats", "note": "one estimate of a lower bound a draw"}
        for name, bound in bounds.items():
            dims = self._observation_dims(name)[: bound.dim()]
            self.put(chunk, ("evidence_bound", name), dims, bound, where, attrs)

    def _record_prediction(
        self, chunk: Chunk, name: str, node: Any, names: list[str], where: tuple[int, int, int]
    ) -> None:
        """Store the parameters of an observed site, and what was drawn from it."""
        prefix = "" if len(self.observed) == 1 else f"{name}_"
        for parameter, (dims, value) in stored_parameters(in_double(node["fn"]), names).items():
            if len(names) > len(node["fn"].batch_shape):  # maps are large; 7 digits do
                value = value.float()
            self.put(chunk, (self.group, prefix + parameter), dims, value, where, self.attrs)
        value = node.get("drawn", node["value"])
        drawn = value.to(torch.int64) if node["fn"].support.is_discrete else value
        group = f"{self.group}_predictive"
        for part, (dims, values) in stored_values(node["fn"], name, drawn, names).items():
            self.put(chunk, (group, part), dims, values, where, self.attrs)

    def _observation_dims(self, name: str) -> list[str]:
        """Dims of what an observed site conditions on, in the site's layout."""
        graders = ["grader"] if self.by_graders and name == "mask" else []
        return [*graders, *self.observed[name]]

    def put(
        self,
        chunk: Chunk,
        key: Key,
        dims: list[str],
        value: Tensor,
        where: tuple[int, int, int],
        attrs: Mapping[str, str] | None = None,
    ) -> None:
        """Store a value, dims in its layout; ``where`` is chain, draw and place of the batch."""
        chain, draw, offset = where
        ordered, axis = _case_first(dims)
        values = value.detach().movedim(axis, 0).cpu().numpy()
        if key not in chunk.arrays:
            shape = (self.chains, self.draws, chunk.num_cases, *values.shape[1:])
            chunk.make(key, shape, values.dtype)
            chunk.dims[key] = ("chain", "draw", *ordered)
            chunk.attrs[key] = dict(attrs or {})
        if values.shape[1:] != chunk.arrays[key].shape[3:]:  # of another size than cases before
            values = in_room(chunk, key, values, ordered)
        chunk.arrays[key][chain, draw, offset : offset + len(values)] = values

    def record_globals(
        self, chunk: Chunk, values: Mapping[str, Tensor], chain: int, draw: int
    ) -> None:
        """Store a summary of the global latents: norms per layer, small sites whole."""
        for name, site_dim_names in self.globals.items():
            value = values[name].detach()
            if name in self.layouts:
                layout = self.layouts[name].layout
                label = "layer" if len(self.layouts) == 1 else f"{name}_layer"
                stored = torch.stack(torch._foreach_norm([*layout.views(value).values()]))
                key, dims = name.removesuffix("s") + "_norm", [label]
                chunk.coords[label] = layout.names
            elif value.numel() <= SMALL_SITE:
                generic = [f"{name}_dim_{axis}" for axis in range(value.dim())]
                fits = len(site_dim_names) == value.dim()
                stored, key, dims = value, name, site_dim_names if fits else generic
            else:
                stored, key, dims = value.norm(), f"{name}_norm", []
            where = (self.group, key)
            if where not in chunk.arrays:
                shape = (self.chains, self.draws, *stored.shape)
                chunk.arrays[where] = np.empty(shape, dtype=np.float64)
                chunk.dims[where] = ("chain", "draw", *dims)
            chunk.arrays[where][chain, draw] = stored.double().cpu().numpy()


def _case_first(dims: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """Dims with the case in front, and the axis where it stood."""
    axis = dims.index("case")
    return ("case", *dims[:axis], *dims[axis + 1 :]), axis


def case_ids(
    start: int, group: Sequence[Mapping[str, Any]], inputs: Sequence[Mapping[str, Any]]
) -> list[Any]:
    """Ids of the cases in some batches; positions where there are none."""
    ids: list[Any] = []
    for batch, values in zip(group, inputs, strict=True):
        own, size, position = batch.get("id"), batch_size(values), start + len(ids)
        if own is not None and len(own) != size:
            raise ValueError(f"id has {len(own)} entries in a batch of {size} cases")
        ids += list(range(position, position + size)) if own is None else present("id", own)
    _check_ids(start, ids)
    return ids


def _check_ids(start: int, ids: Sequence[Any]) -> None:
    """Raise unless ids are texts or numbers, all of one kind, so that any file can hold them."""
    kinds = [
        "text"
        if isinstance(one, str)
        else "number"
        if isinstance(one, numbers.Real) and not isinstance(one, bool) and one == one
        else ""
        for one in ids
    ]
    wrong = [at for at, kind in enumerate(kinds) if kind != kinds[0] or not kind]
    if wrong:
        raise ValueError(
            f"id must be a text or a number of every case, all of one kind, got {ids[wrong[0]]!r} "
            f"and the like for {len(wrong)} of {len(ids)} cases, first at position "
            f"{start + wrong[0]}; name every case"
        )
