"""How much of the variance is the model's, how much the augmentations', and how much of both.

All draws are predicted under the same augmentations (`ppl_med.inference.predict_augmented`). With
y_sa the probability of a class (or the mean of a number) by draw s under augmentation a

    y_sa = mean + draw_s + augmentation_a + interaction_sa

    model          variance of draw_s           what other weights say
    augmentation   variance of augmentation_a   the same in all draws: no posterior knows of it
    interaction    variance of what is left     draws answer in different ways to an augmentation
    total          their sum                    variance of one draw under one augmentation

The mean over S draws of one image has model + interaction as its variance over draws, which is what
`uncertainty.variance` calls epistemic, and nothing of the augmentation part. Estimates are unbiased
and may be negative where a part is small: they are kept so, for means over cases to be right, and
flagged by ``<name>_negative``. Draws that are copies of each other count once; draws of several
chains count alike.

``<name>_mcse`` is the error from the numbers of draws and augmentations: see
`ppl_med.analysis.statistics.two_way`. Of `variance` it is that of normal effects; of `summary` it
is a jackknife over draws and augmentations, which needs three of each.

For all other analyses average first: ``ppl_med.analysis.tree.average_augmentations(tree)``.
"""

import numpy as np
import xarray as xr

from ppl_med.analysis.statistics import two_way
from ppl_med.analysis.statistics.case_means import over_cases
from ppl_med.analysis.tree import Posterior, augmented_blocks, join_blocks, open_augmented
from ppl_med.axes import AUGMENTATION, SAMPLES

__all__ = ["summary", "variance"]

NAMES = ("model", "augmentation", "interaction", "total")


def variance(tree: Posterior, *, mcse: bool = True) -> xr.Dataset:
    """Split the variance of every class probability, or of the mean of a number.

    Args:
        tree: The tree of `predict_augmented`, its posterior group, or ``probs`` (chain, draw,
            augmentation, case, class, ...); of numbers ``loc`` or ``mean``.
        mcse: Add standard errors.

    Returns:
        Dataset over (case, class, ...): ``model``, ``augmentation``, ``interaction`` and their sum
        ``total``, in squared probability or the squared unit of the number, and for each
        ``<name>_mcse``; ``model_negative`` and ``augmentation_negative``. NaN in pixels that fewer
        than two augmentations left in the image.

    Raises:
        TypeError: The tree is none of these.
        ValueError: No axis of augmentations; one draw, or copies of one; one augmentation.
    """
    array = open_augmented(tree)
    dims = array.dims[3:]
    parts = []
    for block, values in augmented_blocks(array):
        estimate, error = two_way.components(values)
        part = xr.Dataset()
        for name, one, spread in zip(NAMES, estimate, error, strict=True):
            part[name] = (dims, one)
            if mcse:
                part[f"{name}_mcse"] = (dims, spread)
        for name in NAMES[:2]:
            part[f"{name}_negative"] = part[name] < 0
        parts.append((block, part))
    first = array.isel(dict.fromkeys((*SAMPLES, AUGMENTATION), 0), drop=True)
    return _described(join_blocks(parts).assign_coords(first.coords), array)


def summary(tree: Posterior, *, mcse: bool = True) -> xr.Dataset:
    """Average `variance` over pixels, classes and cases.

    Args:
        tree: As for `variance`.
        mcse: Add standard errors from the numbers of draws and augmentations.

    Returns:
        Dataset of scalars ``model``, ``augmentation``, ``interaction``, ``total``, each with
        ``_mcse`` (jackknife; NaN below three draws or augmentations) and ``_se`` (from the number
        of cases; NaN for one).

    Raises:
        TypeError, ValueError: As for `variance`.
    """
    array = open_augmented(tree)
    functions = array.sizes["chain"] * array.sizes["draw"]
    number = array.sizes[AUGMENTATION]
    errors = mcse and min(functions, number) > 2
    variants = 1 + (functions + number if errors else 0)
    total = np.zeros((variants, len(NAMES), array.sizes["case"]))
    count = np.zeros_like(total)
    for block, values in augmented_blocks(array):
        found = two_way.components(values)[0][None]
        if errors:
            found = np.concatenate([found, two_way.left_out(values)])
        known = ~np.isnan(found)
        inner = tuple(range(3, found.ndim))
        total[..., block["case"]] += np.where(known, found, 0.0).sum(inner)
        count[..., block["case"]] += known.sum(inner)
    per_case = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    means = np.nanmean(per_case, -1)
    result = xr.Dataset()
    for index, name in enumerate(NAMES):
        result[name] = means[0, index]
        if mcse:
            spread = two_way.jackknife(means[1:, index], functions) if errors else np.nan
            result[f"{name}_mcse"] = float(spread)
        result[f"{name}_se"] = over_cases(xr.DataArray(per_case[0, index], dims="case"))
    result.attrs["reduction"] = "mean over pixels and classes of each case, then over cases"
    return _described(result, array)


def _described(result: xr.Dataset, array: xr.DataArray) -> xr.Dataset:
    unit = "probability^2" if "class" in array.dims else "unit of the value, squared"
    for name, one in result.items():
        if not str(name).endswith("_negative"):
            one.attrs["units"] = unit
    result.attrs["num_functions"] = array.sizes["chain"] * array.sizes["draw"]
    result.attrs["num_augmentations"] = array.sizes[AUGMENTATION]
    if "draws_of" in array.attrs:
        result.attrs["model_of"] = array.attrs["draws_of"]
    return result
