"""A posterior tree goes through the installed ArviZ as it is, whichever generation that is.

The checks are functions of a tree, so that any classifier's tree can be given.
"""

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import xarray as xr
from posterior_trees import array, classification_tree
from scipy.special import logsumexp

from ppl_med import storage
from ppl_med.analysis import convergence, scoring

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def binary_tree() -> xr.DataTree:
    return classification_tree(chains=2, draws=100, cases=60, classes=2, noise=0.3, seed=1)


@pytest.fixture(scope="module")
def ternary_tree() -> xr.DataTree:
    return classification_tree(chains=2, draws=100, cases=60, classes=3, noise=0.3, seed=2)


@pytest.fixture(scope="module")
def predicted_tree() -> xr.DataTree:
    """From predict; where torch is missing, a tree that was saved where it is not."""
    saved = os.environ.get("PPL_MED_TREE")
    if saved:
        tree = storage.load(saved)
        assert isinstance(tree, xr.DataTree)
        return tree
    if importlib.util.find_spec("torch") is None:
        pytest.skip("needs torch, or PPL_MED_TREE naming a file of tests/predicted_tree.py")
    predict_cells = importlib.import_module("predicted_tree").predict_cells
    return predict_cells()


def as_training(tree: xr.DataTree) -> xr.DataTree:
    tree = tree.copy()
    tree.attrs["log_likelihood_of"] = "training"
    return tree


def close(plot: object) -> None:
    import matplotlib.pyplot as plt

    assert plt.get_fignums(), "nothing was drawn"
    plt.close("all")


def check_summary(tree: xr.DataTree) -> None:
    """One row per case and class, with the mean the mixture has."""
    from arviz_stats import summary

    table = summary(
        tree, var_names=["probs"], kind="stats", ci_prob=0.9, ci_kind="eti", round_to="none"
    )
    probs = array(tree, "posterior/probs")
    assert len(table) == probs.sizes["case"] * probs.sizes["class"]
    mean = probs.mean(("chain", "draw")).transpose("case", "class").values.ravel()
    np.testing.assert_allclose(table["mean"].to_numpy(float), mean, atol=1e-9)


def check_loo(tree: xr.DataTree) -> None:
    """PSIS-LOO takes the log-likelihood and lies below the in-sample log score."""
    from arviz_stats import loo

    with warnings.catch_warnings():  # a large Pareto k is a finding, not an incompatibility
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto")
        result = loo(tree, pointwise=True, var_name="label")
    likelihood = array(tree, "log_likelihood/label")
    in_sample = logsumexp(likelihood.values, axis=(0, 1)) - np.log(
        likelihood.sizes["chain"] * likelihood.sizes["draw"]
    )
    assert np.isfinite(result.elpd)
    assert result.elpd < in_sample.sum()
    assert result.n_data_points == likelihood.sizes["case"]


def check_heldout(tree: xr.DataTree) -> None:
    """The attribute decides: training cases go to loo, held-out ones to elpd_heldout."""
    assert np.isfinite(float(scoring.elpd_heldout(tree)["elpd_sum"]))
    with pytest.raises(ValueError, match="arviz_stats"):
        scoring.elpd_heldout(as_training(tree))


def check_pava(tree: xr.DataTree) -> None:
    from arviz_plots import plot_ppc_pava

    kind = "binary" if array(tree, "posterior/probs").sizes["class"] == 2 else "categorical"
    close(plot_ppc_pava(tree, data_type=kind, ci_prob=0.9, var_names=["label"]))


def check_pit(tree: xr.DataTree) -> None:
    from arviz_plots import plot_ppc_pit

    for coverage in (False, True):
        with warnings.catch_warnings():  # ArviZ prefers plot_ppc_pava for two classes
            warnings.filterwarnings("ignore", ".* looks? binary")
            plot = plot_ppc_pit(tree, coverage=coverage, var_names=["label"])
        close(plot)


def check_forest(tree: xr.DataTree) -> None:
    from arviz_plots import plot_forest

    last = array(tree, "posterior/probs")["class"].values[-1]
    close(plot_forest(tree, var_names=["probs"], coords={"class": last}))


def check_arviz(tree: xr.DataTree) -> None:
    """The package `arviz` itself, through the container that its generation takes."""
    import arviz

    data = storage.to_inference_data(tree)
    if "InferenceData" in vars(arviz):
        assert isinstance(data, arviz.InferenceData)
        assert set(data.groups()) == set(tree.children)
        for group in tree.children:
            xr.testing.assert_identical(data[group], tree[group].to_dataset())
        assert data.attrs["model"] == tree.attrs["model"]
    else:
        assert data is tree
    table = arviz.summary(data, var_names=["probs"])
    assert len(table) == array(tree, "posterior/probs")[0, 0].size


def check_leaving_out(tree: xr.DataTree) -> None:
    """Our door gives what ArviZ gives, and refuses held-out cases."""
    from arviz_stats import loo

    with pytest.raises(ValueError, match="no draw has seen these cases"):
        tree = tree.copy()
        tree.attrs["log_likelihood_of"] = "held-out"
        scoring.elpd_loo(tree)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto")
        found = scoring.elpd_loo(as_training(tree))
        expected = loo(tree, pointwise=True, var_name="label", reff=1.0)
    assert float(found["elpd_sum"]) == pytest.approx(expected.elpd)
    np.testing.assert_allclose(found["pareto_k"], expected.pareto_k)


def check_r_hat(tree: xr.DataTree) -> None:
    """That of ArviZ; and no number for an ensemble of point estimates."""
    from arviz_stats import rhat

    probs = array(tree, "posterior/probs")
    found = convergence.r_hat(tree)["r_hat"]
    np.testing.assert_allclose(found, rhat(probs.values, chain_axis=0, draw_axis=1))
    one = probs.isel(draw=[0] * 5).assign_coords(draw=range(5))
    points = convergence.r_hat(xr.DataTree.from_dict({"posterior": one.to_dataset()}))
    assert points["r_hat"].isnull().all()
    assert points.attrs["note"] == "R-hat is not defined for one function per chain"


CHECKS = [
    check_leaving_out,
    check_r_hat,
    check_summary,
    check_loo,
    check_heldout,
    check_pava,
    check_pit,
    check_forest,
    check_arviz,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_binary_classifier(check: Callable[[xr.DataTree], None], binary_tree: xr.DataTree) -> None:
    check(binary_tree)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_three_classes(check: Callable[[xr.DataTree], None], ternary_tree: xr.DataTree) -> None:
    check(ternary_tree)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_what_predict_returns(
    check: Callable[[xr.DataTree], None], predicted_tree: xr.DataTree
) -> None:
    tree = predicted_tree.copy()
    if check is check_heldout:
        tree.attrs["log_likelihood_of"] = "held-out"
    check(tree)


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_a_loaded_tree_is_as_good(suffix: str, binary_tree: xr.DataTree, tmp_path: Path) -> None:
    loaded = storage.load(storage.save(binary_tree, tmp_path / f"run{suffix}"))
    assert isinstance(loaded, xr.DataTree)
    for check in (check_summary, check_loo, check_arviz):
        check(loaded)
