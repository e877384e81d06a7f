"""ROC and precision-recall curves, overlays, and their part of the report: drawn as computed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from analysis_table import class_tree, pixel_tree
from matplotlib.axes import Axes
from matplotlib.image import imread
from posterior_trees import classification_tree

from ppl_med.analysis import scoring, segmentation
from ppl_med.plots.ranking_curves import precision_recall, roc
from ppl_med.plots.report import write_report
from ppl_med.plots.segmentation import overlay, write_overlays


def curves(ax: Axes, label: str) -> list[np.ndarray]:
    return [np.array(line.get_ydata()) for line in ax.lines if line.get_label() == label]


@pytest.mark.parametrize(
    ("draw", "score", "name", "area"),
    [
        (roc, scoring.roc, "true_positive_rate", "auroc"),
        (precision_recall, scoring.precision_recall, "precision", "average_precision"),
    ],
)
def test_curves_show_what_the_dataset_holds(draw: Any, score: Any, name: str, area: str) -> None:
    dataset = score(classification_tree(draws=3, cases=30), resamples=20)
    figure = draw(dataset)
    assert len(figure.axes) == 3
    for index, ax in enumerate(figure.axes):
        part = dataset.isel({"class": index})
        (curve,) = curves(ax, "curve")
        np.testing.assert_array_equal(curve, part[name])
        singles = curves(ax, "_draw")
        assert len(singles) == 6
        np.testing.assert_array_equal(singles[4], part[f"{name}_per_draw"][1, 1])
        title = ax.get_title(loc="left")
        ends = [float(part[f"{area}_{end}"]) for end in ("lower", "upper")]
        assert f"{float(part[area]):.3f} [{ends[0]:.3f}, {ends[1]:.3f}]" in title
    assert "95 % over 30 cases" in figure.get_suptitle()
    figure.draw_without_rendering()
    alone = draw(score(classification_tree(draws=1, chains=1, classes=2), resamples=0))
    assert len(alone.axes) == 1 and not curves(alone.axes[0], "_draw")
    with pytest.raises(ValueError, match=f"dataset has no {name}"):
        draw(xr.Dataset())


def test_an_overlay_shows_the_slice_with_the_most_foreground(tmp_path: Path) -> None:
    tree = pixel_tree(3)
    images = np.random.default_rng(0).random((3, 1, 4, 4))
    figure = overlay(tree, images, "c1")
    mean = segmentation.maps(tree)["predictive_entropy"].isel(case=1)
    shown = figure.axes[2].images[1].get_array()
    np.testing.assert_allclose(np.asarray(shown), mean, atol=1e-6)
    assert "observed dashed" in figure.axes[0].get_title(loc="left")

    def deep(group: xr.Dataset) -> xr.Dataset:
        if "row" not in group.dims:
            return group
        front = ("chain", "draw", "case", "class")
        return group.expand_dims(depth=3).transpose(*front, "depth", ..., missing_dims="ignore")

    volume = tree.map_over_datasets(deep)
    figure = overlay(volume, np.repeat(images[:, :, None], 3, 2), "c1", depth=2)
    assert "slice 2" in figure.get_suptitle()
    with pytest.raises(ValueError, match="depth must be a slice from 0 to 2"):
        overlay(volume, np.repeat(images[:, :, None], 3, 2), "c1", depth=3)
    with pytest.raises(ValueError, match="images have shape"):
        overlay(tree, images[..., :2], "c1")
    (path,) = write_overlays(tree, images, tmp_path / "pictures", ["c2"])
    assert path.name == "c2.png" and imread(path).ndim == 3
    assert [one.name for one in (tmp_path / "pictures").iterdir()] == ["c2.png"]


def test_the_report_has_a_table_of_them(tmp_path: Path) -> None:
    tree = class_tree(20)
    ranked, called = scoring.discrimination(tree, resamples=20), scoring.operating_point(tree, 0.4)
    path = write_report(
        tmp_path / "report.html",
        title="x",
        tree=tree,
        discrimination=ranked,
        operating_point=called,
    )
    text = path.read_text()
    for dataset, name in ((ranked, "auroc_per_class"), (called, "specificity")):
        part = dataset.isel({"class": 1})
        cell = [float(part[f"{name}{end}"]) for end in ("", "_lower", "_upper")]
        assert f"<td>{cell[0]:.3f} ({cell[1]:.3f} to {cell[2]:.3f})</td>" in text
    assert "AUROC, 95 % interval over cases" in text and "is at least 0.4" in text
    with pytest.raises(ValueError, match="operating_point has no sensitivity"):
        write_report(path, title="x", tree=tree, operating_point=ranked)
