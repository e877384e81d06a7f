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

Scores of numbers (``crps``, ``energy``, ``quantile_score``, ``interval_score``) and the parts of
the Brier score (``brier_decomposition``) come from neighbouring files. More measures of calibration
stand in `ppl_med.analysis.calibration`.

Lazy trees are read once, in runs of cases, and may be larger than the memory.

Sources: Brier, Monthly Weather Review 78, 1950; Guo et al., ICML 2017, arXiv:1706.04599 (ECE).
"""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import xarray as xr
from scipy.special import logsumexp

from ppl_med.analysis import binning, monte_carlo, tree_blocks
from ppl_med.analysis.decomposition import brier_decomposition
from ppl_med.analysis.draw_scores import crps, energy
from ppl_med.analysis.posterior import (
    Posterior,
    check_cases,
    class_names,
    find_log_likelihood,
    observed,
    read_log_likelihood,
)
from ppl_med.analysis.probability_blocks import Probabilities, open_probs
from ppl_med.analysis.quantile_scores import interval_score, quantile_score

__all__ = [
    "brier_decomposition",
    "crps",
    "elpd_heldout",
    "energy",
    "interval_score",
    "quantile_score",
    "reliability",
    "score",
]

_SAMPLES = ("chain", "draw")
_UNITS = {"accuracy": "probability", "nll": "nats", "brier": "1", "ece": "probability"}


class _Terms(NamedTuple):
    """What every case adds to the scores, each ([chain, draw,] case, ...)."""

    correct: xr.DataArray
    confidence: xr.DataArray
    nll: xr.DataArray
    brier: xr.DataArray


def score(tree: Posterior, *, bins: int = 15) -> xr.Dataset:
    """Score the mixture of the draws, and every draw, against the observed classes.

    Args:
        tree: The tree of `predict` on labelled cases.
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
    binning.check_bins(bins)
    probs = open_probs(tree)
    label = observed(tree, probs.array)
    likelihood = find_log_likelihood(tree)
    if likelihood is not None:
        check_cases(likelihood, probs.array, "log_likelihood")
        likelihood = likelihood if set(likelihood.dims[2:]) == set(label.dims) else None
    mixture, sums = _read(probs, label, likelihood, bins)
    _warn_infinite(mixture.nll)
    indicator = _indicator(probs.array, label)
    result = _mixture_scores(mixture, indicator, bins)
    for name, value in _means(sums).items():
        result[f"{name}_per_draw"] = value.assign_attrs(units=_UNITS.get(name, "probability"))
    for name in ("nll", "nll_se", "nll_per_draw"):
        result[name].attrs["per"] = "case" if label.ndim == 1 else "pixel"
    absent = indicator.sum(label.dims).values == 0
    names = np.array(class_names(probs.array), dtype=str)[absent]
    for name in ("accuracy_per_class", "accuracy_per_class_per_draw"):
        result[name].attrs["absent"] = ", ".join(names)
    result.attrs.update(num_cases=label.sizes["case"], bins=bins)
    num_chains, num_draws = probs.num_samples
    result.attrs.update(num_chains=num_chains, num_draws=num_draws)
    result.attrs["mixture"] = "mean of probs over chain and draw"
    return result


def elpd_heldout(tree: Posterior, *, mcse: bool = True) -> xr.Dataset:
    """Estimate the expected log predictive density from held-out cases.

    Args:
        tree: The tree of `predict` on labelled cases that were not used for training.
        mcse: Add Monte Carlo standard errors. A single draw has none: then pass False.

    Returns:
        Dataset with ``elpd`` (case, ...), the log of the mean likelihood over draws, nats, and
        ``elpd_mcse``; ``elpd_sum`` over all cases with ``elpd_sum_mcse`` (draws are shared by
        the cases) and ``elpd_sum_se`` (from the number of cases; NaN for one).

    Raises:
        ValueError: No log-likelihood, the tree is of training cases or does not say, or one
            draw with ``mcse=True``.

    Warns:
        RuntimeWarning: A case has likelihood 0 under every draw.

    Source: Vehtari, Gelman and Gabry, Statistics and Computing 27, 2017, equations 1 to 4.
    """
    likelihood = find_log_likelihood(tree)
    if likelihood is None:
        raise ValueError("tree has no log_likelihood; call predict on batches that hold labels.")
    kind = tree.attrs.get("log_likelihood_of")
    if kind == "training":
        raise ValueError(
            "The log-likelihood is of training cases, so log-mean-exp is too optimistic. Use "
            "arviz_stats.loo(tree), or predict on held-out cases."
        )
    if kind != "held-out":
        raise ValueError(
            f"tree.attrs['log_likelihood_of'] is {kind!r}; set it to 'held-out' if no case of "
            "this tree was used in training."
        )
    parts, total = [], xr.DataArray(0.0)
    for block in _likelihood_blocks(likelihood):
        part, influence = _elpd(read_log_likelihood(likelihood.isel(block)), mcse)
        parts.append((block, part))
        total = total + influence
    result = tree_blocks.join(parts)
    elpd = result["elpd"]
    _warn_infinite(elpd)
    per_case = elpd.sum([dim for dim in elpd.dims if dim != "case"])
    num_cases = per_case.sizes["case"]
    result["elpd_sum"] = elpd.sum()
    with np.errstate(invalid="ignore"):  # infinite scores have no spread
        spread = per_case.std(ddof=1) if num_cases > 1 else np.nan
        result["elpd_sum_se"] = num_cases**0.5 * spread
    if mcse:
        result["elpd_sum_mcse"] = monte_carlo.standard_error(total)
        result.attrs["mcse"] = monte_carlo.CAVEAT
    for name in result.data_vars:
        result[name].attrs["units"] = "nats"
    result.attrs["num_cases"] = num_cases
    return result


