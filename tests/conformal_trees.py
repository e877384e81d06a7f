"""Trees for conformal prediction with a known generator, and the law of their coverage."""

import numpy as np
import xarray as xr
from scipy import stats

REPEATS = 4000
RATE = 1e-3  # false alarm of the tests of the exact law
Z = float(stats.norm.isf(0.5e-6))


def split(tree: xr.DataTree, num_first: int) -> tuple[xr.DataTree, xr.DataTree]:
    first, second = (tree.isel(case=part) for part in (slice(num_first), slice(num_first, None)))
    return first, second


def with_column(tree: xr.DataTree, name: str, values: np.ndarray) -> xr.DataTree:
    """The tree with a column of metadata."""
    tree = tree.copy()
    case = tree["posterior"].to_dataset()["case"].values
    column = xr.DataArray(values, {"case": case}, ("case",))
    tree["constant_data"] = xr.DataTree(column.to_dataset(name=name))
    return tree


def regression_tree(
    loc: np.ndarray,
    outcome: np.ndarray,
    *,
    scale: np.ndarray | None = None,
    quantiles: tuple[np.ndarray, list[float]] | None = None,
    prefix: str = "c",
    seed: int = 0,
) -> xr.DataTree:
    """A Normal posterior: loc, scale (draw, case); quantile (draw, case, level)."""
    loc = np.atleast_2d(loc)
    case = [f"{prefix}{index}" for index in range(loc.shape[1])]
    dims = ("chain", "draw", "case")
    posterior = xr.Dataset({"loc": (dims, loc[None])}, coords={"case": case})
    width = np.ones(loc.shape[1]) if scale is None else scale
    if scale is not None:
        posterior["scale"] = (dims, np.broadcast_to(scale, loc.shape)[None])
    if quantiles is not None:
        posterior["quantile"] = ((*dims, "level"), quantiles[0][None])
        posterior = posterior.assign_coords(level=quantiles[1])
    drawn = np.random.default_rng(seed).normal(loc, width)
    likelihood = stats.norm.logpdf(outcome, loc, width)
    ids = {"case": case}
    return xr.DataTree.from_dict(
        {
            "/": xr.Dataset(attrs={"log_likelihood_of": "training"}),
            "/posterior": posterior,
            "/posterior_predictive": xr.Dataset({"pressure": (dims, drawn[None])}, ids),
            "/log_likelihood": xr.Dataset({"label": (dims, likelihood[None])}, ids),
            "/observed_data": xr.Dataset({"pressure": ("case", outcome)}, ids),
        }
    )


def probs_tree(
    probs: np.ndarray, label: np.ndarray | None = None, *, prefix: str = "c"
) -> xr.DataTree:
    """A classifier from probs (draw, case, class) or (case, class)."""
    probs = probs if probs.ndim == 3 else probs[None]
    case = [f"{prefix}{index}" for index in range(probs.shape[1])]
    names = [f"class {index}" for index in range(probs.shape[2])]
    array = xr.DataArray(
        probs[None], {"case": case, "class": names}, ("chain", "draw", "case", "class")
    )
    groups = {
        "/": xr.Dataset(attrs={"log_likelihood_of": "training"}),
        "/posterior": array.to_dataset(name="probs"),
    }
    if label is not None:
        ids = {"case": case}
        picked = np.log(probs[:, np.arange(label.size), label])[None]
        groups["/observed_data"] = xr.Dataset({"label": ("case", label)}, ids)
        groups["/log_likelihood"] = xr.Dataset({"label": (("chain", "draw", "case"), picked)}, ids)
    return xr.DataTree.from_dict(groups)


def vague_labels(
    rng: np.random.Generator, shape: tuple[int, ...], num_classes: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (..., class) of a poor model, and labels (...) from another law."""
    probs = rng.dirichlet(np.ones(num_classes), shape)
    truth = probs**0.6
    truth /= truth.sum(-1, keepdims=True)
    below = np.cumsum(truth, -1)[..., :-1]
    return probs, (rng.random((*shape, 1)) > below).sum(-1)


def check_beta_law(coverage: np.ndarray, rank: np.ndarray | int, size: np.ndarray | int) -> None:
    """Coverages given calibration follow Beta(k, n + 1 - k); k and n may differ by repeat."""
    uniform = stats.beta(rank, np.asarray(size) + 1 - rank).cdf(coverage)
    assert stats.kstest(uniform, "uniform").pvalue > RATE


def check_count_law(covered: np.ndarray, num_test: int, rank: int, size: int) -> None:
    """Covered counts follow BetaBinomial(m, k, n + 1 - k)."""
    law = stats.betabinom(num_test, rank, size + 1 - rank)
    expected = covered.size * law.pmf(np.arange(num_test + 1))
    seen = np.bincount(covered, minlength=num_test + 1)
    keep = expected >= 5
    pooled = [np.append(counts[keep], counts[~keep].sum()) for counts in (seen, expected)]
    assert stats.chisquare(*pooled).pvalue > RATE
