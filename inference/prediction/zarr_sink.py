"""A Zarr store that grows with every chunk of cases, and can be gone on with when interrupted."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ppl_med.inference.data_digest import DATA, same_data
from ppl_med.inference.prediction import tree_builder
from ppl_med.inference.prediction.continuation import check_continues, outline
from ppl_med.inference.prediction.tree_builder import Chunk
from ppl_med.storage.atomic import not_written, remove_leftovers, write_text
from ppl_med.storage.locks import locked
from ppl_med.storage.padding import largest_sizes, pad_dataset
from ppl_med.storage.seals import (
    SEAL,
    check_chunks,
    check_store,
    chunk_codecs,
    is_store,
    seal_store,
)
from ppl_med.storage.trees import variable_text

PRIOR_GROUPS = ("prior", "prior_predictive")
# A chunk that is not there must be one that was lost, so those of one value are written as well.
EVERY_CHUNK: dict[str, Any] = {"array.write_empty_chunks": True}


def _is_large(variable: xr.Variable) -> bool:
    return variable.dims[:2] == ("chain", "draw") and variable.nbytes >= tree_builder.LARGE_ARRAY


def _chunks(variable: xr.Variable) -> tuple[int, ...]:
    """One Zarr chunk for one chunk of cases, so that an append rewrites no earlier one.

    Of large arrays, one for each draw of them.
    """
    shape = variable.shape
    return (1, 1, *shape[2:]) if _is_large(variable) else shape


class ZarrSink:
    """Appends chunks to a store beside the target and renames it when it is complete.

    A resumed run must have the same ``attrs``. With ``from_prior`` the result is the prior's draws.

    Raises:
        ValueError: If the interrupted run had other settings.
        FileExistsError: If there is an interrupted run and ``resume`` is False.
    """

    def __init__(
        self, path: Path, attrs: dict[str, Any], resume: bool, from_prior: bool = False
    ) -> None:
        self.path, self.attrs, self.from_prior = path, attrs, from_prior
        self.scratch = path.parent
        self.partial = path.with_name(f"{path.name}.partial")
        self.progress = path.with_name(f"{path.name}.partial.json")
        self.cases_done = 0
        self._every_chunk = True  # an earlier version left out chunks of one value
        self._first: dict[str, xr.Dataset] = {}  # outline of one case of every group
        self.complete = path.exists()
        if self.complete:
            self._check_attrs(path, dict(self.open().attrs))
            self._remove_notes()
        elif not self.partial.exists():
            self.progress.unlink(missing_ok=True)
        elif not resume:
            raise FileExistsError(
                f"{self.partial} is an interrupted run; pass resume=True, or delete it"
            )
        else:
            self._resume()

    def _resume(self) -> None:
        state = self._state()
        if state["cases_done"] == 0:  # not one chunk was complete
            self._discard()
            return
        self._check_attrs(self.partial, state["attrs"])
        self.cases_done = state["cases_done"]
        with self._reading(self.partial):
            self._cut(self.cases_done)
            self._every_chunk = state["every_chunk"]
            if self._every_chunk:
                check_chunks(self.partial)

    def _state(self) -> dict[str, Any]:
        """What an interrupted run noted last."""
        if not self.progress.exists():
            return {"cases_done": 0}
        try:
            state = json.loads(self.progress.read_text(encoding="utf-8"))
            attrs, every_chunk = dict(state["attrs"]), bool(state.get("every_chunk"))
            return {
                "cases_done": int(state["cases_done"]),
                "attrs": attrs,
                "every_chunk": every_chunk,
            }
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{self.progress} is damaged, so nobody knows how far the interrupted run came; "
                f"delete it and {self.partial}, and predict again"
            ) from error

    def _discard(self) -> None:
        """Remove an interrupted run."""
        self.progress.unlink(missing_ok=True)
        others = [one for one in self.partial.iterdir() if one.suffix != ".partial"]
        if others and not is_store(self.partial):
            raise FileExistsError(
                f"{self.partial} is no interrupted run: it holds {others[0].name}; move it away, "
                "or give another store"
            )
        shutil.rmtree(self.partial)

    @contextmanager
    def _reading(self, path: Path) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Zarr raises KeyError, ValueError, RuntimeError, OSError
            raise ValueError(
                f"store {path} is damaged ({error}); delete it and predict again"
            ) from error

    def _check_attrs(self, path: Path, found: dict[Any, Any]) -> None:
        where_given = ("samples", "window", "keep")
        names = (*self.attrs, *where_given)
        differing = [n for n in names if n != DATA and found.get(n) != self.attrs.get(n)]
        if not same_data(found.get(DATA), self.attrs.get(DATA)):
            differing.append(DATA)
        if differing:
            name = differing[0]
            raise ValueError(
                f"{path} was made with another {name}: {found.get(name)!r}, now "
                f"{self.attrs.get(name)!r}; resume with the same arguments, or delete it"
            )

    def _cut(self, num_cases: int) -> None:
        """Cut off what lies beyond the first cases, such as the rest of an interrupted append."""
        import zarr

        for unfinished in self.partial.rglob("*.partial"):  # Zarr's temporary files
            unfinished.unlink()
        if not self.from_prior:
            self.start_prior()
        shutil.rmtree(self.partial / "sample_stats", ignore_errors=True)
        root = zarr.open_group(self.partial, mode="r+")
        for _, group in root.groups():
            for _, array in group.arrays():
                names = getattr(array.metadata, "dimension_names", None) or ()
                shape = tuple(
                    num_cases if name == "case" else size
                    for name, size in zip(names, array.shape, strict=True)
                )
                if shape != array.shape:
                    array.resize(shape)

    def ids_done(self) -> Sequence[Any]:
        """Ids of the cases that are complete."""
        if not self.cases_done:
            return ()
        import zarr

        root = zarr.open_group(self.partial, mode="r")
        for _, group in root.groups():
            cases: Any = group.get("case")
            if cases is not None:
                return np.asarray(cases[:]).tolist()
        return ()

    def append(self, chunk: Chunk) -> None:
        """Write one chunk and note that it is complete; if it fails, earlier ones are intact."""
        with self._writing():
            if chunk.start < self.cases_done:  # the cases come in other batches than before
                self._note(chunk.start)
                self._cut(chunk.start) if chunk.start else self._discard()
            self._write(chunk.datasets(), chunk.start)
            self._note(chunk.start + chunk.num_cases)

    def _note(self, cases_done: int) -> None:
        self.cases_done = cases_done
        state = {"cases_done": cases_done, "attrs": self.attrs, "every_chunk": self._every_chunk}
        write_text(self.progress, json.dumps(state))

    def start_prior(self) -> None:
        """Remove prior draws of an interrupted run; they are drawn anew."""
        for name in PRIOR_GROUPS:
            if (self.partial / name).exists():
                shutil.rmtree(self.partial / name)

    def append_prior(self, chunk: Chunk) -> None:
        """Write one chunk of prior draws; metadata stand there already."""
        with self._writing():
            groups = {n: d for n, d in chunk.datasets().items() if n in PRIOR_GROUPS}
            self._write(groups, chunk.start)

    def add_stats(self, stats: xr.Dataset) -> None:
        """Write figures of the sampler, dims (chain, draw)."""
        import zarr

        with self._writing(), zarr.config.set(EVERY_CHUNK):
            stats.to_zarr(self.partial, group="sample_stats", mode="w", consolidated=False)

    def _write(self, groups: dict[str, xr.Dataset], start: int) -> None:
        if start:
            first = self._first_cases(groups)
            groups = {n: self._filled(d, first[n]) if n in first else d for n, d in groups.items()}
            check_continues(first, groups)
        for name, dataset in groups.items():
            self._write_group(name, variable_text(dataset), start)
            if start == 0:
                self._first[name] = outline(dataset)

    def _filled(self, dataset: xr.Dataset, first: xr.Dataset) -> xr.Dataset:
        """Maps of smaller cases, filled up to the size in the store."""
        stored = largest_sizes([first])
        if any(dataset.sizes.get(dim, 0) > size for dim, size in stored.items()):
            raise ValueError(
                f"a case is larger than those of the first chunk, of size {stored}, whose size a "
                "Zarr store keeps; put the largest case first, or predict without store="
            )
        return pad_dataset(dataset, stored)

    def _first_cases(self, groups: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
        """The first case of the groups in the store that are appended to with these."""
        import zarr

        of_prior = groups.keys() <= set(PRIOR_GROUPS) and not self.from_prior
        with self._reading(self.partial):
            for name in zarr.open_group(self.partial, mode="r").group_keys():
                if name not in self._first:
                    stored = xr.open_zarr(self.partial, group=name, consolidated=False, chunks=None)
                    self._first[name] = stored.isel(case=slice(1))
        return {
            name: one
            for name, one in self._first.items()
            if self.from_prior or (name in PRIOR_GROUPS) == of_prior
        }

    def _write_group(self, group: str, dataset: xr.Dataset, start: int) -> None:
        import zarr

        options: dict[str, Any] = {"group": group, "mode": "a", "consolidated": False}
        if start == 0:
            codecs = chunk_codecs(dataset.variables)
            for name, variable in dataset.variables.items():
                codecs[name]["chunks"] = _chunks(variable)
            options["encoding"] = codecs
        else:
            by_case = [name for name in dataset.data_vars if "case" in dataset[name].dims]
            fixed = [name for name in dataset.coords if "case" not in dataset[name].dims]
            dataset = dataset[by_case].drop_vars(fixed, errors="ignore")
            options["append_dim"] = "case"
        large = any(_is_large(variable) for variable in dataset.variables.values())
        # Zarr copies the chunks that it writes at a time, ten by default.
        with zarr.config.set(EVERY_CHUNK | ({"async.concurrency": 1} if large else {})):
            dataset.to_zarr(self.partial, **options)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except BlockingIOError:
            raise
        except OSError as error:
            advice = (
                f"the first {self.cases_done} cases are safe in {self.partial}; free some space, "
                "then resume with resume=True"
            )
            raise not_written(f"store {self.path}", self.path, error, advice) from error

    def open(self) -> xr.DataTree:
        """The complete store, lazily; coordinates are in memory, as plain text."""
        with self._reading(self.path):
            check_store(self.path)
            tree = xr.open_datatree(self.path, engine="zarr", consolidated=False, chunks={})
        tree.attrs.pop(SEAL, None)
        for node in tree.subtree:
            text = {
                name: (coord.dims, np.array(coord.values.tolist(), dtype=str))
                for name, coord in node.coords.items()
                if coord.dtype.kind == "T"
            }
            if text:
                node.dataset = node.to_dataset(inherit=False).assign_coords(text)
        return tree

    def finish(self, wall_time: float) -> xr.DataTree:
        """Complete the store, move it into place and open it lazily."""
        import zarr

        attrs = {**self.attrs, "wall_time_seconds": round(wall_time, 3)}
        with self._writing():
            zarr.open_group(self.partial, mode="a").attrs.update(attrs)
            if self._every_chunk:
                seal_store(self.partial)
            os.replace(self.partial, self.path)
            self._remove_notes()
        return self.open()

    def _remove_notes(self) -> None:
        """Remove the note of progress, and what a process killed while it wrote one left of it."""
        with locked(self.progress, "note of progress"):
            self.progress.unlink(missing_ok=True)
            remove_leftovers(self.progress)
