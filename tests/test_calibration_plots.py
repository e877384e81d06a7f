"""Figures of calibration: what is drawn is what the Dataset holds; bad input stops early."""

import numpy as np
import pytest
import xarray as xr
from labelled_trees import halves
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from posterior_trees import classification_tree

from ppl_med.analysis import calibration
from ppl_med.plots.calibration_curves import classwise, pava, recalibration


def lines(ax: Axes, label: str) -> list[np.ndarray]:
    return [np.array(line.get_data()) for line in ax.lines if line.get_label() == label]


def band(ax: Axes) -> np.ndarray:
    """Corners of the filled band."""
    (shape,) = [c for c in ax.collections if isinstance(c, PolyCollection)]
    return np.asarray(shape.get_paths()[0].vertices)


def title(figure: Figure) -> str:
    return figure.get_suptitle()


def test_pava_draws_the_curve_the_band_and_the_draws() -> None:
    dataset = calibration.pava(classification_tree(draws=3), per_draw=True, replicates=20)
    figure = pava(dataset)
    (ax,) = figure.axes
    (curve,) = lines(ax, "curve")
    np.testing.assert_array_equal(curve, [dataset["probability"], dataset["frequency"]])
    corners = band(ax)
    for name in ("lower", "upper"):
        wanted = np.stack([dataset["probability"], dataset[name]], 1)
        assert all((np.abs(corners - point).sum(1) < 1e-12).any() for point in wanted)
    draws = lines(ax, "_draw")
    assert len(draws) == 6
    np.testing.assert_array_equal(draws[5][1], dataset["frequency_per_draw"][1, 2])
    assert f"miscalibration {float(dataset['miscalibration']):.3f}" in ax.get_title(loc="left")
    assert "grey: 95 % if calibrated" in title(figure)
    figure.draw_without_rendering()


def test_pava_draws_a_panel_for_each_class() -> None:
    dataset = calibration.pava(classification_tree(classes=5), classwise=True, replicates=0)
    figure = pava(dataset)
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert len(panels) == 5
    for index, ax in enumerate(panels):
        (curve,) = lines(ax, "curve")
        np.testing.assert_array_equal(curve[1], dataset["frequency"][index])
        assert ax.get_title(loc="left").startswith(f"class {index}")
    assert "grey" not in title(figure)
    figure.draw_without_rendering()


def test_classwise_draws_the_bins_and_their_intervals() -> None:
    dataset = calibration.reliability_classwise(classification_tree(cases=200), bins=6)
    figure = classwise(dataset)
    for index, ax in enumerate(figure.axes):
        part = dataset.isel({"class": index})
        used = part.isel(bin=part["count"].values > 0)
        (bars,) = [c for c in ax.containers if isinstance(c, ErrorbarContainer)]
        ends = np.array([segment[:, 1] for segment in bars.lines[2][0].get_segments()])
        np.testing.assert_allclose(ends, np.stack([used["lower"], used["upper"]], 1), atol=1e-12)
        np.testing.assert_array_equal(bars.lines[0].get_ydata(), used["frequency"])
        assert f"ECE {float(part['ece']):.3f}" in ax.get_title(loc="left")
        assert "[proportion]" in figure.axes[0].get_ylabel()
    figure.draw_without_rendering()


def test_recalibration_draws_a_panel_for_each() -> None:
    first, second = halves(80, draws=2)
    after = calibration.apply(calibration.fit(first), second)
    found = {
        "before $x$": calibration.pava(second, replicates=5),
        "temperature": calibration.pava(after, replicates=5),
    }
    figure = recalibration(found)
    for ax, (name, dataset) in zip(figure.axes, found.items(), strict=True):
        (curve,) = lines(ax, "curve")
        np.testing.assert_array_equal(curve[0], dataset["probability"])
        assert ax.get_title(loc="left").startswith(name.replace("$", r"\$"))
        assert ax.get_xlabel() == "Confidence [probability]"
    figure.draw_without_rendering()


def test_bad_input_is_refused() -> None:
    tree = classification_tree(cases=10)
    binned = calibration.reliability_classwise(tree)
    by_class = calibration.pava(tree, classwise=True, replicates=0)
    with pytest.raises(ValueError, match=r"no frequency.*calibration\.pava"):
        pava(by_class.drop_vars("frequency"))
    with pytest.raises(ValueError, match="must have the dimensions"):
        pava(binned)
    with pytest.raises(ValueError, match="no ece"):
        classwise(binned.drop_vars("ece"))
    with pytest.raises(ValueError, match="two or more"):
        recalibration({"before": by_class})
    with pytest.raises(ValueError, match=r"datasets\['b'\].*must have the dimensions"):
        recalibration({"a": calibration.pava(tree, replicates=0), "b": by_class})
    with pytest.raises(TypeError):
        pava(xr.DataArray([1.0]))  # type: ignore[arg-type]
