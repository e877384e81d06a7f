"""Conformal prediction without calibration cases: every training case is left out in turn.

The posterior without case i comes from importance weights of the draws (see `importance`). With
r_i the score of training case i and s_i(x, y) that of outcome y of test case x under the posterior
without i, the jackknife+ keeps

    {y : #{i : s_i(x, y) > r_i} < k},   k = ceil((n + 1)(1 - alpha))

and, for |y - mean|, the interval from the (n + 1 - k)-th smallest mean_i - r_i to the k-th smallest
mean_i + r_i. With exact leave-one-out posteriors it covers with probability at least 1 - 2 alpha,
and 1 - alpha in practice. Importance weights add an error that Pareto k watches. There is no exact
law of the coverage, so no band.

Sources: Barber, Candes, Ramdas and Tibshirani, Annals of Statistics 49, 2021, arXiv:1905.02928;
Romano, Sesia and Candes, NeurIPS 2020, arXiv:2006.02544, section 2.3 (classes).
"""

import numpy as np
import xarray as xr

from ppl_med.analysis.conformal import importance, order_statistics, outcomes
from ppl_med.analysis.conformal.nonconformity import Score, class_scores, uniforms
from ppl_med.analysis.tree import (
    Posterior,
    case_ids,
    check_disjoint,
    open_classes,
)

_BLOCK = 2**22  # numbers held at once


