"""Conformal prediction without calibration cases: every training case is left out in turn.

The posterior without case i comes from importance weights of the draws (see `importance`). With
r_i the score of training case i and s_i(x, y) that of outcome y of test case x under the posterior
without i, the jackknife+ keeps

    {y : #{i : s_i(x, y) > r_i} < k},   k = ceil((n + 1)(1 - alpha))

and, for |y - mean|, the interval from the (n + 1 - k)-th smallest mean_i - r_i to the k-th smallest
mean_i + r_i. With exact leave-one-out posteriors it covers with probability at least 1 - 2 alpha,
and 1 - alpha in practice. Importance weights add an error that Pareto k watches. The coverage has
no exact distribution, so there is no band.

Sources: Barber, Candes, Ramdas and Tibshirani, Annals of Statistics 49, 2021, arXiv:1905.02928;
Romano, Sesia and Candes, NeurIPS 2020, arXiv:2006.02544, section 2.3 (classes).
"""

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.conformal import importance, order_statistics
from ppl_med.analysis.conformal.hits import interval_hits, label_hits, observed_cases
from ppl_med.analysis.conformal.nonconformity import Score, class_scores, score_of, uniforms
from ppl_med.analysis.tree import (
    CaseNumbers,
    Posterior,
    case_coords,
    open_class_pair,
    open_number_pair,
)
from ppl_med.axes import SAMPLES
from ppl_med.moved import renamed_argument

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
        training: The tree of `predict` on the training cases, with labels; cases with -1 are left
            out.
        tree: The tree of `predict` on other cases, the same draws and seed.
        alpha: Miss rate aimed at, in (0, 1).
        method: As for `conformal.calibrate`; the score is that of the mixture.
        pareto_k: Largest Pareto k to accept; by default min(1 - 1 / log10 draws, 0.7).
        seed: Seed of the uniform numbers of randomised scores.

    Returns:
        Dataset with ``prediction_set`` (case, class), ``set_size`` (case), ``n``, ``k``,
        ``coverage_guaranteed`` = 1 - 2 alpha, ``pareto_k`` (training_case); with labels
        ``covered`` (case) and ``coverage``.

    Raises:
        TypeError, ValueError: Trees malformed, of different draws or with shared cases, or Pareto k
            too large.
    """
    checks.inside("alpha", alpha)
    settings = score_of(method)
    if settings.draws != "mixture":
        raise ValueError("Leaving one out scores the mixture; use Score(draws='mixture').")
    old, new = open_class_pair(training, tree)
    importance.check_pair(training, tree, old.array, new.array)
    seen = old.case_labels()
    if old.names != new.names:
        raise ValueError(f"training has the classes {old.names}, not {new.names}.")
    cases = observed_cases(seen)
    count = old.num_samples[0] * old.num_samples[1]
    weights, shape = importance.leave_one_out_weights(training, pareto_k, cases, count)
    old, label = old.isel(cases), seen[cases].values
    noise = [_noise(classes.array, settings, seed) for classes in (old, new)]
    own = np.concatenate(
        [
            np.einsum("is,sic->ic", weights[block["case"]], importance.samples(probs))
            for block, probs in old.blocks()
        ]
    )
    reached = class_scores(own, settings, noise[0])[np.arange(len(own)), label]
    rank = order_statistics.coverage_rank(len(own), alpha)
    parts = [
        _members(weights, importance.samples(probs), reached, rank, settings, noise[1][b["case"]])
        for b, probs in new.blocks()
    ]
    member = np.concatenate(parts)
    sets = new.array.isel(chain=0, draw=0, drop=True).copy(data=member)
    result = xr.Dataset({"prediction_set": sets, "set_size": sets.sum("class")})
    hits = label_hits(new, sets)
    if rank > len(own):
        result["prediction_set"][:] = True
    return _finish(result, shape, hits, alpha, (len(own), rank), settings.method)


@renamed_argument("outcome", "site")
def leave_one_out_intervals(
    training: xr.DataTree,
    tree: xr.DataTree,
    alpha: float = 0.1,
    *,
    site: str | None = None,
    pareto_k: float | None = None,
) -> xr.Dataset:
    """Return jackknife+ intervals of an observed number around the mean of ``loc``.

    Args:
        training: The tree of `predict` on the training cases, with observed numbers; cases with
            NaN are left out.
        tree: The tree of `predict` on other cases, the same draws and seed.
        alpha: Miss rate aimed at, in (0, 1).
        site: Name of the observed numbers.
        pareto_k: As for `leave_one_out_sets`.

    Returns:
        Dataset with ``interval`` (case, bound), ``width`` (case), and as `leave_one_out_sets`.

    Raises:
        TypeError, ValueError: As `leave_one_out_sets`, or no ``loc``.
    """
    checks.inside("alpha", alpha)
    numbers, others = open_number_pair(training, tree, site)
    importance.check_pair(training, tree, numbers.find("loc"), others.find("loc"))
    seen = numbers.required()
    cases = observed_cases(seen)
    numbers = numbers.isel(cases)
    old = numbers.find("loc")
    count = old.sizes["chain"] * old.sizes["draw"]
    weights, shape = importance.leave_one_out_weights(training, pareto_k, cases, count)
    shares = xr.DataArray(
        weights.reshape(-1, old.sizes["chain"], old.sizes["draw"]),
        {"case": old["case"].values},
        ("case", *SAMPLES),
    )

    def without_itself(part: CaseNumbers) -> xr.DataArray:
        loc = part.read("loc")
        return xr.dot(shares.sel(case=loc["case"].values), loc, dim=SAMPLES)

    residual = np.abs(seen[cases].values - numbers.map(without_itself).values)[:, None]
    rank = order_statistics.coverage_rank(len(residual), alpha)

    def bounds(part: CaseNumbers) -> xr.DataArray:
        loc = part.read("loc")
        mean = weights @ importance.samples(loc)  # (training case, test case)
        upper = order_statistics.kth_smallest((mean + residual).T, rank)
        lower = -order_statistics.kth_smallest((residual - mean).T, rank)
        ends = np.stack([lower, upper], 1)
        return xr.DataArray(ends, case_coords(loc), ("case", "bound"))

    interval = others.map(bounds)
    result = xr.Dataset({"interval": interval.assign_coords(bound=["lower", "upper"])})
    result["width"] = ("case", np.maximum(interval.values[:, 1] - interval.values[:, 0], 0))
    hits = interval_hits(others, interval.values)
    result.attrs["outcome"] = numbers.site
    return _finish(result, shape, hits, alpha, (len(residual), rank), "absolute")


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
    result: xr.Dataset,
    shape: xr.DataArray,
    hits: np.ndarray | None,
    alpha: float,
    count: tuple[int, int],
    method: str,
) -> xr.Dataset:
    result = result.assign(n=count[0], k=count[1], pareto_k=shape)
    about = {"units": "probability", "note": "for exact leave-one-out posteriors"}
    result["coverage_guaranteed"] = ((), max(0.0, 1 - 2 * alpha), about)
    procedure = "jackknife+ by PSIS"
    return importance.finish(result, hits, alpha, method=method, procedure=procedure)
