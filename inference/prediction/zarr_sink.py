"""A Zarr store that grows with every chunk of cases, and can be gone on with when interrupted.

Several processes may write to it, see ``regions``: rank 0 makes the arrays with its first chunk,
with room for all cases; then every rank fills its own regions, notes them, and waits for the
others; and rank 0 completes the store.
"""

import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ppl_med.inference.data_digest import DATA, same_data
from ppl_med.inference.prediction.attributes import WHERE_GIVEN
from ppl_med.inference.prediction.case_arrays import EVERY_CHUNK, CaseArrays
from ppl_med.inference.prediction.continuation import check_continues, outline
from ppl_med.inference.prediction.regions import Regions
from ppl_med.inference.prediction.spans import Span, cut_out, joined, num_positions, touched
from ppl_med.inference.prediction.store_notes import Noted, StoreNotes
from ppl_med.inference.prediction.tree_builder import Chunk
from ppl_med.inference.prediction.zarr_layout import dask_chunks
from ppl_med.inference.process_group import barrier, num_ranks, of_all_ranks, on_rank_0, rank
from ppl_med.storage.atomic import not_written
from ppl_med.storage.locks import locked
from ppl_med.storage.padding import largest_sizes, pad_dataset
from ppl_med.storage.seals import SEAL, check_chunks, check_store, is_store, seal_store
from ppl_med.storage.trees import without_shards

PRIOR_GROUPS = ("prior", "prior_predictive")


