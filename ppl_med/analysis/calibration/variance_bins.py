"""Predicted variance of numbers against the squared error, where the model says it is so large.

Entries are put into bins of equal mass by their predicted variance v (aleatoric and epistemic);
entries of equal variance stay together, so there may be fewer bins. In each bin

    predicted_sd    root of the mean of v
    rmse            root of the mean of (y - mean)^2, which it should be

    ence       mean over bins of |predicted_sd - rmse| / predicted_sd
    uce        sum over bins of share of entries x |mean of v - mean squared error|
    sharpness  root of the mean of v over all entries: the smaller, the more is said

Both errors are positive by chance too, so the values expected of calibrated predictions stand
beside them (``_null``): the same, with every draw of the tree in turn as the observation.

Sources: Levi, Gispan, Giladi and Fetaya, Sensors 22, 2022, arXiv:1905.11659 (ENCE); Laves, Ihler,
Fast, Kahrs and Ortmaier, MIDL 2020, arXiv:2104.12376 (UCE; there bins of equal width); Kuleshov
et al., ICML 2018, arXiv:1807.00263 (sharpness, there squared).
"""

import numpy as np
import xarray as xr

from ppl_med.analysis.tree import Numbers, count_left_out, open_numbers
from ppl_med.checks import whole


def dispersion(
    tree: xr.DataTree,
    site: str | None = None,
    *,
    bins: int = 10,
    replicates: int = 200,
    seed: int = 0,
) -> xr.Dataset:
    """Compare predicted variances with squared errors, bin by bin.

    Args:
        tree: The tree of `predict` on cases with observed numbers; lazy ones are read in parts, and
            three arrays of the size of the observation are held.
        site: Name of the observed site; None takes the only one.
        bins: Number of bins.
        replicates: Bootstrap data sets over cases, within the same bins; 0 leaves standard errors
            out.
        seed: Seed of the resampling.

    Returns:
        Dataset over bin: ``predicted_sd``, ``rmse``, ``count``, and ``lower``, ``upper``, the
        smallest and largest predicted sd in it; scalars ``ence``, ``uce``, each with ``_null``,
        ``sharpness``, ``rmse_total``; with ``_se`` over cases, NaN for one case.

    Raises:
        TypeError, ValueError: A site is missing or holds classes; values are malformed; a predicted
            variance is 0, or there is one draw and no predicted variance.
    """
    whole("bins", bins)
    whole("replicates", replicates, 0)
    numbers = open_numbers(tree, site)
    counts = count_left_out(numbers.observations())
    square, variance = _maps(numbers)
    known = ~np.isnan(square)
    if not (variance[known] > 0).all():
        raise ValueError(
            "A predicted variance is 0, so no error is small enough; predict with more draws, or "
            "with a likelihood that has a scale."
        )
    edges = np.unique(np.quantile(variance[known], np.arange(1, bins) / bins))
    index = np.where(known, np.searchsorted(edges, variance, side="left"), -1)
    filled, index[known] = np.unique(index[known], return_inverse=True)
    sums = _case_sums(index, len(filled), [np.ones_like(square), variance, square])
    result = _table(index, variance, sums.sum(1))
    found = _figures(sums.sum(1))
    for name, value in found.items():
        result[name] = ((), value)
    null = _null(numbers, index, sums.sum(1))
    for name in ("ence", "uce"):
        result[f"{name}_null"] = ((), null[name].mean())
    if replicates:
        _resample(result, sums, replicates, seed)
    _describe(result)
    result.attrs.update(counts, num_observed=int(known.sum()), num_draws=numbers.num_draws)
    return result.assign_attrs(bins="equal mass by predicted variance")


