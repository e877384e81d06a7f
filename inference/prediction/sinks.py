"""Where ``predict`` puts its chunks: memory, a netCDF file, or a Zarr store that grows."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ppl_med import storage
from ppl_med.inference.prediction import tree_builder
from ppl_med.inference.prediction.tree_builder import Chunk
from ppl_med.storage.atomic import not_written, remove_leftovers, write_text

PRIOR_GROUPS = ("prior", "prior_predictive")


def open_sink(
    store: str | Path | None, attrs: dict[str, Any], *, resume: bool, from_prior: bool = False
) -> "MemorySink | ZarrSink":
    """The sink for a ``store`` of ``predict``; with ``from_prior`` all draws are from the prior.

    Raises:
        ValueError: If the suffix is neither .nc nor .zarr, a result that is no Zarr store is to be
            resumed, or the store to resume has other settings, which ``attrs`` tell.
        FileExistsError: If the store exists.
    """
    path = None if store is None else Path(store)
    if path is not None and path.suffix not in (".nc", ".zarr"):
        raise ValueError(f"store must end in .nc or .zarr, got {str(path)!r}")
    is_zarr = path is not None and path.suffix == ".zarr"
    if resume and not is_zarr:
        raise ValueError(f"resume needs store='*.zarr', which is written on the way; got {store!r}")
    if path is not None and path.exists() and not resume:
        raise FileExistsError(f"store {path} exists; load it, or give another path")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    if path is None or not is_zarr:
        return MemorySink(path, attrs)
    return ZarrSink(path, attrs, resume, from_prior)


class MemorySink:
    """Keeps chunks, joins them at the end, and writes a netCDF file where there is a path."""

    complete = False
    scratch: Path | None = None

    def __init__(self, path: Path | None, attrs: dict[str, Any]) -> None:
        self.path, self.attrs = path, attrs
        self.groups: dict[str, list[xr.Dataset]] = {}

    def ids_done(self) -> Sequence[Any]:
        """None: nothing is there yet."""
        return ()

    def append(self, chunk: Chunk) -> None:
        """Take one chunk."""
        for group, dataset in chunk.datasets().items():
            self.groups.setdefault(group, []).append(dataset)

    def start_prior(self) -> None:
        """Nothing to prepare."""

    def append_prior(self, chunk: Chunk) -> None:
        """Take one chunk of prior draws; metadata stand there already."""
        for group, dataset in chunk.datasets().items():
            if group in PRIOR_GROUPS:
                self.groups.setdefault(group, []).append(dataset)

    def open(self) -> xr.DataTree:
        """Never asked for: a memory result is not complete before it is made."""
        raise NotImplementedError

    def finish(self, wall_time: float) -> xr.DataTree:
        """Join and, where asked, write."""
        tree = xr.DataTree.from_dict({f"/{n}": _join(parts) for n, parts in self.groups.items()})
        tree.attrs.update(self.attrs, wall_time_seconds=round(wall_time, 3))
        if self.path is not None:
            storage.save(tree, self.path)
        return tree


def _join(parts: list[xr.Dataset]) -> xr.Dataset:
    if len(parts) == 1:
        return parts[0]
    by_case = [part[[n for n in part.data_vars if "case" in part[n].dims]] for part in parts]
    joined = xr.concat(by_case, dim="case")
    rest = parts[0][[n for n in parts[0].data_vars if "case" not in parts[0][n].dims]]
    return joined.merge(rest.drop_vars("case", errors="ignore"))


def _growable(dataset: xr.Dataset) -> xr.Dataset:
    """Text of variable length: a fixed width would cut the longer ids of later chunks."""
    text = {
        name: (variable.dims, variable.values.astype(np.dtypes.StringDType()))
        for name, variable in dataset.variables.items()
        if variable.dtype.kind == "U"
    }
    return dataset.assign(text)


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
        self.complete = path.exists()
        if self.complete:
            self._check_attrs(path, dict(self.open().attrs))
        elif not self.partial.exists():
            self.progress.unlink(missing_ok=True)
        elif not resume:
            raise FileExistsError(
                f"{self.partial} is an interrupted run; pass resume=True, or delete it"
            )
        elif not self.progress.exists():  # not one chunk was complete
            shutil.rmtree(self.partial)
        else:
            state = json.loads(self.progress.read_text())
            self._check_attrs(self.partial, state["attrs"])
            self.cases_done = state["cases_done"]
            self._cut(self.cases_done)

    def _check_attrs(self, path: Path, found: dict[Any, Any]) -> None:
        names = (*self.attrs, "window")  # which is there only where one was given
        differing = [name for name in names if found.get(name) != self.attrs.get(name)]
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
                self.progress.unlink()
                self._cut(chunk.start) if chunk.start else shutil.rmtree(self.partial)
            for group, dataset in chunk.datasets().items():
                self._write(group, dataset, chunk.start)
            self.cases_done = chunk.start + chunk.num_cases
            state = {"cases_done": self.cases_done, "attrs": self.attrs}
            write_text(self.progress, json.dumps(state))

    def start_prior(self) -> None:
        """Remove prior draws of an interrupted run; they are drawn anew."""
        for name in PRIOR_GROUPS:
            if (self.partial / name).exists():
                shutil.rmtree(self.partial / name)

    def append_prior(self, chunk: Chunk) -> None:
        """Write one chunk of prior draws; metadata stand there already."""
        with self._writing():
            for group, dataset in chunk.datasets().items():
                if group in PRIOR_GROUPS:
                    self._write(group, dataset, chunk.start)

    def _write(self, group: str, dataset: xr.Dataset, start: int) -> None:
        import zarr

        dataset = _growable(dataset)
        options: dict[str, Any] = {"group": group, "mode": "a", "consolidated": False}
        if start == 0:
            encoding = {n: {"chunks": _chunks(v)} for n, v in dataset.variables.items()}
            options["encoding"] = encoding
        else:
            by_case = [name for name in dataset.data_vars if "case" in dataset[name].dims]
            fixed = [name for name in dataset.coords if "case" not in dataset[name].dims]
            dataset = dataset[by_case].drop_vars(fixed, errors="ignore")
            options["append_dim"] = "case"
        large = any(_is_large(variable) for variable in dataset.variables.values())
        # Zarr copies the chunks that it writes at a time, ten by default.
        with zarr.config.set({"async.concurrency": 1} if large else {}):
            dataset.to_zarr(self.partial, **options)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            advice = (
                f"the first {self.cases_done} cases are safe in {self.partial}; free some space, "
                "then resume with resume=True"
            )
            raise not_written(f"store {self.path}", self.path, error, advice) from error

    def open(self) -> xr.DataTree:
        """The complete store, lazily; coordinates are in memory, as plain text."""
        tree = xr.open_datatree(self.path, engine="zarr", consolidated=False, chunks={})
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
            os.replace(self.partial, self.path)
            self.progress.unlink(missing_ok=True)
            remove_leftovers(self.progress)
        return self.open()
