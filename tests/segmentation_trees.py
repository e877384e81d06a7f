"""Sampled and graders' masks with a known law, in the shape that predict returns."""

import itertools

import numpy as np
import xarray as xr
from scipy import stats

Z = float(stats.norm.isf(0.5e-6))  # a z-test at a false-alarm rate of 1e-6
RATES = np.array([8, 7, 6, 5, 4]) / 17
SWITCHES = {number: number + 5 for number in range(1, 6)}


def sampled(values: np.ndarray, *, chains: int = 1) -> xr.DataArray:
    """Masks (case, sample, row, col) as an array (chain, draw, case, row, col)."""
    values = np.asarray(values)
    cases, samples, *space = values.shape
    split = values.reshape(cases, chains, samples // chains, *space)
    dims = ("case", "chain", "draw", *("depth", "row", "col")[-len(space) :])
    array = xr.DataArray(split, dims=dims).transpose("chain", "draw", "case", ...)
    return array.assign_coords(case=case_ids(cases))


def graded(values: np.ndarray, name: str = "grader") -> xr.DataArray:
    """Masks (case, grader, row, col) as an array with names."""
    values = np.asarray(values)
    dims = ("case", name, *("depth", "row", "col")[4 - values.ndim + 1 :])
    return xr.DataArray(values, {"case": case_ids(len(values))}, dims)


def case_ids(number: int) -> list[str]:
    return [f"patient-{index}" for index in range(number)]


def certain_probs(masks: xr.DataArray, num_classes: int, peak: float = 0.9) -> xr.DataArray:
    """Probabilities whose most probable class is the mask."""
    classes = xr.DataArray(np.arange(num_classes), dims="class")
    rest = (1 - peak) / (num_classes - 1)
    probs = xr.where(masks == classes, peak, rest).transpose("chain", "draw", "case", "class", ...)
    return probs.assign_coords({"class": [f"class {index}" for index in range(num_classes)]})


def tree_of(
    masks: xr.DataArray, annotations: xr.DataArray, num_classes: int, *, other: int = 0
) -> xr.DataTree:
    """A tree whose modes are ``masks``, and whose drawn masks are all of class ``other``."""
    return xr.DataTree.from_dict(
        {
            "/posterior": xr.Dataset({"probs": certain_probs(masks, num_classes)}),
            "/posterior_predictive": xr.Dataset({"mask": xr.full_like(masks, other)}),
            "/observed_data": xr.Dataset({"mask": annotations}),
        }
    )


def random_masks(
    rng: np.random.Generator, shape: tuple[int, ...], num_classes: int, empty: float = 0.2
) -> np.ndarray:
    """Masks of independent pixels; a share of the masks has only class 0."""
    masks = rng.integers(0, num_classes, shape)
    masks[rng.random(shape[:2]) < empty] = 0
    return masks


def brute_iou(first: np.ndarray, second: np.ndarray, classes: list[int], empty: float) -> float:
    """Mean IoU over classes, straight from the definition."""
    values = []
    for number in classes:
        union = ((first == number) | (second == number)).sum()
        both = ((first == number) & (second == number)).sum()
        values.append(both / union if union else empty)
    kept = [value for value in values if not np.isnan(value)]
    return float(np.mean(kept)) if kept else np.nan


def brute_dice(first: np.ndarray, second: np.ndarray, classes: list[int], empty: float) -> float:
    """Mean Dice over classes, straight from the definition."""
    values = []
    for number in classes:
        total = (first == number).sum() + (second == number).sum()
        both = ((first == number) & (second == number)).sum()
        values.append(2 * both / total if total else empty)
    kept = [value for value in values if not np.isnan(value)]
    return float(np.mean(kept)) if kept else np.nan


def mode_bits() -> np.ndarray:
    """Which regions each of the 32 modes switches (mode, switch), the first region fastest."""
    return np.array(list(itertools.product((0, 1), repeat=5)))[:, ::-1]


def mode_law() -> np.ndarray:
    """Probability of each mode when the regions switch independently at `RATES`."""
    bits = mode_bits()
    return np.where(bits == 1, RATES, 1 - RATES).prod(1)


def switch_regions(rng: np.random.Generator, cases: int, size: int = 10) -> np.ndarray:
    """Five bands per case in random order and of random width, classes 1 to 5 (case, row, col)."""
    result = np.empty((cases, size, size), np.int64)
    for case in range(cases):
        inner = np.sort(rng.choice(np.arange(1, size), 4, replace=False))
        bands = np.searchsorted(inner, np.arange(size), side="right")
        result[case] = (rng.permutation(5) + 1)[bands][:, None]
    return result


def switch(regions: np.ndarray, flips: np.ndarray) -> np.ndarray:
    """Masks (case, sample, row, col) in which sample s of case i switches flips[i, s]."""
    extended = np.concatenate([np.zeros((*flips.shape[:2], 1), int), flips], axis=2)
    region = regions[:, None].repeat(flips.shape[1], 1)
    cases, samples = np.arange(len(flips))[:, None, None, None], np.arange(flips.shape[1])
    return region + 5 * extended[cases, samples[None, :, None, None], region]


def mode_masks(regions: np.ndarray) -> np.ndarray:
    """All 32 modes of every case (case, mode, row, col)."""
    return switch(regions, np.broadcast_to(mode_bits(), (len(regions), 32, 5)))


def hamming_distance() -> np.ndarray:
    """1 - IoU of two modes when only classes of either mask count: 2 h / (5 + h)."""
    bits = mode_bits()
    apart = (bits[:, None] != bits[None]).sum(-1)
    return 2 * apart / (5 + apart)