def leave_one_out_sets(
    training: xr.DataTree,
    tree: Posterior,
    alpha: float = 0.1,
    *,
    method: str | Score = "lac",
    pareto_k: float | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Return jackknife+ prediction sets of classes.

    Args:
        training: The tree of `predict` on the training cases, with labels.
        tree: The tree of `predict` on other cases, the same draws and seed.
        alpha: Miss rate aimed at, in (0, 1).
        method: As for `conformal.calibrate`; the score is that of the mixture.
        pareto_k: Largest Pareto k to accept; by default min(1 - 1 / log10 draws, 0.7).
        seed: Of the uniform numbers of randomised scores.

    Returns:
        Dataset with ``prediction_set`` (case, class), ``set_size`` (case), ``n``, ``k``,
        ``coverage_guaranteed`` = 1 - 2 alpha, ``pareto_k`` (training_case); with labels
        ``covered`` (case) and ``coverage``.

    Raises:
        TypeError, ValueError: Trees malformed, of different draws or with shared cases, or Pareto k
            too large.
    """
    order_statistics.check_alpha(alpha)
    settings = method if isinstance(method, Score) else Score(method)
    if settings.draws != "mixture":
        raise ValueError("Leaving one out scores the mixture; use Score(draws='mixture').")
    sources = open_classes(training), open_classes(tree)
    old, new = (source.array for source in sources)
    _check_pair(training, tree, old, new)
    label = sources[0].case_labels(complete=True)
    names = [source.names for source in sources]
    if names[0] != names[1]:
        raise ValueError(f"training has the classes {names[0]}, not {names[1]}.")
    weights, shape = importance.leave_one_out_weights(training, pareto_k)
    noise = [_noise(array, settings, seed) for array in (old, new)]
    own = np.concatenate(
        [
            np.einsum("is,sic->ic", weights[block["case"]], importance.samples(probs))
            for block, probs in sources[0].blocks()
        ]
    )
    reached = class_scores(own, settings, noise[0])[np.arange(len(own)), label.values]
    rank = order_statistics.coverage_rank(len(own), alpha)
    parts = [
        _members(weights, importance.samples(probs), reached, rank, settings, noise[1][b["case"]])
        for b, probs in sources[1].blocks()
    ]
    member = np.concatenate(parts)
    sets = new.isel(chain=0, draw=0, drop=True).copy(data=member)
    result = xr.Dataset({"prediction_set": sets, "set_size": sets.sum("class")})
    result["set_size"].attrs["units"] = "classes"
    if sources[1].observation() is not None:
        seen = sources[1].case_labels(complete=True).values
        hit = np.take_along_axis(member, seen[:, None], 1)[:, 0]
        result["covered"] = ("case", hit)
    result.attrs.update(method=settings.method, within="")
    return _finish(result, shape, alpha, len(own), rank)


def leave_one_out_intervals(
    training: xr.DataTree,
    tree: xr.DataTree,
    alpha: float = 0.1,
    *,
    outcome: str | None = None,
    pareto_k: float | None = None,
) -> xr.Dataset:
    """Return jackknife+ intervals of a real outcome around the mean of ``loc``.

    Args:
        training: The tree of `predict` on the training cases, with outcomes.
        tree: The tree of `predict` on other cases, the same draws and seed.
        alpha: Miss rate aimed at, in (0, 1).
        outcome: Name of the observed variable.
        pareto_k: As for `leave_one_out_sets`.

    Returns:
        Dataset with ``interval`` (case, bound), ``width`` (case), and as `leave_one_out_sets`.

    Raises:
        TypeError, ValueError: As `leave_one_out_sets`, or no ``loc``.
    """
    order_statistics.check_alpha(alpha)
    name = outcomes.outcome_name(training, outcome)
    old, new = (outcomes.find_required(part, "loc", "this") for part in (training, tree))
    _check_pair(training, tree, old, new)
    seen = outcomes.outcome_values(training, name, old)
    if seen is None:
        raise ValueError(f"training has no observed_data/{name}.")
    weights, shape = importance.leave_one_out_weights(training, pareto_k)
    shares = xr.DataArray(
        weights.reshape(-1, old.sizes["chain"], old.sizes["draw"]),
        {"case": old["case"].values},
        ("case", *outcomes.SAMPLES),
    )

    def without_itself(part: xr.DataTree) -> xr.DataArray:
        loc = outcomes.required(part, "loc", "this")
        return xr.dot(shares.sel(case=loc["case"].values), loc, dim=outcomes.SAMPLES)

    residual = np.abs(seen.values - outcomes.runs(training, name, without_itself).values)[:, None]
    rank = order_statistics.coverage_rank(len(residual), alpha)

    def bounds(part: xr.DataTree) -> xr.DataArray:
        loc = outcomes.required(part, "loc", "this")
        mean = weights @ importance.samples(loc)  # (training case, test case)
        upper = order_statistics.kth_smallest((mean + residual).T, rank)
        lower = -order_statistics.kth_smallest((residual - mean).T, rank)
        ids = {"case": loc["case"].values}
        return xr.DataArray(np.stack([lower, upper], 1), ids, ("case", "bound"))

    interval = outcomes.runs(tree, name, bounds)
    lower, upper = interval.values.T
    result = xr.Dataset({"interval": interval.assign_coords(bound=["lower", "upper"])})
    result["width"] = ("case", np.maximum(upper - lower, 0))
    found = outcomes.outcome_values(tree, name, new)
    if found is not None:
        result["covered"] = ("case", (lower <= found.values) & (found.values <= upper))
    result.attrs.update(method="absolute", outcome=name, within="")
    return _finish(result, shape, alpha, len(residual), rank)


def _check_pair(training: Posterior, tree: Posterior, old: xr.DataArray, new: xr.DataArray) -> None:
    if {old.ndim, new.ndim} - {3, 4} or old.ndim != new.ndim:
        raise ValueError("Sets and intervals are per case; the trees have further dimensions.")
    importance.check_same_draws(training, tree, old, new)
    check_disjoint(case_ids(old, "training"), case_ids(new, "tree"))


def _noise(probs: xr.DataArray, settings: Score, seed: int) -> np.ndarray:
    if settings.randomised and settings.method != "lac":
        return uniforms(probs["case"].values, seed)
    return np.ones(probs.sizes["case"])


def _members(
    weights: np.ndarray,
    probs: np.ndarray,
    reached: np.ndarray,
    rank: int,
    settings: Score,
    noise: np.ndarray,
) -> np.ndarray:
    """Return which classes stay (case, class)."""
    num_draws, num_cases, num_classes = probs.shape
    step = max(1, _BLOCK // (len(weights) * num_classes))
    result = np.empty((num_cases, num_classes), bool)
    for start in range(0, num_cases, step):
        part = slice(start, start + step)
        piece = probs[:, part]
        without = (weights @ piece.reshape(num_draws, -1)).reshape(-1, *piece.shape[1:])
        scores = class_scores(without, settings, noise[part])
        result[part] = (scores > reached[:, None, None]).sum(0) < rank
    return result


def _finish(
    result: xr.Dataset, shape: xr.DataArray, alpha: float, num_cases: int, rank: int
) -> xr.Dataset:
    if rank > num_cases and "prediction_set" in result:
        result["prediction_set"][:] = True
    result = result.assign(n=num_cases, k=rank, pareto_k=shape)
    result["coverage_guaranteed"] = max(0.0, 1 - 2 * alpha)
    result["coverage_guaranteed"].attrs["note"] = "for exact leave-one-out posteriors"
    if "covered" in result:
        result["coverage"] = float(result["covered"].mean())
    for name in {"coverage", "coverage_guaranteed"} & set(result):
        result[name].attrs["units"] = "probability"
    result.attrs.update(alpha=float(alpha), procedure="jackknife+ by PSIS")
    return result
