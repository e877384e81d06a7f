"""The examples whose nets give an image a label run and resume."""

import pytest
from example_runs import ROOT, check_run_and_resume, run
from reader_folders import write_cells

pytest.importorskip("pyro", reason="the examples train networks")

LABELS: dict[str, list[str]] = {
    "active_digits.py": [],
    "active_cells.py": [],
    "brain.py": [],
    "blood_cells.py": ["--guide", "deterministic", "mean_field"],
    "brain_shape.py": [],
    "calibrated_chest_xray.py": ["--guide", "frequentist", "last_layer"],
    "chest_boxes.py": [],
    "counterfactual_cells.py": [],
    "malaria.py": [
        *("--guide", "frequentist", "mean_field"),
        *("--fraction", "1", "0.5", "--seed", "0", "--epochs", "1"),
    ],
    "mauna_loa.py": ["--method", "dropout", "ensemble"],
    "quickstart.py": [],
    "right_reason.py": [],
    "two_classes.py": [],
    "truth.py": ["--problem", "moons", "--guide", "prior", "point", "SGLD", "--seed", "0"],
    "unknown_inputs.py": ["--source", "films", "--guide", "point", "--severity"],
    "write_your_own.py": [],
}


@pytest.mark.parametrize("name", LABELS)
def test_an_example_runs_and_resumes(name, tmp_path, request):
    check_run_and_resume(name, LABELS[name], tmp_path, request)


@pytest.mark.slow
def test_the_calibration_study_reads_malaria_cells_too(tmp_path, data_folder):
    options = ["--pictures", "malaria", "--guide", "frequentist", "last_layer", "--data"]
    out = tmp_path / "run"
    script = ROOT / "examples" / "calibrated_chest_xray.py"
    text = run(script, "--smoke", *options, data_folder, "--out", out)
    assert "| last-layer | vector |" in text
    assert (out / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_the_malaria_study_reads_the_cells_as_released(tmp_path):
    write_cells(tmp_path / "data")
    out, options = tmp_path / "run", ["--guide", "frequentist", "mean_field", "--fraction", "1"]
    options += ["--seed", "0", "--epochs", "1"]
    script = ROOT / "examples" / "malaria.py"
    text = run(script, "--smoke", *options, "--data", tmp_path / "data", "--out", out)
    assert "| mean_field | 100% |" in text and (out / "report.html").exists()


@pytest.mark.slow
def test_the_vae_scores_are_compared_with_baselines(tmp_path, data_folder):
    script, out = ROOT / "examples" / "unknown_inputs" / "vae_scores.py", tmp_path / "run"
    options = ["--pair", "digits", "--seed", "0", "--data", data_folder, "--out", out]
    text = run(script, "--smoke", *options)
    assert "| digits | likelihood_regret |" in text and "(baseline)" in text
    assert len((out / "scores.csv").read_text().splitlines()) == 10


@pytest.mark.slow
def test_planted_shifts_are_counted(tmp_path, data_folder):
    script, out = ROOT / "examples" / "unknown_inputs" / "diagnosis.py", tmp_path / "run"
    options = ["--sets", "mnist", "--data", data_folder, "--out", out]
    text = run(script, "--smoke", *options)
    assert "| semantic |" in text and (out / "diagnosis.png").exists()
    assert (out / "diagnosis-mnist.nc").exists()
