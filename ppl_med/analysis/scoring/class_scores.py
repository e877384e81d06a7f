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

from collections.abc import Hashable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import xarray as xr

from ppl_med.analysis.scoring.log_scores import log_mean_exp, warn_infinite
from ppl_med.analysis.statistics import binning, compiled, monte_carlo
from ppl_med.analysis.statistics.case_means import ratio_error
from ppl_med.analysis.statistics.class_axis import leading, of_class
from ppl_med.analysis.tree import (
    Block,
    Classes,
    LogLikelihood,
    Posterior,
    check_cases,
    count_left_out,
    join_blocks,
    known,
    open_classes,
    open_log_likelihood,
    other_samples,
)
from ppl_med.analysis.tree.distinct_draws import drop_shared_copies
from ppl_med.analysis.tree.simplex import SUM_TOLERANCE
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
        TypeError, ValueError: ``probs`` or the labels are missing or malformed, or the
            log_likelihood is of other draws.

    Warns:
        RuntimeWarning: An observed class has probability exactly 0 in the mixture: infinite NLL.
    """
    whole("bins", bins)
    source, likelihood = _open(tree)
    label = source.labels()
    counts = count_left_out(label)
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


def _open(tree: Posterior) -> tuple[Classes, LogLikelihood | None]:
    """Probabilities, and the log-likelihood of the same entries and draws, where there is one.

    Draws that are copies in one of the two alone, as where the observed class alone is as probable
    under all, are kept in both.

    Raises:
        ValueError: The tree holds others.
    """
    source, likelihood = open_classes(tree, copies=True), open_log_likelihood(tree, copies=True)
    if likelihood is None:
        return open_classes(tree), None
    check_cases(likelihood.array, source.array, "log_likelihood")
    if set(likelihood.array.dims[2:]) != set(source.sizes):
        return open_classes(tree), None
    probs, logs = drop_shared_copies(source.array, likelihood.array)
    if other := other_samples(logs, probs):
        raise ValueError(
            f"log_likelihood and probs have other values along {other}; select the same draws in "
            "every group of the tree, or leave log_likelihood out."
        )
    return replace(source, array=probs), replace(likelihood, array=logs)


def _read(
    source: Classes,
    label: xr.DataArray,
    numbers: xr.DataArray,
    likelihood: LogLikelihood | None,
    bins: int,
) -> tuple[_Terms, xr.Dataset]:
    """Terms of the mixture, and sums over cases of those of every draw."""
    parts, sums = [], xr.Dataset()
    read = _compiled_sums if source.compiles else _block_sums
    for block, mean, added in read(source, label, numbers, bins):
        mixture = terms(mean, label.isel(block))
        if likelihood is not None:
            logs = likelihood.read(block)
            added["nll"] = _sum(-logs, label.dims)
            mixture = mixture._replace(nll=-log_mean_exp(logs))
        parts.append((block, xr.Dataset(mixture._asdict())))
        sums = added if not sums else sums + added
    joined = join_blocks(parts)
    return _Terms(*(joined[name] for name in _Terms._fields)), sums


def _block_sums(
    source: Classes, label: xr.DataArray, numbers: xr.DataArray, bins: int
) -> Iterator[tuple[Block, xr.DataArray, xr.Dataset]]:
    """Yield blocks, the mixture there, and sums of the terms of every draw."""
    for block, values in source.blocks():
        truth = label.isel(block)
        yield block, monte_carlo.mean(values), _sums(terms(values, truth), truth, numbers, bins)


def _compiled_sums(
    source: Classes, label: xr.DataArray, numbers: xr.DataArray, bins: int
) -> Iterator[tuple[Block, xr.DataArray, xr.Dataset]]:
    """As `_block_sums`, in one reading of the draws."""
    draws = source.array.isel(dict.fromkeys(("case", "class"), 0), drop=True)
    for block, values in source.runs():
        truth = label.isel(block).values
        found, mean, valid = compiled.score_sums(values, truth, bins, SUM_TOLERANCE)
        table = source.table(block, mean, valid, values)
        sums = xr.Dataset({"count": numbers.copy(data=_count(truth, numbers.size))})
        for name, value in found._asdict().items():
            inner = {"gap": ("bin",), "hits": ("class",)}.get(name, ())
            shaped = value.reshape(*draws.shape, *value.shape[1:])
            dims = (*draws.dims, *inner)
            sums[name] = xr.DataArray(shaped, draws.coords, dims, attrs=draws.attrs)
        yield block, table, sums


def terms(probs: xr.DataArray, label: xr.DataArray) -> _Terms:
    """Return what every entry adds to the scores of probabilities ([chain, draw,] case, ...)."""
    entry = probs.isel({"class": 0}, drop=True)
    drawn = [dim for dim in entry.dims if dim in SAMPLES]
    observed = label.transpose(*entry.dims[len(drawn) :]).values
    values, axis = probs.values, probs.get_axis_num("class") - len(drawn)
    found = _Terms(*(entry.copy(data=np.empty(entry.shape)) for _ in _Terms._fields))
    for place in np.ndindex(*entry.shape[: len(drawn)]):  # draw by draw, which fits the cache
        for term, one in zip(found, _draw_terms(values[place], observed, axis), strict=True):
            term.values[place] = one
    seen = known(label)
    return found if seen.all() else _Terms(*(term.where(seen) for term in found))


def _draw_terms(values: np.ndarray, label: np.ndarray, axis: int) -> tuple[np.ndarray, ...]:
    """The terms of one draw (case, ...), in their order; -1 reads the last class."""
    hit, confidence = of_class(values, label, axis), values.max(axis)
    leads, tied = leading(values, confidence, axis)
    correct = leads.argmax(axis) == label if tied else hit == confidence
    moved = np.moveaxis(values, axis, -1)
    squares = np.einsum("...k,...k->...", moved, moved)
    # The other classes' part first: a prediction that is sure and right has exactly 0.
    brier = np.maximum(squares - hit**2, 0.0) + (1 - hit) ** 2
    with np.errstate(divide="ignore"):
        return correct, confidence, -np.log(hit), brier


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
    rows = correct.values.reshape(-1, label.size)
    hits = np.stack([_count(label.values, numbers.size, row) for row in rows])
    return xr.Dataset(
        {
            "accuracy": _sum(terms.correct, cases),
            "nll": _sum(terms.nll, cases),
            "brier": _sum(terms.brier, cases),
            "gap": binning.gap_sums(terms.correct, terms.confidence, bins),
            "hits": (single * numbers).copy(data=hits.reshape(*single.shape, -1)),
            "count": numbers.copy(data=_count(label.values, numbers.size)),
        }
    )


def _count(label: np.ndarray, classes: int, weight: np.ndarray | None = None) -> np.ndarray:
    """Sum of the weights of the entries of every class, or how many there are."""
    # Entries without a class, which may be NaN, go into one bin more.
    flat = np.where(label < 0, classes, label).ravel()
    return np.bincount(flat, weight, classes + 1)[:-1].astype(np.float64)


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
    part = part.fillna(0.0) if bool(np.isnan(part.values.sum())) else part
    sums = ((one.sum(inner) if inner else one).transpose("case", ...) for one in (part, whole))
    return ratio_error(*(array.values for array in sums))
