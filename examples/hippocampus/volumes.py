"""Volumes in every draw, and their intervals."""

from typing import Any

import numpy as np
import xarray as xr

from ppl_med.analysis import conformal, segmentation
from ppl_med.analysis.statistics import binning, case_means

LEVEL = 0.9


def shuffled(masks: xr.DataArray, seed: int) -> xr.DataArray:
    """The draws in another order in every voxel: the same marginals, and no coherence.

    Args:
        masks: Class ids (chain, draw, case, depth, row, col).
        seed: Seed of the orders.
    """
    rng = np.random.default_rng(seed)
    flat = masks.astype(np.uint8).transpose("case", "chain", "draw", ...).compute()
    apart = np.stack([
        rng.permuted(one.reshape(-1, *one.shape[2:]), axis=0).reshape(one.shape)
        for one in flat.values
    ])  # fmt: skip
    return flat.copy(data=apart).transpose(*masks.dims)


def measure(tree: xr.DataTree, seed: int) -> dict[str, xr.Dataset]:
    """Volumes of both parts in every draw, coherent and voxel by voxel, mm³."""
    spacing = tree["constant_data/spacing"].rename(spacing_dim_0="axis")
    names = tree["posterior/probs"]["class"].values[1:]
    settings: dict[str, Any] = {"spacing": spacing, "level": LEVEL, "classes": [1, 2]}
    masks = tree["posterior_predictive/mask"]
    truth = tree["observed_data/mask"].expand_dims(grader=["truth"], axis=1)
    apart = shuffled(masks, seed)
    found = {
        "coherent": segmentation.sizes(masks, truth, **settings),
        "voxelwise": segmentation.sizes(apart, truth, **settings),
    }
    return {kind: sizes.assign_coords({"class": names}) for kind, sizes in found.items()}


def numbers_tree(sizes: xr.Dataset, structure: str) -> xr.DataTree:
    """Volumes of one structure as a tree of a regression, for ``conformal``."""
    part = sizes.sel({"class": structure}, drop=True)
    truth = part["grader_size"].isel(grader=0, drop=True)
    return xr.DataTree.from_dict({
        "posterior": xr.Dataset({"loc": part["size"]}),
        "posterior_predictive": xr.Dataset({"volume": part["size"]}),
        "observed_data": xr.Dataset({"volume": truth}),
    })  # fmt: skip


def widened(calibration: xr.Dataset, sizes: xr.Dataset, guide: str) -> xr.Dataset:
    """Conformal intervals of every structure, in units of the sd of its volume over draws.

    Args:
        calibration: Volumes of cases that were not trained on.
        sizes: Volumes of other cases.
        guide: Draws of "frequentist" differ by noise of voxels only, which is no unit.
    """
    method = "absolute" if guide == "frequentist" else "normalised"
    parts = []
    for structure in sizes["class"].values:
        learnt = conformal.calibrate_intervals(
            numbers_tree(calibration, structure), 1 - LEVEL, method=method, site="volume"
        )
        intervals = conformal.predict_intervals(learnt, numbers_tree(sizes, structure))
        part = sizes.sel({"class": [structure]}).copy()
        ends = intervals["interval"].expand_dims({"class": [structure]}, axis=1)
        part["lower"] = ends.sel(bound="lower", drop=True).clip(min=0).assign_attrs(units="mm^3")
        part["upper"] = ends.sel(bound="upper", drop=True).assign_attrs(units="mm^3")
        parts.append(part)
    return xr.concat(parts, "class", data_vars="minimal", coords="minimal", compat="override")


def constant(outlined: xr.DataArray, sizes: xr.Dataset) -> xr.Dataset:
    """The same interval for every case: quantiles of the training volumes; no image is looked at.

    Args:
        outlined: Volumes of the training cases (case, class), mm³.
        sizes: Volumes of other cases.
    """
    tail = (1 - LEVEL) / 2
    ends = outlined.quantile([tail, 1 - tail], "case")
    every = xr.ones_like(sizes["lower"])
    return _between(
        sizes, every * ends[0].drop_vars("quantile"), every * ends[1].drop_vars("quantile")
    )


def outlined_volumes(masks: np.ndarray, spacing: np.ndarray, names: np.ndarray) -> xr.DataArray:
    """Volumes of outlines (case, class), mm³, from masks (case, ...) and spacing (case, 3), mm."""
    counts = [(masks == index).reshape(len(masks), -1).sum(1) for index in range(1, 1 + len(names))]
    values = np.stack(counts, 1) * np.asarray(spacing, np.float64).prod(1)[:, None]
    return xr.DataArray(values, coords={"class": list(names)}, dims=("case", "class"))


