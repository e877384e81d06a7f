"""Conformal risk control: the guarantee by simulation, brute force, graders, and bad input."""

import numpy as np
import pytest
import xarray as xr
from conformal_trees import Z
from segmentation_trees import case_ids

from ppl_med import storage
from ppl_med.analysis import conformal
from ppl_med.analysis.conformal import risk_control


def lesions(
    rng: np.random.Generator, shape: tuple[int, ...], pixels: int = 24
) -> tuple[np.ndarray, np.ndarray]:
    """Foreground probabilities of a biased model and masks, (..., pixel); some masks are empty.

    Pixels of one case share an effect, so that they are far from independent.
    """
    effect = rng.normal(-0.5, 1.5, (*shape, 1))
    logit = effect + rng.normal(0, 1, (*shape, pixels))
    mask = rng.random(logit.shape) < 1 / (1 + np.exp(-logit))
    seen = logit + rng.normal(0, 1, (*shape, 1)) - 0.7
    return 1 / (1 + np.exp(-seen)), mask


def masks_tree(
    foreground: np.ndarray, masks: np.ndarray, *, prefix: str = "patient-", draws: int = 2
) -> xr.DataTree:
    """A tree from foreground (case, row, col) and masks (case, [grader,] row, col)."""
    ids = [name.replace("patient-", prefix) for name in case_ids(len(foreground))]
    probs = np.stack([1 - foreground, foreground], 1)
    values = np.broadcast_to(probs[None, None], (1, draws, *probs.shape))
    dims = ("chain", "draw", "case", "class", "row", "col")
    coords = {"case": ids, "class": ["background", "lesion"]}
    observed = ("case", "grader", "row", "col") if masks.ndim == 4 else ("case", "row", "col")
    return xr.DataTree.from_dict(
        {
            "/posterior": xr.Dataset({"probs": (dims, values)}, coords),
            "/observed_data": xr.Dataset({"mask": (observed, masks)}, {"case": ids}),
        }
    )


def brute_threshold(foreground: np.ndarray, masks: np.ndarray, alpha: float, truth: str) -> float:
    """Try every probability that occurs, largest first; masks (case, grader, row, col)."""
    for threshold in np.unique(foreground)[::-1]:
        risk = np.mean(
            [brute_risk(f >= threshold, m, truth) for f, m in zip(foreground, masks, strict=True)]
        )
        if (len(masks) * risk + 1) / (len(masks) + 1) <= alpha + 1e-12:
            return float(threshold)
    return -np.inf


def brute_risk(mask: np.ndarray, graders: np.ndarray, truth: str) -> float:
    marked = [grader == 1 for grader in graders if (grader >= 0).any()]
    marked = [np.logical_or.reduce(marked)] if truth == "union" else marked
    return float(np.mean([(m & ~mask).sum() / m.sum() if m.any() else 0.0 for m in marked]))


@pytest.mark.parametrize(("num_cases", "alpha"), [(9, 0.1), (20, 0.2), (60, 0.1)])
def test_the_expected_risk_is_bounded(num_cases: int, alpha: float) -> None:
    """3000 calibrations: mean risk of a fresh case in [alpha - 2 / (n + 1), alpha], z at 1e-6."""
    rng = np.random.default_rng(num_cases)
    probs, masks = lesions(rng, (3000, num_cases + 1))
    found = []
    for foreground, mask in zip(probs, masks, strict=True):
        share = mask[:-1] / np.maximum(mask[:-1].sum(1, keepdims=True), 1)
        marked = mask[:-1]
        threshold = risk_control.risk_threshold(
            foreground[:-1][marked], share[marked], num_cases, alpha
        )
        missed = mask[-1] & (foreground[-1] < threshold)
        found.append(missed.sum() / max(mask[-1].sum(), 1))
    error = np.std(found, ddof=1) / len(found) ** 0.5
    assert np.mean(found) < alpha + Z * error
    assert np.mean(found) > alpha - 2 / (num_cases + 1) - Z * error


@pytest.mark.parametrize("truth", ["mean", "union"])
def test_thresholds_and_risks_match_brute_force(truth: str) -> None:
    rng = np.random.default_rng(0)
    foreground, masks = lesions(rng, (60, 3))
    shared = foreground.mean(1).reshape(60, 4, 6)
    graded = masks.astype(int).reshape(60, 3, 4, 6)
    graded[::5, 2] = -1
    graded[::7, 0, 0, :2] = -1
    graded[3] = 0
    first = masks_tree(shared[:30], graded[:30])
    second = masks_tree(shared[30:], graded[30:], prefix="t")
    for alpha in (0.05, 0.1, 0.3):
        learnt = conformal.calibrate_masks(first, alpha, truth=truth)
        expected = brute_threshold(shared[:30], graded[:30], alpha, truth)
        assert float(learnt["threshold"]) == pytest.approx(expected, abs=1e-12)
        assert int(learnt["num_empty"]) == sum(
            not (graded[index] == 1).any() for index in range(30)
        )
        result = conformal.predict_masks(learnt, second, shift_alarm=0)
        mask = shared[30:] >= expected - 1e-12
        np.testing.assert_array_equal(result["mask"], mask)
        np.testing.assert_array_equal(result["area"], mask.sum((1, 2)))
        risk = [brute_risk(m, g, truth) for m, g in zip(mask, graded[30:], strict=True)]
        np.testing.assert_allclose(result["risk"], risk, atol=1e-12)
        assert float(result["risk_mean"]) == pytest.approx(np.mean(risk))