class ZarrSink:
    """Writes chunks of cases to a store beside the target and renames it when it is complete.

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
        self.notes, self.arrays = StoreNotes(path), CaseArrays(self.partial)
        self.room = 0
        self._first: dict[str, xr.Dataset] = {}  # outline of one case of every group
        self._held = ExitStack()
        found = on_rank_0(lambda: self._prepare(resume))
        self.complete = found == "complete"
        earlier = found if isinstance(found, Noted) else Noted([], attrs, True)
        self.done, self._every_chunk = earlier.cases, earlier.every_chunk
        self._noted = list(self.done) if rank() == 0 else []  # by this process
        self._made = bool(self.done)  # the arrays, for all processes

    def _prepare(self, resume: bool) -> Noted | str | None:
        """What there is of the store, on rank 0; what is left of an unfinished chunk is removed."""
        self.notes.check_unused()
        if self.path.exists():
            self._check_attrs(self.path, dict(self.open().attrs))
            self.notes.remove()
            return "complete"
        if not self.partial.exists():
            self.notes.remove()
            return None
        if not resume:
            raise FileExistsError(
                f"{self.partial} is an interrupted run; pass resume=True, or delete it"
            )
        found = self.notes.read()
        if found is None:  # not one chunk was complete
            self._discard()
            return None
        self._check_attrs(self.partial, found.attrs)
        with self._reading(self.partial):
            for unfinished in self.partial.rglob("*.partial"):  # Zarr's temporary files
                unfinished.unlink()
            self.arrays.reopen()
            if not self.from_prior:
                self._remove_prior()
            shutil.rmtree(self.partial / "sample_stats", ignore_errors=True)
            if found.every_chunk:
                check_chunks(self.partial, found.cases)
        self.notes.gather(found)
        return found

    def _discard(self) -> None:
        """Remove an interrupted run."""
        self.notes.remove()
        others = [one for one in self.partial.iterdir() if one.suffix != ".partial"]
        if others and not is_store(self.partial):
            raise FileExistsError(
                f"{self.partial} is no interrupted run: it holds {others[0].name}; move it away, "
                "or give another store"
            )
        for one in self.partial.iterdir():
            if one.is_dir():  # before the file that tells whose it is
                shutil.rmtree(one)
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
        names = (*self.attrs, *WHERE_GIVEN)
        differing = [n for n in names if n != DATA and found.get(n) != self.attrs.get(n)]
        if not same_data(found.get(DATA), self.attrs.get(DATA)):
            differing.append(DATA)
        if differing:
            name = differing[0]
            raise ValueError(
                f"{path} was made with another {name}: {found.get(name)!r}, now "
                f"{self.attrs.get(name)!r}; resume with the same arguments, or delete it"
            )

    def regions(self, room: int) -> Regions:
        """Which cases this process is to predict; ``room`` is how many there are, or a few more."""
        self.room = room
        if rank():
            self._held.enter_context(locked(self.notes.own, "store"))
        if not self._made:
            return Regions()
        with self._reading(self.partial):
            on_rank_0(lambda: self.arrays.resize(self.room, least=True))
            return Regions(self.done, *self.arrays.ids())

    def append(self, chunk: Chunk) -> None:
        """Write one chunk and note that it is complete; if it fails, earlier ones are intact."""
        span = (chunk.start, chunk.start + chunk.num_cases)
        with self._writing():
            if touched(self._noted, span):  # the cases come in other batches than before
                self._note(cut_out(self._noted, span))
            with self._made_first(chunk):
                self._write(chunk.datasets(), chunk.start)
                self._note(joined([*self._noted, span]))

    def _note(self, cases: Sequence[Span]) -> None:
        self._noted = list(cases)
        self.notes.write(self._noted, self.attrs, self._every_chunk)

    @contextmanager
    def _made_first(self, chunk: Chunk | None) -> Iterator[None]:
        """Rank 0 writes the first chunk, which makes the arrays; then the others write."""
        if self._made or (chunk is not None and chunk.start == 0):
            yield
            self._wait()
            return
        self._wait()
        if not self.partial.exists():
            raise FileNotFoundError(
                f"rank {rank()} does not see {self.partial}, which rank 0 made: all processes must "
                "write to a folder that they share"
            )
        yield

    def _wait(self) -> None:
        """Wait until the arrays are made, which every process does once."""
        if not self._made:
            barrier()
        self._made = True

    def meet(self, regions: Regions) -> None:
        """Wait for the others after the last chunk; processes without any wait here for the arrays.

        Raises:
            ValueError: Processes have not seen the same cases.
        """
        self._wait()
        regions.check_same_cases()

    def start_prior(self) -> None:
        """Remove prior draws of an interrupted run; they are drawn anew."""
        on_rank_0(self._remove_prior)
        self._made = False

    def _remove_prior(self) -> None:
        for name in PRIOR_GROUPS:
            if (self.partial / name).exists():
                shutil.rmtree(self.partial / name)
            self._first.pop(name, None)

    def append_prior(self, chunk: Chunk) -> None:
        """Write one chunk of prior draws; metadata stand there already."""
        with self._writing(), self._made_first(chunk):
            groups = {n: d for n, d in chunk.datasets().items() if n in PRIOR_GROUPS}
            self._write(groups, chunk.start)

    def add_stats(self, stats: xr.Dataset) -> None:
        """Write figures of the sampler, dims (chain, draw)."""
        import zarr

        def write() -> None:
            with self._writing(), zarr.config.set(EVERY_CHUNK):
                stats.to_zarr(self.partial, group="sample_stats", mode="w", consolidated=False)

        on_rank_0(write)

    def _write(self, groups: dict[str, xr.Dataset], start: int) -> None:
        makes = not self._made and start == 0
        if not makes:
            first = self._first_cases(groups)
            groups = {n: self._filled(d, first[n]) if n in first else d for n, d in groups.items()}
            check_continues(first, groups)
        for name, dataset in groups.items():
            if makes:
                self.arrays.make(name, dataset)
                self._first[name] = outline(dataset)
            else:
                self.arrays.fill(name, dataset, start, grows=num_ranks() == 1)
        if makes:
            self.arrays.resize(self.room, least=True, groups=[*groups])

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

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except BlockingIOError:
            raise
        except OSError as error:
            advice = (
                f"{num_positions(self._noted)} cases are safe in {self.partial}; free some space, "
                "then resume with resume=True"
            )
            raise not_written(f"store {self.path}", self.path, error, advice) from error

    def open(self) -> xr.DataTree:
        """The complete store, lazily; coordinates are in memory, as plain text."""
        with self._reading(self.path):
            check_store(self.path)
            chunks = dask_chunks(self.path)
            tree = xr.open_datatree(self.path, engine="zarr", consolidated=False, chunks=chunks)
        tree.attrs.pop(SEAL, None)
        for node in tree.subtree:
            text = {
                name: (coord.dims, np.array(coord.values.tolist(), dtype=str))
                for name, coord in node.coords.items()
                if coord.dtype.kind == "T"
            }
            node.dataset = without_shards(node.to_dataset(inherit=False)).assign_coords(text)
        return tree

    def finish(self, wall_time: float, num_cases: int) -> xr.DataTree:
        """Complete the store of so many cases, move it into place and open it lazily."""
        noted = joined(span for spans in of_all_ranks(self._noted) for span in spans)
        if noted != [(0, num_cases)]:
            raise ValueError(f"store {self.partial} holds the cases {noted}, not all {num_cases}")
        self._held.close()  # what the other processes had to write is written
        barrier()
        on_rank_0(lambda: self._complete(wall_time, num_cases))
        return self.open()

    def _complete(self, wall_time: float, num_cases: int) -> None:
        import zarr

        attrs = {**self.attrs, "wall_time_seconds": round(wall_time, 3)}
        with self._writing():
            self.arrays.resize(num_cases)
            zarr.open_group(self.partial, mode="a").attrs.update(attrs)
            if self._every_chunk:
                check_chunks(self.partial)
                with warnings.catch_warnings():  # Zarr 3 has this by agreement, not by its standard
                    warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
                    zarr.consolidate_metadata(self.partial)
                seal_store(self.partial)
            os.replace(self.partial, self.path)
            self.notes.remove()