def reliability(tree: Posterior, bins: int = 15) -> xr.Dataset:
    """Compare confidence with accuracy, bin by bin, for the mixture of the draws.

    Args:
        tree: The tree of `predict` on labelled cases; one label per case.
        bins: Number of bins of equal width.

    Returns:
        Dataset over bin: mean ``confidence``, ``accuracy`` with its exact (Clopper-Pearson)
        95 % interval ``lower``, ``upper``, ``count``, and the edges ``edge_lower`` (open),
        ``edge_upper`` (closed). Empty bins are NaN with count 0. Scalar ``ece``.

    Raises:
        TypeError, ValueError: As for `score`, or labels per pixel: pixels of one case are not
            independent, so no binomial interval holds.
    """
    binning.check_bins(bins)
    probs = open_probs(tree)
    label = observed(tree, probs.array)
    if label.ndim > 1:
        raise ValueError(
            f"The observation has dimensions {label.dims}: pixels of one case are not "
            "independent and the interval would be too narrow. Score one label per case."
        )
    terms = _terms(probs.mixture(), label)
    member = binning.membership(terms.confidence, bins)
    count = member.sum("case")
    hits = (member * terms.correct).sum("case")
    filled = count.where(count > 0)
    lower, upper = binning.clopper_pearson(hits.values, count.values)
    edges = np.linspace(0, 1, bins + 1)
    return xr.Dataset(
        {
            "confidence": (member * terms.confidence).sum("case") / filled,
            "accuracy": hits / filled,
            "lower": ("bin", lower),
            "upper": ("bin", upper),
            "count": count.astype(np.int64),
            "edge_lower": ("bin", edges[:-1]),
            "edge_upper": ("bin", edges[1:]),
            "ece": binning.calibration_error(terms.correct, terms.confidence, bins),
        },
        coords={"bin": np.arange(bins)},
        attrs={"interval": "Clopper-Pearson 95 %", "num_cases": label.sizes["case"]},
    )


def _read(
    probs: Probabilities, label: xr.DataArray, likelihood: xr.DataArray | None, bins: int
) -> tuple[_Terms, xr.Dataset]:
    """Terms of the mixture, and sums over cases of those of every draw."""
    parts, sums = [], xr.Dataset()
    for block, values in probs.blocks():
        truth = label.isel(block)
        mixture, single = (_terms(p, truth) for p in (monte_carlo.mean(values), values))
        if likelihood is not None:
            logs = read_log_likelihood(likelihood.isel(block))
            single = single._replace(nll=-logs)
            mixture = mixture._replace(nll=-_log_mean_exp(logs))
        parts.append((block, xr.Dataset(mixture._asdict())))
        added = _sums(single, _indicator(values, truth), bins)
        sums = added if not sums else sums + added
    whole = tree_blocks.join(parts)
    return _Terms(*(whole[name] for name in _Terms._fields)), sums


def _indicator(probs: xr.DataArray, label: xr.DataArray) -> xr.DataArray:
    """1 for the observed class, else 0 (case, ..., class)."""
    classes = xr.DataArray(np.arange(probs.sizes["class"]), dims="class")
    if "class" in probs.coords:
        classes = classes.assign_coords({"class": probs["class"]})
    return (label == classes).astype(np.float64)