def test_draws_and_classes_are_pooled(tmp_path) -> None:
    """Two foreground classes, draws that differ: the mean of their sums; saved and applied."""
    rng = np.random.default_rng(1)
    probs = rng.dirichlet(np.ones(3), (2, 4, 30, 5, 5)).transpose(0, 1, 2, 5, 3, 4)
    mask = rng.integers(0, 3, (30, 5, 5))
    dims = ("chain", "draw", "case", "class", "row", "col")
    coords = {"case": case_ids(30), "class": ["none", "core", "rim"]}
    tree = xr.DataTree.from_dict(
        {
            "/posterior": xr.Dataset({"probs": (dims, probs)}, coords),
            "/observed_data": xr.Dataset(
                {"mask": (("case", "row", "col"), mask)}, {"case": coords["case"]}
            ),
        }
    )
    learnt = conformal.calibrate_masks(tree, 0.2)
    foreground = probs[:, :, :, 1:].sum(3).mean((0, 1))
    graded = (mask > 0).astype(int)[:, None]
    expected = brute_threshold(foreground, graded, 0.2, "mean")
    assert float(learnt["threshold"]) == pytest.approx(expected, abs=1e-12)
    storage.save(learnt, tmp_path / "a.nc")
    loaded = storage.load(tmp_path / "a.nc")
    assert isinstance(loaded, xr.Dataset)
    renamed = tree["posterior"].to_dataset()["probs"].assign_coords(case=np.arange(30))
    result = conformal.predict_masks(loaded, renamed)
    np.testing.assert_array_equal(result["mask"], foreground >= expected - 1e-12)
    one = conformal.calibrate_masks(tree, 0.2, classes=["rim"])
    storage.save(one, tmp_path / "b.nc")
    loaded = storage.load(tmp_path / "b.nc")
    assert isinstance(loaded, xr.Dataset)
    result = conformal.predict_masks(loaded, renamed)
    limit = brute_threshold(
        probs[:, :, :, 2].mean((0, 1)), (mask == 2).astype(int)[:, None], 0.2, "mean"
    )
    np.testing.assert_array_equal(result["mask"], probs[:, :, :, 2].mean((0, 1)) >= limit - 1e-12)


def test_too_few_cases_give_whole_images_and_empty_truth_costs_nothing() -> None:
    rng = np.random.default_rng(2)
    foreground, masks = lesions(rng, (8,))
    tree = masks_tree(foreground.reshape(8, 4, 6), masks.astype(int).reshape(8, 4, 6))
    learnt = conformal.calibrate_masks(tree, 0.1)
    assert np.isneginf(float(learnt["threshold"]))
    other = masks_tree(foreground.reshape(8, 4, 6), np.zeros((8, 4, 6), int), prefix="t")
    result = conformal.predict_masks(learnt, other)
    assert result["mask"].all() and float(result["risk_mean"]) == 0
    assert float(conformal.calibrate_masks(other, 0.5)["threshold"]) == 1


def test_cases_that_nobody_annotated_neither_calibrate_nor_count() -> None:
    rng = np.random.default_rng(4)
    foreground, masks = lesions(rng, (60,))
    given, truth = foreground.reshape(60, 4, 6), masks.astype(int).reshape(60, 4, 6)
    missing = rng.random(60) < 0.3
    bare = np.where(missing[:, None, None], -1, truth)
    halves = [
        masks_tree(given[part], bare[part], prefix=prefix)
        for part, prefix in ((slice(30), "c"), (slice(30, None), "t"))
    ]
    kept = [
        half.isel(case=np.flatnonzero(~gone))
        for half, gone in zip(halves, (missing[:30], missing[30:]), strict=True)
    ]
    learnt = conformal.calibrate_masks(halves[0], 0.2)
    alone = conformal.calibrate_masks(kept[0], 0.2)
    xr.testing.assert_equal(learnt, alone)
    assert learnt.attrs["left_out_cases"] == missing[:30].sum()
    found = conformal.predict_masks(learnt, halves[1], shift_alarm=0)
    expected = conformal.predict_masks(alone, kept[1], shift_alarm=0)
    np.testing.assert_array_equal(np.isnan(found["risk"]), missing[30:])
    np.testing.assert_array_equal(found["risk"][~missing[30:]], expected["risk"])
    for name in ("risk_mean", "risk_se", "threshold"):
        xr.testing.assert_equal(found[name], expected[name])
    assert found.attrs["num_cases"] == (~missing[30:]).sum()


def test_bad_input_is_refused() -> None:
    rng = np.random.default_rng(3)
    foreground, masks = lesions(rng, (30,))
    shape = (30, 4, 6)
    tree = masks_tree(foreground.reshape(shape), masks.astype(int).reshape(shape))
    learnt = conformal.calibrate_masks(tree, 0.1)
    with pytest.raises(ValueError, match=r"share 30 case\(s\)"):
        conformal.predict_masks(learnt, tree)
    with pytest.raises(ValueError, match="truth must be"):
        conformal.calibrate_masks(tree, truth="majority")
    with pytest.raises(ValueError, match="alpha"):
        conformal.calibrate_masks(tree, 0.0)
    with pytest.raises(TypeError, match="calibrate_masks"):
        conformal.predict_masks(xr.Dataset(), tree)
    with pytest.raises(ValueError, match="foreground classes"):
        probs = tree["posterior"].to_dataset()["probs"].assign_coords({"class": ["a", "b"]})
        conformal.predict_masks(learnt, probs.assign_coords(case=np.arange(30)))
    with pytest.warns(RuntimeWarning, match="Calibration and test cases look different"):
        bright = masks_tree(
            foreground.reshape(shape) ** 0.2, masks.reshape(shape).astype(int), prefix="t"
        )
        conformal.predict_masks(learnt, bright)
