"""Localisation: how much of an attribution lies inside a mask known to hold the evidence.

    mass share  m = Σ_inside a⁺ / Σ a⁺          a⁺ = max(a, 0), summed over channels and space
    area share  s = |mask| / |image|
    ratio       m / s                           1 for an attribution that ignores the mask

Reference: the mass share is the relevance mass accuracy of Arras, Osman and Samek, "CLEVR-XAI: a
benchmark dataset for the ground truth evaluation of neural network explanations", Information
Fusion 81 (2022); the ratio to the area share is the enrichment over chance.
"""

import numpy as np
import xarray as xr

from ppl_med.analysis.attribution_maps import SPACE, taken_out


def mass_inside(attribution: xr.DataArray | xr.Dataset, mask: xr.DataArray) -> xr.Dataset:
    """Compare the positive attribution inside a mask with the mask's area.

    Args:
        attribution: Maps (case, channel, [depth,] row, col), with (chain, draw) in front if every
            draw was kept. Of a Dataset from ``attribute`` the variable ``attribution`` is taken if
            it is there, else ``mean``.
        mask: Where the evidence is, (case, [depth,] row, col), bool or 0 and 1, with the same cases
            in the same order.

    Returns:
        ``mass_share``, ``area_share`` and ``ratio`` (case), shares in 0 to 1, the first and the
        last with (chain, draw) in front where the maps have them; each with ``mean_<name>`` over
        cases and its standard error over cases ``mean_<name>_se``. A case whose mask is empty, or
        whose map is nowhere positive, is NaN in ``mass_share`` and ``ratio`` and left out of their
        means; ``num_empty_masks`` and ``num_without_positive`` count them.

    Raises:
        ValueError: If axes, cases or values do not fit, or all masks are empty.
    """
    maps = as_maps(attribution)
    space = tuple(dim for dim in SPACE if dim in maps.dims)
    check_mask(mask, maps, space)
    inside = mask.astype(bool)

    positive = maps.clip(min=0).sum("channel")
    total = positive.sum(space)
    area_share = inside.mean(space)
    valid = (total > 0) & (area_share > 0)
    mass_share = (positive.where(inside, 0).sum(space) / total.where(valid)).transpose(..., "case")
    result = xr.Dataset(
        {
            "mass_share": mass_share,
            "area_share": area_share,
            "ratio": mass_share / area_share.where(area_share > 0),
        }
    )
    for name in ("mass_share", "area_share", "ratio"):
        count = result[name].notnull().sum("case")
        mean = result[name].sum("case") / count.where(count > 0)
        variance = ((result[name] - mean) ** 2).sum("case") / (count - 1).where(count > 1)
        result[f"mean_{name}"] = mean
        result[f"mean_{name}_se"] = np.sqrt(variance / count)
    result["num_empty_masks"] = (area_share == 0).sum("case")
    result["num_without_positive"] = (total <= 0).sum("case")
    for variable in result.data_vars.values():
        variable.attrs["units"] = "1"
    return result


def as_maps(attribution: xr.DataArray | xr.Dataset) -> xr.DataArray:
    """Take the maps out of a Dataset and check their axes and values."""
    attribution = taken_out(attribution, "attribution")
    missing = {"case", "channel", "row", "col"} - set(attribution.dims)
    if missing:
        raise ValueError(f"attribution lacks the axes {sorted(missing)}; it has {attribution.dims}")
    if not bool(np.isfinite(attribution).all()):
        raise ValueError("attribution holds NaN or infinite values")
    return attribution


def check_mask(mask: xr.DataArray, maps: xr.DataArray, space: tuple[str, ...]) -> None:
    """Raise unless the mask is binary and lies on the maps' cases and pixels."""
    if not isinstance(mask, xr.DataArray):
        raise TypeError(
            f"mask is {type(mask).__name__}; give a DataArray with dims {('case', *space)}"
        )
    if set(mask.dims) != {"case", *space}:
        raise ValueError(f"mask has dims {mask.dims}; the maps need {('case', *space)}")
    sizes = {dim: (mask.sizes[dim], maps.sizes[dim]) for dim in mask.dims}
    if any(of_mask != of_map for of_mask, of_map in sizes.values()):
        raise ValueError(f"mask and attribution differ in size (mask, attribution): {sizes}")
    for dim in mask.dims:
        if dim in mask.coords and dim in maps.coords and not np.array_equal(mask[dim], maps[dim]):
            raise ValueError(
                f"mask and attribution differ in their {dim} coordinate; reorder one of them first"
            )
    if not bool(mask.isin([0, 1]).all()):
        raise ValueError(
            "mask holds values other than 0 and 1; pick one class, for instance mask == 1"
        )
    if not bool(mask.any()):
        raise ValueError("mask is empty in every case; there is no inside to compare with")
