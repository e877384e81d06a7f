"""From a map of uncertainty to one score per case, by a choice that is named.

Which cases are called uncertain depends on this choice more than on the uncertainty itself (Kahl
et al.), so there is no default:

    mean         over all pixels: grows with the size of the object in the image
    max          the most uncertain pixel: noisy
    quantile     of the pixels, e.g. level=0.95
    patch_max    largest mean of a window of ``patch`` pixels a side: a focus, wherever it lies
    boundary     mean with weights exp(-d / width), d the distance in pixels (or in the unit of
                 ``spacing``) to the nearest pixel of another predicted class
    foreground   mean over the pixels predicted to be of one of the ``classes``

Pixels that are NaN are left out. Where nothing is left the case has no score: NaN. How many were
left out stands in the attributes that `ppl_med.analysis.tree` names, of maps in memory.

Source: Kahl et al., ValUES, ICLR 2024, arXiv:2401.08501, section 3 (aggregation as a component,
patch level with windows of 10 pixels a side).
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import and_
from typing import Any, TypeVar

import numpy as np
import xarray as xr
from scipy.ndimage import distance_transform_edt, uniform_filter

from ppl_med.analysis.segmentation.comparison import mean_probabilities
from ppl_med.analysis.tree import (
    UNANNOTATED,
    Posterior,
    check_cases,
    count_left_out,
    open_probabilities,
)
from ppl_med.axes import SPACE
from ppl_med.checks import choice, finite, positive, whole

__all__ = ["aggregate", "predicted_mask"]

Maps = TypeVar("Maps", xr.DataArray, xr.Dataset)
METHODS = ("mean", "max", "quantile", "patch_max", "boundary", "foreground")
_WITH_MASK = ("boundary", "foreground")


def aggregate(
    maps: Maps,
    how: str,
    *,
    level: float = 0.95,
    patch: int = 10,
    mask: xr.DataArray | None = None,
    width: float = 2.0,
    spacing: Sequence[float] | None = None,
    classes: Sequence[int] | None = None,
) -> Maps:
    """Reduce maps to a score per case.

    Args:
        maps: Map (case, ..., row, col), also with depth; or a Dataset, whose variables without
            these axes are left out, and the errors of single pixels (``*_mcse``, ``*_se``), which
            are not those of the result. Other axes, such as draw, are kept. Lazy maps give a lazy
            result.
        how: As the module says.
        level: Level of the quantile, in [0, 1].
        patch: Pixels a side of the window; cut to the image where that is smaller.
        mask: Predicted class (case, row, col), for boundary and foreground: see `predicted_mask`.
        width: Distance over which the weight of the boundary falls to 1/e.
        spacing: Size of a pixel along the axes of the mask in the order (depth,) row, col; 1 each
            by default.
        classes: What is foreground; all but class 0 by default.

    Returns:
        Score (case, ...) in the unit of the map, NaN where no pixel counts; the choice and its
        settings stand in the attribute ``aggregation``.

    Raises:
        TypeError, ValueError: Unknown ``how``; no image axes; a setting out of range; no mask where
            one is needed, or one of other cases or another size.
    """
    _check(how, level, patch, width)
    if isinstance(maps, xr.Dataset):
        errors = ("_mcse", "_se")
        found = {
            name: array
            for name, array in maps.items()
            if _space(array) and not str(name).endswith(errors)
        }
        if not found:
            raise ValueError(f"maps has no variable with axes of an image, only {list(maps)}.")
        options: dict[str, Any] = {"level": level, "patch": patch, "mask": mask, "width": width}
        options |= {"spacing": spacing, "classes": classes}
        results = {n: aggregate(a, how, **options) for n, a in found.items()}
        seen = reduce(and_, (array.notnull() for array in found.values()))
        return xr.Dataset(results, attrs={**maps.attrs, **_count(seen)})
    if not isinstance(maps, xr.DataArray):
        raise TypeError(f"maps must be a DataArray or Dataset, not {type(maps).__name__}.")
    space = _space(maps)
    if not space or "case" not in maps.dims:
        raise ValueError(f"maps has dimensions {maps.dims}; it needs case and row, col (or depth).")
    arrays = [maps]
    if how in _WITH_MASK:
        arrays.append(_mask(mask, maps, space, how))
    function, settings = _reduction(how, level, patch, width, _spacing(spacing, space), classes)
    result = xr.apply_ufunc(
        function,
        *arrays,
        input_core_dims=[list(space)] * len(arrays),
        vectorize=True,
        dask="parallelized",
        dask_gufunc_kwargs={"allow_rechunk": True},
        output_dtypes=[np.float64],
    )
    attrs = {**maps.attrs, **_count(maps.notnull()), "aggregation": f"{how}{settings}"}
    return result.rename(maps.name).assign_attrs(attrs)


def predicted_mask(tree: Posterior) -> xr.DataArray:
    """Return the most probable class of every pixel under the mean of the draws.

    Args:
        tree: The tree of `predict`, or its ``probs`` (chain, draw, case, class, row, col); lazy
            ones are read in runs of cases.

    Returns:
        Class index (case, row, col), first on a tie; -1 behind the end of a case that is smaller
        than others.

    Raises:
        TypeError, ValueError: ``probs`` is missing or malformed.
    """
    draws = open_probabilities(tree)
    values = np.empty((draws.num_cases, draws.num_pixels), np.int64)
    for block in draws.blocks():
        found = mean_probabilities(draws, block).argmax(1)
        values[block] = np.where(draws.inside(block), found, UNANNOTATED)
    mask = xr.DataArray(
        values.reshape(draws.num_cases, *draws.shape),
        dims=("case", *draws.space),
        name="mask",
        attrs={"long_name": "most probable class", "units": "class index"},
    )
    coords = draws.array.coords
    kept = {n: c.variable for n, c in coords.items() if set(c.dims) <= set(mask.dims)}
    return mask.assign_coords({n: variable for n, variable in kept.items() if variable.dims})


def _count(seen: xr.DataArray) -> dict[str, int]:
    """What was left out; nothing of lazy maps, which would have to be computed."""
    return {} if seen.chunks else count_left_out(seen, empty=True)


def _reduction(
    how: str,
    level: float,
    patch: int,
    width: float,
    spacing: tuple[float, ...],
    classes: Sequence[int] | None,
) -> tuple[Callable[..., Any], str]:
    """The function of one map, and its settings in words."""
    if how == "quantile":
        return partial(_quantile, level=level), f", level {level:g}"
    if how == "patch_max":
        return partial(_patch_max, patch=patch), f", windows of {patch} pixels a side"
    if how == "boundary":
        return partial(_boundary, width=width, spacing=spacing), f", weights exp(-d / {width:g})"
    if how == "foreground":
        named = "all classes but 0" if classes is None else f"classes {list(classes)}"
        return partial(_foreground, classes=classes), f", {named}"
    return {"mean": _mean, "max": _max}[how], ""


def _mean(image: np.ndarray) -> float:
    kept = image[~np.isnan(image)]
    return float(kept.mean()) if kept.size else np.nan


def _max(image: np.ndarray) -> float:
    kept = image[~np.isnan(image)]
    return float(kept.max()) if kept.size else np.nan


def _quantile(image: np.ndarray, level: float) -> float:
    kept = image[~np.isnan(image)]
    return float(np.quantile(kept, level)) if kept.size else np.nan


def _patch_max(image: np.ndarray, patch: int) -> float:
    known = ~np.isnan(image)
    if not known.any():
        return np.nan
    side = [min(patch, size) for size in image.shape]
    total = _windows(np.where(known, image, 0.0), side)
    share = _windows(known.astype(np.float64), side)
    # Windows with less than half of their pixels would be as noisy as a single one.
    full = share >= min(0.5, share.max()) - 1e-9
    return float((total[full] / share[full]).max())


def _windows(image: np.ndarray, side: list[int]) -> np.ndarray:
    """Means of all windows inside the image."""
    means = uniform_filter(image.astype(np.float64), side, mode="constant")
    starts = [
        slice(n // 2, n // 2 + size - n + 1) for n, size in zip(side, image.shape, strict=True)
    ]
    return means[tuple(starts)]


def _boundary(
    image: np.ndarray, mask: np.ndarray, width: float, spacing: tuple[float, ...]
) -> float:
    if (mask == mask.flat[0]).all():
        return np.nan
    distance = np.zeros(mask.shape)
    for number in np.unique(mask):
        inside = mask == number
        distance[inside] = distance_transform_edt(inside, sampling=spacing)[inside]
    known = ~np.isnan(image)
    weight = np.exp(-distance[known] / width)
    return float((weight * image[known]).sum() / weight.sum()) if known.any() else np.nan


def _foreground(image: np.ndarray, mask: np.ndarray, classes: Sequence[int] | None) -> float:
    inside = mask != 0 if classes is None else np.isin(mask, list(classes))
    return _mean(image[inside])


def _space(array: xr.DataArray) -> tuple[str, ...]:
    return tuple(dim for dim in SPACE[3] if dim in array.dims)


def _spacing(spacing: Sequence[float] | None, space: tuple[str, ...]) -> tuple[float, ...]:
    if spacing is None:
        return (1.0,) * len(space)
    values = tuple(float(value) for value in spacing)
    if len(values) != len(space) or not all(0 < value < np.inf for value in values):
        raise ValueError(f"spacing must be one positive size for each of {space}, not {spacing!r}.")
    return values


def _mask(
    mask: xr.DataArray | None, maps: xr.DataArray, space: tuple[str, ...], how: str
) -> xr.DataArray:
    if mask is None:
        raise ValueError(
            f"{how} needs mask, the predicted classes: aggregation.predicted_mask(tree)."
        )
    sizes = {dim: maps.sizes[dim] for dim in ("case", *space)}
    if dict(mask.sizes) != sizes or mask.dtype.kind not in "iub":
        raise ValueError(
            f"mask must hold class indices of size {sizes}, not {mask.dtype} of {dict(mask.sizes)}."
        )
    check_cases(mask, maps, "mask")
    return mask


def _check(how: str, level: float, patch: int, width: float) -> None:
    choice("how", how, METHODS)
    finite("level", level, 0, 1)
    whole("patch", patch)
    positive("width", width)
