"""What every score gives: a number per case, its spread over draws, its conformal p-value.

Scores that need gradients or a generative model are made elsewhere (``ppl_med.explain.odin``); they
give the same Dataset, and `with_pvalues` adds what in-distribution cases scored.
"""

from typing import Any

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.statistics import monte_carlo
from ppl_med.analysis.tree import case_units, check_disjoint, drop_copies

FAMILIAR = "a case that a score has learnt from looks more familiar than it is"
_OF_REFERENCE = {"n", "unit", "least_pvalue"}
ORIENTATION = "larger is more unlike the reference"


def as_found(values: np.ndarray, per_draw: xr.DataArray, **attrs: Any) -> xr.Dataset:
    """Name scores (case) and those of every draw (chain, draw, case), with the spread over draws.

    Copies of a draw count once, and equal draws spread by exactly 0.
    """
    result = xr.Dataset(coords=per_draw.coords)
    result["score"] = ("case", values)
    distinct = drop_copies(per_draw)
    number = distinct.sizes["chain"] * distinct.sizes["draw"]
    spread = monte_carlo.spread(distinct)
    result["score_sd"] = spread if number > 1 else spread * np.nan
    result["score_per_draw"] = per_draw
    return result.assign_attrs(orientation=ORIENTATION, **attrs)


def with_pvalues(
    found: xr.Dataset,
    held_out: xr.Dataset,
    *,
    group: str | xr.DataArray | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Add conformal p-values to scores that were made elsewhere, such as those of ODIN.

    Args:
        found: Scores of the cases in question.
        held_out: The same score, with the same settings, of in-distribution cases that the network
            was not trained on.
        group: Patients of the held-out cases (case), where some have several cases: one case of
            each is drawn, as in `fit_reference`. None for the coordinate "patient" where there is
            one; "case" for every case by itself.
        seed: Seed of which.

    Returns:
        ``found`` with ``pvalue`` (case), probability: at most a for a share a of in-distribution
        cases, whatever the score. Its least value is 1 / (n + 1), n in ``attrs["n"]``.

    Raises:
        TypeError: One of the two is not what a score gives.
        ValueError: Other scores or settings, shared cases, scores that are not finite.
    """
    for name, one in (("found", found), ("held_out", held_out)):
        if not isinstance(one, xr.Dataset) or "score" not in one:
            raise TypeError(f"{name} must be what a score gave, not {type(one).__name__}.")
        if not np.isfinite(one["score"].values).all():
            raise ValueError(f"{name} has scores that are NaN or infinite.")
    check_alike(found, held_out, ("found", "held_out"))
    ids = [one["case"].values for one in (held_out, found)]
    check_disjoint(ids[0], ids[1], "held_out and found", FAMILIAR)
    result = found.copy()
    units = case_units(None, group, held_out["score"])[0]
    known = held_out["score"].values[drawn_cases(ids[0], units, seed)]
    values = pvalues(found["score"].values, known)
    result["pvalue"] = ("case", values, {"units": "probability"})
    return result.assign_attrs(n=len(known), least_pvalue=1 / (len(known) + 1))


def check_alike(first: xr.Dataset, second: xr.Dataset, names: tuple[str, str]) -> None:
    """Raise unless two results are of one score: its name, layer and settings.

    Raises:
        ValueError: They are not.
    """
    for key in sorted({*first.attrs, *second.attrs} - _OF_REFERENCE):
        if first.attrs.get(key) != second.attrs.get(key):
            raise ValueError(
                f"{names[0]} has {key} {first.attrs.get(key)!r}, {names[1]} "
                f"{second.attrs.get(key)!r}; score both in the same way."
            )


def pvalues(values: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """Conformal p-values of scores (case,) against those of calibration cases (case,)."""
    below = np.searchsorted(np.sort(calibration), values, "left")
    return (1 + len(calibration) - below) / (1 + len(calibration))


def drawn_cases(ids: np.ndarray, units: np.ndarray, seed: int) -> np.ndarray:
    """Positions of one case of every unit, drawn at random, whatever the order of the cases."""
    by_name = np.argsort(ids.astype(str))
    return by_name[one_of_each(units[by_name], checks.whole("seed", seed, least=0))]


def one_of_each(units: np.ndarray, seed: int) -> np.ndarray:
    """Positions of one case of every unit, drawn at random, by the order of the units."""
    order = np.random.default_rng(seed).permutation(len(units))
    return order[np.unique(units[order], return_index=True)[1]]
