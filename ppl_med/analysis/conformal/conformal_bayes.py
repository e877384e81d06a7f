"""Full conformal prediction with the posterior predictive density as the score.

Every training case stays in use. An outcome y of test case x is tried by adding (x, y) to the
training data: the posterior with one case more comes from the draws with weights
w_s = p(y | x, draw s), and every case is scored by its predictive density under it,

    q_i = sum_s w_s p(y_i | x_i, draw s) / sum_s w_s,   and q for (x, y) itself
    set = {y : 1 + #{i : q_i <= q} > alpha (n + 1)}

For exact posteriors the score treats all n + 1 cases alike, so the set covers with probability at
least 1 - alpha, also if the model is wrong. It needs draws enough: ``effective_draws`` says how
many carry the weights.

Source: Fong and Holmes, NeurIPS 2021, arXiv:2106.06137, section 3.
"""

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.conformal import importance, order_statistics
from ppl_med.analysis.conformal.hits import interval_hits, label_hits, observed_cases
from ppl_med.analysis.statistics.location_scale import check_distribution
from ppl_med.analysis.tree import CaseNumbers, case_coords, open_class_pair, open_number_pair
from ppl_med.moved import renamed_argument

_BLOCK = 2**22  # numbers held at once
_FEWEST = 10.0  # effective draws
_GRID = 201
_ATTRS = {"method": "posterior predictive", "procedure": "conformal Bayes"}
_REACH = 8.0  # predictive sd on either side of the mean


def bayes_sets(
    training: xr.DataTree,
    tree: xr.DataTree | xr.DataArray,
    alpha: float = 0.1,
    *,
    min_effective_draws: float = _FEWEST,
) -> xr.Dataset:
    """Return conformal Bayes prediction sets of classes.

    Args:
        training: The tree of `predict` on the training cases, with labels; cases with -1 are left
            out.
        tree: The tree of `predict` on other cases, the same draws and seed.
        alpha: Miss rate, in (0, 1).
        min_effective_draws: Refuse where fewer draws carry the weights of a class.

    Returns:
        Dataset with ``prediction_set`` (case, class), ``set_size`` (case), ``pvalue`` (case, class)
        = (1 + #{q_i <= q}) / (n + 1), ``n``, ``k``, ``effective_draws`` (case, class); with labels
        ``covered`` (case) and ``coverage``.

    Raises:
        TypeError, ValueError: Trees malformed, of different draws, not of training cases, or with
            shared cases; too few effective draws.
    """
    checks.inside("alpha", alpha)
    old, new = open_class_pair(training, tree)
    _check_pair(training, tree, old.array, new.array)
    if old.names != new.names:
        raise ValueError(f"training has the classes {old.names}, not {new.names}.")
    seen = old.case_labels()
    cases = observed_cases(seen)
    old, label = old.isel(cases), seen[cases].values
    parts = []
    for block, probs in old.blocks():
        of_block = label[block["case"]]
        parts.append(importance.samples(probs)[:, np.arange(of_block.size), of_block])
    likelihood = np.concatenate(parts, 1)
    counts, draws = [], []
    for _, probs in new.blocks():
        tried = importance.samples(probs)
        found = _ranks(likelihood, tried.reshape(len(tried), -1))
        counts.append(found[0])
        draws.append(found[1])
    count, effective = np.concatenate(counts), np.concatenate(draws)
    _check_effective(effective, min_effective_draws)
    template = new.array.isel(chain=0, draw=0, drop=True)
    rank = order_statistics.coverage_rank(label.size, alpha)
    sets = template.copy(data=_inside(count, label.size, rank).reshape(template.shape))
    result = xr.Dataset({"prediction_set": sets, "set_size": sets.sum("class")})
    pvalue = (count / (label.size + 1)).reshape(template.shape)
    result["pvalue"] = template.copy(data=pvalue)
    result["effective_draws"] = template.copy(data=effective.reshape(template.shape))
    result = result.assign(n=label.size, k=rank)
    return importance.finish(result, label_hits(new, sets), alpha, **_ATTRS)


