"""The mean-field net against the frequentist net of the same fraction and seed, case by case."""

import numpy as np
import xarray as xr

from ppl_med.analysis.scoring.class_scores import terms
from ppl_med.analysis.statistics.binning import equal_width
from ppl_med.analysis.statistics.group_resampling import group_weights, spread
from ppl_med.storage import markdown_table

BINS, RESAMPLES, LEVEL = 15, 2000, 0.95


def paired(ours: list[xr.DataTree], theirs: list[xr.DataTree], patient: np.ndarray) -> xr.Dataset:
    """Differences of NLL (nats) and ECE, ours minus theirs, averaged over seeds.

    The interval resamples whole patients, with all seeds of each.

    Args:
        ours: A tree a seed, of the same test cases.
        theirs: Likewise, in the order of the same seeds.
        patient: Of each case, dims (case,).

    Returns:
        Dataset of ``nll`` and ``ece`` over seed, and their mean over seeds ``<name>_mean`` with
        ``<name>_lower`` and ``<name>_upper``, the ends of the 95 % interval.
    """
    pairs = [(_parts(a), _parts(b)) for a, b in zip(ours, theirs, strict=True)]
    names, group = np.unique(patient, return_inverse=True)
    one = np.ones(len(patient))
    by_seed = _differences(pairs, one)
    drawn = np.stack(
        [
            _differences(pairs, weights[group]).mean(0)
            for weights in group_weights(len(names), RESAMPLES, 0)
        ]
    )
    _, lower, upper = spread(drawn, LEVEL)
    result = xr.Dataset()
    for column, name in enumerate(("nll", "ece")):
        result[name] = ("seed", by_seed[:, column])
        result[f"{name}_mean"] = float(by_seed[:, column].mean())
        result[f"{name}_lower"], result[f"{name}_upper"] = (
            float(lower[column]),
            float(upper[column]),
        )
    return result.assign_attrs(patients=len(names), level=LEVEL)


def _parts(tree: xr.DataTree) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every case: NLL, whether the prediction is right minus its confidence, and its bin."""
    probs = tree["posterior/probs"].mean(("chain", "draw"))
    found = terms(probs, tree["observed_data/label"])
    excess = (found.correct - found.confidence).to_numpy()
    return found.nll.to_numpy(), excess, equal_width(found.confidence.to_numpy(), BINS)


def _differences(pairs: list, weights: np.ndarray) -> np.ndarray:
    """Weighted differences, dims (seed, figure)."""
    return np.array([_figures(a, weights) - _figures(b, weights) for a, b in pairs])


def _figures(parts: tuple[np.ndarray, np.ndarray, np.ndarray], weights: np.ndarray) -> np.ndarray:
    nll, excess, where = parts
    gaps = np.bincount(where, weights * excess, minlength=BINS)
    return np.array([(weights * nll).sum(), np.abs(gaps).sum()]) / weights.sum()


def rows(found: dict[float, xr.Dataset]) -> str:
    """Markdown: a line a fraction."""
    lines = []
    for fraction, one in found.items():
        cells = [f"{fraction:.0%}"]
        for name in ("nll", "ece"):
            mean, low, high = (float(one[f"{name}_{end}"]) for end in ("mean", "lower", "upper"))
            cells.append(f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]")
            cells.append(", ".join(f"{value:+.4f}" for value in one[name].values))
        lines.append(cells)
    of_nll = ["ΔNLL (nats), 95 % over patients", "ΔNLL of each seed"]
    return markdown_table(["data", *of_nll, "ΔECE", "ΔECE of each seed"], lines)
