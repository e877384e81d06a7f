"""Bundles prepare images as the run's were, or are not written unless the user takes it over."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_configs import classifier

from ppl_med import runs
from ppl_med.data import from_table
from ppl_med.runs.bundle_preprocessing import AS_STORED, TABLE, preprocessing_of
from ppl_med.runs.run_parts import build_data

# MONAI tells of decoders and files that it does not find.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

SIZES = [(20, 31), (40, 22), (16, 16), (9, 13), (18, 18), (25, 12)]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of pictures of several sizes: colours, grey levels, 16 bits, a palette."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    lines = ["path,label,split"]
    for case, (rows, cols) in enumerate(SIZES):
        pixels = rng.integers(0, 256, (rows, cols, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels)
        if case == 1:
            picture = picture.convert("L")
        if case == 2:
            picture = Image.fromarray(rng.integers(0, 2**16, (rows, cols), dtype=np.uint16))
        if case == 3:
            picture = picture.convert("P")
        picture.save(folder / f"cell{case}.png")
        lines.append(f"cell{case}.png,{case % 2},{'train' if case < 4 else 'test'}")
    path = folder / "cells.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def trained(folder: Path, source: dict[str, Any], **changes: Any) -> runs.Run:
    """A classifier of what a reader gives, after one epoch."""
    config = classifier(data={"source": source, "batches": {"batch_size": 4}}, **changes)
    config["fit"]["epochs"] = 1
    return runs.fit(config, folder, progress=False)


def colours(side: int) -> dict[str, Any]:
    layers: list[dict[str, Any]] = [
        {"name": "torch.nn.AvgPool2d", "kernel_size": side},
        {"name": "torch.nn.Flatten"},
        {"name": "torch.nn.Linear", "in_features": 3, "out_features": 2},
    ]
    return {"name": "torch.nn.Sequential", "args": layers}


@pytest.mark.parametrize("resize", ["fit", "scale", "pad"])
def test_pictures_of_a_table_reach_the_network_as_in_training(
    resize: str, table: Path, tmp_path: Path
) -> None:
    import monai.bundle

    source = {
        "name": TABLE,
        "table": str(table),
        "patient": None,
        "size": [16, 16],
        "resize": resize,
    }
    run = trained(tmp_path / "run", source, net=colours(16))
    bundle = runs.export(run.folder, tmp_path / "bundle")
    parser = monai.bundle.ConfigParser()
    parser.read_config(str(bundle / "configs/inference.json"))
    places = {"bundle_root": bundle, "dataset_dir": table.parent, "output_dir": tmp_path / "out"}
    for name, place in places.items():
        parser[name] = str(place)
    parser["device"] = "cpu"
    data = parser.get_parsed_content("dataset")
    (train,) = build_data(run.config, only=("train",), training=False).splits["train"]
    assert train["id"] == [Path(data.data[case]["image"]).name for case in range(4)]
    for case in range(4):
        given = torch.as_tensor(data[case]["image"])
        torch.testing.assert_close(given, train["image"][case], atol=2e-6, rtol=0)
    if resize == "fit":
        tree = parser.get_parsed_content("evaluator").run()
        assert tree["posterior"].sizes["case"] == len(SIZES)
    card = (bundle / "docs/README.md").read_text(encoding="utf-8")
    assert "brought to 3 x 16 x 16 (channel, row, col) by the code that read" in card
    assert "There is no `models/model.pt`" in card


def test_a_picture_of_another_shape_or_kind_is_refused(tmp_path: Path) -> None:
    read = runs.ReadImage([1, 16, 16])
    Image.fromarray(np.zeros((16, 15), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png has the shape \(1, 16, 15\), but .* \(1, 16, 16"):
        read({"image": str(tmp_path / "a.png")})
    np.save(tmp_path / "a.npy", np.zeros((1, 16, 16), np.float32))
    with pytest.raises(ValueError, match="holds float32, but the network was trained on uint8"):
        read({"image": str(tmp_path / "a.npy")})
    np.save(tmp_path / "b.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"b\.npy is no array of numbers"):
        read({"image": str(tmp_path / "b.npy")})


def test_a_run_whose_reader_prepares_images_is_exported_as_given_alone(
    table: Path, tmp_path: Path
) -> None:
    source = {"name": TABLE, "table": str(table), "patient": None, "size": [16, 16]}
    run = trained(tmp_path / "run", source, net=colours(16))
    cases = {
        "ppl_med.data.load_malaria": {"source": {"name": "ppl_med.data.load_malaria"}},
        "ppl_med.data.load_hippocampus": {"train": {"name": "ppl_med.data.load_hippocampus"}},
        "ppl_med.data.load_decathlon": {
            "train": {"name": "ppl_med.data.load_decathlon"},
            "test": {"name": "ppl_med.data.blood_smear"},
        },
        "nothing of their data": {},
    }
    for name, data in cases.items():
        run.config["data"] = data
        with pytest.raises(ValueError, match=f"{name}.*transforms, or export it as_given"):
            preprocessing_of(run)
        found = preprocessing_of(run, as_given=True)
        assert not found.is_complete and "does not prepare images in full" in found.statement
    # Of what is no picture (DICOM, NIfTI), spacing and window are not known.
    run.config["data"], run.unit = {"source": source}, "float"
    with pytest.raises(ValueError, match=r"they come from ppl_med\.data\.from_table"):
        preprocessing_of(run)
    assert preprocessing_of(run, as_given=True).pattern == "*.npy"


def test_what_is_left_to_the_user_stands_in_card_and_metadata(table: Path, tmp_path: Path) -> None:
    run = trained(
        tmp_path / "run", {"name": "ppl_med.data.blood_smear", "num_cases": 8, "size": 16}
    )
    path = run.folder / "config.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("ppl_med.data.blood_smear", "ppl_med.data.load_lidc"))
    with pytest.raises(ValueError, match=r"come from ppl_med\.data\.load_lidc"):
        runs.export(run.folder, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    bundle = runs.export(run.folder, tmp_path / "bundle", as_given=True)
    card = (bundle / "docs/README.md").read_text(encoding="utf-8")
    metadata = json.loads((bundle / "configs/metadata.json").read_text(encoding="utf-8"))
    for said in (card, metadata["description"]):
        assert "Those of the run came from `ppl_med.data.load_lidc`" in said
        assert "1 x 16 x 16 (channel, row, col), whole grey levels" in said
    assert "which the bundle does not do" in metadata["data_type"]


def test_readers_that_are_taken_as_stored_are_there() -> None:
    import ppl_med.data

    assert {name.rpartition(".")[2] for name in (*AS_STORED, TABLE)} <= set(ppl_med.data.__all__)
    assert callable(from_table)
