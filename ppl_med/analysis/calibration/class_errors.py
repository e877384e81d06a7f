"""How far the probabilities are from the frequencies, with what chance alone would give.

Of the mixture of the draws and of every draw. An event is "the predicted class is right" unless
said otherwise; its probability is the confidence, max p.

    ece                     bins of equal width, weighted by their cases
    ace                     the same bins, unweighted mean over the filled ones
    mce                     the worst of them
    rmsce                   root mean square, weighted by cases
    ece_equal_mass          bins with equally many cases (adaptive)
    squared_error           mean square over those bins
    squared_error_debiased  the same without its bias by chance; can be negative
    ece_sweep               as many of those as keep accuracy rising with confidence
    ece_smooth              a kernel in place of bins, with its width `bandwidth`
    ece_top_label           bins inside each predicted class
    ece_classwise           mean over classes of the ECE of "the class is this one"
    ece_per_class           the same for each class

All but the debiased one are positive even for perfect probabilities, the more so the fewer cases
there are. So each comes with the value expected of calibrated probabilities (``_null``), from
labels drawn from the mixture itself, and the p-value of the test that it is calibrated.

Each but the sweep is a norm of the errors y - p, seen as masses at p (the smooth one obeys the
triangle inequality too), so that it is off the truth by no more than the figure of the noise alone.
Its quantile q, by resampling cases and by labels drawn from the probabilities, whichever is larger,
gives the interval, figure - q to figure + q. It holds the truth of the bins at hand with the
probability `level` or more: exactly that at the lower end of 0, where probabilities are calibrated,
and more where the truth is far from 0. The figure itself is always inside.

Sources: see `ppl_med.analysis.calibration.estimators` and `.smooth`; Bröcker and Smith, Weather
and Forecasting 22, 2007, and Vaicenavicius et al., AISTATS 2019, arXiv:1902.06977 (consistency
resampling).
"""

from typing import Any

import numpy as np
import xarray as xr

from ppl_med.analysis.calibration.estimators import (
    binned_errors,
    equal_mass_errors,
    top_label_error,
)
from ppl_med.analysis.calibration.smooth import smooth_error
from ppl_med.analysis.statistics.draw_ranks import RANKS
from ppl_med.analysis.statistics.resampling import draw_labels
from ppl_med.analysis.tree import Posterior, open_classes
from ppl_med.axes import SAMPLES
from ppl_med.checks import inside, whole

_SIGNED = "squared_error_debiased"
_INTERVAL = "figure -+ the quantile of the same figure of the noise; conservative"
_SQUARES = ("squared_error", _SIGNED)


