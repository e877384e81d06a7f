"""The benchmark scripts run and print what they promise. Never seconds: those are not tests."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from example_runs import run as run_script

pytest.importorskip("torch")
pytest.importorskip("pyro")
ROOT = Path(__file__).resolve().parents[1]
OURS = "ppl_med"
NOTHING_LEARNT = ("mcp", "expected_entropy", "energy", "max_logit")


def run(script: str, folder: Path, *options: str) -> dict[str, Any]:
    """Run a script's smoke run and read what it wrote."""
    out = folder / "table.json"
    run_script(ROOT / "tests" / "benchmarks" / script, "--smoke", *options, "--out", out)
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The rows of the step table."""
    return run("step.py", tmp_path_factory.mktemp("step"), "--nets", "lenet")["nets"]["lenet"][
        "rows"
    ]


def test_step_table(rows: dict[str, Any]) -> None:
    timed = {name: row for name, row in rows.items() if "ratio" in row}
    for name in ("deterministic", "mean-field by hand, flat", "Pyro site per parameter"):
        assert name in timed
    assert sum(name.startswith(OURS) for name in timed) == 7
    for row in timed.values():
        assert 0 < row["ratio"][0] <= row["ratio"][1] <= row["ratio"][2]
    assert timed["deterministic"]["ratio"] == [1, 1, 1]
    assert timed["mean-field by hand, flat"]["ratio_to_hand"] == [1, 1, 1]
    for name in rows.keys() - timed.keys():
        assert rows[name]["note"].startswith(("not installed", "fails"))


def test_our_steps_never_wait_for_the_device(rows: dict[str, Any]) -> None:
    for name, row in rows.items():
        if name.startswith(OURS) and "in fit" not in name:
            assert row["syncs"] == 0, name
    # The counter sees syncs where there are some: SVI reads its loss at every step.
    assert rows["Pyro site per parameter"]["syncs"] >= 1


@pytest.mark.slow
def test_captured_step_table(tmp_path: Path) -> None:
    import torch

    result = run("captured_step.py", tmp_path, "--no-compile", "--nets", "lenet")
    rows = result["tables"][0]["rows"]
    there = torch.cuda.is_available()
    assert ("There is no GPU here" in result["header"]) != there
    assert len(rows) == 3 + there
    assert all(row["images"] > 0 and (row["peak"] is not None) == there for row in rows.values())


@pytest.mark.slow
def test_predict_table(tmp_path: Path) -> None:
    result = run("predict.py", tmp_path, "--nets", "lenet")
    for low, median, high in result["nets"]["lenet"][0]["ratios"].values():
        assert 0 < low <= median <= high
    assert {(row["sink"], row["cases"]) for row in result["memory"]} == {
        ("zarr", 100),
        ("memory", 100),
    }


@pytest.mark.slow
def test_sampling_table(tmp_path: Path) -> None:
    result = run("sampling.py", tmp_path)
    assert [row["images"] for row in result["rows"]] == [1, 8]
    for row in result["rows"]:
        low, median, high = row["ratio"]
        assert 0 < low <= median <= high


@pytest.mark.slow
def test_analyses_table(tmp_path: Path) -> None:
    pytest.importorskip("mapie")
    pytest.importorskip("torchmetrics")
    result = run("analyses.py", tmp_path)
    rows = {row["analysis"]: row for row in result["rows"]}
    assert set(rows) == {"scores", "reliability", "LAC", "entropies", "variances"}
    assert all(row["million_per_second"] > 0 for row in rows.values())
    # torchmetrics computes in float32 and puts edges of bins elsewhere.
    assert float(rows["reliability"]["agreement"].split()[1]) < 1e-3
    assert rows["LAC"]["agreement"] == "100.0000% of entries"
    assert float(rows["entropies"]["agreement"].split()[1]) < 1e-12
    for row in rows.values():
        for kind in ("per_number", "same_task", "sums"):
            assert row[kind] is None or 0 < row[kind][0] <= row[kind][1] <= row[kind][2]


@pytest.mark.slow
def test_ood_table(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_ood")
    result = run("ood.py", tmp_path)
    rows = {row["score"]: row for row in result["rows"]}
    peers = {name for name, row in rows.items() if row["peer"]}
    assert {"energy", "mahalanobis", "relative_mahalanobis", "knn", "vim"} <= peers < set(rows)
    for name in peers:
        row = rows[name]
        assert row["agreement"] > 0.999, name  # of ranks and spread, in single precision there
        assert 0 < row["ratio_600"][0] <= row["ratio_600"][2]
        assert (row["ratio_fit"] is None) == (name in NOTHING_LEARNT), name


@pytest.mark.slow
def test_scaling_table(tmp_path: Path) -> None:
    figure = tmp_path / "scaling.png"
    result = run("scaling.py", tmp_path, "--figure", str(figure))
    assert len(result["curves"]) == 5
    for row in result["curves"].values():
        assert len(row["sizes"]) == len(row["seconds"]) == 2 and min(row["seconds"]) > 0
    assert [row["cases"] for row in result["memory"]] == [100, 200]
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.skipif("PPL_MED_DATA" not in os.environ, reason="PPL_MED_DATA is not set")
@pytest.mark.parametrize("script", ["time_to_nll.py", "mirroring.py"])
def test_studies_on_nodules(script: str, tmp_path: Path) -> None:
    options = ("--nets", "unet", "--seeds", "0") if script == "time_to_nll.py" else ()
    result = run(script, tmp_path, *options)
    for row in result["rows"]:
        if script == "mirroring.py":
            assert row["way"] in ("separate", "mirrored") and row["seconds"] > 0
        else:
            assert row["nll"]["ratios"][0] == 1 or row["estimator"] != "shared"
            assert min(row["nll"]["best"]) > 0


def test_times_to_a_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear between evaluations; a run that is lost has not reached what it never did."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "benchmarks"))
    study = importlib.import_module("time_to_nll")

    def curve(*nll: float) -> dict[str, list[float]]:
        return {"seconds": [float(k) for k in range(len(nll))], "nll": list(nll)}

    def ratio(own: dict[str, Any], shared: dict[str, Any]) -> float:
        return study.compared([own], [shared], "nll")["ratios"][0]

    assert ratio(curve(4, 2, 1), curve(4, 3, 2)) == 1 / 2
    assert ratio(curve(4, 1, 1), curve(4, 3, 2)) == pytest.approx((2 / 3) / 2)
    assert study.reached(curve(4, math.nan, 2), "nll", 3) == 1.5
    assert math.isnan(ratio(curve(1, 2), curve(1, 3)))


@pytest.mark.slow
def test_ranks_table(tmp_path: Path) -> None:
    rows = run("ranks.py", tmp_path)["rows"]
    assert [(row["what"], row["ranks"]) for row in rows] == [
        *(("fit", 1), ("predict", 1), ("fit", 2), ("predict", 2))
    ]


@pytest.mark.slow
def test_one_page_of_every_table(tmp_path: Path) -> None:
    folder = ROOT / "tests" / "benchmarks"
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, str(folder), "--smoke", "--only", "sampling", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    for times in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert ("done in" in done.stdout) == (times == 0)
    assert (tmp_path / "sampling.md").read_text().strip() in (tmp_path / "page.md").read_text()
    told = subprocess.run([*command[:2], "--help"], capture_output=True, text=True, check=True)
    scripts = {path.stem for path in folder.glob("[!_]*.py") if '"--out"' in path.read_text()}
    assert scripts <= set(told.stdout.replace(",", " ").replace("{", " ").replace("}", " ").split())