def _terms(probs: xr.DataArray, label: xr.DataArray) -> _Terms:
    indicator = _indicator(probs, label)
    hit = (probs * indicator).sum("class")
    with np.errstate(divide="ignore"):
        nll = -xr.ufuncs.log(hit)
    return _Terms(
        correct=(probs.argmax("class") == label).astype(np.float64),
        confidence=probs.max("class"),
        nll=nll,
        brier=((probs - indicator) ** 2).sum("class"),
    )


def _mixture_scores(terms: _Terms, indicator: xr.DataArray, bins: int) -> xr.Dataset:
    result = xr.Dataset()
    ones = xr.ones_like(terms.correct)
    signed = binning.calibration_terms(terms.correct, terms.confidence, bins)
    shares = {
        "accuracy": (terms.correct, ones),
        "nll": (terms.nll, ones),
        "brier": (terms.brier, ones),
        "ece": (signed, ones),
        "accuracy_per_class": (terms.correct * indicator, indicator),
    }
    for name, value in _means(_sums(terms, indicator, bins)).items():
        units = _UNITS.get(name, "probability")
        result[name] = value.assign_attrs(units=units)
        error = _ratio_error(*shares[name])
        result[f"{name}_se"] = error.assign_attrs(units=units, note="over cases")
    return result


def _sums(terms: _Terms, indicator: xr.DataArray, bins: int) -> xr.Dataset:
    """Sums over the cases, which those of other cases can be added to."""
    cases = [dim for dim in indicator.dims if dim != "class"]
    return xr.Dataset(
        {
            "accuracy": terms.correct.sum(cases),
            "nll": terms.nll.sum(cases),
            "brier": terms.brier.sum(cases),
            "gap": binning.gap_sums(terms.correct, terms.confidence, bins),
            "hits": (terms.correct * indicator).sum(cases),
            "count": indicator.sum(cases),
        }
    )


def _means(sums: xr.Dataset) -> dict[str, xr.DataArray]:
    count = sums["count"]
    means = {name: sums[name] / count.sum() for name in ("accuracy", "nll", "brier")}
    return {
        **means,
        "ece": abs(sums["gap"]).sum("bin") / count.sum(),
        "accuracy_per_class": sums["hits"] / count.where(count > 0),
    }


def _ratio_error(part: xr.DataArray, whole: xr.DataArray) -> xr.DataArray:
    """Standard error of sum(part) / sum(whole) with cases as the independent units."""
    inner = [dim for dim in part.dims if dim not in ("case", "class")]
    part, whole = part.sum(inner), whole.sum(inner)
    units = (whole > 0).sum("case")
    total = whole.sum("case")
    with np.errstate(invalid="ignore", divide="ignore"):
        residual = part - part.sum("case") / total.where(total > 0) * whole
        square = (residual**2).sum("case", skipna=False) * units / (units - 1).where(units > 1)
        return square**0.5 / total.where(total > 0)


def _likelihood_blocks(likelihood: xr.DataArray) -> Iterator[tree_blocks.Block]:
    sizes = {str(dim): likelihood.sizes[dim] for dim in likelihood.dims[2:]}
    yield from tree_blocks.blocks(sizes, likelihood.shape[0] * likelihood.shape[1])


def _elpd(likelihood: xr.DataArray, mcse: bool) -> tuple[xr.Dataset, xr.DataArray]:
    """``elpd`` (case, ...), with its error, and the influence of every draw on the sum."""
    elpd = _log_mean_exp(likelihood)
    result = xr.Dataset({"elpd": elpd})
    if not mcse:
        return result, xr.DataArray(0.0)
    # d log m = d m / m for the mean likelihood m of a case
    relative = xr.ufuncs.exp(likelihood - elpd.where(np.isfinite(elpd), 0.0))
    result["elpd_mcse"] = monte_carlo.standard_error(relative)
    return result, relative.sum(elpd.dims)


def _log_mean_exp(array: xr.DataArray) -> xr.DataArray:
    num_draws = array.sizes["chain"] * array.sizes["draw"]
    template = array.isel(chain=0, draw=0, drop=True)
    with np.errstate(divide="ignore"):
        values = logsumexp(array.transpose(*_SAMPLES, ...).values, axis=(0, 1))
    return template.copy(data=values - np.log(num_draws))


def _warn_infinite(values: xr.DataArray) -> None:
    count = int(np.isinf(values.values).sum())
    if count:
        warnings.warn(
            f"{count} observation(s) have probability exactly 0 under every draw: the log score "
            "is infinite. Predict in float64 with log-likelihoods from logits.",
            RuntimeWarning,
            stacklevel=3,
        )
