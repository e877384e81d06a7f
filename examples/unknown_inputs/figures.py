"""Figures of every pair and score, with errors over patients and over seeds."""

import itertools
from typing import Any

import numpy as np
import xarray as xr

from ppl_med import storage
from ppl_med.analysis import ood
from unknown_inputs.study import BASELINES, Study

FIGURES = ("auroc", "average_precision", "false_alarms_at_95")
RESAMPLES, Z = 200, 1.959963985


def judge(study: Study, guide: str, seed: int) -> xr.Dataset:
    """How well every score of one run tells each set from the test part.

    Returns:
        Dataset of ``FIGURES`` with their standard errors over patients (pair, score), kept in the
        folder of the run; ``failure`` (score), the AUROC of finding wrong predictions; ``alarms``
        and ``found``, shares of p-values of the default `ood.novelty` at or below .05.
    """
    file = study.path(guide, seed) / "figures.nc"
    if file.exists():
        kept = storage.load(file)
        assert isinstance(kept, xr.Dataset)
        return kept
    scored = study.run(guide, seed)
    inside = scored["test"]
    pairs = [title for title in scored if title != "test"]
    names = [str(name) for name in inside["score"].values]
    values = np.full((2, len(FIGURES), len(pairs), len(names)), np.nan)
    failure = np.full((2, len(names)), np.nan)
    alarms, count = np.full((2, len(pairs)), np.nan), 20 if study.options.smoke else RESAMPLES
    for row, title in enumerate(pairs):
        known = _apart(study, title, inside)
        if "novelty" in names:
            alarms[:, row] = [
                float((one["pvalue"].sel(score="novelty") <= 0.05).mean())
                for one in (known, scored[title])
            ]
        for column, name in enumerate(names):
            found = ood.evaluate(
                _one(known, name),
                _one(scored[title], name),
                group_inside=_people(study, "test", known),
                group_outside=_people(study, title, scored[title]),
                resamples=count,
            )
            for index, figure in enumerate(FIGURES):
                values[:, index, row, column] = found[figure], found[f"{figure}_se"]
    if "wrong" in inside and 0 < int(inside["wrong"].sum()) < inside.sizes["case"]:
        for column, name in enumerate(names):
            one = _one(inside, name)
            right = {"case": ~inside["wrong"].values}
            wrong = {"case": inside["wrong"].values}
            people = _people(study, "test", inside)
            found = ood.evaluate(
                one.isel(right), one.isel(wrong), group_inside=people.isel(right),
                group_outside=people.isel(wrong), resamples=count,
            )  # fmt: skip
            failure[:, column] = found["auroc"], found["auroc_se"]
    dims = ("pair", "score")
    result = xr.Dataset(coords={"pair": pairs, "score": names})
    for index, figure in enumerate(FIGURES):
        result[figure], result[f"{figure}_se"] = (dims, values[0, index]), (dims, values[1, index])
    result["failure"], result["failure_se"] = ("score", failure[0]), ("score", failure[1])
    result["alarms"], result["found"] = ("pair", alarms[0]), ("pair", alarms[1])
    kinds = {title: kind for title, (kind, _) in study.source.unlike.items()}
    result = result.assign_coords(kind=("pair", [kinds[title] for title in pairs]))
    storage.save(result, file)
    return result


def _one(found: xr.Dataset, name: str) -> xr.Dataset:
    part = found.sel(score=name)
    return xr.Dataset({"score": part["value"].drop_vars("score")}, attrs={"score": name})


def _apart(study: Study, title: str, inside: xr.Dataset) -> xr.Dataset:
    """Test cases that do not stand in the other set, made worse."""
    marked = {str(one).partition("/")[2] for one in study.sets[title]["id"]}
    return inside.isel(case=[str(one) not in marked for one in inside["case"].values])


def _people(study: Study, title: str, found: xr.Dataset) -> xr.DataArray:
    """Patient of every case."""
    arrays = study.sets[title]
    patient = dict(zip(arrays["id"], arrays.get("patient", arrays["id"]), strict=True))
    case = found["case"].values
    return xr.DataArray([str(patient[one]) for one in case], {"case": case}, ("case",))


def assemble(cells: dict[tuple[str, int], xr.Dataset]) -> xr.Dataset:
    """Mean over seeds of every figure, with an error over patients and seeds together.

    Patients are the same for every seed, so that their error does not fall with the seeds: its
    square is averaged, and that of the seeds is added.

    Returns:
        Dataset over (guide, pair, score), ``<figure>_se`` beside every figure, and ``seeds``
        (guide), how many.
    """
    guides = list(dict.fromkeys(guide for guide, _ in cells))
    means = []
    for guide in guides:
        parts = [one for (own, _), one in cells.items() if own == guide]
        stacked = xr.concat(parts, "seed", join="outer", combine_attrs="drop")
        mean = stacked.mean("seed")
        for figure in (*FIGURES, "failure"):
            variance = (stacked[f"{figure}_se"] ** 2).mean("seed")
            if len(parts) > 1:
                variance = variance + stacked[figure].var("seed", ddof=1) / len(parts)
            mean[f"{figure}_se"] = np.sqrt(variance)
        mean["seeds"] = len(parts)
        means.append(mean.expand_dims(guide=[guide]))
    return xr.concat(means, "guide", join="outer", combine_attrs="drop")


def verdicts(result: xr.Dataset) -> list[dict[str, Any]]:
    """For every pair and guide, the default `ood.novelty` against the best other score.

    It holds up where the best mean lies below the upper end of its 95 % interval.
    """
    lines = []
    for pair, guide in itertools.product(result["pair"].values, result["guide"].values):
        part = result.sel(pair=pair, guide=guide)
        others = part["auroc"].drop_sel(score="novelty").dropna("score")
        if guide in BASELINES or not others.size:
            continue
        best = str(others["score"].values[int(others.values.argmax())])
        own = part.sel(score="novelty")
        value, error = float(own["auroc"]), float(own["auroc_se"])
        lines.append(
            {"pair": str(pair), "guide": str(guide), "novelty": value, "se": error, "best": best,
             "value": float(others.max()), "holds": float(others.max()) <= value + Z * error}
        )  # fmt: skip
    return lines
