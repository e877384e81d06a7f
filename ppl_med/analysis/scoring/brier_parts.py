"""The Brier score split into what recalibration could remove, what the model knows, and the rest.

The score is a sum over classes, each against all others; every part is, too. With p the
probability of a class, y its indicator, and means over cases:

    corp     brier = miscalibration - discrimination + uncertainty
             miscalibration = brier(p) - brier(q), discrimination = brier(mean y) - brier(q),
             q the isotonic regression of y on p: no bins, parts never negative
    binned   brier = reliability - resolution + uncertainty + variance - covariance
             the last two are those of p, and of p with y (twice), inside the bins: they vanish
             where p is constant in each bin, and make the identity exact where it is not

Both identities hold exactly, of the mixture and of every draw.

Sources: Murphy, Journal of Applied Meteorology 12, 1973; Stephenson, Coelho and Jolliffe, Weather
and Forecasting 23, 2008, equation 10 (parts inside bins); Dimitriadis, Gneiting and Jordan, PNAS
118, 2021, arXiv:2008.03033 (CORP).
"""

from collections.abc import Callable

import numpy as np
import xarray as xr

from ppl_med.analysis.statistics import binning, isotonic
from ppl_med.analysis.tree import Posterior, count_left_out, known, open_classes
from ppl_med.axes import SAMPLES
from ppl_med.checks import choice, whole

_PARTS = {
    "corp": ("miscalibration", "discrimination", "uncertainty"),
    "binned": ("reliability", "resolution", "uncertainty", "variance", "covariance"),
}


def brier_decomposition(tree: Posterior, method: str = "corp", *, bins: int = 15) -> xr.Dataset:
    """Split the Brier score of the mixture of the draws, and of every draw.

    Args:
        tree: The tree of `predict` on labelled cases; pixels of masks count one by one, and
            those that are -1 are left out. A lazy tree is read in parts; the probabilities of one
            draw are in memory.
        method: "corp" (isotonic regression) or "binned" (bins of equal width).
        bins: Number of bins of method "binned".

    Returns:
        Dataset of ``brier`` (0..2) and its parts, see the top of this module: scalars of the
        mixture, ``<name>_per_class`` (class), which sum to them, and ``<name>_per_draw`` (chain,
        draw). A class that never occurs has uncertainty and discrimination 0.

    Raises:
        TypeError, ValueError: ``probs`` or the labels are missing or malformed; unknown method.
    """
    whole("bins", bins)
    choice("method", method, _PARTS)
    source = open_classes(tree)
    label = source.labels()
    counts, seen = count_left_out(label), known(label).values.ravel()
    label = label.values.ravel()[seen]
    split = corp_parts if method == "corp" else lambda p, y: binned_parts(p, y, bins)
    names = ("brier", *_PARTS[method])
    mixture = _split_classes(source.mixture(), label, seen, split)
    rows = [_split_classes(table, label, seen, split).sum(0) for table in source.draws()]
    draws = np.array(rows).reshape(*source.num_samples, -1)
    result = xr.Dataset(coords={**source.samples, "class": source.names})
    for index, name in enumerate(names):
        result[name] = mixture[:, index].sum()
        result[f"{name}_per_class"] = ("class", mixture[:, index])
        result[f"{name}_per_draw"] = (SAMPLES, draws[..., index])
    for variable in result.data_vars.values():
        variable.attrs["units"] = "1"
    result.attrs.update(counts, method=method)
    result.attrs["mixture"] = "mean of probs over chain and draw"
    if method == "binned":
        result.attrs["bins"] = bins
    return result


def corp_parts(probability: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """Return the mean squared error, miscalibration, discrimination and uncertainty.

    Args:
        probability: Probability of an event (case,).
        outcome: 1 where it happened, else 0 (case,).

    Returns:
        Four numbers; the first is the second minus the third plus the fourth.
    """
    score = np.mean((probability - outcome) ** 2)
    best = np.mean((isotonic.fit(probability, outcome) - outcome) ** 2)
    constant = outcome.mean() * (1 - outcome.mean())
    return np.array([score, score - best, constant - best, constant])


def binned_parts(probability: np.ndarray, outcome: np.ndarray, bins: int) -> np.ndarray:
    """Return the mean squared error, reliability, resolution, uncertainty, variance, covariance.

    Args:
        probability: Probability of an event (case,).
        outcome: 1 where it happened, else 0 (case,).
        bins: Number of bins of equal width; empty ones weigh nothing.

    Returns:
        Six numbers; the first is +, -, +, +, - of the others.
    """
    index = binning.equal_width(probability, bins)
    count = np.bincount(index, minlength=bins)
    filled = np.maximum(count, 1)
    given = np.bincount(index, probability, bins) / filled
    seen = np.bincount(index, outcome, bins) / filled
    share, base = count / count.sum(), outcome.mean()
    spread = probability - given[index]
    return np.array(
        [
            np.mean((probability - outcome) ** 2),
            (share * (given - seen) ** 2).sum(),
            (share * (seen - base) ** 2).sum(),
            base * (1 - base),
            np.mean(spread**2),
            2 * np.mean(spread * (outcome - seen[index])),
        ]
    )


def _split_classes(
    probs: xr.DataArray,
    label: np.ndarray,
    seen: np.ndarray,
    split: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Parts of every class (class, part), of the entries seen."""
    columns = np.moveaxis(probs.values, probs.get_axis_num("class"), 0)
    return np.array(
        [split(p.ravel()[seen], (label == index).astype(float)) for index, p in enumerate(columns)]
    )
