"""Localisation: how well an attribution agrees with a mask known to hold the evidence.

    mass share  m = Σ_inside a⁺ / Σ a⁺          a⁺ = max(a, 0), summed over channels and space
    area share  s = |mask| / |image|
    ratio       m / s                           1 for an attribution that ignores the mask
    hit         does the highest pixel lie inside the mask
    rank share  the share of the mask's k pixels among the k highest

``evidence_inside`` says of the draws of a posterior how sure these are.

References: Arras, Osman and Samek, "CLEVR-XAI: a benchmark dataset for the ground truth evaluation
of neural network explanations", Information Fusion 81 (2022) (the mass share is their relevance
mass accuracy, the rank share their relevance rank accuracy; the ratio is the enrichment over
chance); Zhang et al., "Top-down neural attention by excitation backprop", IJCV 126 (2018) (pointing
game).
"""

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from scipy.stats import rankdata

from ppl_med.analysis.tree import select_maps
from ppl_med.analysis.tree.distinct_draws import drop_copies
from ppl_med.axes import SAMPLES, SPACE
from ppl_med.checks import inside as strictly_inside
from ppl_med.checks import whole
from ppl_med.explain.draw_intervals import over_draws


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
    space = tuple(dim for dim in SPACE[3] if dim in maps.dims)
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


def pointing_game(
    attribution: xr.DataArray | xr.Dataset, mask: xr.DataArray, tolerance: int = 0
) -> xr.Dataset:
    """Does the highest pixel lie in the mask, and how much of the mask do the highest pixels fill?

    Args:
        attribution: As in ``mass_inside``; channels are summed.
        mask: As in ``mass_inside``.
        tolerance: Pixels, along each axis, by which the highest pixel may miss the mask.

    Returns:
        ``hit`` (case), 1 where the highest pixel lies in the mask (with ties the share of them),
        and ``rank_share`` (case), the share of the mask's k pixels among the k highest, both with
        (chain, draw) in front where the maps have them; ``hit_chance`` and ``chance`` (case), what
        they are on average for a random map: the share of the image in the mask, for ``hit`` in the
        mask widened by the tolerance; each with ``mean_<name>`` over cases with a mask and
        ``mean_<name>_se``.

    Raises:
        ValueError: If axes, cases or values do not fit, or all masks are empty.
    """
    maps = as_maps(attribution)
    space = tuple(dim for dim in SPACE[3] if dim in maps.dims)
    check_mask(mask, maps, space)
    whole("tolerance", tolerance, 0)
    inside = mask.transpose("case", *space).astype(bool)
    near = _widened(inside.values, tolerance)
    values = maps.sum("channel").transpose(..., "case", *space)
    front = [dim for dim in values.dims if dim not in ("case", *space)]
    shape = tuple(values.sizes[dim] for dim in (*front, "case"))
    flat = values.values.reshape(*shape, -1)
    top = flat == flat.max(-1, keepdims=True)
    hit = (top & near.reshape(len(near), -1)).sum(-1) / top.sum(-1)
    truth = inside.values.reshape(len(near), -1)
    size = truth.sum(-1)
    # Ties share the places they compete for, so that a flat map has the mask's share of the image.
    least, most = (rankdata(-flat, method, axis=-1) for method in ("min", "max"))
    chance = np.clip((size[:, None] - least + 1) / (most - least + 1), 0, 1)
    with np.errstate(invalid="ignore"):
        rank_share = (chance * truth).sum(-1) / size
    result = xr.Dataset(
        {
            "hit": ((*front, "case"), np.where(size > 0, hit, np.nan)),
            "rank_share": ((*front, "case"), rank_share),
            "chance": ("case", np.where(size > 0, truth.mean(-1), np.nan)),
            "hit_chance": (
                "case",
                np.where(size > 0, near.reshape(len(near), -1).mean(-1), np.nan),
            ),
        },
        coords={name: maps[name] for name in (*front, "case") if name in maps.coords},
    )
    for name in ("hit", "rank_share", "chance", "hit_chance"):
        count = result[name].notnull().sum("case")
        result[f"mean_{name}"] = result[name].mean("case")
        result[f"mean_{name}_se"] = result[name].std("case", ddof=1) / np.sqrt(count)
    for variable in result.data_vars.values():
        variable.attrs["units"] = "1"
    return result


def evidence_inside(
    attribution: xr.DataArray | xr.Dataset,
    mask: xr.DataArray,
    *,
    tolerance: int = 0,
    level: float = 0.9,
) -> xr.Dataset:
    """How much of the evidence lies inside a mask, by all posterior draws together.

    Draws that are copies of each other (members of an ensemble, drawn again) count once.

    Args:
        attribution: Maps of every draw (chain, draw, case, channel, [depth,] row, col), as
            ``attribute(..., keep_draws=True)`` gives them.
        mask: As in ``mass_inside``.
        tolerance: As in ``pointing_game``.
        level: Probability of the intervals over draws.

    Returns:
        ``mass_share``, ``ratio`` and ``hit`` (chain, draw, case), as in ``mass_inside`` and
        ``pointing_game``. Of the first two, by case and, as ``mean_<name>``, of their mean over
        cases with a mask, over draws: ``expected_<name>``, ``sd_<name>`` and the interval
        ``expected_<name>_lower``, ``_upper``, which holds a further draw with probability
        ``level``. ``probability_top_inside`` (case) is the share of draws whose highest pixel lies
        inside, and ``mean_probability_top_inside`` its mean; ``hit_chance`` what a random map would
        have. ``area_share`` (case).

    Raises:
        ValueError: If the maps have no draws, axes, cases or values do not fit, or all masks are
            empty.
    """
    strictly_inside("level", level)
    maps = as_maps(attribution)
    missing = [dim for dim in SAMPLES if dim not in maps.dims]
    if missing:
        raise ValueError(
            f"attribution lacks the axes {missing}; keep the maps of all draws: "
            "attribute(..., keep_draws=True)"
        )
    maps = drop_copies(maps)
    mass, pointing = mass_inside(maps, mask), pointing_game(maps, mask, tolerance)
    number = maps.sizes["chain"] * maps.sizes["draw"]
    result = xr.Dataset(
        {name: mass[name] for name in ("mass_share", "ratio", "area_share")}
        | {name: pointing[name] for name in ("hit", "hit_chance")}
    )
    for name in ("mass_share", "ratio", "mean_mass_share", "mean_ratio"):
        values = mass[name]
        spread = values.std(SAMPLES, ddof=1) if number > 1 else values.mean(SAMPLES) * np.nan
        result = result.assign({**over_draws(name, values, level), f"sd_{name}": spread})
    result["probability_top_inside"] = pointing["hit"].mean(SAMPLES)
    result["mean_probability_top_inside"] = pointing["mean_hit"].mean(SAMPLES)
    for variable in result.data_vars.values():
        variable.attrs["units"] = "1"
    return result.assign_attrs(level=level, num_draws=number)


def _widened(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    if width == 0:
        return mask
    return np.stack([binary_dilation(m, np.ones((2 * width + 1,) * m.ndim)) for m in mask])


def as_maps(attribution: xr.DataArray | xr.Dataset) -> xr.DataArray:
    """Take the maps out of a Dataset and check their axes and values."""
    attribution = select_maps(attribution, "attribution")
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
