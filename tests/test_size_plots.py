"""Intervals over true sizes: what is drawn is what the arrays hold."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_rgb

from ppl_med.plots.segmentation import size_intervals

LOWER, UPPER, TRUTH = [10.0, 20.0, 30.0], [14.0, 26.0, 40.0], [12.0, 28.0, 30.0]


def make_sizes(factor: float = 1.0, unit: str = "mm^3") -> xr.Dataset:
    """Two structures, the second ten times as large; the graders are 1 apart."""
    ends: dict[str, Any] = {
        name: (("case", "class"), factor * np.outer(values, [1, 10]), {"units": unit})
        for name, values in (("lower", LOWER), ("upper", UPPER))
    }
    truth = factor * np.outer(TRUTH, [1, 10])
    graders = np.stack([truth - 0.5, truth + 0.5], 1)
    ends["grader_size"] = (("case", "grader", "class"), graders, {"units": unit})
    return xr.Dataset(ends, coords={"class": ["head", "tail"]})


@pytest.mark.parametrize(("structure", "factor"), [(None, 1), ("head", 1), ("tail", 10)])
def test_a_line_stands_over_every_true_size(structure: str | None, factor: int) -> None:
    figure = size_intervals({"one": make_sizes(), "two": make_sizes(2)}, structure)
    assert len(figure.axes) == 2
    for ax, scale in zip(figure.axes, (factor, 2 * factor), strict=True):
        drawn = {}
        for lines in ax.collections:
            for path in lines.get_paths():
                (x, low), (_, high) = np.asarray(path.vertices).tolist()
                drawn[x] = (low, high, tuple(np.asarray(lines.get_edgecolor())[0, :3]))
        assert drawn.keys() == {scale * value for value in TRUTH}
        for low, high, truth in zip(LOWER, UPPER, TRUTH, strict=True):
            color = to_rgb("#D55E00" if truth == 28 else "#1f2933")
            assert drawn[scale * truth] == (scale * low, scale * high, color)
        width = scale * 20 / 3
        assert f"67 % of 3 inside, {width:.0f} mm³ wide" in ax.get_title()
    assert figure.get_suptitle().startswith("Volume of " + (structure or "head"))


def test_bad_sizes_stop_early() -> None:
    good = make_sizes()
    infinite = good.copy(deep=True)
    infinite["upper"][0, 0] = np.inf
    for sizes, structure, message in (
        ({}, None, "sizes is empty"),
        (good.drop_vars("grader_size"), None, "grader_size"),
        (good, "body", "class_name must be 'head' or"),
        (infinite, None, "upper holds NaN or infinite"),
        ({"a": good, "b": make_sizes(unit="pixels")}, None, "different units"),
    ):
        with pytest.raises(ValueError, match=message):
            size_intervals(sizes, structure)
