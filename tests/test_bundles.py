"""A run as a MONAI Bundle: MONAI's runner gives predict's numbers, the card their intervals."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from monai.bundle import ConfigParser
from PIL import Image
from run_configs import classifier

import ppl_med
from ppl_med import runs, storage
from ppl_med.analysis import scoring
from ppl_med.data import blood_smear
from ppl_med.inference import predict
from ppl_med.inference.checkpoint import digest
from ppl_med.inference.guides.ensemble import members_of
from ppl_med.runs.model_card import model_card, performance
from ppl_med.runs.run_parts import build_data

# MONAI tells of decoders and files that it does not find.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

# What meta_schema_20240725.json requires, "properties" with their "type", and of tensors also what
# the text of MONAI's specification does.
TEXTS = {
    *("schema", "version", "monai_version", "pytorch_version", "numpy_version", "task"),
    *("description", "authors", "copyright"),
}
REQUIRED = {
    **dict.fromkeys(TEXTS, str),
    "required_packages_version": dict,
    "network_data_format": dict,
}
OPTIONAL = {
    **dict.fromkeys(("data_source", "data_type", "intended_use"), str),
    **dict.fromkeys(("changelog", "eval_metrics", "supported_apps"), dict),
    "references": list,
}
REQUIRED_OF_TENSORS = {
    **dict.fromkeys(("type", "format", "dtype"), str),
    **dict.fromkeys(("spatial_shape", "value_range"), list),
    **{"num_channels": int, "is_patch_data": bool, "channel_def": dict},
}
CARD = {
    "title": "Cells",
    "intended_use": "To test.",
    "data_license": "CC0",
    "authors": ["A", "B"],
    "limitations": ["Knows no frogs."],
    "version": "1.2.0",
}


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    """A classifier, with its test data predicted."""
    folder = tmp_path_factory.mktemp("cells")
    run = runs.fit(classifier(card=CARD), folder / "run", progress=False)
    runs.predict(run.folder, progress=False)
    return run


@pytest.fixture(scope="module")
def organs(tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    """A segmenter of volumes, which lie in space the other way round."""
    folder, rng = tmp_path_factory.mktemp("organs"), np.random.default_rng(0)
    affine = np.array([[0, -2, 0, 5], [-3, 0, 0, 7], [0, 0, 4, -9], [0, 0, 0, 1.0]])
    items = []
    for case in range(3):
        image = rng.normal(size=(6, 8, 4)).astype(np.float32)
        mask = (image > 0.5).astype(np.uint8)
        files = {}
        for name, values in {"image": image, "mask": mask}.items():
            (folder / name).mkdir(exist_ok=True)
            files[name] = str(folder / name / f"patient{case}.nii.gz")
            nibabel.save(nibabel.Nifti1Image(values, affine), files[name])
        items.append(files)
    both = {"keys": ["image", "mask"]}
    transforms = [
        {"name": "monai.transforms.LoadImaged", "reader": "NibabelReader", **both},
        {"name": "monai.transforms.EnsureChannelFirstd", **both},
        {"name": "monai.transforms.Orientationd", "axcodes": "RAS", **both},
        {"name": "monai.transforms.ScaleIntensityd", "keys": ["image"]},
    ]
    part = {"name": "monai.transforms.Compose", "transforms": transforms}
    data = {
        split: {"name": "monai.data.Dataset", "data": cases, "transform": part}
        for split, cases in {"train": items[:2], "test": items[1:]}.items()
    }
    config = {
        "net": {"name": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1},
        "model": {
            "name": "ppl_med.models.BayesianSegmenter",
            "classes": ["background", "organ"],
            "spatial_dims": 3,
        },
        "guide": {"name": "ppl_med.inference.MeanFieldNormal", "init_scale": 0.5},
        "data": data,
        "fit": {"epochs": 1, "device": "cpu"},
        "predict": {"draws": 3, "device": "cpu"},
    }
    run = runs.fit(config, folder / "run", progress=False)
    runs.predict(run.folder, progress=False)
    return run


@pytest.fixture(scope="module")
def bundles(cells: runs.Run, organs: runs.Run) -> dict[str, tuple[runs.Run, Path]]:
    """Runs and their bundles, by name."""
    named = {"cells": cells, "organs": organs}
    return {
        name: (run, runs.export(run.folder, run.folder.parent / "bundle"))
        for name, run in named.items()
    }


Bundles = dict[str, tuple[runs.Run, Path]]


def test_monais_runner_writes_the_maps_of_predict(bundles: Bundles) -> None:
    organs, bundle = bundles["organs"]
    files = [item["image"] for item in organs.config["data"]["test"]["data"]]
    command = [
        *(sys.executable, "-W", "ignore", "-m", "monai.bundle", "run"),
        *("--config_file", "configs/inference.json", "--device", "cpu"),
        *("--dataset_dir", str(Path(files[0]).parent), "--pattern", "patient[12].nii.gz"),
    ]
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    batches = build_data(organs.config, only=("test",)).splits["test"]
    tree = predict(organs.model, organs.guide, batches, draws=3, device="cpu", progress=False)
    probs = tree["posterior/probs"]
    expected = {
        "probability": probs.mean(("chain", "draw")).sel({"class": "organ"}),
        "sd": probs.sel({"class": "organ"}).std(("chain", "draw"), ddof=1),
        "mask": probs.mean(("chain", "draw")).argmax("class"),
    }
    for case, file in enumerate(files):
        original: Any = nibabel.load(file)
        for name, values in expected.items():
            written: Any = nibabel.load(bundle / f"eval/patient{case + 1}_{name}.nii.gz")
            np.testing.assert_allclose(written.affine, original.affine, atol=1e-5)
            assert written.shape == original.shape
            upright = nibabel.as_closest_canonical(written).get_fdata()
            np.testing.assert_allclose(upright, np.asarray(values.isel(case=case)), atol=2e-6)
    table = pd.read_csv(bundle / "eval/predictions.csv")
    assert table["id"].tolist() == ["patient1", "patient2"]


def test_monais_runner_writes_the_table_of_predict(bundles: Bundles, tmp_path: Path) -> None:
    import monai.bundle

    made = blood_smear(10, size=16, seed=1)
    (tmp_path / "images").mkdir()
    endings = [".png", ".bmp", ".TIF"] * 4
    for name, pixels, ending in zip(made["id"], made["image"], endings, strict=False):
        Image.fromarray(pixels[0]).save(tmp_path / "images" / f"{name}{ending}")
    (tmp_path / "images/notes.txt").write_text("no picture")
    cells, bundle = bundles["cells"]
    settings: dict[str, Any] = {"bundle_root": str(bundle), "dataset_dir": str(tmp_path / "images")}
    monai.bundle.run(
        config_file=str(bundle / "configs/inference.json"),
        output_dir=str(tmp_path / "out"),
        device="cpu",
        **settings,
    )
    table = pd.read_csv(tmp_path / "out/predictions.csv").set_index("id").loc[made["id"].tolist()]
    probs = storage.load(cells.folder / "posterior.nc")["posterior/probs"]
    mean = probs.mean(("chain", "draw")).sel({"class": "ill"})
    np.testing.assert_allclose(table["probability_ill"], np.asarray(mean), atol=1e-6)


def test_a_bundle_gives_its_run_back(bundles: Bundles, tmp_path: Path) -> None:
    cells, bundle = bundles["cells"]
    loaded = runs.load_bundle(bundle)
    assert digest(members_of(loaded.model, loaded.guide)) == cells.provenance["parameters_sha256"]
    assert (loaded.classes, loaded.loc, loaded.config) == (cells.classes, cells.loc, cells.config)
    assert loaded.history is not None and cells.history is not None
    xr.testing.assert_identical(loaded.history, cells.history)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/precious.txt").write_text("x")
    with pytest.raises(FileExistsError, match="something else than a bundle"):
        runs.export(cells.folder, tmp_path / "other")


@pytest.mark.parametrize("name", ["cells", "organs"])
def test_metadata_have_every_field_of_the_schema(name: str, bundles: Bundles) -> None:
    run, bundle = bundles[name]
    metadata = json.loads((bundle / "configs/metadata.json").read_text(encoding="utf-8"))
    assert metadata.keys() >= REQUIRED.keys()
    for key, kind in (REQUIRED | OPTIONAL).items():
        assert isinstance(metadata[key], kind), key
    assert all(metadata[key] for key in REQUIRED)
    # MONAI's parser renames keys of old bundles, over those that are there.
    parser = ConfigParser()
    parser.read_meta(bundle / "configs/metadata.json")
    assert parser["_meta_::required_packages_version"]["ppl-med"] == ppl_med.__version__
    shape = run.example["image"]["shape"]
    for part, sides in {"image": "inputs", "pred": "outputs"}.items():
        found = metadata["network_data_format"][sides][part]
        assert found.keys() >= REQUIRED_OF_TENSORS.keys()
        assert all(isinstance(found[key], kind) for key, kind in REQUIRED_OF_TENSORS.items())
        assert len(found["channel_def"]) == found["num_channels"]
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == shape[2:]
    assert list(metadata["network_data_format"]["outputs"]["pred"]["channel_def"].values()) == list(
        run.classes
    )
    for figure in metadata["eval_metrics"].values():
        assert figure["lower_95"] <= figure["value"] <= figure["upper_95"]


@pytest.mark.parametrize("name", ["cells", "organs"])
def test_a_card_states_every_figure_with_its_interval(name: str, bundles: Bundles) -> None:
    run, bundle = bundles[name]
    tree = storage.load(run.folder / "posterior.nc")
    assert isinstance(tree, xr.DataTree)
    card = (bundle / "docs/README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| (-?\d[-\d.e]*) \| ([^|]+) \|$", card, flags=re.MULTILINE)
    assert len(rows) >= 8
    for figure, value, interval in rows:
        if interval == "none: too few cases":
            continue
        lower, upper = map(float, interval.split(" to "))
        assert lower - 1e-2 <= float(value) <= upper + 1e-2, figure
    accuracy = float(scoring.score(tree)["accuracy"])
    assert any("called right" in figure and float(v) == pytest.approx(accuracy, abs=1e-3)
               for figure, v, _ in rows)  # fmt: skip
    assert f"measured on {tree['posterior'].sizes['case']} cases" in card
    for heading in ("Intended use", "Data", "Performance", "Calibration", "What it does not know"):
        assert f"## {heading}" in card


def test_a_card_says_what_nobody_has_said_or_measured(cells: runs.Run, organs: runs.Run) -> None:
    card = model_card(cells)
    assert "# Cells" in card and "To test." in card and "- Knows no frogs." in card
    assert "Licence of the data: CC0" in card and "Licence of the model: not stated" in card
    assert card.count("Not measured: no labelled cases were predicted") == 2
    assert "add `not_intended_for` to the section `card`" in card
    assert "add `intended_use` to the section `card`" in model_card(organs)


def test_intervals_of_a_card_are_over_patients_and_hold_at_the_ends() -> None:
    """Two films of each of six patients, all called right: six independent cases."""
    probs = np.zeros((1, 2, 12, 2))
    probs[..., 1] = 0.9
    probs[..., 0] = 0.1
    names = {"case": [f"c{k}" for k in range(12)], "class": ["healthy", "ill"]}
    tree = xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset({"probs": (("chain", "draw", "case", "class"), probs)}, names),
            "observed_data": xr.Dataset(
                {"label": ("case", np.ones(12, int))}, {"case": names["case"]}
            ),
            "constant_data": xr.Dataset(
                {"patient": ("case", np.repeat(list("abcdef"), 2))}, {"case": names["case"]}
            ),
        }
    )
    found = performance(tree)
    value, lower, upper = found["share of cases called right"]
    assert (value, upper) == (1.0, 1.0)
    assert lower == pytest.approx(0.025 ** (1 / 6))  # Clopper and Pearson, 6 of 6
    nll = found["negative log-likelihood, nats per case"]
    np.testing.assert_allclose(nll, -np.log(0.9))


def test_images_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file \*\.png in"):
        runs.find_images(tmp_path, "*.png")
    with pytest.raises(FileNotFoundError, match=r"no file \*\.png, \*\.jpg in"):
        runs.find_images(tmp_path, ["*.png", "*.jpg"])


def test_a_run_without_shapes_or_scale_is_not_exported(cells: runs.Run, tmp_path: Path) -> None:
    config = {key: value for key, value in cells.config.items() if key != "data"}
    bare = runs.save(tmp_path / "bare", cells.model, cells.guide, config=config)
    with pytest.raises(ValueError, match="one that knows its images' shape"):
        runs.export(bare.folder, tmp_path / "bundle")
    example = next(iter(build_data(cells.config).splits["train"]))
    runs.save(tmp_path / "bare", cells.model, cells.guide, config=config, example=example)
    with pytest.raises(ValueError, match="save it with loc and scale"):
        runs.export(bare.folder, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