def regressed(calibration: xr.Dataset, sizes: xr.Dataset) -> xr.Dataset:
    """Jackknife+ intervals around the regression of the outlined on the predicted volume.

    Nets shrink volumes towards the mean, which the regression undoes; where the prediction says
    nothing it falls back to the mean of the cases.

    Args:
        calibration: Volumes of cases that were not trained on.
        sizes: Volumes of other cases.

    Source: Barber, Candès, Ramdas and Tibshirani, Predictive inference with the jackknife+,
    Annals of Statistics 49, 2021.
    """
    lower, upper = xr.zeros_like(sizes["lower"]), xr.zeros_like(sizes["upper"])
    for structure in sizes["class"].values:
        place = {"class": structure}
        known = calibration.sel(place)
        truth = known["grader_size"].isel(grader=0).values
        ends = jackknife_plus(
            known["size"].mean(("chain", "draw")).values,
            truth,
            sizes["size"].sel(place).mean(("chain", "draw")).values,
        )
        lower.loc[place], upper.loc[place] = ends
    return _between(sizes, lower, upper)


def jackknife_plus(
    predicted: np.ndarray, truth: np.ndarray, new: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the intervals of ``new`` (case) by least squares of truth on predicted (case)."""
    number = len(truth)
    kept = ~np.eye(number, dtype=bool)
    fits = [np.polyfit(predicted[one], truth[one], 1) for one in kept]
    residual = np.array([abs(truth[k] - np.polyval(f, predicted[k])) for k, f in enumerate(fits)])
    at = np.array([np.polyval(f, new) for f in fits])
    rank = int(np.ceil(LEVEL * (number + 1)))
    if rank > number:
        return np.full(len(new), -np.inf), np.full(len(new), np.inf)
    low = np.sort(at - residual[:, None], 0)[number - rank]
    return low, np.sort(at + residual[:, None], 0)[rank - 1]


def _between(sizes: xr.Dataset, lower: xr.DataArray, upper: xr.DataArray) -> xr.Dataset:
    dims = sizes["lower"].dims
    ends = {"lower": lower.clip(min=0), "upper": upper}
    return sizes.assign(
        {name: end.transpose(*dims).assign_attrs(units="mm^3") for name, end in ends.items()}
    )


def coverage(sizes: xr.Dataset) -> xr.Dataset:
    """Share of cases whose true volume lies in the interval, how wide it is, and both in one.

    The interval score is the width plus 2 / (1 - level) times the distance of what was missed, with
    its standard error over cases: lower is better (Gneiting and Raftery, JASA 102, 2007, eq. 43).
    """
    truth = sizes["grader_size"].isel(grader=0, drop=True)
    inside = (truth >= sizes["lower"]) & (truth <= sizes["upper"])
    hits, number = inside.sum("case"), inside.sizes["case"]
    low, high = binning.clopper_pearson(hits.values, np.full(hits.shape, number))
    width = sizes["upper"] - sizes["lower"]
    beyond = (sizes["lower"] - truth).clip(min=0) + (truth - sizes["upper"]).clip(min=0)
    score = width + 2 / (1 - LEVEL) * beyond
    return xr.Dataset(
        {
            "coverage": (hits / number).assign_attrs(units="probability"),
            "coverage_lower": ("class", low, {"units": "probability"}),
            "coverage_upper": ("class", high, {"units": "probability"}),
            "width": width.mean("case").assign_attrs(units="mm^3"),
            "relative_width": (width / truth).mean("case").assign_attrs(units="1"),
            "score": score.mean("case").assign_attrs(units="mm^3"),
            "score_se": case_means.over_cases(score).assign_attrs(units="mm^3"),
            "num_cases": number,
        }
    )


def dice(tree: xr.DataTree) -> xr.DataArray:
    """Dice of the most probable class under all draws, mean over cases, (class)."""
    mean = tree["posterior/probs"].mean(("chain", "draw"))
    guess, truth = mean.argmax("class").compute(), tree["observed_data/mask"].compute()
    space = ("depth", "row", "col")
    found = []
    for index in (1, 2):
        both = ((guess == index) & (truth == index)).sum(space)
        total = (guess == index).sum(space) + (truth == index).sum(space)
        found.append((2 * both / total).mean("case"))
    return xr.concat(found, mean["class"][1:]).drop_attrs()
