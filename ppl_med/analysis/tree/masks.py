"""Sampled masks: the coherent segmentations of a tree, one per chain and draw, read in blocks.

A sample is either

    mode   the most probable class of every pixel under one draw of ``probs`` (first on a tie),
           the convention of the literature on ambiguous segmentation
    draw   the mask that was drawn from the likelihood (``posterior_predictive/mask``)

Chains and draws both count as samples, chain by chain. Arrays are read a few cases and one draw
at a time, so the memory in use does not grow with the number of cases or, for lazy arrays, with
the size of the file.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.statistics.weight_draws import function_numbers
from ppl_med.analysis.tree.classes import Posterior
from ppl_med.analysis.tree.distinct_draws import drop_copies
from ppl_med.analysis.tree.groups import (
    check_not_lost,
    class_site,
    find_group,
    find_variable,
)
from ppl_med.analysis.tree.simplex import check_simplex, fill, with_background
from ppl_med.axes import SAMPLES
from ppl_med.storage import class_modes

ClassList: TypeAlias = Sequence[int | str] | None

_BLOCK_BYTES = 2**27
_LEADING = (*SAMPLES, "case")


@dataclass(frozen=True)
class Draws:
    """Probabilities or masks of every draw, not yet read.

    Args:
        array: ``probs`` (chain, draw, case, class, ...) or masks (chain, draw, case, ...).
        num_classes: K; None where only masks are known.
        names: Names of the classes, or their indices as text; empty where K is unknown.
    """

    array: xr.DataArray
    num_classes: int | None
    names: tuple[str, ...]

    @property
    def space(self) -> tuple[str, ...]:
        """Names of the axes of an image, e.g. (row, col)."""
        return tuple(str(dim) for dim in self.array.dims if dim not in (*_LEADING, "class"))

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of an image along `space`."""
        return tuple(self.array.sizes[dim] for dim in self.space)

    @property
    def num_pixels(self) -> int:
        """Pixels (voxels) of an image."""
        return int(np.prod(self.shape))

    @property
    def num_samples(self) -> int:
        """Chains times draws."""
        return int(self.array.sizes["chain"] * self.array.sizes["draw"])

    @property
    def apart(self) -> np.ndarray:
        """Positions of samples that share no weights, one of each draw of them."""
        return np.sort(np.unique(self.functions, return_index=True)[1])

    @property
    def functions(self) -> np.ndarray:
        """Equal numbers for samples that share their weights, chain by chain."""
        return function_numbers(self.array)

    @property
    def num_cases(self) -> int:
        """Number of cases."""
        return int(self.array.sizes["case"])

    @property
    def dtype(self) -> np.dtype:
        """Smallest integer type that holds every class."""
        known = self.num_classes is not None and self.num_classes <= 256
        return np.dtype(np.uint8 if known else np.int32)

    def blocks(self) -> Iterator[slice]:
        """Yield runs of cases that fit the memory limit together."""
        classes = self.num_classes or 1
        one = self.num_pixels * (self.num_samples * self.dtype.itemsize + 24 * classes)
        step = max(1, _BLOCK_BYTES // one)
        for start in range(0, self.num_cases, step):
            yield slice(start, min(start + step, self.num_cases))

    def probabilities(self, block: slice) -> Iterator[np.ndarray]:
        """Yield the probabilities (case, class, pixel) of one draw after the other.

        Raises:
            ValueError: Negative or NaN values, or a sum over class other than one.
        """
        for piece in self._pieces(block):
            check_simplex(piece, 1)
            yield piece

    def masks(self, block: slice) -> np.ndarray:
        """Return the sampled masks (case, sample, pixel) of a run of cases.

        Raises:
            ValueError: Malformed probabilities, or a mask value that is no class.
        """
        num_cases = block.stop - block.start
        result = np.empty((num_cases, self.num_samples, self.num_pixels), self.dtype)
        if "class" in self.array.dims:
            for index, piece in enumerate(self.probabilities(block)):
                result[:, index] = _most_probable(piece, self.dtype)
            return result
        for index, piece in enumerate(self._pieces(block)):
            check_range(piece, 0, self.num_classes, "the sampled mask")
            result[:, index] = piece
        return result

    def inside(self, block: slice) -> np.ndarray:
        """Return which pixels (case, pixel) are a case's own, not the fill behind a smaller one."""
        first = self.array.isel(case=block, chain=0, draw=0)
        values = (first.isel({"class": 0}) if "class" in first.dims else first).values
        own = ~np.isnan(values) if values.dtype.kind == "f" else values >= 0
        return np.asarray(own.reshape(len(values), -1))

    def samples(self) -> Iterator[np.ndarray]:
        """Yield the sampled masks (sample, pixel) of every case."""
        for block in self.blocks():
            yield from self.masks(block)

    def _pieces(self, block: slice) -> Iterator[np.ndarray]:
        cases = self.array.isel(case=block)
        for chain in range(self.array.sizes["chain"]):
            for draw in range(self.array.sizes["draw"]):
                values = _without_fill(cases.isel(chain=chain, draw=draw).values, self.space)
                yield values.reshape(*values.shape[: -len(self.space)], self.num_pixels)


def _without_fill(values: np.ndarray, space: Sequence[str]) -> np.ndarray:
    """One draw with background in the place of what a small case is filled up with."""
    if values.dtype.kind != "f":
        outside = values < 0
        whole = outside.all(tuple(range(-len(space), 0)))
        return values if whole.any() or not outside.any() else np.where(outside, 0, values)
    filled = fill(values, 1) if values.ndim > len(space) + 1 else None
    return values if filled is None else with_background(values, filled, 1)


def open_draws(tree: Posterior, samples: str = "mode", *, copies: bool = False) -> Draws:
    """Find the sampled masks of a tree and check their dimensions, without reading them.

    Args:
        tree: The tree of `predict`; ``probs`` (chain, draw, case, class, row, col); or masks
            (chain, draw, case, row, col), which are taken as they stand.
        samples: "mode" or "draw", as above.
        copies: Keep draws that are copies of others, where each has a weight of its own.

    Returns:
        The draws, with chain, draw, case (and class) leading.

    Raises:
        TypeError: ``tree`` is no xarray object, or masks are not integers.
        ValueError: The array is absent, lacks a dimension, or is empty along one.
    """
    checks.choice("samples", samples, ("mode", "draw"))
    array, classes = _find(tree, samples)
    missing = [dim for dim in _LEADING if dim not in array.dims]
    if missing:
        raise ValueError(
            f"The samples lack the dimension(s) {', '.join(missing)}; they have {array.dims}. "
            "Name or add them, e.g. masks.expand_dims('chain') for a single chain."
        )
    has_class = "class" in array.dims
    array = array.transpose(*_LEADING, *(["class"] if has_class else []), ...)
    if not set(array.dims) - {*_LEADING, "class"}:
        raise ValueError(
            f"The samples have dimensions {array.dims} and none of an image, e.g. row and col; "
            "this analysis needs a segmentation model."
        )
    empty = [str(dim) for dim, size in array.sizes.items() if size == 0]
    if empty:
        raise ValueError(f"The samples are empty along {', '.join(empty)}; predict at least one.")
    if not has_class and array.dtype.kind not in "iub":
        raise TypeError(f"Masks must hold integers (class indices), not {array.dtype}.")
    if not has_class and array.dtype.kind == "b":
        array, classes = array.astype(np.uint8), classes or ("0", "1")
    array = array if copies else drop_copies(array)
    return Draws(array, len(classes) if classes else None, classes)


def open_probabilities(tree: Posterior) -> Draws:
    """Find the class probabilities of a tree; as `open_draws`, but masks will not do.

    Raises:
        TypeError, ValueError: As `open_draws`, or there is no class dimension.
    """
    draws = open_draws(tree, "mode")
    if "class" not in draws.array.dims:
        check_not_lost(find_group(tree, "posterior"))
        raise ValueError(
            "This analysis needs class probabilities, probs (chain, draw, case, class, ...), and "
            f"got masks of dimensions {draws.array.dims}; pass the tree or its probs."
        )
    return draws


def class_indices(classes: ClassList, draws: Draws) -> np.ndarray:
    """Return the indices of the classes to score; by default all but class 0.

    Args:
        classes: Indices or names; None for all but the first class, the background.
        draws: What they are classes of.

    Raises:
        ValueError: Unknown, repeated or no classes, or None where K is not known.
    """
    if classes is None:
        if draws.num_classes is None:
            raise ValueError(
                "classes must be given: masks alone do not tell how many classes there are. "
                "Pass e.g. classes=[1] for one foreground class."
            )
        return np.arange(1, draws.num_classes)
    if isinstance(classes, str | bytes) or not len(classes):
        checks.reject("classes", "a non-empty list of indices or names", classes)
    found = [_class_index(item, draws) for item in classes]
    if len(set(found)) < len(found):
        raise ValueError(f"classes names a class twice: {list(classes)!r}.")
    return np.array(found)


def class_labels(indices: np.ndarray, draws: Draws) -> list[str]:
    """Return the names of the classes, or their indices as text where they have none."""
    return [draws.names[index] if draws.names else str(index) for index in indices]


def check_range(values: np.ndarray, low: int, num_classes: int | None, name: str) -> None:
    """Raise unless all values lie in low..num_classes - 1."""
    lowest, highest = int(values.min()), int(values.max())
    if lowest < low or (num_classes is not None and highest >= num_classes):
        top = "K - 1" if num_classes is None else num_classes - 1
        raise ValueError(
            f"{name} runs from {lowest} to {highest}, outside {low}..{top}; use class indices"
            + (", and -1 for a pixel without annotation." if low == -1 else ".")
        )


def _find(tree: Posterior, samples: str) -> tuple[xr.DataArray, tuple[str, ...]]:
    if samples == "mode":
        group = find_group(tree, "posterior")
        if class_modes.stored_in(group):
            return group[class_modes.NAME], class_modes.class_names(group[class_modes.NAME])
        array = find_variable(tree, "posterior", "probs", "segmentation")
        return array, _names(array)
    name = class_site(tree, "posterior_predictive", ("mask",)) or "mask"
    array = find_variable(tree, "posterior_predictive", name, "segmentation")
    if "class" in array.dims:
        raise ValueError(
            "samples='draw' needs drawn masks, and an array of probabilities was passed; pass "
            "the tree with its posterior_predictive group, or samples='mode'."
        )
    # A drawn mask has no class axis; its classes are those of the probabilities.
    posterior = find_group(tree, "posterior")
    if class_modes.stored_in(posterior):
        return array, class_modes.class_names(posterior[class_modes.NAME])
    return array, _names(posterior.get("probs", array))


def _names(array: xr.DataArray) -> tuple[str, ...]:
    if "class" in array.indexes:
        return tuple(str(name) for name in array["class"].values)
    return tuple(str(index) for index in range(array.sizes.get("class", 0)))


def _class_index(item: int | str, draws: Draws) -> int:
    if isinstance(item, str):
        if item not in draws.names:
            raise ValueError(f"classes names {item!r}, which is none of {list(draws.names)}.")
        return draws.names.index(item)
    most = None if draws.num_classes is None else draws.num_classes - 1
    return checks.whole("classes", item, 0, most, "indices of classes, or their names")


def _most_probable(piece: np.ndarray, dtype: np.dtype) -> np.ndarray:
    # A running maximum over the class axis: argmax along a strided axis is far slower.
    best = piece[:, 0].copy()
    index = np.zeros(best.shape, dtype)
    for number in range(1, piece.shape[1]):
        np.copyto(index, number, where=piece[:, number] > best, casting="unsafe")
        np.maximum(best, piece[:, number], out=best)
    return index
