"""Variance of masks between raters and between weights, on generators of which both are known."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from segmentation_trees import certain_probs

from ppl_med.analysis import segmentation
from ppl_med.analysis.statistics import monte_carlo, one_way
from ppl_med.axes import SAMPLES
from ppl_med.storage.padding import pad_dataset
from ppl_med.testing import assert_mean

NAMES = ("between_raters", "between_weights", "between_all")
Z = float(stats.norm.isf(0.5e-6))


def tree_of(masks: np.ndarray, samples: int, columns: Any = None) -> xr.DataTree:
    """Masks (chain, draw, case, row, col) as most probable classes, and as drawn ones."""
    coords = {"case": [f"c{place}" for place in range(masks.shape[2])]}
    array = xr.DataArray(masks, coords, (*SAMPLES, "case", "row", "col"), name="mask")
    array = array.assign_coords(weights=("draw", np.arange(masks.shape[1]) // samples))
    groups = {
        "/posterior": xr.Dataset({"probs": certain_probs(array, int(masks.max()) + 1)}),
        "/posterior_predictive": xr.Dataset({"mask": array}),
    }
    if columns is not None:
        groups["/constant_data"] = xr.Dataset(columns, coords)
    return xr.DataTree.from_dict(groups)


def squares(
    rng: np.random.Generator, weights: int, samples: int, cases: int, between: float, within: float
) -> np.ndarray:
    """Bars of 20 rows whose length follows level (weights) + noise (rater), rounded at random.

    Rounding at random adds the variance 1/6 or so to the raters, which is read off the lengths.
    """
    level = rng.normal(0, between**0.5, (1, weights, 1, cases))
    length = 50 + level + rng.normal(0, within**0.5, (1, weights, samples, cases))
    pixels = np.floor(length + rng.random(length.shape)).astype(int).clip(0, 100)
    flat = np.arange(100) < pixels.reshape(1, -1, cases)[..., None]
    return flat.reshape(1, weights * samples, cases, 20, 5).astype(np.int64)


def by_anova(values: np.ndarray, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Components of values (weights x sample, ...) from the table of the analysis of variance."""
    table = values.reshape(-1, samples, *values.shape[1:]).astype(float)
    groups, means, mean = len(table), table.mean(1), table.mean((0, 1))
    between = samples * ((means - mean) ** 2).sum(0) / (groups - 1)
    within = ((table - means[:, None]) ** 2).sum((0, 1)) / (groups * (samples - 1))
    return within, (between - within) / samples


# --- components of numbers


@pytest.mark.parametrize("groups", [2, 3, 12])
def test_components_of_normals_are_unbiased_and_those_of_the_table(groups: int) -> None:
    """Groups of variance 1, members of variance 4, in 20000 tables."""
    rng = np.random.default_rng(groups)
    values = rng.normal(size=(groups, 1, 20000)) + 2 * rng.normal(size=(groups, 5, 20000))
    found = one_way.influences(values).mean(1)
    for one, expected in zip(found, (4.0, 1.0, 5.0), strict=True):
        assert_mean(one, expected)
    within, between = by_anova(values.reshape(groups * 5, -1), 5)
    np.testing.assert_allclose(found[:2], [within, between], atol=1e-9)
    assert (found[1] < 0).any()  # and kept so
    means = values.mean(1).var(0, ddof=1)
    with pytest.raises(AssertionError):  # what the noise of five members is not taken off
        assert_mean(means, 1.0)


