"""Scores of the predicted probabilities against the observed classes.

The prediction scored is the mixture, the mean of ``probs`` over chain and draw; the same
scores of every single draw stand beside it (``<name>_per_draw``). By Jensen's inequality the
NLL and the Brier score of the mixture are never above the mean over draws.

    accuracy   share of cases whose most probable class is the observed one (first on a tie)
    nll        -log probability of the observed class, nats; mean over cases, or over all pixels
    brier      sum over classes of (probability - indicator)^2, 0..2
    ece        sum over bins of count / N |accuracy - mean confidence|, confidence = max p

Calibration bins are of equal width, closed on the right, and the first also on the left: a
confidence of exactly 1 belongs to the last bin.

Lazy trees are read once, in runs of cases, and may be larger than the memory.

Sources: Brier, Monthly Weather Review 78, 1950; Guo et al., ICML 2017, arXiv:1706.04599 (ECE).
"""

from collections.abc import Hashable
from typing import NamedTuple

import numpy as np
import xarray as xr

from ppl_med.analysis.scoring.log_scores import log_mean_exp, warn_infinite
from ppl_med.analysis.statistics import binning, monte_carlo
from ppl_med.analysis.statistics.case_means import ratio_error
from ppl_med.analysis.statistics.class_axis import leading, of_class
from ppl_med.analysis.tree import (
    Classes,
    LogLikelihood,
    Posterior,
    check_cases,
    count_left_out,
    join_blocks,
    known,
    open_classes,
    open_log_likelihood,
)
from ppl_med.axes import SAMPLES
from ppl_med.checks import whole

_UNITS = {"accuracy": "probability", "nll": "nats", "brier": "1", "ece": "probability"}


class _Terms(NamedTuple):
    """What every entry adds to the scores, each ([chain, draw,] case, ...); NaN if left out."""

    correct: xr.DataArray
    confidence: xr.DataArray
    nll: xr.DataArray
    brier: xr.DataArray


def score(tree: Posterior, *, bins: int = 15) -> xr.Dataset:
    """Score the mixture of the draws, and every draw, against the observed classes.

    Args:
        tree: The tree of `predict` on labelled cases. Labels and pixels that are -1 are left out.
        bins: Number of calibration bins.

    Returns:
        Dataset of scalars ``accuracy``, ``nll`` (from the log_likelihood group where the tree
        has one), ``brier``, ``ece`` with ``<name>_se``, the standard error over cases (pixels
        of a case count as one); ``accuracy_per_class`` (class), the recall of each class, NaN
        for the classes named in its attribute ``absent``, with ``_se``; and
        ``<name>_per_draw`` (chain, draw), ``accuracy_per_class_per_draw`` (chain, draw, class).

    Raises:
        TypeError, ValueError: ``probs`` or the labels are missing or malformed.

    Warns:
        RuntimeWarning: An observed class has probability exactly 0 in the mixture: infinite NLL.
    """
    whole("bins", bins)
    source = open_classes(tree)
    label = source.labels()
    counts = count_left_out(label)
    likelihood = open_log_likelihood(tree)
    if likelihood is not None:
        check_cases(likelihood.array, source.array, "log_likelihood")
        likelihood = likelihood if set(likelihood.array.dims[2:]) == set(label.dims) else None
    numbers = _numbers(source.array)
    mixture, sums = _read(source, label, numbers, likelihood, bins)
    warn_infinite(mixture.nll)
    result = _mixture_scores(mixture, label, numbers, bins)
    for name, value in _means(sums).items():
        result[f"{name}_per_draw"] = value.assign_attrs(units=_UNITS.get(name, "probability"))
    for name in ("nll", "nll_se", "nll_per_draw"):
        result[name].attrs["per"] = "case" if label.ndim == 1 else "pixel"
    absent = ~np.isin(numbers, label)
    names = np.array(source.names, dtype=str)[absent]
    for name in ("accuracy_per_class", "accuracy_per_class_per_draw"):
        result[name].attrs["absent"] = ", ".join(names)
    num_chains, num_draws = source.num_samples
    result.attrs.update(counts, bins=bins, num_chains=num_chains, num_draws=num_draws)
    result.attrs["mixture"] = "mean of probs over chain and draw"
    return result


def _read(
    source: Classes,
    label: xr.DataArray,
    numbers: xr.DataArray,
    likelihood: LogLikelihood | None,
    bins: int,
) -> tuple[_Terms, xr.Dataset]:
    """Terms of the mixture, and sums over cases of those of every draw."""
    parts, sums = [], xr.Dataset()
    for block, values in source.blocks():
        truth = label.isel(block)
        mixture, single = (terms(p, truth) for p in (monte_carlo.mean(values), values))
        if likelihood is not None:
            logs = likelihood.read(block)
            single = single._replace(nll=-logs)
            mixture = mixture._replace(nll=-log_mean_exp(logs))
        parts.append((block, xr.Dataset(mixture._asdict())))
        added = _sums(single, truth, numbers, bins)
        sums = added if not sums else sums + added
    joined = join_blocks(parts)
    return _Terms(*(joined[name] for name in _Terms._fields)), sums


