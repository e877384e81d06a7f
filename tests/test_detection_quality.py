"""PDQ against sums over pixels with scipy's normal distribution, and by hand."""

from itertools import permutations

import numpy as np
import pytest
import xarray as xr
from detection_trees import detection_tree, tree_by_hand
from scipy.stats import multivariate_normal

from ppl_med.analysis import detection
from ppl_med.analysis.detection.spatial_quality import pixel_map, true_pixels
from ppl_med.analysis.statistics.bivariate_normal import joint_below

SIDE = 26
TILTED = np.array([
    [3.0, 1.2, 0.4, 0.0], [1.2, 2.0, 0.0, 0.3], [0.4, 0.0, 2.5, -1.5], [0.0, 0.3, -1.5, 4.0],
])  # fmt: skip
SQUARE = [4.0, 4, 14, 14]


def plain_map(box: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """P(the centre of a pixel lies in the box) for every pixel (row, col)."""
    centre = np.arange(SIDE) + 0.5
    points = np.stack(np.meshgrid(centre, centre), -1)  # (row, col, xy)
    upper = multivariate_normal(box[:2], covariance[:2, :2]).cdf(points)
    lower = multivariate_normal(-box[2:], covariance[2:, 2:]).cdf(-points)
    return np.asarray(upper * lower)


def plain_quality(probability: np.ndarray, true: np.ndarray, label: float) -> float:
    """Quality of one pair, by Hall's formula, over all pixels of the image."""
    centre = np.arange(SIDE) + 0.5
    columns = (centre >= true[0]) & (centre <= true[2])
    rows = (centre >= true[1]) & (centre <= true[3])
    mask = rows[:, None] & columns
    known = np.where(probability < 0.0027, 0.0, probability)
    inside = np.log(known + 1e-14)[mask].sum()
    outside = np.log(1 - known + 1e-14)[~mask & (known > 0)].sum()
    spatial = np.exp((inside + outside) / mask.sum())
    return float(np.sqrt(spatial * label)) if spatial >= 1e-8 else 0.0


@pytest.mark.parametrize("correlation", [-0.999999, -0.7, 0.0, 0.3, 0.95, 0.999999])
def test_two_correlated_normal_variables(correlation: float) -> None:
    """On a grid with zeros, far values and both signs, against scipy's integral."""
    x, y = np.array([-7.0, -1.3, 0, 0.4, 2.0, 8.0]), np.array([-2.0, -1e-9, 0, 1.1, 6.5])
    joint = multivariate_normal([0, 0], [[1, correlation], [correlation, 1]])
    points = np.stack(np.meshgrid(x, y, indexing="ij"), -1)
    np.testing.assert_allclose(joint_below(x, y, correlation), joint.cdf(points), atol=1e-7)


def test_two_variables_that_are_one_and_infinite_values() -> None:
    x, y = np.array([-np.inf, 0.3, np.inf]), np.array([-0.5, 0.8])
    below = multivariate_normal.cdf
    np.testing.assert_allclose(joint_below(x, y, 1.0)[1], [below(-0.5), below(0.3)])
    np.testing.assert_allclose(joint_below(x, y, -1.0)[1], [0, below(0.3) + below(0.8) - 1])
    for correlation in (-1.0, -0.4, 0.0, 0.4, 1.0):
        found = joint_below(x, y, correlation)
        np.testing.assert_allclose(found[0], 0, atol=1e-12)
        np.testing.assert_allclose(found[2], [below(-0.5), below(0.8)])


@pytest.mark.parametrize("covariance", [TILTED, np.diag([2.0, 0.5, 1.0, 3.0])])
def test_pixels_of_an_uncertain_box(covariance: np.ndarray) -> None:
    """Against the distribution function of each corner at every pixel."""
    box = np.array([6.3, 5.1, 17.8, 15.2])
    found = pixel_map(box, covariance, (SIDE, SIDE))
    whole = np.zeros((SIDE, SIDE))
    rows, cols = found.probability.shape
    whole[found.row : found.row + rows, found.col : found.col + cols] = found.probability
    expected = plain_map(box, covariance)
    np.testing.assert_allclose(whole, np.where(expected < 0.0027, 0, expected), atol=1e-6)


def test_pixels_of_a_certain_box_are_those_inside() -> None:
    found = pixel_map(np.array([2.0, 3, 5, 9]), np.zeros((4, 4)), None)
    rows, cols = np.nonzero(found.probability)
    assert set(rows + found.row) == set(range(3, 9)) and set(cols + found.col) == {2, 3, 4}
    assert set(np.unique(found.probability)) == {0.0, 1.0}
    np.testing.assert_array_equal(true_pixels(np.array([2.0, 3, 5, 9])), [[2, 3], [5, 9]])
    # A box between the centres of pixels has the pixel in which its own centre lies.
    np.testing.assert_array_equal(true_pixels(np.array([2.6, 3.1, 2.9, 5.0])), [[2, 3], [3, 5]])


def test_quality_of_images_is_the_best_pairing_of_pixel_sums() -> None:
    """Two objects and two true boxes of two classes, tilted corners, all pairings tried."""
    objects = [
        [[0.9, 0, 5.2, 4.4, 13.1, 14.6], [0.8, 1, 9.0, 8.5, 20.5, 19.2]],
        [[0.7, 1, 3.0, 3.0, 12.0, 12.5]],
    ]
    true: list[list[list[float]]] = [
        [[0, *SQUARE], [1, 8, 9, 21, 19]],
        [[1, 4, 3, 12, 13], [0, 15, 15, 24, 24]],
    ]
    tree = tree_by_hand(objects, true, covariance=TILTED, class_share=0.85)
    total, hits = 0.0, 0
    for rows, targets in zip(objects, true, strict=True):
        table = np.zeros((2, len(targets)))
        for place, row in enumerate(rows):
            probability = plain_map(np.array(row[2:]), TILTED)
            for column, target in enumerate(targets):
                share = 0.85 if row[1] == target[0] else 0.15
                table[place, column] = plain_quality(
                    probability, np.array(target[1:]), row[0] * share
                )
        best = max(
            (sum(table[i, j] for i, j in enumerate(one)), one) for one in permutations(range(2))
        )
        total += best[0]
        hits += sum(table[i, j] > 0 for i, j in enumerate(best[1]))
    found = detection.pdq(tree, image_size=(SIDE, SIDE))
    assert float(found["pdq"]) == pytest.approx(total / (hits + (3 - hits) + (4 - hits)), rel=1e-5)
    assert float(found["hits"]) == hits == 3
    assert float(found["false"]) == 0 and float(found["missed"]) == 1
    assert float(found["quality"]) == pytest.approx(total / 3, rel=1e-5)


def test_quality_by_hand() -> None:
    """A certain box in its place of probability 0.64 has quality 0.8; a false one halves it."""
    perfect = tree_by_hand([[[1.0, 0, *SQUARE]]], [[[0, *SQUARE]]], covariance=0.0)
    assert float(detection.pdq(perfect)["pdq"]) == pytest.approx(1, abs=1e-9)
    doubtful = [[[0.64, 0, *SQUARE], [0.6, 0, 20, 20, 24, 24]]]
    tree = tree_by_hand(doubtful, [[[0, *SQUARE]]], covariance=0.0)
    assert float(detection.pdq(tree)["pdq"]) == pytest.approx(0.4)
    above = detection.pdq(tree, threshold=0.62)
    assert float(above["pdq"]) == pytest.approx(0.8) and above.attrs["threshold"] == 0.62
    # One pixel off, a tenth of the pixels are impossible, on both sides: (1e-14)^0.1 twice.
    off = tree_by_hand([[[1.0, 0, 5, 4, 15, 14]]], [[[0, *SQUARE]]], covariance=0.0)
    assert float(detection.pdq(off)["pdq"]) == pytest.approx(10**-1.4)
    # Half a box off there is no quality left: the object is false, and the true box missed.
    found = detection.pdq(
        tree_by_hand([[[1.0, 0, 9, 4, 19, 14]]], [[[0, *SQUARE]]], covariance=0.0)
    )
    assert float(found["pdq"]) == 0 and float(found["false"]) == float(found["missed"]) == 1


def test_the_right_uncertainty_scores_best() -> None:
    """Boxes off by a known noise: neither certain corners nor far too wide ones do as well."""
    rng = np.random.default_rng(2)
    true = [[[0, 30.0, 30, 70, 60]] for _ in range(60)]
    objects = [[[1.0, 0, *(np.array(rows[0][1:]) + rng.normal(scale=2, size=4))]] for rows in true]
    score = {
        scale: float(detection.pdq(tree_by_hand(objects, true, covariance=scale**2))["pdq"])
        for scale in (0.1, 2.0, 12.0)
    }
    assert score[2.0] > score[0.1] + 0.1 and score[2.0] > score[12.0] + 0.1
    certain = detection.pdq(tree_by_hand(objects, true, covariance=4.0), covariance=False)
    zero = detection.pdq(tree_by_hand(objects, true, covariance=0.0))
    assert float(certain["pdq"]) == float(zero["pdq"]) and certain.attrs["corners"] == "certain"


def test_probability_beyond_the_border_counts_only_where_the_image_has_no_border() -> None:
    box = [4.0, 4, SIDE, SIDE]
    tree = tree_by_hand([[[1.0, 0, *box]]], [[[0, *box]]], covariance=4.0)
    inside, open_end = (detection.pdq(tree, image_size=size) for size in ((SIDE, SIDE), None))
    assert float(inside["background"]) > float(open_end["background"]) + 0.02
    assert float(inside["foreground"]) == pytest.approx(float(open_end["foreground"]))


def test_images_without_objects_or_true_boxes() -> None:
    tree = tree_by_hand([[], [[0.9, 0, *SQUARE]], []], [[[0, *SQUARE]], [], []])
    found = detection.pdq(tree)
    counts = [float(found[name]) for name in ("hits", "false", "missed", "pdq")]
    assert counts == [0, 1, 1, 0] and np.isnan(found["quality"])
    assert np.isnan(detection.pdq(tree_by_hand([[]], [[]]))["pdq"])


@pytest.mark.parametrize(
    ("name", "options"),
    [("threshold", {"threshold": 1.5}), ("image_size", {"image_size": (0, 4)})],
)
def test_malformed_arguments_of_pdq_are_named(name: str, options: dict) -> None:
    with pytest.raises(ValueError, match=name):
        detection.pdq(detection_tree(3), **options)


def test_a_tree_without_images_has_no_figures() -> None:
    tree = detection_tree().isel(case=[])
    for name in ("pdq", "average_precision", "existence", "edge_coverage"):
        with pytest.raises(ValueError, match="tree must be of one image or more"):
            getattr(detection, name)(tree)


def test_a_negative_variance_is_refused() -> None:
    tree = tree_by_hand([[[0.9, 0, *SQUARE]]], [[]])
    group = tree["objects"].to_dataset()
    tree["objects"] = xr.DataTree(group.assign(edge_covariance=-group["edge_covariance"]))
    with pytest.raises(ValueError, match="edge_covariance"):
        detection.pdq(tree)


def test_an_object_without_an_end_asks_for_the_size_of_the_image() -> None:
    wide = np.array([0.0, 0, 10, 10]), 1e8 * np.eye(4)
    with pytest.raises(ValueError, match="give image_size"):
        pixel_map(*wide, None)
    assert pixel_map(*wide, (20, 30)).probability.shape == (20, 30)