@renamed_argument("outcome", "site")
def bayes_intervals(
    training: xr.DataTree,
    tree: xr.DataTree,
    alpha: float = 0.1,
    *,
    site: str | None = None,
    num_points: int = _GRID,
    min_effective_draws: float = _FEWEST,
) -> xr.Dataset:
    """Return conformal Bayes intervals of a number that is Normal(loc, scale) under every draw.

    Outcomes are tried on a grid around the predictive mean, 8 predictive sd to either side; the
    interval is the hull of those that stay (of the best one if none does), widened by one step of
    the grid.

    Args:
        training: The tree of `predict` on the training cases, with posterior/loc and scale; cases
            with NaN are left out.
        tree: The tree of `predict` on other cases, the same draws and seed.
        alpha: Miss rate, in (0, 1).
        site: Name of the observed numbers.
        num_points: Number of points of the grid, 3 or more.
        min_effective_draws: Refuse where fewer draws carry the weights of an outcome that stays.

    Returns:
        Dataset with ``interval`` (case, bound), infinite where the end of the grid stays inside,
        ``width``, ``effective_draws`` (case), the fewest over the outcomes that stay, ``n``, ``k``;
        with observed numbers ``covered`` and ``coverage``.

    Raises:
        TypeError, ValueError: As `bayes_sets`, or no ``loc`` and ``scale``.
    """
    checks.inside("alpha", alpha)
    checks.whole("num_points", num_points, 3)
    numbers, others = open_number_pair(training, tree, site)
    _check_pair(training, tree, numbers.find("loc"), others.find("loc"))
    seen = numbers.required()

    def density(part: CaseNumbers) -> xr.DataArray:
        values = _density(part.required().values, *_parameters(part))
        return xr.DataArray(values, dims=("sample", "case"))

    likelihood = numbers.isel(observed_cases(seen)).map(density).values
    rank = order_statistics.coverage_rank(likelihood.shape[1], alpha)

    def intervals(part: CaseNumbers) -> xr.Dataset:
        loc, scale = (values.T for values in _parameters(part))
        parts = [
            _case_interval(likelihood, *of_case, rank, num_points)
            for of_case in zip(loc, scale, strict=True)
        ]
        bounds, effective = (np.array(column) for column in zip(*parts, strict=True))
        values = {"interval": (("case", "bound"), bounds), "effective_draws": ("case", effective)}
        coords = case_coords(part.find("loc"))
        return xr.Dataset(values, {**coords, "bound": ["lower", "upper"]})

    result = others.map(intervals)
    bounds = result["interval"].values
    _check_effective(result["effective_draws"].values, min_effective_draws)
    result["width"] = ("case", bounds[:, 1] - bounds[:, 0])
    result = result.assign(n=likelihood.shape[1], k=rank)
    hits = interval_hits(others, bounds)
    return importance.finish(result, hits, alpha, outcome=numbers.site, **_ATTRS)


def _parameters(part: CaseNumbers) -> tuple[np.ndarray, np.ndarray]:
    """``loc`` and ``scale`` (sample, case)."""
    loc, scale = part.read("loc"), part.read("scale")
    if float(scale.min()) <= 0:
        raise ValueError("posterior/scale must be positive.")
    if "variance" in part.predicted:
        check_distribution("normal", (part.find("variance") / scale**2).values)
    return importance.samples(loc), importance.samples(scale)


def _check_pair(
    training: xr.DataTree,
    tree: xr.DataTree | xr.DataArray,
    old: xr.DataArray,
    new: xr.DataArray,
) -> None:
    kind = training.attrs.get("log_likelihood_of") if isinstance(training, xr.DataTree) else None
    if kind != "training":
        raise ValueError(
            f"training.attrs['log_likelihood_of'] is {kind!r}; conformal Bayes needs the cases the "
            "model was trained on, all of them. Set it to 'training' if they are."
        )
    importance.check_pair(training, tree, old, new)


def _ranks(likelihood: np.ndarray, tried: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return 1 + #{q_i <= q} and the effective draws of every outcome tried.

    Args:
        likelihood: Likelihood of the training cases (sample, training case).
        tried: Density of the outcome tried (sample, outcome).
    """
    count = np.empty(tried.shape[1], int)
    effective = np.empty(tried.shape[1])
    step = max(1, _BLOCK // likelihood.shape[1])
    for start in range(0, tried.shape[1], step):
        part = tried[:, start : start + step]
        total = part.sum(0)
        safe = np.where(total > 0, part / np.where(total > 0, total, 1), 1 / len(part))
        scores = likelihood.T @ safe  # (training case, outcome)
        count[start : start + step] = 1 + (scores <= (safe * part).sum(0)).sum(0)
        effective[start : start + step] = 1 / (safe**2).sum(0)
    return count, effective


def _inside(count: np.ndarray, num_cases: int, rank: int) -> np.ndarray:
    """Whether the p-value count / (n + 1) is above alpha, in exact arithmetic."""
    return count > num_cases + 1 - rank


def _case_interval(
    likelihood: np.ndarray, loc: np.ndarray, scale: np.ndarray, rank: int, num_points: int
) -> tuple[tuple[float, float], float]:
    reach = _REACH * float((np.mean(scale**2) + loc.var()) ** 0.5)
    grid, step = np.linspace(loc.mean() - reach, loc.mean() + reach, num_points, retstep=True)
    tried = _density(grid, loc[:, None], scale[:, None])
    count, effective = _ranks(likelihood, tried)
    inside = np.flatnonzero(_inside(count, likelihood.shape[1], rank))
    if not inside.size:  # narrower than the grid, or empty: keep the outcome that fits best
        inside = np.array([count.argmax()])
    first, last = int(inside[0]), int(inside[-1])
    lower = -np.inf if first == 0 else grid[first] - step
    upper = np.inf if last == num_points - 1 else grid[last] + step
    return (float(lower), float(upper)), float(effective[inside].min())


def _density(value: np.ndarray, loc: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * ((value - loc) / scale) ** 2) / (scale * (2 * np.pi) ** 0.5)


def _check_effective(effective: np.ndarray, fewest: float) -> None:
    if effective.min() < fewest:
        raise ValueError(
            f"Only {effective.min():.1f} effective draws carry the weights of some outcome, fewer "
            f"than {fewest:g}: predict more draws, lower min_effective_draws, or use split "
            "conformal."
        )