def test_errors_of_the_components_are_not_too_small() -> None:
    """Mean square of the error over the true variance, in 20000 tables of 12 x 5 normals."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(12, 1, 20000)) + 2 * rng.normal(size=(12, 5, 20000))
    found = one_way.influences(values)
    array = xr.DataArray(found[:, None], dims=("part", *SAMPLES, "table"))
    square = (monte_carlo.standard_error(array) ** 2).mean("table").values
    truth = found.mean(1).var(1)
    assert (square > 0.97 * truth).all() and (square < 1.35 * truth).all()
    exact = 2 * (1 + 4 / 5) ** 2 / 11 + 2 * 16 / (12 * 4) / 25  # of the between part
    assert abs(truth[1] / exact - 1) < 0.1


def test_equal_values_have_components_of_exactly_zero() -> None:
    assert (one_way.influences(np.full((4, 3, 2), 0.1)) == 0).all()


# --- masks


@pytest.fixture(scope="module")
def found() -> xr.Dataset:
    masks = squares(np.random.default_rng(1), 24, 12, 30, 9.0, 16.0)
    return segmentation.rater_and_weight_variance(tree_of(masks, 12))


def test_parts_are_those_of_the_table() -> None:
    masks = squares(np.random.default_rng(2), 5, 4, 3, 9.0, 16.0)
    result = segmentation.rater_and_weight_variance(tree_of(masks, 4), spacing=(0.5, 2.0))
    within, between = by_anova(masks[0], 4)
    np.testing.assert_allclose(result["between_raters"][:, 0], within, atol=1e-6)
    np.testing.assert_allclose(result["between_weights"][:, 0], between, atol=1e-6)
    np.testing.assert_allclose(result["between_all"][:, 0], within + between, atol=1e-6)
    np.testing.assert_allclose(
        result["between_weights_per_case"][:, 0], between.mean((1, 2)), rtol=1e-9
    )
    sizes = by_anova(masks[0].sum((-2, -1)), 4)
    for name, one in zip(NAMES[:2], sizes, strict=True):
        np.testing.assert_allclose(result[f"size_{name}"][:, 0], one)
        np.testing.assert_allclose(result[f"size_{name}_mean"][0], one.mean())
        np.testing.assert_allclose(result[f"size_{name}_mean_se"][0], one.std(ddof=1) / 3**0.5)
    assert result["size_between_all"].attrs["units"] == "(mm^2)^2"
    assert result["between_all"].attrs["units"] == "probability^2"
    half = segmentation.rater_and_weight_variance(tree_of(masks, 4), spacing=(0.5, 1.0))
    np.testing.assert_allclose(half["size_between_all"] * 4, result["size_between_all"])


def test_known_parts_of_the_size_are_found(found: xr.Dataset) -> None:
    """Length: 9 between weights, 16 + 1/6 between raters (rounded), 30 cases that share no level.

    Of each part the mean over cases lies within ``Z`` of its error over cases (false alarm 1e-6).
    """
    for name, truth in (("between_weights", 9.0), ("between_raters", 16 + 1 / 6)):
        mean, error = (float(found[f"size_{name}_mean{end}"][0]) for end in ("", "_se"))
        assert abs(mean - truth) < stats.t.isf(0.5e-6, 29) * error
        assert 0 < error < truth / 4
        per_case = found[f"size_{name}"][:, 0]
        within = abs(per_case - truth) < 3 * found[f"size_{name}_mcse"][:, 0]
        assert float(within.mean()) > 0.8
    swapped = abs(float(found["size_between_raters_mean"][0]) - 9)
    assert swapped > 5 * float(found["size_between_raters_mean_se"][0])


def test_parts_of_a_pixel_are_those_of_the_normal(found: xr.Dataset) -> None:
    """Pixel k is inside with probability P(length > k): total p (1 - p), raters E p_w (1 - p_w)."""
    k = np.arange(100)
    nodes, share = np.polynomial.hermite_e.hermegauss(80)
    share = share / share.sum()
    fine = np.linspace(0, 1, 401)[1:] - 1 / 800  # of the rounding
    inside = stats.norm.sf((k[:, None, None] + 1 - fine[None, :, None] - 50 - 3 * nodes) / 4).mean(
        1
    )  # (pixel, node)
    mean = inside @ share
    raters = (inside * (1 - inside)) @ share
    weights = (inside - mean[:, None]) ** 2 @ share
    for name, truth in (("between_raters", raters), ("between_weights", weights)):
        maps = found[name][:, 0].values.reshape(30, 100)[:, 42:58].astype(float)
        assert_mean(maps, truth[42:58])


def test_without_a_spread_of_weights_the_part_is_zero_on_average() -> None:
    """Negative in about half of the cases, and kept so."""
    masks = squares(np.random.default_rng(3), 8, 4, 200, 0.0, 16.0)
    result = segmentation.rater_and_weight_variance(tree_of(masks, 4))
    size = result["size_between_weights"][:, 0].values
    assert_mean(size, 0.0)
    assert 0.3 < (size < 0).mean() < 0.7
    assert_mean(result["between_weights_per_case"][:, 0].values, 0.0)


def test_errors_over_draws_know_that_cases_share_them() -> None:
    """One level for all cases: the mean over 40 cases is no surer than one case."""
    rng = np.random.default_rng(4)
    level = rng.normal(0, 3, (1, 20, 1, 1)) + rng.normal(0, 0.5, (1, 20, 6, 40))
    flat = np.arange(100) < (50 + level).round().reshape(1, 120, 40)[..., None]
    tree = tree_of(flat.reshape(1, 120, 40, 20, 5).astype(np.int64), 6)
    result = segmentation.rater_and_weight_variance(tree)
    mean, error = (float(result[f"size_between_weights_mean{end}"][0]) for end in ("", "_mcse"))
    one = float(result["size_between_weights_mcse"][:, 0].mean())
    assert 0.8 < error / one < 1.1
    assert float(result["size_between_weights_mean_se"][0]) < error / 5
    assert abs(mean - 9) < 4 * error


def test_drawn_masks_chains_classes_and_patients() -> None:
    masks = squares(np.random.default_rng(5), 6, 4, 6, 9.0, 16.0)
    masks = np.concatenate([masks, masks[:, ::-1]])
    patients = {"patient": ("case", ["p", "p", "q", "q", "r", "r"])}
    tree = tree_of(masks, 4, patients)
    result = segmentation.rater_and_weight_variance(tree, samples="draw")
    assert (result.attrs["num_weight_draws"], result.attrs["samples_per_draw"]) == (12, 4)
    assert result.attrs["errors_over"] == "patient"
    both = np.concatenate([masks[0], masks[1]])
    within, between = by_anova(both.sum((-2, -1)), 4)
    np.testing.assert_allclose(result["size_between_raters"][:, 0], within)
    np.testing.assert_allclose(result["size_between_weights"][:, 0], between)
    xr.testing.assert_equal(
        result[list(NAMES)], segmentation.rater_and_weight_variance(tree)[list(NAMES)]
    )
    alone = segmentation.rater_and_weight_variance(tree, group="case")
    per_case = alone["size_between_raters"][:, 0].values
    of_patients = per_case.reshape(3, 2).mean(1).std(ddof=1) / 3**0.5
    np.testing.assert_allclose(result["size_between_raters_mean_se"][0], of_patients)
    every = segmentation.rater_and_weight_variance(tree, classes=[0, 1])
    np.testing.assert_allclose(every["between_all"][:, 0], every["between_all"][:, 1], atol=1e-6)


def test_smaller_cases_are_not_diluted() -> None:
    tree = tree_of(squares(np.random.default_rng(6), 4, 3, 2, 9.0, 16.0), 3)
    wide = tree.map_over_datasets(lambda group: pad_dataset(group, {"row": 25, "col": 8}))
    for classes in ([1], [0, 1]):
        found = segmentation.rater_and_weight_variance(wide, classes=classes)
        expected = segmentation.rater_and_weight_variance(tree, classes=classes)
        xr.testing.assert_allclose(found.isel(row=slice(20), col=slice(5)), expected)


def test_two_draws_of_the_weights_have_no_error_that_is_known() -> None:
    tree = tree_of(squares(np.random.default_rng(7), 2, 3, 2, 9.0, 16.0), 3)
    result = segmentation.rater_and_weight_variance(tree)
    for name in NAMES:
        assert np.isnan(result[f"{name}_mcse"]).all() and result[name].notnull().all()
        assert np.isnan(result[f"size_{name}_mean_mcse"]).all()


# --- what cannot be told apart


def test_what_cannot_be_told_apart_is_refused() -> None:
    split = segmentation.rater_and_weight_variance
    masks = squares(np.random.default_rng(8), 4, 3, 2, 9.0, 16.0)
    tree = tree_of(masks, 3)
    with pytest.raises(ValueError, match=r"one sample of each draw of the weights.*samples=8"):
        split(tree_of(masks, 1))
    with pytest.raises(ValueError, match=r"one draw of the weights.*draws=16"):
        split(tree.isel(draw=slice(3)))
    with pytest.raises(ValueError, match="2 to 3 samples"):
        split(tree.isel(draw=slice(11)))
    probs: Any = tree["posterior/probs"]
    with pytest.raises(ValueError, match="says nothing of raters"):
        split(probs.assign_attrs(draws_of="network.weights"))
    with pytest.raises(ValueError, match="weights without a prior"):
        split(probs.assign_attrs(draws_of="of each case z"))
    members = xr.concat([probs, 1 - probs], "chain").assign_attrs(draws_of="of each case z")
    assert split(members).attrs["num_weight_draws"] == 2
    split(probs.assign_attrs(draws_of="network.weights; of each case z"))
    alike = probs.isel(draw=np.repeat([0, 3, 6, 9], 3)).assign_coords(weights=probs["weights"])
    with pytest.raises(ValueError, match=r"copies of one.*cannot be told apart"):
        split(alike)


def test_weights_that_are_the_same_are_one_function() -> None:
    """A point estimate has one, and an ensemble of them one a member."""
    split = segmentation.rater_and_weight_variance
    masks = squares(np.random.default_rng(9), 4, 3, 2, 9.0, 16.0)
    two = np.concatenate([masks, masks[:, ::-1]])
    for chains in (masks, two):
        tree = tree_of(chains, 3)
        group = tree["posterior"].to_dataset()
        norms = np.arange(len(chains), dtype=float)[:, None].repeat(12, 1)
        tree["posterior"] = xr.DataTree(group.assign(weight_norm=(SAMPLES, norms)))
        if len(chains) == 1:
            with pytest.raises(ValueError, match=r"point estimate.*Ensemble"):
                split(tree)
        else:
            assert split(tree).attrs["num_weight_draws"] == 2
    moving = group.assign(weight_norm=(SAMPLES, np.arange(24.0).reshape(2, 12)))
    tree["posterior"] = xr.DataTree(moving)
    with pytest.raises(ValueError, match="weight_norm differs"):
        split(tree)
