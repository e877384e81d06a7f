"""What every score gives: a number per case, its spread over draws, its conformal p-value.

Scores that need gradients or a generative model are made elsewhere (``ppl_med.explain.odin``); they
give the same Dataset, and `with_pvalues` adds what in-distribution cases scored.
"""

from typing import Any

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.tree import case_units, check_disjoint, drop_copies
from ppl_med.axes import SAMPLES

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
    apart = distinct - distinct[0, 0].drop_vars(SAMPLES, errors="ignore")  # equal draws: exactly 0
    result["score_sd"] = apart.std(SAMPLES, ddof=1) if number > 1 else apart[0, 0] * np.nan
    result["score_per_draw"] = per_draw
    return result.assign_attrs(orientation=ORIENTATION, **attrs)


def with_pvalues(
    found: xr.Dataset, held_out: xr.Dataset, *, group: xr.DataArray | None = None, seed: int = 0
) -> xr.Dataset:
    """Add conformal p-values to scores that were made elsewhere, such as those of ODIN.

    Args:
        found: Scores of the cases in question.
        held_out: The same score, with the same settings, of in-distribution cases that the network
            was not trained on.
        group: Patients of the held-out cases (case), where some have several cases: one case of
            each is drawn, as in `fit_reference`.
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
    for key in sorted({*found.attrs, *held_out.attrs} - _OF_REFERENCE):
        if found.attrs.get(key) != held_out.attrs.get(key):
            raise ValueError(
                f"found has {key} {found.attrs.get(key)!r}, held_out {held_out.attrs.get(key)!r}; "
                "score both in the same way."
            )
    ids = [one["case"].values for one in (held_out, found)]
    check_disjoint(ids[0], ids[1], "held_out and found", FAMILIAR)
    result = found.copy()
    units = case_units(None, "case" if group is None else group, held_out["score"])[0]
    known = held_out["score"].values[one_of_each(units, checks.whole("seed", seed, least=0))]
    values = pvalues(found["score"].values, known)
    result["pvalue"] = ("case", values, {"units": "probability"})
    return result.assign_attrs(n=len(known), least_pvalue=1 / (len(known) + 1))


def pvalues(values: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """Conformal p-values of scores (case,) against those of calibration cases (case,)."""
    below = np.searchsorted(np.sort(calibration), values, "left")
    return (1 + len(calibration) - below) / (1 + len(calibration))


def one_of_each(units: np.ndarray, seed: int) -> np.ndarray:
    """Positions of one case of every unit, drawn at random, by the order of the units."""
    order = np.random.default_rng(seed).permutation(len(units))
    return order[np.unique(units[order], return_index=True)[1]]
