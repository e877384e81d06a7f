"""Trees made of given probabilities and labels; data sets whose frequencies are exact."""

from typing import Any

import numpy as np
import xarray as xr
from posterior_trees import array, classification_tree


def labelled_tree(
    probs: np.ndarray, label: np.ndarray, prefix: str = "p", extra: tuple[str, ...] = ()
) -> xr.DataTree:
    """Probabilities (case, class, ...), or with chain and draw before, and labels (case, ...)."""
    if probs.ndim == label.ndim + 1:
        probs = probs[None, None]
    ids = {"case": [f"{prefix}{index}" for index in range(len(label))]}
    names = {"class": [f"class {index}" for index in range(probs.shape[3])]}
    dims = ("chain", "draw", "case", "class", *extra)
    return xr.DataTree.from_dict(
        {
            "/posterior": xr.Dataset({"probs": (dims, probs)}, {**ids, **names}),
            "/observed_data": xr.Dataset({"label": (("case", *extra), label)}, ids),
        }
    )


def exact_frequencies() -> tuple[np.ndarray, np.ndarray]:
    """Cases whose labels come exactly as often as their probabilities say."""
    tenths = np.array([[7, 2, 1], [1, 8, 1], [3, 3, 4], [5, 1, 4], [2, 2, 6], [1, 3, 6]])
    probs = np.repeat(tenths / 10, 10, axis=0)
    label = np.concatenate([np.repeat(np.arange(3), row) for row in tenths])
    return probs, label


def tempered(probs: np.ndarray, temperature: float | np.ndarray) -> np.ndarray:
    """Softmax of log p times the temperature: what dividing by it undoes."""
    power = probs**temperature
    return power / power.sum(-1, keepdims=True)


def calibrated_labels(probs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a class from every row."""
    return (probs.cumsum(-1)[..., :-1] < rng.random(probs.shape[:-1])[..., None]).sum(-1)


def probs_of(tree: xr.DataTree) -> np.ndarray:
    """Mixture (case, class)."""
    return array(tree, "posterior/probs").mean(("chain", "draw")).values


def label_of(tree: xr.DataTree) -> np.ndarray:
    """Observed class (case)."""
    return array(tree, "observed_data/label").values


def halves(cases: int = 400, **options: Any) -> tuple[xr.DataTree, xr.DataTree]:
    """A miscalibrated classifier: cases to learn from, and others."""
    tree = classification_tree(cases=cases, **options)
    probs = array(tree, "posterior/probs")
    tree["posterior"] = xr.Dataset({"probs": probs.copy(data=_distorted(probs.values))})
    tree = tree.filter(lambda node: node.name != "log_likelihood")
    half = cases // 2
    return tree.isel(case=slice(half)), tree.isel(case=slice(half, None))


def _distorted(probs: np.ndarray) -> np.ndarray:
    power = probs ** np.array([1.8, 1.2, 2.5][: probs.shape[-1]])
    return power / power.sum(-1, keepdims=True)
