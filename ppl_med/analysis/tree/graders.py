"""Graders' masks beside the sampled ones, on the pixels where both can be compared.

An annotation is (case, grader, ...) with class indices; -1 marks a pixel that a grader did not
annotate, and a grader who did not see a case is -1 everywhere. Such a grader is left out of the
case. Of the pixels only those count that every remaining grader annotated, and they are the same
for all pairs of the case: a distance between sets of masks means something only if all masks of
both sets are compared on the same pixels.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import xarray as xr

from ppl_med.analysis.tree.cases import check_cases
from ppl_med.analysis.tree.classes import Posterior
from ppl_med.analysis.tree.groups import class_site, find_group
from ppl_med.analysis.tree.left_out import UNANNOTATED
from ppl_med.analysis.tree.masks import Draws, check_range
from ppl_med.axes import SAMPLES

Weights: TypeAlias = xr.DataArray | Sequence[float] | np.ndarray | None

_SUM_TOLERANCE = 1e-6


class Case(NamedTuple):
    """The masks of one case on its comparable pixels; class indices of one integer type."""

    samples: np.ndarray  # (sample, pixel)
    graders: np.ndarray  # (grader, pixel), only the graders who annotated this case
    present: np.ndarray  # (grader,) bool, over all graders
    domain: np.ndarray  # (pixel,) bool, over all pixels

    @property
    def comparable(self) -> bool:
        """Whether at least one grader and one pixel are left."""
        return self.graders.size > 0


def open_annotations(
    tree: Posterior, annotations: xr.DataArray | None, draws: Draws, name: str = "annotations"
) -> xr.DataArray:
    """Find the graders' masks and check them against the samples.

    Args:
        tree: A tree with observed_data/mask, used where ``annotations`` is None.
        annotations: Masks (case, grader, ...) or (case, ...), -1 where not annotated.
        draws: The samples they are compared with.
        name: What to call them in a message.

    Returns:
        Class indices (case, grader, ...) with the image axes of ``draws``.

    Raises:
        TypeError: No annotations, or no integers.
        ValueError: Other dimensions, sizes or cases than the samples, or a value that is no class.
    """
    if annotations is None:
        annotations = _observed(tree)
    if not isinstance(annotations, xr.DataArray):
        raise TypeError(f"{name} must be a DataArray, not {type(annotations).__name__}.")
    if "grader" not in annotations.dims:
        annotations = annotations.expand_dims("grader")
    wanted = ("case", "grader", *draws.space)
    if set(annotations.dims) != set(wanted):
        raise ValueError(f"{name} has dimensions {annotations.dims}; expected {wanted}.")
    annotations = annotations.transpose(*wanted)
    if annotations.dtype.kind == "b":
        annotations = annotations.astype(np.int8)
    shape = annotations.shape[2:]
    if shape != draws.shape:
        raise ValueError(f"{name} has images of size {shape}, the samples of {draws.shape}.")
    if annotations.dtype.kind not in "iub":
        raise TypeError(
            f"{name} must hold integers (class indices, -1 where not annotated), not "
            f"{annotations.dtype}."
        )
    if 0 in annotations.shape:
        raise ValueError(f"{name} is empty: {dict(annotations.sizes)}.")
    check_cases(annotations, draws.array, name)
    bounds = np.array([int(annotations.min()), int(annotations.max())])
    check_range(bounds, UNANNOTATED, draws.num_classes, name)
    return annotations


def compared_cases(draws: Draws, annotations: xr.DataArray) -> Iterator[Case]:
    """Yield the sampled and the graders' masks, case by case."""
    for block in draws.blocks():
        sampled = draws.masks(block)
        graded = annotations.isel(case=block).values
        graded = graded.reshape(*graded.shape[:2], draws.num_pixels)
        for samples, graders in zip(sampled, graded, strict=True):
            yield compare(samples, graders)


def compare(samples: np.ndarray, graders: np.ndarray) -> Case:
    """Leave out absent graders (all -1) and the pixels that a present one did not annotate."""
    known = graders != UNANNOTATED
    present = known.any(1)
    domain = known[present].all(0)
    if present.all() and domain.all():
        return Case(samples, graders.astype(samples.dtype), present, domain)
    kept = graders[present][:, domain].astype(samples.dtype)
    return Case(samples[:, domain], kept, present, domain)


def grader_distribution(weights: Weights, annotations: xr.DataArray) -> np.ndarray | None:
    """Return the weights of the graders or modes, (case, grader), or None where not given.

    Raises:
        ValueError: Wrong dimensions, negative or NaN weights, a sum other than one, or weights
            with a grader of positive weight absent from a case.
    """
    distribution = _distribution(weights, annotations, ("grader",), "grader_weights")
    if distribution is None:
        return None
    inner = [dim for dim in annotations.dims if dim not in ("case", "grader")]
    absent = (annotations == UNANNOTATED).all(inner).values & (distribution > 0)
    if absent.any():
        number = int(absent.any(1).sum())
        raise ValueError(
            f"grader_weights gives weight to graders who did not annotate {number} "
            "case(s); weights state the exact distribution, which then is not known. "
            "Give weights per case (case, grader) that are 0 there, or drop those cases."
        )
    return distribution


def sample_distribution(weights: Weights, draws: Draws) -> np.ndarray | None:
    """Return the weights of the samples, (case, sample), or None where not given.

    Raises:
        ValueError: Wrong dimensions, negative or NaN weights, or a sum other than one.
    """
    return _distribution(weights, draws.array, SAMPLES, "sample_weights")


def _distribution(
    weights: Weights, array: xr.DataArray, dims: tuple[str, ...], name: str
) -> np.ndarray | None:
    if weights is None:
        return None
    if not isinstance(weights, xr.DataArray):
        if len(dims) > 1:
            raise TypeError(f"{name} must be a DataArray over {' and '.join(dims)}.")
        weights = xr.DataArray(np.asarray(weights, np.float64), dims=dims)
    wanted = {dim: array.sizes[dim] for dim in ("case", *dims)}
    wrong = [dim for dim in weights.dims if wanted.get(str(dim)) != weights.sizes[dim]]
    missing = [dim for dim in dims if dim not in weights.dims]
    if wrong or missing:
        raise ValueError(
            f"{name} has sizes {dict(weights.sizes)}; expected {wanted}, where case may be absent."
        )
    if "case" not in weights.dims:
        weights = weights.expand_dims(case=wanted["case"])
    else:
        check_cases(weights, array, name)
    values = weights.transpose("case", *dims).values.astype(np.float64)
    values = values.reshape(wanted["case"], -1)
    if not (values >= 0).all():
        raise ValueError(f"{name} holds negative or NaN values; weights are probabilities.")
    error = float(np.abs(values.sum(1) - 1).max())
    if error > _SUM_TOLERANCE:
        raise ValueError(
            f"{name} must sum to one over {' and '.join(dims)} in every case; the largest error "
            f"is {error:.3g}. Divide by the sum."
        )
    return values


def _observed(tree: Posterior) -> xr.DataArray:
    if not isinstance(tree, xr.DataTree):
        raise TypeError(
            f"annotations must be given with a {type(tree).__name__}: only a DataTree carries "
            "observed_data/mask."
        )
    name = class_site(tree, "observed_data", ("mask",))
    if name is None:
        raise ValueError(
            "tree has no observed_data/mask; call predict on batches that hold mask, or pass "
            "annotations."
        )
    return find_group(tree, "observed_data")[name]
