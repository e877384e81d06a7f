"""Every example runs, resumes, and lists its options; the README code runs as it stands."""

import importlib
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
NEEDS_DATA = {
    "calibrated_chest_xray.py": ["--guide", "frequentist", "last_layer"],
    "counterfactual_cells.py": [],
    "hippocampus.py": [],
    "lung_nodules.py": ["--model", "prob_unet", "ensemble"],
    "right_reason.py": [],
    "malaria.py": ["--fraction", "1", "0.5", "--seed", "0", "--epochs", "1"],
    "street_scenes.py": ["--variant", "baseline", "both", "--fraction", "1"],
}
OPTIONS = {
    "depth.py": ["--variant", "epistemic", "both", "--fraction", "1", "0.5"],
    "street_modes.py": ["--scenes", "--model", "prob_unet", "m_heads"],
}
SEGMENTERS = (
    "prob_unet", "dropout_unet", "ensemble", "m_heads", "image_to_image_vae", "ssn", "hierarchical",
)  # fmt: skip


def run(*arguments: str | Path, cwd: Path = ROOT) -> str:
    """Run Python with warnings as errors and give what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_help_lists_the_options(name):
    text = run(ROOT / "examples" / name, "--help")
    for option in ("--seed", "--device", "--out", "--smoke", "--resume"):
        assert option in text


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_resumes(name, tmp_path, request):
    extra = [*NEEDS_DATA.get(name, []), *OPTIONS.get(name, [])]
    if name in NEEDS_DATA:
        extra += ["--data", str(request.getfixturevalue("data_folder"))]
    out = tmp_path / "run"
    first = run(ROOT / "examples" / name, "--smoke", "--out", out, *extra)
    results = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    assert any(part.startswith("posterior") for path in results for part in path.parts), first
    again = run(ROOT / "examples" / name, "--smoke", "--out", out, "--resume", *extra)
    assert {path.relative_to(out) for path in out.rglob("*") if path.is_file()} == results
    assert again.splitlines()[-1] == first.splitlines()[-1]
    assert not out.with_name("run.1").exists()


@pytest.mark.slow
def test_every_segmenter_runs_on_scenes(tmp_path):
    out = tmp_path / "run"
    script = ROOT / "examples" / "street_modes.py"
    text = run(script, "--smoke", "--scenes", "--out", out, "--model", *SEGMENTERS)
    rows = [line for line in (out / "table.md").read_text().splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows] == [
        "model", "---", *SEGMENTERS, "a perfect model",
    ], text  # fmt: skip
    report = (out / "report.html").read_text()
    assert all(f'id="samples-{name.replace("_", "-")}"' in report for name in SEGMENTERS)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["iwae", "geco"])
def test_a_latent_model_takes_every_objective(tmp_path, objective):
    out = tmp_path / "run"
    models = ["--model", "image_to_image_vae", "hierarchical"]
    script = ROOT / "examples" / "street_modes.py"
    run(script, "--smoke", "--scenes", "--out", out, *models, "--objective", objective)
    wrong = subprocess.run(
        [sys.executable, script, "--smoke", "--scenes", "--out", out, "--resume", "--beta", "2"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert wrong.returncode == 1 and "was begun with" in wrong.stderr


@pytest.mark.slow
def test_every_segmenter_runs_on_camvid(tmp_path, data_folder):
    out = tmp_path / "run"
    script = ROOT / "examples" / "street_modes.py"
    data = ["--data", str(data_folder), "--size", "32", "48"]
    run(script, "--smoke", *data, "--out", out, "--model", *SEGMENTERS)
    assert (out / "report.html").exists()


@pytest.fixture
def study(monkeypatch):
    """What the studies of ambiguous masks share."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("ambiguous_masks.training")


def test_the_calibration_study_reads_malaria_cells_too(tmp_path, data_folder):
    options = ["--pictures", "malaria", "--guide", "frequentist", "last_layer", "--data"]
    out = tmp_path / "run"
    script = ROOT / "examples" / "calibrated_chest_xray.py"
    text = run(script, "--smoke", *options, data_folder, "--out", out)
    assert "| last-layer | vector |" in text
    assert (out / "report.html").stat().st_size > 10_000


def test_ged_of_fewer_samples_is_the_mean_over_their_subsets(study):
    import numpy as np
    import xarray as xr

    from ppl_med.analysis import segmentation

    rng = np.random.default_rng(0)
    dims = ("chain", "draw", "case", "row", "col")
    masks = xr.DataArray(rng.integers(0, 2, (1, 5, 3, 4, 4)), dims=dims)
    graders = xr.DataArray(rng.integers(0, 2, (3, 4, 4, 4)), dims=("case", "grader", "row", "col"))
    energy = segmentation.ged(masks, graders, classes=[1])
    own = study.ged_of_subsets(energy, [1, 3, 5])
    for number in (1, 3, 5):
        parts = [
            segmentation.ged(masks.isel(draw=list(chosen)), graders, classes=[1])["biased"]
            for chosen in itertools.combinations(range(5), number)
        ]
        mean = xr.concat(parts, "subset").mean("subset")
        np.testing.assert_allclose(own.sel(num_samples=number), mean, atol=1e-12)


def test_the_latent_plane_holds_what_its_codes_decode_to(study):
    import pyro.poutine as poutine
    import torch

    from ppl_med.models import ProbabilisticUNet

    torch.manual_seed(0)
    model: Any = ProbabilisticUNet(1, ("a", "b", "c"), (32, 8), 1, latent_dim=4).eval()
    with torch.no_grad():
        model.combine.code.weight.mul_(10)  # so that codes decide, in a net that knows nothing
        model.prior.parameters_of_z.bias[4:] = 1.5  # a scale that cannot be left out unseen
    image = torch.randn(1, 8, 8)
    plane = study.decode_plane(model, image)
    axes = [int(plane[name].attrs["long_name"][1:]) - 1 for name in ("first", "second")]
    law = model.prior(image[None]).base_dist
    assert len(set(axes)) == 2 and (plane.values != plane.values[0, 0]).any()
    for first, second in itertools.product(plane["first"].values, plane["second"].values):
        steps = torch.zeros(1, 4)
        steps[0, axes] = torch.tensor([first, second], dtype=torch.float32)
        z = (law.loc + law.scale * steps).detach()
        with torch.no_grad():
            logits = poutine.condition(model, data={"z": z})(image[None])
        expected = logits[0].argmax(0).numpy()
        assert (plane.sel(first=first, second=second).values == expected).all()


def test_a_second_run_moves_the_first_aside(tmp_path):
    from ppl_med.runs import open_run

    folder = open_run(tmp_path / "run", resume=False)
    (folder / "posterior.nc").write_text("kept")
    assert open_run(tmp_path / "run", resume=True) == folder
    assert (folder / "posterior.nc").read_text() == "kept"
    open_run(tmp_path / "run", resume=False)
    assert (tmp_path / "run.1" / "posterior.nc").read_text() == "kept"
    assert not (folder / "posterior.nc").exists()


def test_the_readme_runs_as_it_stands(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks, "the README shows no Python"
    for number, block in enumerate(blocks):
        script = tmp_path / f"block_{number}.py"
        script.write_text(block)
        assert "accuracy" in run("-W", "error", script, cwd=tmp_path)


def test_the_tutorial_stays_short():
    lines = (ROOT / "examples" / "write_your_own.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) < 60
