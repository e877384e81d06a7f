"""Figures of prediction sets: what is drawn is what the Dataset holds, bad input stops early."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from conformal_trees import probs_tree, vague_labels, with_column
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from posterior_trees import array

from ppl_med.analysis import conformal
from ppl_med.plots.prediction_sets import group_coverage, set_sizes, sets_over_images

HIT, MISS = "#009e73", "#d55e00"


def study(num: int = 60) -> tuple[xr.Dataset, xr.DataTree, np.ndarray]:
    rng = np.random.default_rng(0)
    probs, label = vague_labels(rng, (100 + num,), 7)
    site = rng.choice(["A", "B", "C"], num)
    second = with_column(probs_tree(probs[100:], label[100:], prefix="t"), "site", site)
    learnt = conformal.calibrate(probs_tree(probs[:100], label[:100]), 0.3)
    images = rng.normal(size=(num, 1, 8, 8))
    return conformal.predict_sets(learnt, second), second, images


def bars(ax: Axes, color: str) -> np.ndarray:
    """Heights of the bars of one colour, from the left."""
    found = [
        p for p in ax.patches if isinstance(p, Rectangle) and to_hex(p.get_facecolor()) == color
    ]
    return np.array([p.get_height() for p in sorted(found, key=lambda p: p.get_x())])


def test_many_classes_leave_the_labels_apart() -> None:
    sizes = np.arange(60)
    member = np.arange(59)[None] < sizes[:, None]
    sets = xr.Dataset({"prediction_set": (("case", "class"), member)})
    (ax,) = set_sizes(sets).axes
    ticks = ax.get_xticks()
    assert len(ticks) < 20 and (ticks == np.round(ticks)).all() and not ax.texts


def test_bars_are_the_shares_of_sizes() -> None:
    sets, _, _ = study()
    figure = set_sizes(sets)
    (ax,) = figure.axes
    size, covered = sets["set_size"].values, sets["covered"].values
    top = size.max() + 1
    np.testing.assert_allclose(bars(ax, HIT), np.bincount(size[covered], minlength=top) / 60)
    np.testing.assert_allclose(bars(ax, MISS), np.bincount(size[~covered], minlength=top) / 60)
    assert f"{100 * float(sets['coverage']):.1f} %" in ax.get_title(loc="right")
    assert f"mean {size.mean():.2f}" in figure.get_suptitle()
    bare = set_sizes(sets.drop_vars(["covered", "coverage"]))
    assert not bare.legends and bare.axes[0].get_title(loc="right") == ""
    figure.canvas.draw()


def test_pictures_bear_their_sets() -> None:
    sets, tree, images = study()
    label = array(tree, "observed_data/label").values
    figure = sets_over_images(images, sets, label, num=8)
    figure.canvas.draw()
    cards = [ax for ax in figure.axes if ax.images]
    assert len(cards) == 8
    sizes = []
    for ax in cards:
        index = int(ax.get_title(loc="left").removeprefix("t"))
        shown = np.asarray(ax.images[0].get_array())
        low, high = np.quantile(images[index, 0], [0.005, 0.995])
        np.testing.assert_allclose(shown, np.clip((images[index, 0] - low) / (high - low), 0, 1))
        hit = bool(sets["covered"][index])
        assert to_hex(ax.spines["left"].get_edgecolor()) == (HIT if hit else MISS)
        texts = {text.get_text(): text.get_fontweight() for text in ax.texts}
        names = [f"class {k}" for k in np.flatnonzero(sets["prediction_set"][index])]
        sizes.append(len(names))
        truth = f"class {label[index]}"
        if hit:
            assert texts[truth] == "bold"
        else:
            assert texts[f"not in it: {truth}"] == "bold"
        if len(names) <= 5:
            assert set(names) <= set(texts)
        else:
            assert f"and {len(names) - 4} more" in texts
    assert sizes == sorted(sizes)


def test_few_pictures_without_labels_or_names() -> None:
    sets, _, images = study()
    part = sets.drop_vars(["covered", "class"]).isel(case=slice(3))
    figure = sets_over_images(images[:3], part)
    assert len([ax for ax in figure.axes if ax.images]) == 3 and not figure.legends
    empty = part.assign(prediction_set=part["prediction_set"] & False)
    figure = sets_over_images(images[:3], empty)
    assert all(ax.texts[0].get_text() == "empty set" for ax in figure.axes if ax.images)


def test_sets_of_cases_without_a_label_are_told_apart() -> None:
    sets, tree, images = study()
    known = np.arange(60) >= 20
    part = sets.assign(covered=sets["covered"].where(xr.DataArray(known, dims="case")))
    (ax,) = set_sizes(part).axes
    size, covered = sets["set_size"].values, sets["covered"].values
    hit = np.bincount(size[known & covered], minlength=size.max() + 1) / 60
    np.testing.assert_allclose(bars(ax, HIT), hit)
    assert ax.get_legend_handles_labels()[1][-1] == "not labelled"
    observed: Any = tree["observed_data"]["label"]
    label = np.where(known, observed.values, -1)
    figure = sets_over_images(images, part, label, num=60)
    bold = [any(t.get_fontweight() == "bold" for t in ax.texts) for ax in figure.axes]
    assert sum(bold) == 40


def test_groups_lie_where_the_dataset_says() -> None:
    sets, tree, _ = study()
    by = conformal.coverage(sets, tree, "site")
    by["coverage"][1] = 0.05
    figure = group_coverage(by)
    figure.canvas.draw()
    (ax,) = figure.axes
    spans = [p for p in ax.patches if isinstance(p, Rectangle)]
    np.testing.assert_allclose([p.get_x() for p in spans], by["lower"])
    np.testing.assert_allclose([p.get_x() + p.get_width() for p in spans], by["upper"])
    dots = {to_hex(str(line.get_color())): line for line in ax.lines if line.get_marker() == "o"}
    np.testing.assert_allclose(np.asarray(dots[MISS].get_xdata(), float), [0.05])
    np.testing.assert_allclose(
        np.asarray(dots["#1f2933"].get_xdata(), float), by["coverage"].values[[0, 2]]
    )
    assert [t.get_text() for t in ax.get_yticklabels()] == ["A", "B", "C"]
    assert {str(n) for n in by["count"].values} <= {text.get_text() for text in ax.texts}
    plain = group_coverage(by.drop_vars(["lower", "upper", "expected"]))
    assert not plain.axes[0].patches


def test_only_what_is_promised_is_called_so() -> None:
    rng = np.random.default_rng(0)
    probs, label = vague_labels(rng, (400,), 3)
    site = np.repeat(["A", "B"], 100)
    first = with_column(probs_tree(probs[:200], label[:200]), "site", site)
    second = with_column(probs_tree(probs[200:], label[200:], prefix="t"), "site", site)
    for within, words in (("site", "promised 70 %"), (None, "aimed at 70 %")):
        learnt = conformal.calibrate(first, 0.3, within=within)
        by = conformal.coverage(conformal.predict_sets(learnt, second), second, "site")
        texts = [text.get_text() for text in group_coverage(by).legends[0].get_texts()]
        assert words in texts


def test_bad_input_is_refused() -> None:
    sets, _, images = study()
    with pytest.raises(ValueError, match="no prediction_set"):
        set_sizes(sets.drop_vars("prediction_set"))
    with pytest.raises(ValueError, match="59 cases where 60"):
        sets_over_images(images[:-1], sets)
    with pytest.raises(ValueError, match="num must be"):
        sets_over_images(images, sets, num=0)
    with pytest.raises(ValueError, match="label must be one value per case"):
        sets_over_images(images, sets, np.zeros(3, int))
    with pytest.raises(ValueError, match="outside 0 to 6"):
        sets_over_images(images, sets, np.full(60, 7))
    with pytest.raises(ValueError, match="no coverage"):
        group_coverage(sets.drop_vars("coverage"))
