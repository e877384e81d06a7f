"""The malaria reader: on files made here, and on the real one where it is at hand."""

import os
from pathlib import Path

import numpy as np
import pytest
from reader_folders import malaria_contents

from ppl_med.data import Batches, load_malaria, standardization
from ppl_med.data.readers.malaria import CLASS_NAMES


@pytest.fixture
def folder(tmp_path):
    np.savez(tmp_path / "malaria.npz", **malaria_contents())
    return tmp_path


def save(folder, **changes):
    np.savez(folder / "malaria.npz", **(malaria_contents() | changes))


def test_the_arrays_are_those_of_the_file(folder):
    arrays, splits = malaria_contents(), load_malaria(folder)
    assert list(splits) == ["train", "val", "test"]
    for split, one in splits.items():
        np.testing.assert_array_equal(one["image"][:, 0], arrays[f"{split}_images"])
        np.testing.assert_array_equal(one["label"], arrays[f"{split}_labels"][:, 0])
        np.testing.assert_array_equal(one["patient"], arrays[f"{split}_patient"].astype(str))
        assert one["label"].dtype == np.int64 and len(set(one["id"])) == len(one["id"])
        assert one["id"][7] == f"{split}-00007-{one['patient'][7]}"
    assert next(iter(Batches(splits["val"])))["patient"] == splits["val"]["patient"].tolist()


def test_the_file_may_lie_in_a_subfolder(tmp_path):
    (tmp_path / "malaria").mkdir()
    save(tmp_path / "malaria")
    assert len(load_malaria(tmp_path)["train"]["label"]) == 200


@pytest.mark.parametrize("by", ["cell", "patient"])
def test_fractions_are_nested_and_of_the_asked_size(folder, by):
    whole = load_malaria(folder)
    kept = {f: load_malaria(folder, fraction=f, by=by, seed=4) for f in (0.1, 0.25, 0.5, 1.0)}
    ids = [set(one["train"]["id"]) for one in kept.values()]
    assert ids[0] < ids[1] < ids[2] < ids[3] == set(whole["train"]["id"])
    for fraction, one in kept.items():
        for split in ("val", "test"):
            np.testing.assert_array_equal(one[split]["id"], whole[split]["id"])
        unit = "label" if by == "cell" else "patient"
        for label in (0, 1) if by == "cell" else (1,):
            few, all_ = (
                np.unique(s["train"][unit][s["train"]["label"] == label], return_counts=True)
                for s in (one, whole)
            )
            sizes = (few[1][0], all_[1][0]) if by == "cell" else (len(few[0]), len(all_[0]))
            assert sizes[0] == round(fraction * sizes[1])
    other = load_malaria(folder, fraction=0.5, by=by, seed=5)
    assert set(other["train"]["id"]) != ids[2]


def test_by_patient_keeps_people_whole(folder):
    whole, half = load_malaria(folder), load_malaria(folder, fraction=0.5, by="patient")
    rows = np.isin(whole["train"]["patient"], half["train"]["patient"])
    np.testing.assert_array_equal(whole["train"]["id"][rows], half["train"]["id"])


def test_a_patient_in_two_splits_raises(folder):
    patient = malaria_contents()["test_patient"]
    patient[5] = malaria_contents()["train_patient"][0]
    save(folder, test_patient=patient)
    with pytest.raises(ValueError, match="patients of train and patients of test share 1"):
        load_malaria(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_images": np.zeros((30, 6, 6), np.float32)}, "val_images is float32"),
        ({"val_labels": np.zeros(29, np.uint8)}, "29 labels"),
        ({"val_labels": np.full(30, 2, np.uint8)}, r"val_labels holds \[2\]"),
    ],
)
def test_files_of_another_form_are_named(folder, changes, message):
    save(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_malaria(folder)


def test_missing_things_are_named(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="nowhere' is not there"):
        load_malaria(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"neither malaria\.npz"):
        load_malaria(tmp_path / "empty")
    np.savez(folder / "malaria.npz", train_images=np.zeros(3))
    with pytest.raises(ValueError, match=r"lacks \['train_labels'"):
        load_malaria(folder)
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match="fraction must be"):
            load_malaria(folder, fraction=wrong)


def test_pickled_files_are_refused(folder):
    save(folder, val_patient=np.array([object()] * 30, dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_malaria(folder)


def test_the_real_file():
    root = os.environ.get("PPL_MED_DATA")
    if not root or not (Path(root) / "malaria" / "malaria.npz").is_file():
        pytest.skip("PPL_MED_DATA names no folder that holds malaria/malaria.npz")
    splits = load_malaria(root, fraction=0.5)
    for one in splits.values():
        assert one["image"].shape[1:] == (1, 50, 50) and set(one["label"]) == {0, 1}
        healthy_donors = np.char.startswith(one["patient"], "C")
        assert not one["label"][healthy_donors].any(), "a healthy donor has a parasite"
    loc, scale = standardization(splits["train"]["image"])
    assert loc.shape == scale.shape == (1,) and 0 < loc[0] < 1
    assert CLASS_NAMES[1] == "parasitized"
