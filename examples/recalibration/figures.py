"""Figures on the test part, with bootstrap intervals over cases."""

import itertools
from typing import Any

import numpy as np
import xarray as xr

from ppl_med.analysis import calibration, conformal
from ppl_med.analysis.statistics import binning
from recalibration.maps import MAPS, per_case, recalibrated
from recalibration.study import PARTS, Study

SETS = ("lac", "aps", "raps")
FIGURES = ("accuracy", "nll", "brier", "ece")
GAPS = ("nll", "ece")
BINS = 15


def samples(study: Study) -> np.ndarray:
    """Positions of all test cases, then of bootstrap samples of them, (1 + replicate, case)."""
    size = study.parts["test"].num_cases
    again = np.random.default_rng(0).integers(size, size=(study.options.replicates, size))
    return np.concatenate([np.arange(size)[None], again])


def resampled(test: xr.DataTree, taken: np.ndarray) -> dict[str, np.ndarray]:
    """Every figure of all test cases, then of each bootstrap sample, (1 + replicate,).

    Of the ECE, what follows is the ECE of the noise that the sample adds to the errors at hand:
    resampling adds as much to a calibration error as chance already did, so that quantiles of the
    resampled figure say nothing about it.
    """
    terms = per_case(test)
    values = {str(name): terms[name].values for name in terms}
    counts = np.array([np.bincount(row, minlength=row.size) for row in taken[1:]])
    gap = values["accuracy"] - values["confidence"]
    confidence = np.broadcast_to(values["confidence"], taken.shape)
    correct = confidence + np.concatenate([np.ones((1, gap.size)), counts - 1]) * gap
    both = (
        xr.DataArray(table[None], dims=("chain", "draw", "case")) for table in (correct, confidence)
    )
    ece = binning.calibration_error(*both, BINS).values[0]
    return {name: values[name][taken].mean(1) for name in FIGURES[:-1]} | {"ece": ece}


def interval_of_difference(name: str, own: np.ndarray, other: np.ndarray) -> tuple[float, ...]:
    """95 % interval of the difference of two figures that ``resampled`` gave for the same samples.

    An ECE is off by no more than the ECE of its noise, and so a difference by no more than the sum
    of two: the interval covers at least as often as it says. Bootstrap intervals of the difference
    do not (between 46 and 100 % of 200 simulated studies of 521 and 2528 cases).
    """
    if name == "ece":
        width = float(np.quantile((own + other)[1:], 0.95, method="inverted_cdf"))
        middle = float(own[0] - other[0])
        return middle - width, middle + width
    return tuple(np.quantile((own - other)[1:], [0.025, 0.975], method="inverted_cdf").tolist())


def figures(study: Study, guide: str, name: str, seed: int) -> xr.Dataset:
    """The table's figures of one guide, map and seed; NaN where the map has no best parameters."""
    learnt_on, *others = (study.tree(guide, seed, part) for part in PARTS)
    try:
        held, test = (recalibrated(name, learnt_on, tree) for tree in others)
    except ValueError as error:
        print(f"{guide}, seed {seed}: no {name} map. {error}")
        return missing()
    found: dict[str, Any] = {}
    for figure, values in resampled(test, samples(study)).items():
        low, high = np.quantile(values[1:], [0.025, 0.975], method="inverted_cdf").tolist()
        found |= {figure: float(values[0]), f"{figure}_lower": low, f"{figure}_upper": high}
    errors = calibration.errors(test, bins=BINS, replicates=study.options.replicates)
    found |= {name: float(errors[name]) for name in ("ece", "ece_lower", "ece_upper")}
    sets = [
        conformal.predict_sets(
            conformal.calibrate(held, study.options.alpha, method=method), test, shift_alarm=0
        )
        for method in SETS
    ]
    for figure in ("coverage", "coverage_lower", "coverage_upper"):
        found[figure] = ("sets", [float(one[figure]) for one in sets])
    found["shift_pvalue"] = ("sets", [float(one["shift_pvalue"]) for one in sets])
    found["coverage_pvalue"] = ("sets", [float(one["coverage_pvalue"]) for one in sets])
    found["set_size"] = ("sets", [float(one["set_size"].mean()) for one in sets])
    return xr.Dataset(found, coords={"sets": list(SETS)})


def missing() -> xr.Dataset:
    """Figures that could not be had."""
    ends = ("", "_lower", "_upper")
    scalars = {f"{figure}{end}": np.nan for figure in FIGURES for end in ends}
    names = (
        "coverage", "coverage_lower", "coverage_upper", "shift_pvalue", "coverage_pvalue",
        "set_size",
    )  # fmt: skip
    per_set = {name: ("sets", [np.nan] * len(SETS)) for name in names}
    return xr.Dataset({**scalars, **per_set}, coords={"sets": list(SETS)})


def differences(study: Study, chosen: dict[str, str]) -> xr.Dataset:
    """NLL and ECE of recalibrated Bayesian nets less those of the recalibrated frequentist net.

    Each with the map that was chosen for it; mean over seeds, with a bootstrap interval over cases
    that resamples the same cases for both.
    """
    taken = samples(study)
    found = {
        guide: [
            resampled(recalibrated(chosen[guide], *learnt_and_test(study, guide, seed)), taken)
            for seed in study.options.seed
        ]
        for guide in study.options.guide
    }
    guides = [guide for guide in found if guide != "frequentist"]
    result = xr.Dataset(coords={"guide": guides, "figure": list(GAPS)})
    cells = np.empty((3, len(guides), 2))
    for (row, guide), (col, figure) in itertools.product(enumerate(guides), enumerate(GAPS)):
        own, other = (
            np.mean([one[figure] for one in found[name]], 0) for name in (guide, "frequentist")
        )
        cells[:, row, col] = (own[0] - other[0], *interval_of_difference(figure, own, other))
    for name, values in zip(("difference", "lower", "upper"), cells, strict=True):
        result[name] = (("guide", "figure"), values)
    result.attrs["map"] = "; ".join(f"{guide}: {chosen[guide]}" for guide in found)
    return result


def learnt_and_test(study: Study, guide: str, seed: int) -> tuple[xr.DataTree, xr.DataTree]:
    """What a map is learnt on, and what it is scored on."""
    return study.tree(guide, seed, "recalibration"), study.tree(guide, seed, "test")


def collect(study: Study) -> xr.Dataset:
    """All figures over guide, map and seed."""
    options = study.options
    parts = []
    for guide, name, seed in itertools.product(options.guide, MAPS, options.seed):
        part = figures(study, guide, name, seed)
        parts.append(part.expand_dims(guide=[guide], map=[name], seed=[seed]))
    result = xr.combine_by_coords(parts, combine_attrs="drop")
    assert isinstance(result, xr.Dataset)
    return result.sel(guide=list(options.guide), map=list(MAPS))
