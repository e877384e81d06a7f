"""Uncertainty of regions: along the predicted border, inside the prediction, per connected part.

The prediction is the most probable class of the mean over draws. Three regions of it:

    predicted  its foreground
    boundary   all pixels within `band` steps of its border, on either side; the edge of the image
               is no border
    part       each connected part of each foreground class

A figure is the mean of an uncertainty map over the region's pixels. A part of which the draws are
unsure is a candidate for a false positive (or a lesion that graders dispute).

Source: the boundary band and lesion-wise averaging follow Nair et al., Medical Image Analysis 59,
2020, arXiv:1808.01200.
"""

import numpy as np
import xarray as xr
from scipy import ndimage

from ppl_med import checks
from ppl_med.analysis.segmentation.comparison import mean_probabilities
from ppl_med.analysis.segmentation.pixel_maps import UNITS, block_maps
from ppl_med.analysis.segmentation.summary import case_dataset, describe
from ppl_med.analysis.tree import (
    ClassList,
    Posterior,
    class_indices,
    class_labels,
    open_probabilities,
)

_REGIONS = ("boundary", "predicted", "background")


def region_uncertainty(
    tree: Posterior,
    *,
    quantity: str = "predictive_entropy",
    band: int = 2,
    classes: ClassList = None,
    diagonal: bool = True,
) -> xr.Dataset:
    """Average an uncertainty map over the regions of the prediction.

    Args:
        tree: The tree of `predict`, or its ``probs`` (chain, draw, case, class, row, col).
        quantity: "predictive_entropy", "expected_entropy", "mutual_information" or "variance".
        band: Half width of the boundary band, pixels (steps along the axes), at least 1.
        classes: Classes that form the foreground; by default all but class 0.
        diagonal: Whether pixels that touch at a corner are connected.

    Returns:
        Dataset with ``boundary``, ``predicted``, ``background`` (case) in the unit of the map,
        each with ``_mean`` and ``_se``; NaN where the region is empty. Over part, one per
        connected part: ``part_mean`` in the unit of the map, ``part_size`` in pixels,
        ``part_probability``, mean probability of its class inside it, and the coordinates
        ``part_case`` and ``part_class``.

    Raises:
        TypeError, ValueError: ``probs`` or an argument is missing or malformed.
    """
    checks.choice("quantity", quantity, UNITS)
    checks.whole("band", band)
    draws = open_probabilities(tree)
    numbers = class_indices(classes, draws)
    names = dict(zip(numbers, class_labels(numbers, draws), strict=True))
    reach = len(draws.shape) if diagonal else 1
    structure = ndimage.generate_binary_structure(len(draws.shape), reach)
    figures = {name: np.full(draws.num_cases, np.nan) for name in _REGIONS}
    parts: list[tuple[int, str, float, int, float]] = []
    for block in draws.blocks():
        means = mean_probabilities(draws, block)
        uncertain = block_maps(draws, block)[quantity]
        for offset, case in enumerate(range(block.start, block.stop)):
            prediction = means[offset].argmax(0).reshape(draws.shape)
            image = uncertain[offset].reshape(draws.shape)
            foreground = np.isin(prediction, numbers)
            own = draws.inside(slice(case, case + 1))[0].reshape(draws.shape)
            # the end of a case is no border, also where it is smaller than others
            box = tuple(slice(int(at.max()) + 1) for at in np.nonzero(own))
            for name, inside in _regions(foreground[box], band).items():
                if inside.any():
                    figures[name][case] = image[box][inside].mean()
            for number in numbers:
                probability = means[offset, number].reshape(draws.shape)
                found = _parts(prediction == number, structure, image, probability)
                parts += [(case, names[number], *row) for row in found]
    unit = UNITS[quantity]
    result = case_dataset(draws.array, figures, unit).merge(_part_table(parts, draws.array, unit))
    attrs = {"quantity": quantity, "band": int(band), "diagonal": diagonal}
    return describe(
        result, **attrs, classes=list(names.values()), prediction="argmax of the mean over draws"
    )


def boundary_band(mask: np.ndarray, band: int) -> np.ndarray:
    """Return the pixels within ``band`` steps along the axes of the border of a mask."""
    if not mask.any() or mask.all():
        return np.zeros(mask.shape, bool)
    outer = ndimage.binary_dilation(mask, iterations=band)
    inner = ndimage.binary_erosion(mask, iterations=band, border_value=1)
    return outer & ~inner


def _regions(foreground: np.ndarray, band: int) -> dict[str, np.ndarray]:
    masks = (boundary_band(foreground, band), foreground, ~foreground)
    return dict(zip(_REGIONS, masks, strict=True))


def _parts(
    mask: np.ndarray, structure: np.ndarray, image: np.ndarray, probability: np.ndarray
) -> list[tuple[float, int, float]]:
    labels, number = ndimage.label(mask, structure)
    if not number:
        return []
    size = np.bincount(labels.ravel(), minlength=number + 1)[1:]
    mean = np.bincount(labels.ravel(), image.ravel(), number + 1)[1:] / size
    certain = np.bincount(labels.ravel(), probability.ravel(), number + 1)[1:] / size
    return list(zip(mean.tolist(), size.tolist(), certain.tolist(), strict=True))


def _part_table(
    parts: list[tuple[int, str, float, int, float]], template: xr.DataArray, unit: str
) -> xr.Dataset:
    cases, classes, mean, size, probability = zip(*parts, strict=True) if parts else ((),) * 5
    index = np.array(cases, dtype=np.int64)
    ids = template["case"].values[index] if "case" in template.coords else index
    return xr.Dataset(
        {
            "part_mean": ("part", np.array(mean, np.float64), {"units": unit}),
            "part_size": ("part", np.array(size, np.int64), {"units": "pixels"}),
            "part_probability": (
                "part", np.array(probability, np.float64), {"units": "probability"},
            ),
        },
        coords={"part_case": ("part", ids), "part_class": ("part", np.array(classes, dtype=str))},
    )  # fmt: skip
