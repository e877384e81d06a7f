"""The examples whose nets give an image a map run and resume, and what their studies share."""

import importlib
import itertools
import os
import subprocess
import sys
from typing import Any

import pytest
from example_runs import ROOT, check_run_and_resume, run
from reader_folders import write_lidc_slices

MAPS: dict[str, list[str]] = {
    "active_hippocampus.py": [],
    "depth.py": ["--variant", "both", "--fraction", "1", "0.5"],
    "hippocampus.py": [],
    "lung_nodules.py": ["--model", "prob_unet", "nearest_masks"],
    "rater_variance.py": ["--guide", "ensemble", "mean_field"],
    "street_modes.py": ["--scenes", "--model", "m_heads"],
    "street_scenes.py": ["--variant", "baseline", "both", "--fraction", "1"],
}
SEGMENTERS = (
    "prob_unet", "dropout_unet", "ensemble", "m_heads", "image_to_image_vae", "ssn", "hierarchical",
)  # fmt: skip


@pytest.mark.parametrize("name", MAPS)
def test_an_example_runs_and_resumes(name, tmp_path, request):
    check_run_and_resume(name, MAPS[name], tmp_path, request)


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
def test_the_nodules_are_read_as_pylidc_exports_them(tmp_path):
    write_lidc_slices(tmp_path / "data", patients=24)
    out, models = tmp_path / "run", ["random_masks", "nearest_masks"]
    script = ROOT / "examples" / "lung_nodules.py"
    run(script, "--smoke", "--data", tmp_path / "data", "--model", *models, "--out", out)
    assert (out / "report.html").stat().st_size > 10_000


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


@pytest.mark.slow
def test_other_laboratories_are_read_and_resumed(tmp_path, request):
    options = ["--guide", "point", "--laboratory", "own", "--seed", "0"]
    check_run_and_resume("unknown_inputs/laboratories.py", options, tmp_path, request)


def test_foreground_aware_random_draws_a_third_around_the_organ(monkeypatch):
    import numpy as np

    monkeypatch.syspath_prepend(ROOT / "examples")
    order = importlib.import_module("active_hippocampus.run").foreground_order
    mask = np.zeros((4, 6, 6), int)
    mask[2, 1:3, 1:5], mask[2, 3:5, 1:5] = 1, 2
    rng = np.random.default_rng(0)
    orders = np.array([order(mask, rng) for _ in range(4000)])
    assert (np.sort(orders, axis=1) == np.arange(4)).all()
    # First the slice with the organ: 2/3 x 1/4 + 1/3 = 1/2; five sd, false alarms 6e-7.
    share = (orders[:, 0] == 2).mean()
    assert abs(share - 0.5) < 5 * (0.25 / len(orders)) ** 0.5
