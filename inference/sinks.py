"""Where ``predict`` puts its chunks: memory, a netCDF file, or a Zarr store that grows."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import xarray as xr

from ppl_med import storage
from ppl_med.inference.records import Chunk

PROGRESS = "progress.json"


def open_sink(
    store: str | Path | None, attrs: dict[str, Any], *, resume: bool, chunk_cases: int
) -> "MemorySink | ZarrSink":
    """The sink for a store.

    Raises:
        ValueError: If the suffix is neither .nc nor .zarr, or a memory result is resumed.
        FileExistsError: If the store exists.
    """
    path = None if store is None else Path(store)
    if path is not None and path.suffix not in (".nc", ".zarr"):
        raise ValueError(f"store must end in .nc or .zarr, got {str(path)!r}")
    if path is not None and path.exists():
        raise FileExistsError(f"store {path} exists; load it, or give another path")
    if path is not None and path.suffix == ".zarr":
        return ZarrSink(path, attrs, resume=resume, chunk_cases=chunk_cases)
    return MemorySink(path, attrs)


class MemorySink:
    """Keeps chunks and joins them at the end.

    Args:
        path: netCDF file to write at the end, or None.
        attrs: Attributes of the tree's root.
    """

    cases_done = 0

    def __init__(self, path: Path | None, attrs: dict[str, Any]) -> None:
        self.path, self.attrs = path, attrs
        self.groups: dict[str, list[xr.Dataset]] = {}

    def append(self, chunk: Chunk) -> None:
        """Take one chunk."""
        for group, dataset in chunk.datasets().items():
            self.groups.setdefault(group, []).append(dataset)

    append_prior = append

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


class ZarrSink:
    """Appends chunks to a store beside the target and renames it when it is complete.

    Args:
        path: The store to make.
        attrs: Attributes of the tree's root; a resumed run must have the same.
        resume: Go on with what an interrupted run left.
        chunk_cases: Cases in a Zarr chunk.

    Raises:
        ValueError: If the interrupted run had other settings.
        FileExistsError: If there is an interrupted run and ``resume`` is False.
    """

    def __init__(
        self, path: Path, attrs: dict[str, Any], *, resume: bool, chunk_cases: int
    ) -> None:
        self.path, self.attrs, self.chunk_cases = path, attrs, chunk_cases
        self.partial = path.with_name(f"{path.name}.partial")
        self.progress = self.partial / PROGRESS
        self.cases_done = 0
        if self.partial.exists():
            if not resume:
                raise FileExistsError(
                    f"{self.partial} is an interrupted run; pass resume=True, or delete it"
                )
            self._recover()

    def _recover(self) -> None:
        if not self.progress.exists():
            shutil.rmtree(self.partial)
            return
        state = json.loads(self.progress.read_text())
        differing = [n for n, v in self.attrs.items() if state["attrs"].get(n) != v]
        if differing:
            raise ValueError(
                f"{self.partial} was made with another {differing[0]}: "
                f"{state['attrs'].get(differing[0])!r}, now {self.attrs[differing[0]]!r}; "
                "resume with the same arguments, or delete it"
            )
        self.cases_done = state["cases_done"]
        self._truncate()

    def _truncate(self) -> None:
        """Cut what an interrupted append left beyond the last complete chunk."""
        import zarr

        root = zarr.open_group(self.partial, mode="r+")
        for _, group in root.groups():
            for _, array in group.arrays():
                names = array.metadata.dimension_names or ()
                shape = tuple(
                    self.cases_done if name == "case" else size
                    for name, size in zip(names, array.shape, strict=True)
                )
                if shape != array.shape:
                    array.resize(shape)

    def append(self, chunk: Chunk) -> None:
        """Write one chunk and note that it is complete."""
        self.append_prior(chunk)
        self.cases_done = chunk.start + chunk.num_cases
        state = {"cases_done": self.cases_done, "attrs": self.attrs}
        temporary = self.progress.with_suffix(".tmp")
        temporary.write_text(json.dumps(state))
        temporary.replace(self.progress)

    def append_prior(self, chunk: Chunk) -> None:
        """Write one chunk, such as of prior draws, without noting it."""
        for group, dataset in chunk.datasets().items():
            for name, variable in dataset.variables.items():
                if variable.dtype.kind == "U":  # fixed width would cut longer ids of later chunks
                    dataset[name] = variable.astype(object)
            if chunk.start == 0:
                self._create(group, dataset)
            else:
                by_case = [n for n in dataset.data_vars if "case" in dataset[n].dims]
                fixed = [c for c in dataset.coords if "case" not in dataset[c].dims]
                part = dataset[by_case].drop_vars(fixed)
                part.to_zarr(
                    self.partial, group=group, mode="a", append_dim="case", consolidated=False
                )

    def _create(self, group: str, dataset: xr.Dataset) -> None:
        encoding = {}
        for name, variable in dataset.variables.items():
            if "case" in variable.dims:
                sizes = [
                    self.chunk_cases if dim == "case" else size
                    for dim, size in zip(variable.dims, variable.shape, strict=True)
                ]
                encoding[name] = {"chunks": tuple(sizes)}
        dataset.to_zarr(self.partial, group=group, mode="a", encoding=encoding, consolidated=False)

    def finish(self, wall_time: float) -> xr.DataTree:
        """Complete the store, move it into place and open it lazily."""
        import zarr

        attrs = {**self.attrs, "wall_time_seconds": round(wall_time, 3)}
        zarr.open_group(self.partial, mode="a").attrs.update(attrs)
        self.progress.unlink()
        os.replace(self.partial, self.path)
        return xr.open_datatree(self.path, engine="zarr", consolidated=False, chunks={})
