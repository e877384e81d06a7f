"""Posterior trees with a known generator, in the shape that predict returns."""

import numpy as np
import xarray as xr
from scipy.special import softmax


def random_probs(
    *,
    chains: int = 2,
    draws: int = 20,
    cases: int = 30,
    classes: int = 3,
    extra: dict[str, int] | None = None,
    noise: float = 1.0,
    seed: int = 0,
) -> xr.DataArray:
    """Softmax of case effects plus independent draw effects, class on its named axis."""
    rng = np.random.default_rng(seed)
    extra = extra or {}
    tail = tuple(extra.values())
    loc = rng.normal(0, 1.5, (1, 1, cases, classes, *tail))
    logits = loc + noise * rng.normal(size=(chains, draws, cases, classes, *tail))
    coords = {
        "chain": np.arange(chains),
        "draw": np.arange(draws),
        "case": [f"patient-{index}" for index in range(cases)],
        "class": [f"class {index}" for index in range(classes)],
    }
    dims = ("chain", "draw", "case", "class", *extra)
    return xr.DataArray(softmax(logits, axis=3), coords, dims, name="probs")


def classification_tree(
    *,
    chains: int = 2,
    draws: int = 20,
    cases: int = 30,
    classes: int = 3,
    noise: float = 1.0,
    seed: int = 0,
) -> xr.DataTree:
    """A calibrated classifier: labels are drawn from the mixture of the draws."""
    probs = random_probs(
        chains=chains, draws=draws, cases=cases, classes=classes, noise=noise, seed=seed
    )
    rng = np.random.default_rng(seed + 1000)
    label = draw_labels(probs.mean(("chain", "draw")), rng)
    likelihood = xr.ufuncs.log(probs.isel({"class": label.drop_vars("case")})).drop_vars("class")
    return xr.DataTree.from_dict(
        {
            "/": xr.Dataset(attrs={"model": "Toy", "seed": seed, "log_likelihood_of": "held-out"}),
            "/posterior": xr.Dataset({"probs": probs}),
            "/posterior_predictive": xr.Dataset({"label": draw_labels(probs, rng)}),
            "/log_likelihood": xr.Dataset({"label": likelihood}),
            "/observed_data": xr.Dataset({"label": label}),
        }
    )


def draw_labels(probs: xr.DataArray, rng: np.random.Generator) -> xr.DataArray:
    """Draw a class index from every probability vector by inversion."""
    below = probs.cumsum("class").transpose(..., "class")
    uniform = rng.random(below.shape[:-1])[..., None]
    index = (below < uniform).sum("class").clip(max=probs.sizes["class"] - 1)
    return index.astype(np.int64)


def array(tree: xr.DataTree, path: str) -> xr.DataArray:
    """Return one array of a tree, e.g. ``posterior/probs``."""
    found = tree[path]
    assert isinstance(found, xr.DataArray)
    return found
