"""On real masks the pixels called uncertain are the wrong ones."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy.ndimage import uniform_filter
from sklearn.tree import DecisionTreeClassifier

from ppl_med.analysis import selective
from ppl_med.analysis.aggregation import aggregate
from ppl_med.data import load_wbc_seg

STEP = 8
DRAWS = 8


def features(images: np.ndarray) -> np.ndarray:
    """Colour of each pixel and of its surroundings (case, row, col, feature)."""
    images = images.astype(np.float64)
    blurred = uniform_filter(images, (0, 0, 9, 9))
    both = np.concatenate([images, blurred], axis=1)[..., ::STEP, ::STEP]
    return both.transpose(0, 2, 3, 1)


def bagged_trees(train: dict, test: dict) -> xr.DataTree:
    """Decision trees of resampled cases, a draw each."""
    rng = np.random.default_rng(0)
    inputs, masks = features(train["image"][:60]), train["mask"][:60, ::STEP, ::STEP]
    wanted = features(test["image"])
    draws = []
    for _ in range(DRAWS):
        chosen = rng.integers(60, size=60)
        tree = DecisionTreeClassifier(min_samples_leaf=50, random_state=0)
        known = masks[chosen] >= 0  # -1 where a picture was padded
        tree.fit(inputs[chosen][known], masks[chosen][known])
        draws.append(tree.predict_proba(wanted.reshape(-1, 6)).reshape(*wanted.shape[:3], 3))
    probs = xr.DataArray(
        np.stack(draws)[None], dims=("chain", "draw", "case", "row", "col", "class")
    )
    mask = test["mask"][:, ::STEP, ::STEP].astype(np.int64)
    return xr.DataTree.from_dict(
        {
            "/posterior": xr.Dataset({"probs": probs}),
            "/observed_data": xr.Dataset({"mask": (("case", "row", "col"), mask)}),
        }
    )


@pytest.fixture(scope="module")
def splits(data_folder: Path) -> list[dict]:
    if not (data_folder / "wbc_seg" / "train").is_dir():
        pytest.skip("PPL_MED_DATA names no folder that holds wbc_seg/train")
    return list(load_wbc_seg(data_folder).values())


def test_precision_rises_as_the_most_uncertain_pixels_are_removed(splits: list[dict]) -> None:
    tree = bagged_trees(splits[0], splits[1])
    for score in ("predictive_entropy", "epistemic"):
        found = selective.precision_recall(tree, score, recall=[0.5, 0.7, 0.9, 1], ignore=-1)
        assert (np.diff(found["precision"]) < 0).all()
        gain = float(found["precision"][0] - found["accuracy"])
        assert gain > 5 * float(found["accuracy_se"])
        areas = selective.risk_coverage(tree, score, ignore=-1)
        assert areas["aurc"] + 5 * areas["aurc_se"] < areas["error_mean"]


def test_cases_called_uncertain_have_more_wrong_pixels(splits: list[dict]) -> None:
    tree = bagged_trees(splits[0], splits[2])
    wrong = selective.errors(tree, "zero_one", ignore=-1)
    maps = selective.scores(tree, "predictive_entropy").where(wrong.notnull())
    score, error = aggregate(maps, "mean"), aggregate(wrong, "mean")
    found = selective.sparsification(None, score, error)
    assert found["random_gain"] > 3 * found["random_gain_se"]
