"""Recalibrated trees: what they hold, saving, draws and pixels, and misuse."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from labelled_trees import (
    calibrated_labels,
    halves,
    label_of,
    labelled_tree,
    probs_of,
    tempered,
)
from posterior_trees import array, classification_tree, random_probs

from ppl_med import storage
from ppl_med.analysis import calibration, scoring

METHODS = ("temperature", "vector", "matrix", "isotonic", "beta", "histogram")


def test_labels_in_another_order_are_refused() -> None:
    first, second = halves(80)
    second["observed_data"] = xr.DataTree(
        second["observed_data"].to_dataset().isel(case=slice(None, None, -1))
    )
    with pytest.raises(ValueError, match="same cases in the same order"):
        calibration.apply(calibration.fit(first, "temperature"), second)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
@pytest.mark.parametrize("pool", [True, False])
def test_maps_save_and_apply_to_other_cases(
    method: str, suffix: str, pool: bool, tmp_path: Path
) -> None:
    first, second = halves(80, draws=2)
    found = calibration.fit(first, method, pool=pool)
    storage.save(found, tmp_path / f"map{suffix}")
    loaded = storage.load(tmp_path / f"map{suffix}")
    assert isinstance(loaded, xr.Dataset)
    xr.testing.assert_identical(loaded, found)
    mended = calibration.apply(loaded, second)
    storage.save(mended, tmp_path / f"tree{suffix}")
    again = storage.load(tmp_path / f"tree{suffix}")
    xr.testing.assert_identical(again["posterior"].to_dataset(), mended["posterior"].to_dataset())
    assert array(mended, "posterior/probs").shape == ((1, 1) if pool else (2, 2)) + (40, 3)
    with pytest.raises(ValueError, match="learnt on 40 of these case"):
        calibration.apply(loaded, first)


@pytest.mark.parametrize("method", METHODS)
def test_draws_are_calibrated_by_themselves_unless_pooled(method: str) -> None:
    first, second = halves(200, draws=2)
    both = calibration.apply(calibration.fit(first, method, pool=False), second)
    for chain, draw in ((0, 1), (1, 0)):
        parts = [tree.isel(chain=[chain], draw=[draw]) for tree in (first, second)]
        alone = calibration.apply(calibration.fit(parts[0], method), parts[1])
        mended = array(both, "posterior/probs")[chain, draw]
        np.testing.assert_allclose(mended, probs_of(alone), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("pool", [True, False])
def test_the_new_tree_holds_only_what_belongs_to_it(pool: bool) -> None:
    tree = classification_tree(cases=60)
    first, second = tree.isel(case=slice(30)), tree.isel(case=slice(30, None))
    second["constant_data"] = xr.Dataset({"age": ("case", np.arange(30.0))})
    mended = calibration.apply(calibration.fit(first, "vector", pool=pool), second)
    groups = {"posterior", "log_likelihood", "observed_data", "constant_data"}
    assert set(mended.children) == groups
    assert list(mended["posterior"].data_vars) == ["probs"]
    assert mended.attrs["model"] == "Toy"
    assert mended.attrs["log_likelihood_of"] == "held-out"
    probs, label = probs_of(mended), label_of(second)
    nll = -np.log(probs[np.arange(30), label])
    result = scoring.score(mended)
    assert float(result["nll"]) == pytest.approx(nll.mean(), rel=1e-10)
    assert float(scoring.elpd_heldout(mended, mcse=False)["elpd_sum"]) == pytest.approx(-nll.sum())
    assert mended.attrs["accuracy_after"] == pytest.approx(float(result["accuracy"]))
    before = scoring.score(second)["accuracy"]
    assert mended.attrs["accuracy_before"] == pytest.approx(float(before))
    changed = (probs.argmax(1) != probs_of(second).argmax(1)).sum()
    assert mended.attrs["decisions_changed"] == changed
    xr.testing.assert_identical(
        mended["observed_data"].to_dataset(), second["observed_data"].to_dataset()
    )


def test_temperature_changes_no_decision_and_lowers_the_error() -> None:
    probs = random_probs(chains=1, draws=1, cases=3000).values[0, 0]
    label = calibrated_labels(probs, np.random.default_rng(8))
    over = tempered(probs, 2.5)
    first, second = (labelled_tree(over[part], label[part], name) for part, name in
                     ((slice(1500), "a"), (slice(1500, None), "b")))  # fmt: skip
    mended = calibration.apply(calibration.fit(first), second)
    assert mended.attrs["decisions_changed"] == 0
    assert mended.attrs["accuracy_after"] == mended.attrs["accuracy_before"]
    before, after = (calibration.errors(tree, replicates=30) for tree in (second, mended))
    for name in ("ece", "ece_smooth", "ece_classwise", "squared_error_debiased"):
        assert float(after[name]) < float(before[name]) / 3
    assert float(after["ece_smooth_pvalue"]) > 0.04 > float(before["ece_smooth_pvalue"]) - 1e-9
    for name in ("nll", "brier"):
        assert float(scoring.score(mended)[name]) < float(scoring.score(second)[name])


@pytest.mark.parametrize("method", METHODS)
def test_pixels_are_calibrated_like_cases(method: str) -> None:
    first, second = halves(240, draws=1)
    flat = calibration.apply(calibration.fit(first, method), second)

    def as_pixels(tree: xr.DataTree, prefix: str) -> xr.DataTree:
        label = label_of(tree).reshape(10, 4, 3)
        probs = array(tree, "posterior/probs").values.reshape(2, 1, 10, 4, 3, 3)
        return labelled_tree(np.moveaxis(probs, -1, 3), label, prefix, ("row", "col"))

    found = calibration.fit(as_pixels(first, "a"), method)
    mended = calibration.apply(found, as_pixels(second, "b"))
    assert array(mended, "posterior/probs").dims[3:] == ("class", "row", "col")
    values = np.moveaxis(array(mended, "posterior/probs").values[0, 0], 1, -1)
    np.testing.assert_allclose(values.reshape(120, 3), probs_of(flat), rtol=1e-7, atol=1e-12)
    expected = [flat.attrs[name] for name in ("accuracy_after", "decisions_changed")]
    assert [mended.attrs[name] for name in ("accuracy_after", "decisions_changed")] == expected


def test_copies_of_a_pixel_do_not_sharpen_a_temperature() -> None:
    first, _ = halves(80, draws=1)
    probs, label = array(first, "posterior/probs").values, label_of(first)
    wide = labelled_tree(np.stack([probs] * 5, -1), np.stack([label] * 5, -1), extra=("row",))
    once, copied = calibration.fit(first), calibration.fit(wide)
    assert float(copied["temperature"]) == pytest.approx(float(once["temperature"]), rel=1e-9)
    assert float(copied["temperature_se"]) == pytest.approx(float(once["temperature_se"]), rel=1e-9)


def test_labels_are_not_needed_to_apply() -> None:
    first, second = halves(80)
    found = calibration.fit(first)
    bare = calibration.apply(found, array(second, "posterior/probs"))
    np.testing.assert_array_equal(probs_of(bare), probs_of(calibration.apply(found, second)))
    assert set(bare.children) == {"posterior"}


@pytest.mark.parametrize("pool", [True, False])
def test_what_was_refused_leaves_numpy_as_it_was(pool: bool) -> None:
    """Also while the error is at hand, as it is after a cell of a notebook has failed."""
    tree = classification_tree(cases=30)
    worst = array(tree, "posterior/probs").mean(("chain", "draw")).argmin("class")
    tree["observed_data"] = xr.DataTree(xr.Dataset({"label": worst}))
    before = np.geterr()
    with pytest.raises(ValueError, match="no more probable than chance") as caught:
        calibration.fit(tree, pool=pool)
    assert np.geterr() == before, caught


def test_misuse_is_refused() -> None:
    first, second = halves(40, draws=2)
    with pytest.raises(ValueError, match="method must be 'temperature'"):
        calibration.fit(first, "platt")
    with pytest.raises(ValueError, match="no option bins"):
        calibration.fit(first, bins=4)
    with pytest.raises(ValueError, match="no option penalty"):
        calibration.fit(first, "histogram", penalty=1.0)
    with pytest.raises(ValueError, match="penalty must be"):
        calibration.fit(first, "matrix", penalty=-1.0)
    with pytest.raises(ValueError, match="bins must be"):
        calibration.fit(first, "histogram", bins=0)
    with pytest.raises(ValueError, match="appears 2 times"):
        calibration.fit(first.isel(case=[0, 1, 1]))
    with pytest.raises(ValueError, match="sum to one"):
        halved = first.copy()
        halved["posterior"] = xr.Dataset({"probs": array(first, "posterior/probs") / 2})
        calibration.fit(halved)
    found = calibration.fit(first)
    with pytest.raises(ValueError, match=r"learnt on 5 of these case\(s\), e.g. 'patient-15'"):
        whole = xr.concat([array(t, "posterior/probs") for t in (first, second)], "case")
        calibration.apply(found, whole.isel(case=slice(15, 30)).isel(case=slice(0, 5)))
    renamed = array(second, "posterior/probs").assign_coords({"class": ["x", "y", "z"]})
    with pytest.raises(ValueError, match="knows the classes"):
        calibration.apply(found, renamed)
    with pytest.raises(ValueError, match="no case ids"):
        calibration.apply(found, array(second, "posterior/probs").drop_vars("case"))
    with pytest.raises(ValueError, match=r"no result of calibration\.fit"):
        calibration.apply(xr.Dataset(), second)
    single = calibration.fit(first, pool=False)
    with pytest.raises(ValueError, match=r"learnt for 2 draw\(s\)"):
        calibration.apply(single, second.isel(draw=[0]))
    with pytest.raises(ValueError, match=r"learnt for 2 chain\(s\)"):
        moved = array(second, "posterior/probs").assign_coords(chain=[4, 5])
        calibration.apply(single, moved)


def test_a_single_case_of_which_all_draws_are_sure_is_calibrated_draw_by_draw() -> None:
    first, second = halves(80, draws=3)
    parameters = calibration.fit(first, pool=False)
    array(second, "posterior/probs")[:, :, 2] = array(second, "posterior/probs")[0, 0, 2]
    found = array(calibration.apply(parameters, second.isel(case=[2])), "posterior/probs")
    expected = array(calibration.apply(parameters, second), "posterior/probs").isel(case=[2])
    xr.testing.assert_allclose(found, expected, rtol=1e-12)
