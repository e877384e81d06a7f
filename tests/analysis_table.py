"""The table of all analyses, and the trees they are tried on; see test_analyses.py.

A new analysis is one line of `ANALYSES`: its name, a function of a tree, and what kind of tree.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from scipy.special import softmax

from ppl_med.analysis import aggregation, calibration, scoring, uncertainty
from ppl_med.axes import SAMPLES

Result: TypeAlias = xr.Dataset | xr.DataArray

CASES, SIDE = 12, 4
HOLES = (2, 7)  # cases of which nothing was observed; of maps also the first row of every case


@dataclass(frozen=True)
class Kind:
    """A kind of tree.

    Args:
        build: From the number of cases and a prefix of their ids.
        observed: What may hold -1 or NaN; its values are what an analysis leaves out.
    """

    build: Callable[[int, str], xr.DataTree]
    observed: str


@dataclass(frozen=True)
class Analysis:
    """A row of the table.

    Args:
        run: The analysis, with settings that draw no random number.
        kind: Of the tree.
        reads: Whether it reads observations; if not, it leaves nothing out.
        unknown: Results that are NaN for a case without observation.
    """

    run: Callable[[xr.DataTree], Result]
    kind: Kind
    reads: bool = True
    unknown: tuple[str, ...] = ()


def ids(number: int, prefix: str) -> dict[str, Any]:
    """Case ids, and coordinates of the user beside them."""
    return {
        "case": [f"{prefix}{index}" for index in range(number)],
        "age": ("case", 40.0 + np.arange(number)),
        "ward": ("case", np.array(["north", "south"])[np.arange(number) % 2]),
    }


def class_tree(number: int = CASES, prefix: str = "c", extra: tuple[str, ...] = ()) -> xr.DataTree:
    """Two chains of three draws of three classes; the labels leave no map unlearnable."""
    rng = np.random.default_rng(len(prefix) + len(extra))
    shape = (number, 3, *(SIDE for _ in extra))
    centre = 1.5 * rng.normal(size=shape)
    probs = softmax(centre + 0.5 * rng.normal(size=(2, 3, *shape)), 3)
    label = (centre + 2 * rng.normal(size=shape)).argmax(1)
    coords = ids(number, prefix)
    dims = (*SAMPLES, "case", "class", *extra)
    chosen = np.take_along_axis(probs, label[None, None, :, None], 3)[:, :, :, 0]
    name = "mask" if extra else "label"
    groups = {
        "/": xr.Dataset(attrs={"log_likelihood_of": "held-out"}),
        "/posterior": xr.Dataset({"probs": (dims, probs)}, coords | {"class": ["x", "y", "z"]}),
        "/log_likelihood": xr.Dataset({name: ((*dims[:3], *extra), np.log(chosen))}, coords),
        "/observed_data": xr.Dataset({name: (("case", *extra), label)}, coords),
        "/constant_data": xr.Dataset({"site": ("case", np.arange(number) % 2)}, coords),
    }
    return xr.DataTree.from_dict(groups)


def pixel_tree(number: int = CASES, prefix: str = "c") -> xr.DataTree:
    """The same with a class per pixel."""
    return class_tree(number, prefix, ("row", "col"))


def number_tree(number: int = CASES, prefix: str = "c", extra: tuple[str, ...] = ()) -> xr.DataTree:
    """Two chains of three draws of a normal distribution per case."""
    rng = np.random.default_rng(len(prefix) + len(extra))
    shape = (number, *(SIDE for _ in extra))
    centre = rng.normal(size=shape)
    loc = centre + 0.3 * rng.normal(size=(2, 3, *shape))
    scale = rng.uniform(0.4, 0.7, size=loc.shape)
    value = centre + 0.6 * rng.normal(size=shape)
    density = -0.5 * ((value - loc) / scale) ** 2 - np.log(scale)
    coords, dims = ids(number, prefix), (*SAMPLES, "case", *extra)
    groups = {
        "/": xr.Dataset(attrs={"log_likelihood_of": "held-out"}),
        "/posterior": xr.Dataset({"loc": (dims, loc), "scale": (dims, scale)}, coords),
        "/posterior_predictive": xr.Dataset({"value": (dims, rng.normal(loc, scale))}, coords),
        "/log_likelihood": xr.Dataset({"value": (dims, density)}, coords),
        "/observed_data": xr.Dataset({"value": (dims[2:], value)}, coords),
    }
    return xr.DataTree.from_dict(groups)


def depth_tree(number: int = CASES, prefix: str = "c") -> xr.DataTree:
    """The same with a number per pixel."""
    return number_tree(number, prefix, ("row", "col"))


def map_tree(number: int = CASES, prefix: str = "c") -> xr.DataTree:
    """Maps of an uncertainty, in which NaN is what an analysis leaves out."""
    values = np.random.default_rng(0).random((number, SIDE, SIDE))
    maps = xr.Dataset({"map": (("case", "row", "col"), values)}, ids(number, prefix))
    return xr.DataTree.from_dict({"/maps": maps})


def recalibrated(tree: xr.DataTree) -> xr.Dataset:
    """Calibrated probabilities and log-likelihoods, by a map learnt on other cases."""
    build = pixel_tree if "row" in tree["posterior"].dims else class_tree
    learnt = calibration.fit(build(30, "other"))
    found = calibration.apply(learnt, tree)
    logs = next(iter(found["log_likelihood"].data_vars.values()))
    mixture = {"probs": found["posterior/probs"], "logs": logs}
    return xr.Dataset(mixture, attrs=found.attrs).isel(chain=0, draw=0, drop=True)


LABELS = Kind(class_tree, "observed_data/label")
PIXELS = Kind(pixel_tree, "observed_data/mask")
NUMBERS = Kind(number_tree, "observed_data/value")
DEPTHS = Kind(depth_tree, "observed_data/value")
MAPS = Kind(map_tree, "maps/map")

NO_ANALYSES = {"scoring.mean_iou"}  # functions of other things than a tree
MODULES = (scoring, calibration, uncertainty, aggregation)
ANALYSES: dict[str, Analysis] = {
    "scoring.score": Analysis(scoring.score, LABELS),
    "scoring.score/pixels": Analysis(scoring.score, PIXELS),
    "scoring.confusion": Analysis(scoring.confusion, LABELS),
    "scoring.confusion/pixels": Analysis(scoring.confusion, PIXELS),
    "scoring.entry_scores": Analysis(scoring.entry_scores, LABELS, unknown=("nll", "correct")),
    "scoring.entry_scores/pixels": Analysis(scoring.entry_scores, PIXELS, unknown=("brier",)),
    "scoring.brier_decomposition": Analysis(scoring.brier_decomposition, LABELS),
    "scoring.brier_decomposition/pixels": Analysis(scoring.brier_decomposition, PIXELS),
    "scoring.reliability": Analysis(scoring.reliability, LABELS),
    "scoring.elpd_heldout": Analysis(scoring.elpd_heldout, LABELS, unknown=("elpd", "elpd_mcse")),
    "scoring.elpd_heldout/pixels": Analysis(
        scoring.elpd_heldout, PIXELS, unknown=("elpd", "elpd_mcse")
    ),
    "scoring.elpd_heldout/numbers": Analysis(scoring.elpd_heldout, NUMBERS, unknown=("elpd",)),
    "scoring.crps": Analysis(
        lambda tree: scoring.crps(tree, law="normal"), NUMBERS, unknown=("crps", "crps_mcse")
    ),
    "scoring.crps/pixels": Analysis(scoring.crps, DEPTHS, unknown=("crps", "crps_mcse")),
    "scoring.energy": Analysis(
        lambda tree: scoring.energy(tree, over=("row", "col")), DEPTHS, unknown=("energy",)
    ),
    "scoring.quantile_score": Analysis(
        scoring.quantile_score, NUMBERS, unknown=("quantile_score",)
    ),
    "scoring.quantile_score/pixels": Analysis(
        scoring.quantile_score, DEPTHS, unknown=("quantile_score",)
    ),
    "scoring.interval_score": Analysis(
        scoring.interval_score, NUMBERS, unknown=("interval_score",)
    ),
    "scoring.interval_score/pixels": Analysis(
        scoring.interval_score, DEPTHS, unknown=("interval_score",)
    ),
    "calibration.errors": Analysis(lambda tree: calibration.errors(tree, replicates=0), LABELS),
    "calibration.errors_by_group": Analysis(
        lambda tree: calibration.errors_by_group(tree, "site", replicates=0), LABELS
    ),
    "calibration.reliability_classwise": Analysis(calibration.reliability_classwise, LABELS),
    "calibration.pava": Analysis(
        lambda tree: calibration.pava(tree, per_draw=True, replicates=0), LABELS
    ),
    "calibration.fit": Analysis(calibration.fit, LABELS),
    "calibration.fit/pixels": Analysis(calibration.fit, PIXELS),
    "calibration.fit/vector": Analysis(lambda tree: calibration.fit(tree, "vector"), PIXELS),
    "calibration.apply": Analysis(recalibrated, LABELS, unknown=("logs",)),
    "calibration.apply/pixels": Analysis(recalibrated, PIXELS, unknown=("logs",)),
    "calibration.pit": Analysis(calibration.pit, NUMBERS, unknown=("pit",)),
    "calibration.coverage": Analysis(calibration.coverage, NUMBERS),
    "calibration.coverage/pixels": Analysis(calibration.coverage, DEPTHS),
    "calibration.dispersion": Analysis(
        lambda tree: calibration.dispersion(tree, bins=3, replicates=0), NUMBERS
    ),
    "calibration.dispersion/pixels": Analysis(
        lambda tree: calibration.dispersion(tree, bins=3, replicates=0), DEPTHS
    ),
    "calibration.number_errors": Analysis(
        lambda tree: calibration.number_errors(tree, bins=3, replicates=0), NUMBERS
    ),
    "uncertainty.entropy": Analysis(uncertainty.entropy, LABELS, reads=False),
    "uncertainty.entropy/pixels": Analysis(uncertainty.entropy, PIXELS, reads=False),
    "uncertainty.variance": Analysis(uncertainty.variance, LABELS, reads=False),
    "uncertainty.variance/numbers": Analysis(uncertainty.variance, DEPTHS, reads=False),
    "uncertainty.summary": Analysis(uncertainty.summary, PIXELS, reads=False),
    "aggregation.aggregate": Analysis(
        lambda tree: aggregation.aggregate(tree["maps"].to_dataset(), "mean"),
        MAPS,
        unknown=("map",),
    ),
    "aggregation.predicted_mask": Analysis(aggregation.predicted_mask, PIXELS, reads=False),
}
