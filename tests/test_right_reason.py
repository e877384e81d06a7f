"""The study of right and wrong reasons runs, resumes, and its parts do what their tables say."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from ppl_med.plots import confounding as figures

ROOT = Path(__file__).parents[1]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(ROOT / "examples")
    return lambda name: importlib.import_module(f"confounded.{name}")


def call(*arguments: str) -> str:
    """Run the example with warnings as errors and give what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "examples" / "right_reason.py", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_both_studies_run_and_resume(tmp_path: Path, data_folder: Path) -> None:
    given = ["--smoke", "--data", str(data_folder), "--out", str(tmp_path / "run")]
    first = call(*given)
    files = {path for path in (tmp_path / "run").rglob("*") if path.is_file()}
    names = {path.name for path in files}
    assert names >= {"table.md", "table.nc", "source.nc", "clusters.nc", "report.html"}
    page = (tmp_path / "run" / "report.html").read_text()
    for anchor in ("table", "mass-pneumoniamnist", "swap-pneumoniamnist", "source-clusters"):
        assert f'id="{anchor}"' in page
    again = call(*given, "--resume")
    assert {path for path in (tmp_path / "run").rglob("*") if path.is_file()} == files
    assert again.splitlines()[-1] == first.splitlines()[-1]


def test_balanced_accuracy_has_a_bootstrap_interval(parts: Any) -> None:
    """Its width is that of the binomial standard errors of both classes, within 15 %."""
    label = np.repeat([0, 1], [400, 100])
    right = np.concatenate([np.arange(400) % 10 != 0, np.arange(100) % 5 != 0]).astype(float)
    value, low, high = parts("planted").balanced(right, label, seed=0)
    assert value == pytest.approx((0.9 + 0.8) / 2)
    error = np.sqrt(0.9 * 0.1 / 400 + 0.8 * 0.2 / 100) / 2
    assert low < value < high and (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.15)


def test_folds_keep_patients_whole_and_spread_both_sources(parts: Any) -> None:
    random = np.random.default_rng(0)
    label = np.repeat([0, 1], [100, 20])
    patient = np.where(label, random.integers(0, 9, 120), 100 + random.integers(0, 60, 120))
    fold = parts("source")._folds({"label": label, "patient": patient.astype(str)}, 4, 0)
    for one in np.unique(patient):
        assert len(np.unique(fold[patient == one])) == 1
    for source, most in ((0, 27), (1, 8)):
        counts = np.bincount(fold[label == source], minlength=4)
        assert counts.min() > 0 and counts.max() <= most


# --- figures


def shares(mean: float, methods: tuple[str, ...] = ("saliency", "lrp")) -> xr.Dataset:
    middle = xr.DataArray(np.full(len(methods), mean), dims="method", coords={"method": [*methods]})
    return xr.Dataset(
        {
            "expected_mass_share": middle,
            "expected_mass_share_lower": middle - 0.02,
            "expected_mass_share_upper": middle + 0.03,
            "area_share": ("case", [0.04, 0.06]),
        }
    )


def test_bars_are_the_shares_in_percent() -> None:
    figure = figures.relevance_mass({"one": shares(0.2), "two": shares(0.4)})
    bars: list[Any] = list(figure.axes[0].patches)
    heights = sorted(bar.get_height() for bar in bars)
    np.testing.assert_allclose(heights, [20, 20, 40, 40])
    segments = [s for c in figure.axes[0].collections for s in c.get_segments()]  # type: ignore[attr-defined]
    ends = sorted({(round(s[0, 1], 6), round(s[1, 1], 6)) for s in segments})
    assert ends == [(18, 23), (38, 43)]
    lines: list[Any] = list(figure.axes[0].lines)
    assert [round(line.get_ydata()[0], 6) for line in lines] == [5]


def effect(mean: float, unit: str = "probability") -> xr.Dataset:
    values = {"": mean, "_lower": mean - 0.1, "_upper": mean + 0.2, "_se": 0.05}
    found = xr.Dataset({f"expected_effect{end}": value for end, value in values.items()})
    found["expected_effect"].attrs["units"] = unit
    return found


def test_effects_have_their_intervals() -> None:
    figure = figures.swap_effects({"one": effect(0.3), "two": effect(-0.1)})
    marks = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() == "o"]  # type: ignore[index]
    assert marks == [0.3, -0.1]
    segments = [s for c in figure.axes[0].collections for s in c.get_segments()]  # type: ignore[attr-defined]
    ends = sorted((round(s[0, 0], 6), round(s[1, 0], 6)) for s in segments)
    assert ends == [(-0.2, 0.0), (-0.2, 0.1), (0.2, 0.4), (0.2, 0.5)]
    assert "probability" in figure.axes[0].get_xlabel()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: figures.relevance_mass({}), "exposures is empty"),
        (lambda: figures.relevance_mass(effect(0.1)), "has no expected_mass_share"),
        (
            lambda: figures.relevance_mass({"a": shares(0.1), "b": shares(0.1, ("lrp", "cam"))}),
            "has the methods",
        ),
        (
            lambda: figures.swap_effects({"a": effect(0.1), "b": effect(0.1, "nats")}),
            "different units",
        ),
    ],
)
def test_figures_refuse(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