def errors(
    tree: Posterior,
    *,
    bins: int = 15,
    replicates: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Measure the calibration of the mixture of the draws, and of every draw.

    Args:
        tree: The tree of `predict` on labelled cases, one label per case, -1 left out. A lazy one
            is read in parts; the probabilities of one draw are in memory.
        bins: Number of bins, of equal width and of equal mass.
        replicates: Bootstrap data sets, and as many of calibrated labels; 0 leaves both out.
        level: Probability of the intervals.
        seed: Seed of the resampling.

    Returns:
        Dataset of the figures above, ``ece_per_class`` (class), the others scalars; for each
        ``<name>_per_draw`` (chain, draw), and of the mixture ``_null``, ``_pvalue``, and but for
        the sweep ``_lower``, ``_upper``, an interval that may be too wide (cut at 0). All
        probabilities; squared errors are their squares.

    Raises:
        TypeError, ValueError: ``probs`` or labels malformed, labels per pixel, or bad arguments.
    """
    whole("bins", bins)
    whole("replicates", replicates, 0)
    inside("level", level)
    source = open_classes(tree)
    label, rows, counts = source.labelled_cases()
    mixture = source.mixture().values[rows]
    result = xr.Dataset(coords={**source.samples, "class": source.names})
    point = _figures(mixture, label, bins)
    _put(result, point, "")
    draws = [_figures(table.values[rows], label, bins) for table in source.draws()]
    shape = source.num_samples
    stacked = {
        n: np.array([d[n] for d in draws]).reshape(*shape, *np.shape(point[n])) for n in point
    }
    _put(result, stacked, "_per_draw", SAMPLES)
    if replicates:
        _resample(result, point, mixture, label, bins, replicates, level, seed)
    for name, variable in result.data_vars.items():
        squared = str(name).startswith("squared") and not str(name).endswith("_pvalue")
        variable.attrs["units"] = "probability^2" if squared else "probability"
    result.attrs.update(counts, bins=bins, replicates=replicates, level=level)
    result.attrs["mixture"] = "mean of probs over chain and draw"
    result.attrs["interval"] = _INTERVAL
    return result


def _figures(probs: np.ndarray, label: np.ndarray, bins: int) -> dict[str, Any]:
    """Every figure of one table of probabilities (case, class)."""
    return _norms(probs, (label[:, None] == np.arange(probs.shape[1])).astype(np.float64), bins)


def _norms(probs: np.ndarray, outcome: np.ndarray, bins: int) -> dict[str, Any]:
    """Every figure, of the differences between outcomes and probabilities (case, class)."""
    predicted = probs.argmax(1)
    confidence = probs.max(1)
    correct = outcome[np.arange(len(outcome)), predicted]
    smooth, bandwidth = smooth_error(confidence, correct)
    per_class = np.array(
        [
            binned_errors(column, happened, bins)["ece"]
            for column, happened in zip(probs.T, outcome.T, strict=True)
        ]
    )
    return {
        **binned_errors(confidence, correct, bins),
        **equal_mass_errors(confidence, correct, bins),
        "ece_smooth": smooth,
        "bandwidth": bandwidth,
        "ece_top_label": top_label_error(confidence, correct, predicted, bins),
        "ece_classwise": per_class.mean(),
        "ece_per_class": per_class,
    }


def _resample(
    result: xr.Dataset,
    point: dict[str, Any],
    probs: np.ndarray,
    label: np.ndarray,
    bins: int,
    replicates: int,
    level: float,
    seed: int,
) -> None:
    """Add intervals, and the distribution of each figure under calibrated labels."""
    rng = np.random.default_rng(seed)
    size = label.size
    gap = (label[:, None] == np.arange(probs.shape[1])) - probs
    noise, calibrated = [], []
    for _ in range(replicates):
        # What resampling adds to the errors at hand; it has their mean and their spread.
        more = np.bincount(rng.integers(size, size=size), minlength=size) - 1
        noise.append(_norms(probs, probs + more[:, None] * gap, bins))
        calibrated.append(_figures(probs, draw_labels(probs, rng), bins))
    for name in (name for name in point if name != "bandwidth"):
        law = np.array([figures[name] for figures in calibrated])
        above = (law >= point[name] - 1e-12).sum(0)
        found = {"null": law.mean(0), "pvalue": (1 + above) / (1 + replicates)}
        if name != "ece_sweep":  # its bins depend on the outcomes, so that it has no truth
            found["lower"], found["upper"] = _interval(name, point, [noise, calibrated], level)
        for suffix, value in found.items():
            _put(result, {name: value}, f"_{suffix}")


def _interval(
    name: str, point: dict[str, Any], noises: list[list[dict[str, Any]]], level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Figure -+ the larger quantile of the noise; squares are taken the root of before."""
    root = name in _SQUARES
    norm = "squared_error" if root else name
    centre, *laws = (
        np.sqrt(values) if root else np.asarray(values)
        for values in (point[norm], *([one[norm] for one in noise] for noise in noises))
    )
    reach = np.max([np.quantile(law, level, axis=0, method=RANKS) for law in laws], axis=0)
    ends = np.maximum(centre - reach, 0), centre + reach
    lower, upper = (end**2 if root else end for end in ends)
    return np.asarray(np.fmin(lower, point[name])), np.asarray(np.fmax(upper, point[name]))


def _put(
    result: xr.Dataset, values: dict[str, Any], suffix: str, dims: tuple[str, ...] = ()
) -> None:
    for name, value in values.items():
        tail = ("class",) if name == "ece_per_class" else ()
        result[f"{name}{suffix}"] = ((*dims, *tail), np.asarray(value, dtype=np.float64))
