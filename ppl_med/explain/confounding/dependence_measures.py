"""Does a feature or a prediction depend on a confounder? Measured within the controls.

Among cases of one class, the disease cannot be the reason for an association with the confounder.
Two measures that are 0 only for independent variables, however they depend:

    squared distance correlation   dCov²(x, c) / sqrt(dVar²(x) dVar²(c))        in 0 to 1
    mutual information             of x and c, in nats, by nearest neighbours

Both are above 0 in finite samples of independent variables, so each comes with what chance gives
and a p-value: the confounder's values are permuted over the cases.

References: Székely, Rizzo and Bakirov, Annals of Statistics 35, 2007, eq. 2.8 to 2.10 (distance
correlation, the V-statistic); Ross, PLoS ONE 9, 2014, and Kraskov, Stögbauer and Grassberger,
Physical Review E 69, 2004 (mutual information, as scikit-learn has them); Zhao, Adeli and Pohl,
Nature Communications 11, 2020 (both as measures of confounding, within controls).
"""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from sklearn.feature_selection import mutual_info_classif, mutual_info_regression

from ppl_med.analysis.tree import drop_copies
from ppl_med.axes import SAMPLES
from ppl_med.checks import inside, whole
from ppl_med.explain.draw_intervals import over_draws

MOST_CASES = 5000
_FRONT = (*SAMPLES, "case")


def dependence(
    feature: xr.DataArray,
    confounder: ArrayLike,
    *,
    controls: ArrayLike | None = None,
    permutations: int = 199,
    mutual_information: bool = True,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Measure how far a feature depends on a confounder, beside what chance gives.

    Args:
        feature: Dims (case) or (case, one more), with (chain, draw) in front if every draw has its
            own: a probability of one class, or the output of a feature extractor.
        confounder: One number per case; integers and bools are categories.
        controls: Cases to look at, bool (case); all by default.
        permutations: Number of times that the confounder is permuted over cases.
        mutual_information: Also estimate it; it takes far longer for features of many columns, of
            which the most informative one counts.
        level: Level of the intervals over draws.
        seed: Seed of the permutations and of the estimator.

    Returns:
        ``distance_correlation`` (squared) and ``mutual_information`` (chain, draw); of each
        ``expected_…``, the mean over draws, with ``_lower`` and ``_upper`` over draws,
        ``…_chance``, the mean over permutations, and ``…_p_value`` of the mean over draws,
        (1 + number of permutations that reach it) / (1 + permutations). ``num_cases``.

    Raises:
        ValueError: If lengths or dims do not fit, values are not finite, the confounder or the
            feature is constant among the controls, or these are fewer than 4 or more than 5000.
    """
    whole("permutations", permutations)
    inside("level", level)
    values, cause, index = _checked(feature, confounder, controls)
    random = np.random.default_rng(seed)
    shuffles = [random.permutation(len(cause)) for _ in range(permutations)]
    orders = [np.arange(len(cause)), *shuffles]
    statistics = {"distance_correlation": _distance_correlations(values, cause, orders)}
    if mutual_information:
        statistics["mutual_information"] = np.stack(
            [_information(values, cause[order], seed) for order in orders]
        )
    result = xr.Dataset()
    for name, found in statistics.items():
        draws = index.copy(data=found[0].reshape(index.shape))
        chance = found[1:].mean(1)
        result[name] = draws
        result.update(over_draws(name, draws, level))
        result[f"{name}_chance"] = chance.mean()
        reached = (chance >= found[0].mean() * (1 - 1e-12)).sum()
        result[f"{name}_p_value"] = (1 + reached) / (1 + permutations)
        unit = "nats" if name == "mutual_information" else "1"
        for variable in result.data_vars:
            if name in str(variable):
                result[variable].attrs["units"] = "1" if "p_value" in str(variable) else unit
    result["num_cases"] = len(cause)
    return result.assign_attrs(permutations=permutations, level=level)


def _checked(
    feature: xr.DataArray, confounder: ArrayLike, controls: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[Any], xr.DataArray]:
    """Values (draw, case, column) and confounder of the controls, and an array (chain, draw)."""
    if not isinstance(feature, xr.DataArray) or "case" not in feature.dims:
        raise ValueError("feature must be a DataArray with the dim 'case'")
    rest = [dim for dim in feature.dims if dim not in _FRONT]
    if len(rest) > 1:
        raise ValueError(f"feature has dims {feature.dims}; at most one may stand beside {_FRONT}")
    for dim in ("draw", "chain"):
        feature = feature if dim in feature.dims else feature.expand_dims({dim: [0]})
    feature = drop_copies(feature.transpose(*_FRONT, *rest))
    chosen = np.ones(feature.sizes["case"], bool) if controls is None else np.asarray(controls)
    cause = np.asarray(confounder)
    for name, array in (("confounder", cause), ("controls", chosen)):
        if array.shape != (feature.sizes["case"],):
            raise ValueError(
                f"{name} has shape {array.shape}; feature has {feature.sizes['case']} cases"
            )
    if chosen.dtype != bool:
        raise ValueError(f"controls is {chosen.dtype}; it must be bool, such as label == 0")
    values = feature.values.astype(float)[:, :, chosen]
    cause = cause[chosen]
    if not 4 <= len(cause) <= MOST_CASES:
        raise ValueError(
            f"there must be 4 to {MOST_CASES} cases (distances between all pairs are kept), got "
            f"{len(cause)}"
        )
    if not (np.isfinite(values).all() and np.isfinite(cause).all()):
        raise ValueError("feature or confounder holds NaN or infinite values among the controls")
    values = values.reshape(-1, len(cause), int(np.prod(values.shape[3:])))
    if (cause == cause[0]).all() or (values == values[:, :1]).all((1, 2)).any():
        raise ValueError("confounder or feature has one value only among the controls")
    return values, cause, feature.isel({dim: 0 for dim in ("case", *rest)}, drop=True)


def _distance_correlations(
    values: NDArray[np.float64], cause: NDArray[Any], orders: list[NDArray[np.int64]]
) -> NDArray[np.float64]:
    """Squared, of the confounder in every order, (order, draw)."""
    features = np.stack([_centred(one) for one in values])
    if cause.dtype.kind == "f":
        causes = _centred(cause[:, None])
    else:
        causes = _centred_twice((cause[:, None] != cause).astype(float))
    size = len(cause)
    flat = features.reshape(len(features), -1)
    norm = np.sqrt((flat**2).mean(1) * (causes**2).mean())
    return np.stack([flat @ causes[np.ix_(order, order)].ravel() for order in orders]) / (
        norm * size**2
    )


def _centred(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances between rows (case, column), less the means of rows and columns."""
    squares = (values**2).sum(1)
    distances = squares[:, None] + squares - 2 * values @ values.T
    np.fill_diagonal(distances, 0)
    return _centred_twice(np.sqrt(distances.clip(min=0)))


def _centred_twice(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    return distances - distances.mean(0) - distances.mean(1)[:, None] + distances.mean()


def _information(
    values: NDArray[np.float64], cause: NDArray[Any], seed: int
) -> NDArray[np.float64]:
    """Largest mutual information of a column, (draw,)."""
    estimate = mutual_info_regression if cause.dtype.kind == "f" else mutual_info_classif
    return np.array([float(estimate(one, cause, random_state=seed).max()) for one in values])
