"""Volumes in every draw, and their intervals."""

from typing import Any

import numpy as np
import xarray as xr

from ppl_med.analysis import conformal, segmentation
from ppl_med.analysis.statistics import binning

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


def coverage(sizes: xr.Dataset) -> xr.Dataset:
    """Share of cases whose true volume lies in the interval, and how wide it is, (class)."""
    truth = sizes["grader_size"].isel(grader=0, drop=True)
    inside = (truth >= sizes["lower"]) & (truth <= sizes["upper"])
    hits, number = inside.sum("case"), inside.sizes["case"]
    low, high = binning.clopper_pearson(hits.values, np.full(hits.shape, number))
    width = sizes["upper"] - sizes["lower"]
    return xr.Dataset(
        {
            "coverage": (hits / number).assign_attrs(units="probability"),
            "coverage_lower": ("class", low, {"units": "probability"}),
            "coverage_upper": ("class", high, {"units": "probability"}),
            "width": width.mean("case").assign_attrs(units="mm^3"),
            "relative_width": (width / truth).mean("case").assign_attrs(units="1"),
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
