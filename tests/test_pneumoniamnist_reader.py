"""The reader of PneumoniaMNIST: on a file made here, and on the real one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reader_folders import pneumoniamnist_contents

from ppl_med.data import Batches, load_pneumoniamnist


def test_the_arrays_are_those_of_the_file(tmp_path: Path) -> None:
    truth = pneumoniamnist_contents()
    (tmp_path / "pneumoniamnist").mkdir()
    np.savez(tmp_path / "pneumoniamnist" / "pneumoniamnist.npz", **truth)
    splits = load_pneumoniamnist(tmp_path)
    assert list(splits) == ["train", "val", "test"]
    for split, one in splits.items():
        np.testing.assert_array_equal(one["image"][:, 0], truth[f"{split}_images"])
        np.testing.assert_array_equal(one["label"], truth[f"{split}_labels"][:, 0])
        assert one["label"].dtype == np.int64
    assert splits["val"]["id"].tolist() == ["val-00000", "val-00001", "val-00002"]
    assert next(iter(Batches(splits["train"])))["image"].shape == (6, 1, 28, 28)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val_labels": np.full((3, 1), 2)}, r"val_labels holds \[2\]; expected 0 to 1"),
        ({"val_labels": np.zeros((2, 1))}, "val has 3 images but 2 labels"),
        ({"val_images": np.zeros((3, 28, 28))}, "val_images is float64"),
        ({"val_images": np.zeros((3, 28), np.uint8)}, r"expected uint8 \(case, 28, 28\)"),
        ({"val_images": None}, r"lacks \['val_images'\]"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arrays = {
        name: one for name, one in (pneumoniamnist_contents() | change).items() if one is not None
    }
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_pneumoniamnist(tmp_path)


def test_objects_are_not_unpickled_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither pneumoniamnist\.npz"):
        load_pneumoniamnist(tmp_path)
    arrays = pneumoniamnist_contents() | {"train_labels": np.array([None] * 6)}
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_pneumoniamnist(tmp_path)


def test_the_real_file(data_folder: Path) -> None:
    if not (data_folder / "pneumoniamnist" / "pneumoniamnist.npz").is_file():
        pytest.skip("PPL_MED_DATA names no folder that holds pneumoniamnist/pneumoniamnist.npz")
    splits = load_pneumoniamnist(data_folder)
    val = splits["val"]  # 135 normal and 389 with pneumonia, as MedMNIST publishes it
    assert np.bincount(val["label"]).tolist() == [135, 389]
    for one in splits.values():
        assert one["image"].shape[1:] == (1, 28, 28) and 0.5 < one["label"].mean() < 0.9