def terms(probs: xr.DataArray, label: xr.DataArray) -> _Terms:
    """Return what every entry adds to the scores of probabilities ([chain, draw,] case, ...)."""
    values, axis = probs.values, probs.get_axis_num("class")
    entry = probs.isel({"class": 0}, drop=True)
    drawn = [dim for dim in entry.dims if dim in SAMPLES]
    observed = label.transpose(*entry.dims[len(drawn) :]).values
    places = np.expand_dims(observed, tuple(range(len(drawn))))  # -1 reads the last: left out below
    hit = of_class(values, places, axis)
    confidence = values.max(axis)
    # The other classes' part first: a prediction that is sure and right has exactly 0.
    others = np.maximum(_square_sums(values, axis) - hit**2, 0.0)
    with np.errstate(divide="ignore"):
        nll = -np.log(hit)
    found = _Terms(
        correct=entry.copy(data=_is_first(values, confidence, hit, places, axis)),
        confidence=entry.copy(data=confidence),
        nll=entry.copy(data=nll),
        brier=entry.copy(data=others + (1 - hit) ** 2),
    )
    seen = known(label)
    return found if seen.all() else _Terms(*(term.where(seen) for term in found))


def _is_first(
    values: np.ndarray, highest: np.ndarray, hit: np.ndarray, label: np.ndarray, axis: int
) -> np.ndarray:
    """1.0 where the observed class is the first of the most probable ones, else 0.0."""
    leads, tied = leading(values, highest, axis)
    right = leads.argmax(axis) == label if tied else hit == highest
    return right.astype(np.float64)


def _square_sums(values: np.ndarray, axis: int) -> np.ndarray:
    """Sum of squares over the classes, without a copy of the draws."""
    moved = np.moveaxis(values, axis, -1)
    return np.einsum("...k,...k->...", moved, moved)


def _numbers(probs: xr.DataArray) -> xr.DataArray:
    """Number of every class (class), with its name where it has one."""
    classes = xr.DataArray(np.arange(probs.sizes["class"]), dims="class")
    if "class" in probs.coords:
        classes = classes.assign_coords({"class": probs["class"]})
    return classes


def _mixture_scores(
    terms: _Terms, label: xr.DataArray, numbers: xr.DataArray, bins: int
) -> xr.Dataset:
    result = xr.Dataset()
    indicator = (label == numbers).astype(np.float64)
    ones = terms.correct.notnull().astype(np.float64)
    shares = {
        "accuracy": (terms.correct, ones),
        "nll": (terms.nll, ones),
        "brier": (terms.brier, ones),
        "accuracy_per_class": (terms.correct * indicator, indicator),
    }
    for name, value in _means(_sums(terms, label, numbers, bins)).items():
        units = _UNITS.get(name, "probability")
        result[name] = value.assign_attrs(units=units)
        error = _calibration_se(terms, bins) if name == "ece" else _ratio_error(*shares[name])
        result[f"{name}_se"] = (value.dims, error, {"units": units, "note": "over cases"})
    return result


def _sums(terms: _Terms, label: xr.DataArray, numbers: xr.DataArray, bins: int) -> xr.Dataset:
    """Sums over the cases, which those of other cases can be added to."""
    cases = label.dims
    correct = terms.correct.transpose(..., *cases)
    single = correct.isel(dict.fromkeys(cases, 0), drop=True)
    # Entries without a class, which are NaN, go into one bin more.
    flat = np.where(label.values < 0, numbers.size, label.values).ravel()
    rows = correct.values.reshape(-1, flat.size)
    hits = np.stack([np.bincount(flat, row, numbers.size + 1)[:-1] for row in rows])
    count = np.bincount(flat, minlength=numbers.size + 1)[:-1].astype(np.float64)
    return xr.Dataset(
        {
            "accuracy": _sum(terms.correct, cases),
            "nll": _sum(terms.nll, cases),
            "brier": _sum(terms.brier, cases),
            "gap": binning.gap_sums(terms.correct, terms.confidence, bins),
            "hits": (single * numbers).copy(data=hits.reshape(*single.shape, -1)),
            "count": numbers.copy(data=count),
        }
    )


def _sum(term: xr.DataArray, dims: tuple[Hashable, ...]) -> xr.DataArray:
    """Sum without what is NaN; to leave that out takes copies, which need not be made for none."""
    total = term.sum(dims, skipna=False)
    return term.sum(dims) if bool(total.isnull().any()) else total


def _means(sums: xr.Dataset) -> dict[str, xr.DataArray]:
    count = sums["count"]
    means = {name: sums[name] / count.sum() for name in ("accuracy", "nll", "brier")}
    return {
        **means,
        "ece": abs(sums["gap"]).sum("bin") / count.sum(),
        "accuracy_per_class": sums["hits"] / count.where(count > 0),
    }


def _calibration_se(terms: _Terms, bins: int) -> float:
    gaps = binning.gap_sums(terms.correct, terms.confidence, bins, keep=("case",))
    count = terms.correct.count([dim for dim in terms.correct.dims if dim != "case"])
    return binning.calibration_error_se(gaps.values, count.values)


def _ratio_error(part: xr.DataArray, whole: xr.DataArray) -> np.ndarray:
    """Standard error of sum(part) / sum(whole) with cases as the independent units."""
    inner = [dim for dim in part.dims if dim not in ("case", "class")]
    sums = (array.sum(inner).transpose("case", ...) for array in (part.fillna(0.0), whole))
    return ratio_error(*(array.values for array in sums))
