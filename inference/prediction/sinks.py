"""Where ``predict`` puts its chunks: memory, a netCDF file, or a Zarr store that grows."""

import errno
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import xarray as xr

from ppl_med import storage
from ppl_med.inference.case_order import distributed_sampler
from ppl_med.inference.prediction.continuation import check_continues
from ppl_med.inference.prediction.regions import Regions
from ppl_med.inference.prediction.tree_builder import Chunk
from ppl_med.inference.prediction.zarr_sink import PRIOR_GROUPS, ZarrSink
from ppl_med.inference.process_group import barrier, num_ranks, on_rank_0
from ppl_med.storage.atomic import check_writable
from ppl_med.storage.locks import locked
from ppl_med.storage.padding import largest_sizes, pad_dataset
from ppl_med.storage.trees import check_storable


@contextmanager
def open_sink(
    store: str | Path | None, attrs: dict[str, Any], *, resume: bool, from_prior: bool = False
) -> "Iterator[MemorySink | ZarrSink]":
    """The sink for a ``store`` of ``predict``; with ``from_prior`` all draws are from the prior.

    Nobody else writes to the store meanwhile.

    Raises:
        ValueError: If the suffix is neither .nc nor .zarr, a result that is no Zarr store is to be
            resumed, the store to resume has other settings, which ``attrs`` tell, or is damaged.
        FileExistsError: If the store exists.
        BlockingIOError: If another process writes to it.
        OSError: If it cannot be written.
    """
    path = None if store is None else Path(store)
    if path is not None and path.suffix not in (".nc", ".zarr"):
        raise ValueError(f"store must end in .nc or .zarr, got {str(path)!r}")
    is_zarr = path is not None and path.suffix == ".zarr"
    if resume and not is_zarr:
        raise ValueError(f"resume needs store='*.zarr', which is written on the way; got {store!r}")
    if path is None:
        yield MemorySink(None, attrs)
        return
    with ExitStack() as held:

        def begin() -> None:
            if path.exists() and not resume:
                raise FileExistsError(f"store {path} exists; load it, or give another path")
            check_writable(path, "store")
            held.enter_context(locked(path, "store"))

        on_rank_0(begin)  # which alone holds the lock of the store
        yield ZarrSink(path, attrs, resume, from_prior) if is_zarr else MemorySink(path, attrs)


def check_ranks(store: str | Path | None, batches: Any) -> None:
    """Meet the other processes; a ValueError where they would predict what only one can hold.

    Or where each has been given a part of the cases, which no other would predict.
    """
    if num_ranks() > 1 and (store is None or Path(store).suffix != ".zarr"):
        raise ValueError(
            f"predict runs on {num_ranks()} processes, which need store='run.zarr' to write into, "
            f"got store={store!r}; give one to all of them, or predict on one of them after "
            "torch.distributed.destroy_process_group(), or without torchrun"
        )
    sampler = distributed_sampler(batches)
    if num_ranks() > 1 and sampler is not None and sampler.num_replicas > 1:
        raise ValueError(
            "batches have a DistributedSampler, which gives each process a part of the cases; "
            "leave the sampler out: predict reads all of them on every process, and deals them"
        )
    barrier()  # they join here, which chooses a GPU for each


class MemorySink:
    """Keeps chunks, joins them at the end, and writes a netCDF file where there is a path."""

    complete = False
    scratch: Path | None = None

    def __init__(self, path: Path | None, attrs: dict[str, Any]) -> None:
        self.path, self.attrs = path, attrs
        self.groups: dict[str, list[xr.Dataset]] = {}

    def append(self, chunk: Chunk) -> None:
        """Take one chunk."""
        self._take(chunk.datasets())

    def _take(self, groups: dict[str, xr.Dataset]) -> None:
        earlier = {name: self.groups[name][0] for name in groups if name in self.groups}
        if earlier:
            check_continues(earlier, groups, any_size=True)
        elif self.path is not None:  # before more work is done for what cannot be written
            for dataset in groups.values():
                check_storable(dataset)
        for name, dataset in groups.items():
            self.groups.setdefault(name, []).append(dataset)

    def regions(self, room: int) -> Regions:
        """All cases."""
        return Regions()

    def meet(self, regions: Regions) -> None:
        """There is nobody to wait for."""

    def start_prior(self) -> None:
        """Nothing to prepare."""

    def append_prior(self, chunk: Chunk) -> None:
        """Take one chunk of prior draws; metadata stand there already."""
        self._take({n: d for n, d in chunk.datasets().items() if n in PRIOR_GROUPS})

    def add_stats(self, stats: xr.Dataset) -> None:
        """Take figures of the sampler, dims (chain, draw)."""
        self.groups["sample_stats"] = [stats]

    def open(self) -> xr.DataTree:
        """Never asked for: a memory result is not complete before it is made."""
        raise NotImplementedError

    def finish(self, wall_time: float, num_cases: int) -> xr.DataTree:
        """Join and, where asked, write; what cannot be written there is written elsewhere.

        Raises:
            OSError: If the file could not be written; the message says where the result is.

        Warns:
            UserWarning: If it could be written nowhere; the tree is returned all the same.
        """
        tree = xr.DataTree.from_dict({f"/{n}": _join(parts) for n, parts in self.groups.items()})
        tree.attrs.update(self.attrs, wall_time_seconds=round(wall_time, 3))
        if self.path is None:
            return tree
        try:
            storage.save(tree, self.path)
        except Exception as error:  # hours of work hang on it, whatever it is
            self._rescue(tree, self.path, error)
        return tree

    def _rescue(self, tree: xr.DataTree, path: Path, error: Exception) -> None:
        elsewhere = Path(tempfile.mkdtemp(prefix="ppl_med_")) / path.name
        try:
            storage.save(tree, elsewhere)
        except Exception:
            shutil.rmtree(elsewhere.parent, ignore_errors=True)
            warnings.warn(
                f"{error}. The result is returned, but stands nowhere on the disk: write it with "
                "ppl_med.storage.save",
                stacklevel=4,
            )
            return
        number = getattr(error, "errno", None) or errno.EIO
        raise OSError(number, f"{error}. The whole result is safe in {elsewhere}") from error


def _join(parts: list[xr.Dataset]) -> xr.Dataset:
    if len(parts) == 1:
        return parts[0]
    sizes = largest_sizes(parts)
    parts = [pad_dataset(part, sizes) for part in parts]
    by_case = [part[[n for n in part.data_vars if "case" in part[n].dims]] for part in parts]
    joined = xr.concat(by_case, dim="case")
    rest = parts[0][[n for n in parts[0].data_vars if "case" not in parts[0][n].dims]]
    return joined.merge(rest.drop_vars("case", errors="ignore"))
