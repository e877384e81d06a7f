"""Figures of a run: the two parts of the variance of the area, and how wrong the mean area is."""

from typing import Any

import numpy as np
import xarray as xr

from ppl_med.analysis import segmentation
from rater_variance.discs import area_variance_of_regression, areas, true_area

NEAR = 0.1  # of the pixels by which the outlines differ: an area so near to one is of it


def score(tree: xr.DataTree, images: dict[str, Any], train: dict[str, Any]) -> xr.Dataset:
    """Figures of every image, and of their means over images.

    ``between_raters`` and ``between_weights`` (case) are of the model, ``true_raters`` is the
    variance that raters have, and ``regression`` what a regression on the contrast leaves unknown
    with these training masks. ``squared_error`` (case) is that of the predicted mean area, without
    bias: of the mean over many draws of the weights. In a posterior it equals, in the mean,
    ``between_weights``. ``of_outlines`` (case) is the share of masks of about either size.

    Args:
        tree: Of `predict`, with masks that were drawn.
        images: Of `discs`, those of the tree.
        train: Of `discs`, what was learnt from.
    """
    parts = segmentation.rater_and_weight_variance(tree, samples="draw")
    raters, weights = (
        parts[f"size_between_{name}"].isel({"class": 0}, drop=True).values
        for name in ("raters", "weights")
    )
    functions, samples = (parts.attrs[n] for n in ("num_weight_draws", "samples_per_draw"))
    area = tree["posterior_predictive/mask"].sum(["row", "col"])
    mean, variance = true_area(images["contrast"])
    chance = weights / functions + raters / (functions * samples)
    (narrow, wide), drawn = areas(), area.transpose("case", ...).values.reshape(len(mean), -1)
    near = np.minimum(abs(drawn - narrow), abs(drawn - wide)) <= NEAR * (wide - narrow)
    told = area_variance_of_regression(train["contrast"], train["wide"], images["contrast"])
    found = {
        "between_raters": raters,
        "between_weights": weights,
        "true_raters": variance,
        "regression": told,
        "squared_error": (drawn.mean(1) - mean) ** 2 - chance,
        "of_outlines": near.mean(1),
    }
    coords = {"case": images["id"]}
    return xr.Dataset({name: ("case", one) for name, one in found.items()}, coords)


def random_masks(train: dict[str, Any], images: dict[str, Any]) -> xr.Dataset:
    """The baseline: masks of the training images, drawn for every image alike."""
    area = train["mask"].sum((1, 2)).astype(float)
    mean, variance = true_area(images["contrast"])
    size = np.ones(len(mean))
    found = {
        "between_raters": area.var(ddof=1) * size,
        "between_weights": 0 * size,
        "true_raters": variance,
        "squared_error": (area.mean() - mean) ** 2,
        "of_outlines": size,
    }
    return xr.Dataset({name: ("case", one) for name, one in found.items()}, {"case": images["id"]})
