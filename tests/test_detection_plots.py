"""Pictures of boxes and free-response curves show what the tree and the Dataset hold."""

import numpy as np
import pytest
import xarray as xr
from detection_trees import LEVEL, detection_tree, tree_by_hand
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from posterior_trees import array
from scipy.stats import norm

from ppl_med.analysis import detection
from ppl_med.plots.detection import boxes, froc

BOX = [10.0, 12, 30, 36]
IMAGE = np.random.default_rng(0).random((3, 48, 64))


def rectangles(figure: Figure, *, filled: bool) -> list[tuple[float, ...]]:
    """x, y, width and height of the bands, or of the outlines."""
    found = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    return [(*one.get_xy(), one.get_width(), one.get_height())
            for one in found if one.get_fill() == filled]  # fmt: skip


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for ax in figure.axes for text in ax.texts)


def test_boxes_and_bands_lie_where_the_tree_says() -> None:
    """One object with its four bands, and its true box dashed."""
    true = [11.0, 12, 31, 35]
    tree = tree_by_hand([[[0.9187, 0, *BOX], [0.2, 1, 40, 5, 50, 20]]], [[[0, *true]]])
    figure = boxes(IMAGE, tree)
    figure.draw_without_rendering()
    outlines = rectangles(figure, filled=False)
    assert (11.0, 12.0, 20.0, 23.0) in outlines and (10.0, 12.0, 20.0, 24.0) in outlines
    assert len(outlines) == 2  # the second object is less probable than is shown
    reach = norm.isf((1 - LEVEL) / 2) * 2
    expected = [
        (10 - reach, 12, 2 * reach, 24), (10, 12 - reach, 20, 2 * reach),
        (30 - reach, 12, 2 * reach, 24), (10, 36 - reach, 20, 2 * reach),
    ]  # fmt: skip
    np.testing.assert_allclose(rectangles(figure, filled=True), expected)
    text = words(figure)
    for part in ("1 · 0.92", "0.9187", "0.05975", "0.01494", "1.73", "1.00", "red"):
        assert part in text, part
    legend = [one.get_text() for one in figure.legends[0].get_texts()]
    assert legend == ["red", "white", "90 % of an edge", "true box"]
    assert len(rectangles(boxes(IMAGE, tree, least=0.1), filled=True)) == 8
    assert figure.axes[0].images[0].get_extent() == [0, 64, 48, 0]


def test_a_case_is_chosen_by_its_id_and_the_most_probable_objects_are_shown() -> None:
    tree = detection_tree(6)
    count = int((array(tree, "objects/p_exists")[4] >= 0.0).sum())
    figure = boxes(IMAGE[:1], tree, "c4", least=0.0, most=2)
    assert f"Objects of c4, the first 2 of {count}" in figure.get_suptitle()
    assert len(rectangles(figure, filled=True)) == 8
    own = Figure()
    assert boxes(IMAGE, tree, "c4", least=0.0, most=2, axes=own.subplots()) is own
    assert rectangles(own, filled=True) == rectangles(figure, filled=True)
    assert own.axes[0].get_title(loc="left").startswith("Objects of c4") and len(own.axes) == 1
    empty = boxes(IMAGE, tree_by_hand([[]], [[]]))
    assert "no object has a p(exists) of 0.5 or more" in words(empty)
    unsure = boxes(IMAGE, tree_by_hand([[(0.25, 0, 1, 1, 9, 9)]], [[]]))
    assert "or more; the highest is 0.2500" in words(unsure)
    bare = tree.filter(lambda node: node.name != "observed_data")
    assert len(rectangles(boxes(IMAGE, bare, "c4", least=0.0, most=2), filled=False)) == 2
    with pytest.raises(ValueError, match="case must be ids"):
        boxes(IMAGE, tree, "nobody")
    with pytest.raises(ValueError, match="least"):
        boxes(IMAGE, tree, least=2.0)
    with pytest.raises(ValueError, match="images must be"):
        boxes(IMAGE[0], tree)


def test_free_response_curves_show_what_the_dataset_holds() -> None:
    tree = detection_tree(20)
    for dataset in (detection.froc(tree), detection.bootstrap("froc", tree, resamples=20)):
        figure = froc(dataset)
        figure.draw_without_rendering()
        (ax,) = figure.axes
        lines = [line for line in ax.lines if len(np.asarray(line.get_xdata())) > 7]
        for line, curve in zip(lines, dataset["curve"].values, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), curve)
        names = [one.get_text() for one in figure.legends[0].get_texts()]
        assert f"CPM {float(dataset['cpm'][0]):.3f}" in names[0]
        assert len(ax.collections) == (3 if "cpm_lower" in dataset else 0)
        assert [one.get_text() for one in ax.get_xticklabels()][:4] == ["1/8", "1/4", "1/2", "1"]
    with pytest.raises(ValueError, match="dataset has no curve"):
        froc(xr.Dataset())
