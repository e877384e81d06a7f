"""Figures of selective prediction and of numbers: what is drawn is what the Dataset holds."""

from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from number_trees import number_tree
from posterior_trees import classification_tree
from scipy import stats

from ppl_med.analysis import calibration, selective
from ppl_med.plots import number_calibration
from ppl_med.plots import selective as plots

KINDS = {
    "risk_coverage": ("coverage", "risk", "aurc"),
    "sparsification": ("removed", "sparsification", "ause"),
    "precision_recall": ("recall", "precision", "average_precision"),
}


def line(ax: Axes, start: str) -> np.ndarray:
    (found,) = [item for item in ax.lines if str(item.get_label()).startswith(start)]
    return np.array(found.get_data())


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def numbers(cases: int = 60, rows: int | None = None) -> xr.DataTree:
    rng = np.random.default_rng(0)
    shape = (1, 5, cases) if rows is None else (1, 5, cases, rows)
    loc, scale = rng.normal(size=shape), rng.gamma(3, size=shape)
    value = rng.normal(size=shape[2:])
    posterior = {"loc": loc, "scale": scale}
    return number_tree(value, loc + scale * rng.normal(size=shape), posterior,
                       () if rows is None else ("row",))  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_curves_are_those_of_the_dataset(kind: str) -> None:
    dim, variable, area = KINDS[kind]
    analysis: Callable = getattr(selective, kind)
    draw: Callable = getattr(plots, kind)
    tree = classification_tree()
    one = analysis(tree, "mutual_information", replicates=10)
    figure = draw(one)
    (ax,) = figure.axes
    (name,) = [text for text in legend(figure) if f"{float(one[area]):.3g} ±" in text]
    np.testing.assert_array_equal(line(ax, name), [one[dim], one[variable]])
    (band,) = [item for item in ax.collections if isinstance(item, PolyCollection)]
    corners = np.asarray(band.get_paths()[0].vertices)
    top = np.stack([one[dim], one[variable] + 2 * one[f"{variable}_se"]], 1)
    assert all((np.abs(corners - point).sum(1) < 1e-12).any() for point in top)
    if kind == "precision_recall":
        assert line(ax, "accuracy")[1][0] == float(one["accuracy"])
    else:
        oracle = "risk_oracle" if kind == "risk_coverage" else "oracle"
        np.testing.assert_array_equal(line(ax, "oracle")[1], one[oracle])
        assert line(ax, "random")[1][0] == pytest.approx(float(one[f"{variable}"].max()), abs=1)
    assert "30 cases" in figure.get_suptitle()
    assert "[" in ax.get_xlabel() and "[" in ax.get_ylabel()
    names = ("predictive_entropy", "mutual_information", "cost_$")
    several = {name: one for name in names}
    figure = draw(several)
    assert not [item for item in figure.axes[0].collections if isinstance(item, PolyCollection)]
    for name in ("predictive_entropy", "mutual_information", r"cost_\$"):
        np.testing.assert_array_equal(line(figure.axes[0], name)[1], one[variable])
    figure.draw_without_rendering()
    with pytest.raises(ValueError, match=f"no {variable}"):
        draw(one.drop_vars(variable))
    with pytest.raises(ValueError, match="datasets is empty"):
        draw({})


def test_the_histogram_of_transforms_and_its_band() -> None:
    dataset = calibration.pit(numbers())
    figure = number_calibration.pit(dataset, bins=10)
    (ax,) = figure.axes
    (bars,) = [item for item in ax.containers if isinstance(item, BarContainer)]
    count = np.histogram(dataset["pit"], np.linspace(0, 1, 11))[0]
    np.testing.assert_allclose([bar.get_height() for bar in bars], count / 6)
    (band,) = [p for p in ax.patches if p not in bars.patches]
    low, high = stats.binom.interval(0.95, 60, 0.1)
    extent = band.get_extents().transformed(ax.transData.inverted())
    assert (extent.y0, extent.y1) == pytest.approx((low / 6, high / 6))
    assert f"KS {float(dataset['ks']):.3f}" in ax.get_title(loc="left")
    maps = number_calibration.pit(calibration.pit(numbers(8, 5)))
    assert "one pixel of each of 8 cases" in maps.axes[0].get_title(loc="left")
    assert "grey" not in maps.axes[0].get_title(loc="left")
    figure.draw_without_rendering()
    maps.draw_without_rendering()
    with pytest.raises(ValueError, match="bins must be"):
        number_calibration.pit(dataset, bins=1)


def test_coverage_draws_its_intervals() -> None:
    dataset = calibration.coverage(numbers())
    figure = number_calibration.coverage({"a": dataset, "b": dataset})
    bars = [c for c in figure.axes[0].containers if isinstance(c, ErrorbarContainer)]
    assert len(bars) == 2
    ends = np.array([segment[:, 1] for segment in bars[0].lines[2][0].get_segments()])
    np.testing.assert_allclose(ends, np.stack([dataset["lower"], dataset["upper"]], 1), atol=1e-12)
    np.testing.assert_array_equal(bars[0].lines[0].get_ydata(), dataset["coverage"])
    assert f"mean gap {float(dataset['interval_error']):.3f}" in legend(figure)[0]
    assert figure.axes[0].get_title(loc="left") == "bars: 95 %, Clopper-Pearson"
    figure.draw_without_rendering()
    with pytest.raises(ValueError, match="no coverage"):
        number_calibration.coverage(dataset.drop_vars("coverage"))
    with pytest.raises(ValueError, match="datasets is empty"):
        number_calibration.coverage({})


def test_dispersion_draws_its_bins() -> None:
    dataset = calibration.dispersion(numbers(), bins=4)
    figure = number_calibration.dispersion(dataset)
    (ax,) = figure.axes
    (bars,) = [item for item in ax.containers if isinstance(item, ErrorbarContainer)]
    wanted = [dataset["predicted_sd"], dataset["rmse"]]
    np.testing.assert_array_equal(bars.lines[0].get_data(), wanted)
    ends = np.array([segment[:, 0] for segment in bars.lines[2][0].get_segments()])
    np.testing.assert_allclose(ends, np.stack([dataset["lower"], dataset["upper"]], 1))
    assert f"{float(dataset['ence_null']):.3f} if calibrated" in ax.get_title(loc="left")
    figure.draw_without_rendering()
    with pytest.raises(ValueError, match="no rmse"):
        number_calibration.dispersion(dataset.drop_vars("rmse"))
