"""The arrays of a Zarr store that hold something of every case, while it is being written."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ppl_med.inference.prediction.zarr_layout import is_large, layout
from ppl_med.storage.seals import SEAL
from ppl_med.storage.trees import variable_text

# A chunk that is not there must be one that was lost, so those of one value are written as well.
EVERY_CHUNK: dict[str, Any] = {"array.write_empty_chunks": True}


class CaseArrays:
    """Makes arrays with the first cases, changes their length, and fills regions of cases.

    Args:
        folder: The store. Dims of its groups: ``case`` is the one along which regions lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lengths: dict[str, int] = {}  # by group, as far as known

    def each(self, *names: str) -> Iterator[tuple[str, Any]]:
        """Arrays of the store by group, all or those of some names."""
        import zarr

        for group, node in zarr.open_group(self.folder, mode="r+").groups():
            for name, array in node.arrays():
                if not names or name in names:
                    yield group, array

    def reopen(self) -> None:
        """Take back what a complete store has and its arrays outgrow: its summary and its seal."""
        import zarr

        root = zarr.open_group(self.folder, mode="r+", use_consolidated=False)
        root.attrs.put({name: value for name, value in root.attrs.items() if name != SEAL})

    def resize(self, num_cases: int, *, least: bool = False, groups: Sequence[str] = ()) -> None:
        """Make all arrays of so many cases; with ``least``, none shorter. Only metadata change.

        Chunks that lie wholly beyond the last case are removed. ``groups`` are all by default.
        """
        for group, array in self.each():
            dims = getattr(array.metadata, "dimension_names", None) or ()
            if "case" not in dims or (groups and group not in groups):
                continue
            axis = dims.index("case")
            size = max(num_cases, array.shape[axis]) if least else num_cases
            self._lengths[group] = size
            if size != array.shape[axis]:
                array.resize((*array.shape[:axis], size, *array.shape[axis + 1 :]))

    def ids(self) -> tuple[list[Any], int]:
        """Ids by position, where cases are done, and how many cases one chunk holds."""
        _, case = next(self.each("case"))
        return np.asarray(case[:]).tolist(), (case.shards or case.chunks)[0]

    def make(self, group: str, dataset: xr.Dataset) -> None:
        """Make the arrays of a group with its first cases in them; first of all, the store."""
        import zarr

        zarr.open_group(self.folder, mode="a")  # what a killed run leaves can be told to be its own
        dataset = variable_text(dataset)
        with _every_chunk(dataset):
            options: dict[str, Any] = {"mode": "a", "consolidated": False}
            dataset.to_zarr(self.folder, group=group, encoding=layout(dataset), **options)

    def fill(self, group: str, dataset: xr.Dataset, start: int, *, grows: bool) -> None:
        """Write the cases from ``start`` on; nothing else of the store is touched.

        Args:
            group: Where.
            dataset: What, with the dims and coordinates of the group.
            start: Position of its first case.
            grows: Whether the arrays may become longer, which only one writer may do.
        """
        end = start + dataset.sizes["case"]
        if group not in self._lengths:
            self._lengths |= {name: array.shape[0] for name, array in self.each("case")}
        held = self._lengths[group]
        if end > held and not grows:
            raise ValueError(
                f"batches hold more than {held} cases, the number of batches times the size of "
                "the first; of several processes, all but the last must be of one size"
            )
        if end > held:
            self.resize(end, groups=[group])
        by_case = [name for name in dataset.data_vars if "case" in dataset[name].dims]
        fixed = [name for name in dataset.coords if "case" not in dataset[name].dims]
        part = variable_text(dataset[by_case].drop_vars(fixed, errors="ignore"))
        with _every_chunk(part):
            region = {"case": slice(start, end)}
            options: dict[str, Any] = {"mode": "r+", "region": region, "consolidated": False}
            part.drop_indexes("case").to_zarr(self.folder, group=group, **options)


@contextmanager
def _every_chunk(dataset: xr.Dataset) -> Iterator[None]:
    import zarr

    large = any(is_large(variable) for variable in dataset.variables.values())
    # Zarr copies the chunks that it writes at a time, ten by default.
    with zarr.config.set(EVERY_CHUNK | ({"async.concurrency": 1} if large else {})):
        yield
