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

Sources: see `ppl_med.analysis.calibration.estimators` and `.smooth`; Bröcker and Smith, Weather
and Forecasting 22, 2007, and Vaicenavicius et al., AISTATS 2019, arXiv:1902.06977 (consistency
resampling); Davison and Hinkley, Bootstrap Methods, 1997, section 5.2 (basic interval).
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
from ppl_med.analysis.statistics.resampling import draw_labels
from ppl_med.analysis.tree import Posterior, open_classes
from ppl_med.axes import SAMPLES
from ppl_med.checks import inside, whole

_SIGNED = "squared_error_debiased"
_BIASED = "basic bootstrap over cases: twice the figure minus the resampled quantiles"


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
        ``<name>_per_draw`` (chain, draw), and of the mixture ``_lower``, ``_upper``, a bootstrap
        interval over cases from which the bias of the figure is taken off (cut at 0), ``_null``
        and ``_pvalue``. All probabilities; squared errors are their squares.

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
    result.attrs["interval"] = _BIASED
    return result


def _figures(probs: np.ndarray, label: np.ndarray, bins: int) -> dict[str, Any]:
    """Every figure of one table of probabilities (case, class)."""
    predicted = probs.argmax(1)
    confidence = probs.max(1)
    correct = (predicted == label).astype(np.float64)
    smooth, bandwidth = smooth_error(confidence, correct)
    per_class = np.array(
        [
            binned_errors(column, (label == index).astype(np.float64), bins)["ece"]
            for index, column in enumerate(probs.T)
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
    """Add bootstrap intervals, and the distribution of each figure under calibrated labels."""
    rng = np.random.default_rng(seed)
    size = label.size
    again, calibrated = [], []
    for _ in range(replicates):
        chosen = rng.integers(size, size=size)
        again.append(_figures(probs[chosen], label[chosen], bins))
        calibrated.append(_figures(probs, draw_labels(probs, rng), bins))
    tail = (1 - level) / 2
    for name in (name for name in point if name != "bandwidth"):
        law = np.array([figures[name] for figures in calibrated])
        above = (law >= point[name] - 1e-12).sum(0)
        # What the figure is of the cases at hand, seen as the whole population.
        centre = point["squared_error" if name == _SIGNED else name]
        moves = np.array([figures[name] for figures in again]) - centre
        ends = point[name] - np.quantile(moves, [1 - tail, tail], axis=0)
        lower, upper = ends if name == _SIGNED else np.maximum(ends, 0)
        found = {"lower": lower, "upper": upper, "null": law.mean(0)}
        found["pvalue"] = (1 + above) / (1 + replicates)
        for suffix, value in found.items():
            _put(result, {name: value}, f"_{suffix}")


def _put(
    result: xr.Dataset, values: dict[str, Any], suffix: str, dims: tuple[str, ...] = ()
) -> None:
    for name, value in values.items():
        tail = ("class",) if name == "ece_per_class" else ()
        result[f"{name}{suffix}"] = ((*dims, *tail), np.asarray(value, dtype=np.float64))
