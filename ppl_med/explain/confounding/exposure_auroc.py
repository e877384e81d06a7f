"""Exposure: does an attribution method show that a network looks at a confounder?

The score of a case is the share of its relevance mass on the confounder's pixels,

    m_i = Σ_inside a⁺ / Σ a⁺         against the share of the image that they cover

and a method exposes the confounder in a data set if it tells a network that may use it from one
that does not, both looking at the same images:

    AUROC = P(m_i of the network > m_j of the reference) + P(equal) / 2

The comparison is between networks, not between images with and without the mark. A bright mark
attracts relevance in many methods whatever the network does with it (input × gradient is zero where
the image is), so "more mass where there is a mark" also holds of networks that ignore it. Without a
reference network, maps of the same network on images without the mark may stand in, with this in
mind.

References: Adebayo et al., "Post hoc explanations may be ineffective for detecting unknown spurious
correlation", ICLR 2022 (networks with and without a known signal); Arras, Osman and Samek,
Information Fusion 81, 2022 (relevance mass); DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988
(standard error of the AUROC).
"""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import rankdata

from ppl_med.analysis.tree import check_cases, drop_copies
from ppl_med.axes import SAMPLES
from ppl_med.checks import choice, inside
from ppl_med.explain.draw_intervals import over_draws
from ppl_med.explain.quality.localization import as_maps, mass_inside

Sign = Literal["positive", "absolute"]
Maps = Mapping[str, xr.DataArray | xr.Dataset]


def exposure(
    maps: Maps,
    region: xr.DataArray,
    *,
    reference: Maps | None = None,
    sign: Sign = "positive",
    level: float = 0.95,
) -> xr.Dataset:
    """Compare the relevance on a known region with its area, and with that of a reference.

    Args:
        maps: By name of the method, maps (case, channel, [depth,] row, col) as ``attribute`` gives
            them, with ``keep_draws=True`` of every draw, for the class with which the confounder
            is associated.
        region: Pixels of the confounder, (case, [depth,] row, col), bool or 0 and 1.
        reference: The same methods' maps, of a network that cannot have used the confounder, for
            the same cases, with the same draws.
        sign: Whether only what speaks for the class is relevance, or any attribution.
        level: Level of the intervals over draws.

    Returns:
        ``mass_share`` (method, chain, draw, case), ``area_share`` (case), ``mean_mass_share``
        (method, chain, draw) over cases; ``expected_mass_share`` (method), its mean over draws,
        with ``_lower`` and ``_upper``, the interval over draws, and ``_se``, the standard error
        over cases. With a reference ``auroc`` (method, chain, draw), each draw of the network
        against one of the reference, likewise with ``expected_auroc``, ``_lower`` and ``_upper``;
        and ``auroc_of_mean`` (method), of mass shares averaged over draws, with its standard error
        over cases ``_se``. Cases whose map is nowhere relevant are left out and counted in
        ``num_without_mass`` (method, chain, draw). With one draw, intervals over draws are NaN.

    Raises:
        ValueError: If there are no maps, methods have different draws or cases, the reference has
            other methods, or an argument does not fit; see also ``mass_inside``.
    """
    choice("sign", sign, get_args(Sign))
    inside("level", level)
    shares, area = _shares("maps", maps, region, sign)
    result = xr.Dataset({"mass_share": shares, "area_share": area})
    result["num_without_mass"] = shares.isnull().sum("case")
    result["mean_mass_share"] = shares.mean("case")
    result.update(over_draws("mass_share", result["mean_mass_share"], level))
    per_case = shares.mean(SAMPLES)
    error = per_case.std("case", ddof=1) / np.sqrt(per_case.notnull().sum("case"))
    result["expected_mass_share_se"] = error
    if reference is not None:
        if set(reference) != set(maps):
            raise ValueError(
                f"reference has the methods {sorted(reference)}, maps {sorted(maps)}; explain both "
                "by the same methods"
            )
        others, _ = _shares("reference", {name: reference[name] for name in maps}, region, sign)
        if others.sizes != shares.sizes:
            raise ValueError(
                f"maps have {dict(shares.sizes)}, reference {dict(others.sizes)}; give both the "
                "same cases and as many draws"
            )
        check_cases(others, shares, "reference", "maps")
        result.update(_separation(shares, others, level))
    for name, variable in result.data_vars.items():
        variable.attrs["units"] = "case" if str(name).startswith("num") else "1"
    return result.assign_attrs(sign=sign, level=level)


def _shares(
    argument: str, maps: Maps, region: xr.DataArray, sign: Sign
) -> tuple[xr.DataArray, xr.DataArray]:
    """Mass shares (method, chain, draw, case) and area shares (case)."""
    if not maps:
        raise ValueError(f"{argument} is empty; give maps by the name of their method")
    found: list[xr.DataArray] = []
    for name, given in maps.items():
        values = drop_copies(as_maps(given))
        found_mass = mass_inside(abs(values) if sign == "absolute" else values, region)
        share = found_mass["mass_share"]
        for dim in ("draw", "chain"):
            share = share if dim in share.dims else share.expand_dims({dim: [0]})
        share = share.transpose(*SAMPLES, "case")
        if found and share.sizes != found[0].sizes:
            raise ValueError(
                f"{argument}[{name!r}] has {dict(share.sizes)}, another method "
                f"{dict(found[0].sizes)}; explain the same cases under the same draws"
            )
        if found:
            check_cases(share, found[0], f"{argument}[{name!r}]", "another method")
        found.append(share)
    methods = xr.DataArray(list(maps), dims="method", name="method")
    return xr.concat(found, methods, coords="minimal", compat="override"), found_mass["area_share"]


def _separation(
    shares: xr.DataArray, others: xr.DataArray, level: float
) -> dict[str, xr.DataArray]:
    """AUROC of shares against those of the reference, draw by draw and of the means."""
    front = shares.shape[:3]
    each = [_auroc(a, b)[0] for a, b in zip(*map(_rows, (shares, others)), strict=True)]
    draws = xr.DataArray(
        np.reshape(each, front),
        dims=shares.dims[:3],
        coords={dim: shares[dim] for dim in shares.dims[:3]},
    )
    means = (array.mean(SAMPLES) for array in (shares, others))
    joint = np.array([_auroc(a, b) for a, b in zip(*map(_rows, means), strict=True)])
    return {
        "auroc": draws,
        **over_draws("auroc", draws, level),
        "auroc_of_mean": xr.DataArray(joint[:, 0], dims="method"),
        "auroc_of_mean_se": xr.DataArray(joint[:, 1], dims="method"),
    }


def _rows(values: xr.DataArray) -> NDArray[np.float64]:
    """One row of cases for every draw of every method."""
    return values.values.reshape(-1, values.sizes["case"])


def _auroc(scores: NDArray[np.float64], others: NDArray[np.float64]) -> tuple[float, float]:
    """AUROC of scores against others of the same cases, and its standard error (DeLong)."""
    both = np.isfinite(scores) & np.isfinite(others)
    size = int(both.sum())
    if size < 2:
        return np.nan, np.nan
    one, two = scores[both], others[both]
    ranks = rankdata(np.concatenate([one, two]))
    above = (ranks[:size] - rankdata(one)) / size  # share of the others below each score
    below = 1 - (ranks[size:] - rankdata(two)) / size  # share of the scores above each other
    return float(above.mean()), float((above + below).std(ddof=1) / np.sqrt(size))
