"""Reliability curves: how often an event happened where it was given a probability.

    binned   bins of equal width or equal mass, exact binomial intervals
    PAVA     no bins: isotonic regression, with the band that calibrated probabilities would stay
             in (consistency band), from labels drawn from the mixture itself

An event is "the predicted class is right" (probability: the confidence), or, classwise, "the class
is this one". All of the mixture of the draws; `pava` also of every draw. Lazy trees are read in
parts; the probabilities of one draw are in memory.

Sources: Clopper and Pearson, Biometrika 26, 1934; Dimitriadis, Gneiting and Jordan, PNAS 118, 2021,
arXiv:2008.03033 (CORP curves and consistency bands).
"""

import numpy as np
import xarray as xr

from ppl_med.analysis.scoring.brier_parts import corp_parts
from ppl_med.analysis.statistics import binning, isotonic
from ppl_med.analysis.statistics.resampling import draw_labels
from ppl_med.analysis.tree import Posterior, open_classes
from ppl_med.axes import SAMPLES
from ppl_med.checks import choice, inside, whole

_BINNINGS = ("equal_width", "equal_mass")
_PARTS = ("brier", "miscalibration", "discrimination", "uncertainty")


def reliability_classwise(
    tree: Posterior, *, bins: int = 10, binning_by: str = "equal_width"
) -> xr.Dataset:
    """Compare the probability of every class with its frequency, bin by bin.

    For the confidence of the predicted class see `ppl_med.analysis.scoring.reliability`.

    Args:
        tree: The tree of `predict` on labelled cases, one label per case, -1 left out.
        bins: Number of bins of every class.
        binning_by: "equal_width", or "equal_mass" for equally many cases up to ties.

    Returns:
        Dataset over class and bin: mean ``probability``, ``frequency`` with its exact
        (Clopper-Pearson) 95 % interval ``lower``, ``upper``, ``count``, edges ``edge_lower``
        (open) and ``edge_upper`` (closed); empty bins are NaN with count 0. ``ece`` (class).

    Raises:
        TypeError, ValueError: ``probs`` or labels malformed, labels per pixel, bad arguments.
    """
    whole("bins", bins)
    choice("binning_by", binning_by, _BINNINGS)
    source = open_classes(tree)
    label, rows, counts = source.labelled_cases()
    bars = [
        _bin_class(column, (label == index).astype(np.float64), bins, binning_by)
        for index, column in enumerate(source.mixture().values[rows].T)
    ]
    result = xr.Dataset(coords={"class": source.names, "bin": np.arange(bins)})
    for name in bars[0]:
        result[name] = (("class", "bin"), np.stack([bar[name] for bar in bars]))
    gap = abs(result["frequency"] - result["probability"]) * result["count"]
    result["ece"] = gap.sum("bin") / label.size
    result.attrs.update(counts, binning=binning_by, interval="Clopper-Pearson 95 %")
    return result