def _maps(numbers: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Squared errors, NaN where not observed, and predicted variances."""
    square, variance = np.empty(numbers.observed.shape), np.empty(numbers.observed.shape)
    for block in numbers.blocks():
        where = tuple(block.get(dim, slice(None)) for dim in numbers.sizes)
        read = numbers.read(block)
        square[where] = ((read.observed - read.mean) ** 2).transpose(*numbers.sizes).values
        variance[where] = read.variance.transpose(*numbers.sizes).values
    return square, variance


def _case_sums(index: np.ndarray, num_bins: int, arrays: list[np.ndarray]) -> np.ndarray:
    """Sums (array, case, bin)."""
    cases = len(index)
    case = np.broadcast_to(np.arange(cases).reshape(-1, *(1,) * (index.ndim - 1)), index.shape)
    kept = index >= 0
    flat = case[kept] * num_bins + index[kept]
    return np.stack(
        [
            np.bincount(flat, array[kept], cases * num_bins).reshape(cases, num_bins)
            for array in arrays
        ]
    )


def _figures(sums: np.ndarray) -> dict[str, np.ndarray | np.float64]:
    """Figures from sums of count, variance and squared error (3, ..., bin)."""
    count = sums[0]
    filled = np.where(count > 0, count, 1)
    predicted, square = sums[1] / filled, sums[2] / filled
    apart = np.abs(np.sqrt(predicted) - np.sqrt(square))
    relative = np.divide(apart, np.sqrt(predicted), out=np.zeros(apart.shape), where=predicted > 0)
    total = count.sum(-1)
    return {
        "ence": relative.sum(-1) / (count > 0).sum(-1),
        "uce": (count * np.abs(predicted - square)).sum(-1) / total,
        "sharpness": np.sqrt(sums[1].sum(-1) / total),
        "rmse_total": np.sqrt(sums[2].sum(-1) / total),
    }


def _null(numbers: Numbers, index: np.ndarray, sums: np.ndarray) -> dict[str, np.ndarray]:
    """Figures (draw) with every draw as the observation."""
    num_bins = sums.shape[-1]
    squares = np.zeros((numbers.num_draws, num_bins))
    for block in numbers.blocks():
        where = tuple(block.get(dim, slice(None)) for dim in numbers.sizes)
        kept = index[where] >= 0
        mean = numbers.read(block).mean.values
        drawn = numbers.draws(block).values.reshape(numbers.num_draws, *mean.shape)
        for row, values in zip(squares, drawn, strict=True):
            row += np.bincount(index[where][kept], (values - mean)[kept] ** 2, num_bins)
    shape = squares.shape
    stacked = np.stack([np.broadcast_to(sums[0], shape), np.broadcast_to(sums[1], shape), squares])
    return {name: np.asarray(value) for name, value in _figures(stacked).items()}


def _resample(result: xr.Dataset, sums: np.ndarray, replicates: int, seed: int) -> None:
    """Add standard errors over cases."""
    cases = sums.shape[1]
    seen = sums[0].sum(1) > 0
    number = int(seen.sum())
    rng = np.random.default_rng(seed)
    weights = np.zeros((replicates, cases))
    weights[:, seen] = rng.multinomial(number, np.full(number, 1 / number), replicates)
    for name, values in _figures(np.stack([weights @ part for part in sums])).items():
        spread = np.asarray(values).std(ddof=1) if number > 1 and replicates > 1 else np.nan
        result[f"{name}_se"] = ((), spread, {"note": "bootstrap over cases, bins held fixed"})


def _table(index: np.ndarray, variance: np.ndarray, sums: np.ndarray) -> xr.Dataset:
    count, predicted, square = sums
    inside = [variance[index == number] for number in range(len(count))]
    return xr.Dataset(
        {
            "predicted_sd": ("bin", np.sqrt(predicted / count)),
            "rmse": ("bin", np.sqrt(square / count)),
            "count": ("bin", count.astype(np.int64)),
            "lower": ("bin", np.sqrt([values.min() for values in inside])),
            "upper": ("bin", np.sqrt([values.max() for values in inside])),
        },
        coords={"bin": np.arange(len(count))},
    )


def _describe(result: xr.Dataset) -> None:
    for name, variable in result.data_vars.items():
        unit = "unit of the value"
        if str(name).startswith("ence"):
            unit = "1"
        elif str(name).startswith("uce"):
            unit = "unit of the value, squared"
        variable.attrs["units"] = "entries" if name == "count" else unit
