"""Class probabilities of a tree, and the observed classes, read by parts that fit in memory.

    probs           (chain, draw, case, class, ...)  probability, sums to 1 over class
    label or mask   (case, ...)                      observed class, 0..K-1, or -1: not annotated

where ... stands for further dimensions such as row and col. What is entry by entry is computed by
runs of cases. What must see all cases together (ranks, quantiles, bootstrap) is computed from a
table (case, class, ...): the mixture, or one draw. A table is in memory, the draws never are.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import xarray as xr

from ppl_med.analysis.statistics import compiled, monte_carlo
from ppl_med.analysis.statistics.case_fill import first_entries
from ppl_med.analysis.tree import blocks as tree_blocks
from ppl_med.analysis.tree.blocks import Block, Part
from ppl_med.analysis.tree.cases import check_cases
from ppl_med.analysis.tree.distinct_draws import drop_copies
from ppl_med.analysis.tree.groups import (
    check_predictive,
    class_site,
    find_group,
    find_variable,
)
from ppl_med.analysis.tree.left_out import UNANNOTATED, count_left_out, known
from ppl_med.analysis.tree.simplex import SUM_TOLERANCE, check_simplex, read_probs
from ppl_med.axes import SAMPLES, WEIGHTS
from ppl_med.storage import class_modes

Posterior: TypeAlias = xr.DataTree | xr.Dataset | xr.DataArray

_COPIES = 4  # of the tables of a run: the chunks, the run, the run before, and what is checked


@dataclass(frozen=True)
class Classes:
    """Class probabilities of every draw, and observed classes, not yet read; see `open_classes`.

    Args:
        array: Probabilities (chain, draw, case, class, ...).
        tree: What may hold observations.
    """

    array: xr.DataArray
    tree: Posterior

    @property
    def num_samples(self) -> tuple[int, int]:
        """Chains and draws."""
        return self.array.shape[0], self.array.shape[1]

    @property
    def names(self) -> list[str]:
        """Name of every class, or its index as text where the axis has no names."""
        return class_names(self.array)

    @property
    def samples(self) -> dict[str, xr.DataArray]:
        """Coordinates of chain and draw, and which weights each draw has, where there are any."""
        names = (*SAMPLES, WEIGHTS)
        return {name: self.array.coords[name] for name in names if name in self.array.coords}

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of case and the further axes."""
        return {dim: self.array.sizes[dim] for dim in ("case", *map(str, self.array.dims[4:]))}

    def isel(self, cases: slice | np.ndarray) -> "Classes":
        """Return the probabilities of some of the cases, without observations."""
        return Classes(self.array.isel(case=cases), self.array)

    def blocks(self) -> Iterator[tuple[Block, xr.DataArray]]:
        """Yield selections that fit the memory limit, and their probabilities, float64.

        Raises:
            ValueError: Values are not finite, negative, or do not sum to one over class.
        """
        per_entry = int(np.prod(self.num_samples)) * self.array.sizes["class"]
        for start, run in tree_blocks.held_runs(self.array):
            sizes = self.sizes | {"case": run.sizes["case"]}
            for block in tree_blocks.split_blocks(sizes, per_entry):
                inside = block["case"]
                place = slice(start + inside.start, start + inside.stop)
                first = first_entries(run, block)
                yield block | {"case": place}, read_probs(run.isel(block), first)
                del first
            del run  # before the next one is read

    def read(self, block: Block | None = None) -> xr.DataArray:
        """Return the probabilities of a block, or all, float64, in memory.

        Raises:
            ValueError: As for `blocks`.
        """
        return read_probs(self.array.isel(block or {}), first_entries(self.array, block or {}))

    def inside(self, block: Block | None = None) -> xr.DataArray | None:
        """Return where a block (case, ...) is no fill behind a smaller case; None for all of it."""
        if self.array.ndim < 5:
            return None
        first = dict.fromkeys((*SAMPLES, "class"), 0)
        inside = self.array.isel(block or {}).isel(first, drop=True).notnull()
        return None if bool(inside.all()) else inside

    def map(self, function: Callable[[xr.DataArray], Part]) -> Part:
        """Return a function of every block (chain, draw, case, class, ...), put together."""
        return tree_blocks.join_blocks((block, function(part)) for block, part in self.blocks())

    def mixture(self) -> xr.DataArray:
        """Return the mean over chain and draw (case, class, ...).

        Raises:
            ValueError: As for `blocks`.
        """
        if not self.compiles:
            return self.map(monte_carlo.mean)
        return tree_blocks.join_blocks((block, mean) for block, _, mean in self.means())

    @property
    def compiles(self) -> bool:
        """Whether there are so many numbers that compiled loops over `runs` pay."""
        return self.array.ndim == 4 and compiled.pays(self.array.size, self.array.dtype)

    def runs(self) -> Iterator[tuple[Block, np.ndarray]]:
        """Yield selections of cases, and their probabilities (chain x draw, case, class) as stored.

        They are not checked.
        """
        for start, run in tree_blocks.held_runs(self.array):
            values = run.values
            del run
            yield (
                {"case": slice(start, start + values.shape[2])},
                values.reshape(-1, *values.shape[2:]),
            )

    def means(self) -> Iterator[tuple[Block, np.ndarray, xr.DataArray]]:
        """Yield `runs` and their means over draws (case, class), where loops are compiled.

        Raises:
            ValueError: As for `blocks`.
        """
        for block, values in self.runs():
            mean, valid = compiled.means(values, SUM_TOLERANCE)
            yield block, values, self.table(block, mean, valid, values)

    def table(
        self, block: Block, mean: np.ndarray, valid: bool, values: np.ndarray
    ) -> xr.DataArray:
        """Return means (case, class) of a run as an array.

        Raises:
            ValueError: The probabilities of the run are not valid.
        """
        if not valid:  # sums in the precision of the loop, which float32 would round back
            check_simplex(values.astype(np.float64), 2)
        first = self.array.isel(block).isel(dict.fromkeys(SAMPLES, 0), drop=True)
        return xr.DataArray(mean, first.coords, first.dims, first.name, first.attrs)

    def draws(self) -> Iterator[xr.DataArray]:
        """Yield the table (case, class, ...) of every draw, chain by chain.

        As many draws as fit the memory limit, and one at least, are read together.

        Raises:
            ValueError: As for `blocks`.
        """
        chains, draws = self.num_samples
        one = 8 * _COPIES * self.array.size // (chains * draws)
        step = max(1, tree_blocks.BLOCK_BYTES // one)
        for chain in range(chains):
            for start in range(0, draws, step):
                run = self.array.isel(chain=[chain], draw=slice(start, start + step))
                yield from read_probs(run)[0]

    def observation(self) -> xr.DataArray | None:
        """Return the observed label or mask as stored, if there is one."""
        name = class_site(self.tree, "observed_data")
        return None if name is None else find_group(self.tree, "observed_data")[name]

    def observed(self) -> xr.DataArray:
        """Find the observed classes (case, ...), not yet read.

        Raises:
            TypeError: The tree is not a DataTree, so it carries no observations.
            ValueError: No observation, other dimensions or cases than ``probs``, no integers.
        """
        if not isinstance(self.tree, xr.DataTree):
            raise TypeError(
                f"tree must be a DataTree with observed_data, not {type(self.tree).__name__}: "
                "this analysis compares probabilities with labels."
            )
        label = self.observation()
        if label is None:
            raise ValueError(
                "tree has no observed label or mask in observed_data; call predict on batches "
                "that hold labels."
            )
        name = f"observed {label.name}"
        if set(label.dims) != set(self.sizes):
            raise ValueError(
                f"{name} has dimensions {label.dims}; expected {tuple(self.sizes)}. Of several "
                "graders choose one."
            )
        check_cases(label, self.array, name)
        if label.dtype.kind not in "iu":
            raise ValueError(f"{name} must hold integers (class indices), not {label.dtype}.")
        return label.transpose(*self.sizes)

    def labels(
        self, block: Block | None = None, *, ignore: int | None = None, complete: bool = False
    ) -> xr.DataArray:
        """Return the observed classes of a block, or all, in memory.

        Args:
            block: Which; None for all.
            ignore: A further value, beside -1, that says that an entry was not annotated.
            complete: Refuse entries that were not annotated.

        Returns:
            Class index in 0..K-1, or -1 where not annotated (case, ...), int64.

        Raises:
            TypeError, ValueError: As for `observed`; a value that is no class.
        """
        label = self.observed().isel(block or {}).load()
        if ignore is not None:
            label = label.astype(np.int64).where(label != ignore, UNANNOTATED)
        low, high = int(label.min()), int(label.max())
        num_classes = self.array.sizes["class"]
        if low < UNANNOTATED or high >= num_classes:
            raise ValueError(
                f"observed {label.name} runs from {low} to {high}, outside 0..{num_classes - 1}; "
                "use class indices, and -1 for what is not annotated."
            )
        if complete and low == UNANNOTATED:
            number = int((label == UNANNOTATED).sum())
            raise ValueError(
                f"observed {label.name} is -1 (not annotated) in {number} entries; drop them."
            )
        return label.astype(np.int64)

    def case_labels(self, *, complete: bool = False) -> xr.DataArray:
        """Return one observed class for every case; as `labels`.

        Raises:
            TypeError, ValueError: As for `labels`, or there is one class per pixel.
        """
        label = self.labels(complete=complete)
        if label.ndim > 1:
            raise ValueError(
                f"The observation has dimensions {label.dims}: pixels of one case are not "
                "independent, so they are not exchangeable and an interval would be too narrow. "
                "Use one label per case, or for masks ppl_med.analysis.segmentation, such as "
                "pixel_reliability."
            )
        return label

    def labelled_cases(self) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
        """Return the classes of the cases that have one, which cases these are, and counts.

        Returns:
            Class indices (labelled case,), positions of these cases, what `count_left_out` says.

        Raises:
            TypeError, ValueError: As for `case_labels`, or no case has a class.
        """
        label = self.case_labels()
        rows = np.flatnonzero(known(label).values)
        return label.values[rows], rows, count_left_out(label)


def open_classes(tree: Posterior, *, copies: bool = False) -> Classes:
    """Find the class probabilities and observed classes of a tree, without reading them.

    Args:
        tree: The tree of `predict`, its posterior group as a Dataset, or ``probs`` itself.
        copies: Keep draws that are copies of others.

    Raises:
        TypeError: ``tree`` is none of the three.
        ValueError: ``probs`` is absent, lacks a dimension or is empty, or is no predictive
            distribution. Malformed values are found when they are read.
    """
    probs = find_variable(tree, "posterior", "probs", "classification")
    check_predictive(probs, "posterior/probs")
    required = (*SAMPLES, "case", "class")
    missing = [dim for dim in required if dim not in probs.dims]
    if missing:
        raise ValueError(
            f"probs lacks the dimension(s) {', '.join(missing)}; it has {probs.dims}. "
            "Name or add them, e.g. probs.expand_dims('chain') for a single chain."
        )
    empty = [str(dim) for dim, size in probs.sizes.items() if size == 0]
    if empty:
        raise ValueError(f"probs is empty along {', '.join(empty)}; predict at least one.")
    probs = probs.transpose(*required, ...)
    return Classes(probs if copies else drop_copies(probs), tree)


def class_names(array: xr.DataArray) -> list[str]:
    """Return the name of every class, or its index as text where the axis has no names."""
    if "class" in array.coords:
        return [str(name) for name in array["class"].values]
    return [str(index) for index in range(array.sizes["class"])]


def has_probs(tree: object) -> bool:
    """Whether a tree, or its posterior group, is of classes: it holds ``probs``, or did."""
    group = find_group(tree, "posterior")
    return "probs" in group or class_modes.stored_in(group)