def pava(
    tree: Posterior,
    *,
    classwise: bool = False,
    per_draw: bool = False,
    replicates: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Compare probabilities with frequencies of the event, by isotonic regression.

    Args:
        tree: The tree of `predict` on labelled cases, one label per case, -1 left out.
        classwise: One curve for every class instead of one for the predicted class.
        per_draw: Add the curve of every draw.
        replicates: Sets of calibrated labels behind the band; 0 leaves the band out.
        level: Probability of the band, at each point.
        seed: Seed of those labels.

    Returns:
        Dataset over rank (cases by rising probability; with class first where classwise):
        ``probability``, ``frequency`` (the isotonic fit), ``lower``, ``upper``, where the fit of
        calibrated probabilities lies with probability ``level``; and ``brier`` of the event with
        its parts ``miscalibration`` - ``discrimination`` + ``uncertainty``. With ``per_draw``
        ``probability_per_draw`` and ``frequency_per_draw`` (chain, draw, ..., rank).

    Raises:
        TypeError, ValueError: ``probs`` or labels malformed, labels per pixel, bad arguments.
    """
    whole("replicates", replicates, 0)
    inside("level", level)
    source = open_classes(tree)
    label, rows, counts = source.labelled_cases()
    mixture = source.mixture().values[rows]
    given, happened = _events(mixture, label, classwise)
    fits = [_sorted_fit(p, y) for p, y in zip(given, happened, strict=True)]
    dims = ("class", "rank") if classwise else ("rank",)
    coords = {"class": source.names} if classwise else {}
    result = xr.Dataset(coords={**source.samples, **coords})
    shape = (-1, label.size) if classwise else (label.size,)
    for index, name in enumerate(("probability", "frequency")):
        result[name] = (dims, np.stack([fit[index] for fit in fits]).reshape(shape))
    if replicates:
        band = _band(mixture, given, classwise, replicates, level, seed)
        for name, values in zip(("lower", "upper"), band, strict=True):
            result[name] = (dims, values.reshape(shape))
    parts = np.stack([corp_parts(p, y) for p, y in zip(given, happened, strict=True)])
    for index, name in enumerate(_PARTS):
        result[name] = (dims[:-1], parts[:, index].reshape(shape[:-1]))
    if per_draw:
        curves = np.array(
            [_curves(table.values[rows], label, classwise) for table in source.draws()]
        )
        curves = curves.reshape(*source.num_samples, *curves.shape[1:])  # (..., event, 2, rank)
        for index, name in enumerate(("probability_per_draw", "frequency_per_draw")):
            values = curves[:, :, :, index] if classwise else curves[:, :, 0, index]
            result[name] = ((*SAMPLES, *dims), values)
    for variable in result.data_vars.values():
        variable.attrs["units"] = "probability"
    result.attrs.update(counts, level=level, replicates=replicates)
    result.attrs["event"] = "the class" if classwise else "the predicted class is right"
    result.attrs["band"] = "consistency band, at each point"
    return result


def _events(probs: np.ndarray, label: np.ndarray, classwise: bool) -> tuple[np.ndarray, np.ndarray]:
    """Probability of every event, and whether it happened; both (event, case)."""
    if classwise:
        return probs.T, (label == np.arange(probs.shape[1])[:, None]).astype(np.float64)
    return probs.max(1)[None], (probs.argmax(1) == label)[None].astype(np.float64)


def _sorted_fit(probability: np.ndarray, outcome: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.sort(probability), np.sort(isotonic.fit(probability, outcome))


def _curves(probs: np.ndarray, label: np.ndarray, classwise: bool) -> list[np.ndarray]:
    given, happened = _events(probs, label, classwise)
    return [np.stack(_sorted_fit(p, y)) for p, y in zip(given, happened, strict=True)]


def _band(
    probs: np.ndarray,
    given: np.ndarray,
    classwise: bool,
    replicates: int,
    level: float,
    seed: int,
) -> np.ndarray:
    """Quantiles of the fit to calibrated labels, (lower or upper, event, rank)."""
    rng = np.random.default_rng(seed)
    fits = np.empty((replicates, *given.shape))
    for replicate in range(replicates):
        _, happened = _events(probs, draw_labels(probs, rng), classwise)
        fits[replicate] = [_sorted_fit(p, y)[1] for p, y in zip(given, happened, strict=True)]
    return np.quantile(fits, [(1 - level) / 2, (1 + level) / 2], axis=0)


def _bin_class(
    probability: np.ndarray, outcome: np.ndarray, bins: int, binning_by: str
) -> dict[str, np.ndarray]:
    edges = np.linspace(0, 1, bins + 1)
    if binning_by == "equal_mass":
        inner = np.quantile(probability, edges[1:-1], method="inverted_cdf")
        edges = np.concatenate([[0.0], inner, [1.0]])
    index = np.clip(np.searchsorted(edges, probability, side="left") - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    filled = np.where(count > 0, count, np.nan)
    hits = np.bincount(index, outcome, bins)
    lower, upper = binning.clopper_pearson(hits, count)
    return {
        "probability": np.bincount(index, probability, bins) / filled,
        "frequency": hits / filled,
        "lower": lower,
        "upper": upper,
        "count": count.astype(np.int64),
        "edge_lower": edges[:-1],
        "edge_upper": edges[1:],
    }
