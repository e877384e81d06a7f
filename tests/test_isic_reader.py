"""The reader of ISIC challenges: pictures, diagnoses and lesions are those of the files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reader_folders import write_isic

from ppl_med.data import load_isic

TRUTH, KNOWN = "ISIC_2019_Training_GroundTruth.csv", "ISIC_2019_Training_Metadata.csv"


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_arrays_are_those_of_the_files(tmp_path: Path) -> None:
    truth = write_isic(tmp_path)
    splits = load_isic(tmp_path, size=(6, 8))
    assert splits.classes == ("MEL", "NV", "BCC")  # nobody has UNK
    found = [name for arrays in splits.values() for name in arrays["id"].tolist()]
    assert sorted(found) == sorted(truth)
    for arrays in splits.values():
        assert arrays["image"].shape[1:] == (3, 6, 8)
        for name, image, label in zip(*(arrays[k] for k in ("id", "image", "label")), strict=True):
            level, expected = truth[name]
            assert np.abs(image.astype(int) - level).max() <= 2 and label == expected  # JPEG
        number = np.array([int(name[-7:]) for name in arrays["id"]])
        lesions = np.where(number < 28, [f"HAM_{k // 2:04d}" for k in number], arrays["id"])
        np.testing.assert_array_equal(arrays["patient"], lesions)
        age = np.where(number % 5 == 4, np.nan, 5.0 * number)
        np.testing.assert_array_equal(arrays["age_approx"], age.astype(np.float32))
        assert (
            set(arrays["sex"]) <= {"male", "female"}
            and (arrays["anatom_site_general"] == "back").all()
        )


def test_a_patient_goes_before_a_lesion(tmp_path: Path) -> None:
    write_isic(tmp_path)
    lines = ["image_name,patient_id", *(f"ISIC_{k:07d},IP_{k // 6}" for k in range(30))]
    (tmp_path / "people.csv").write_text("\n".join(lines) + "\n")
    for arrays in load_isic(tmp_path, shares={"train": 0.5, "test": 0.5}).values():
        assert arrays["patient"].tolist() == [f"IP_{int(n[-7:]) // 6}" for n in arrays["id"]]


def test_tables_of_several_parts_are_the_splits(tmp_path: Path) -> None:
    write_isic(tmp_path)
    path = tmp_path / TRUTH
    first, *lines = path.read_text().splitlines()
    for part, rows in {
        "Training": lines[:20],
        "Validation": lines[20:24],
        "Test": lines[24:],
    }.items():
        (tmp_path / TRUTH.replace("Training", part)).write_text("\n".join([first, *rows]) + "\n")
    splits = load_isic(tmp_path)
    assert {name: len(one["id"]) for name, one in splits.items()} == {
        "train": 20,
        "val": 4,
        "test": 6,
    }
    change(tmp_path / KNOWN, "HAM_0010", "HAM_0009")
    with pytest.raises(ValueError, match="patients of train and patients of val share 1"):
        load_isic(tmp_path)
    assert set(load_isic(tmp_path, shares={"a": 0.5, "b": 0.5})) == {"a", "b"}


def test_other_years_have_other_columns(tmp_path: Path) -> None:
    for k in range(8):
        Image.fromarray(np.full((4, 4, 3), k, np.uint8)).save(tmp_path / f"ISIC_{k}.png")
    path = tmp_path / "ISIC_2020_Training_GroundTruth.csv"
    rows = [f"ISIC_{k},IP_{k // 2},male,4{k},{k // 2 % 2}" for k in range(8)]
    path.write_text("\n".join(["image_name,patient_id,sex,age_approx,target", *rows]))
    halves = {"train": 0.5, "test": 0.5}
    splits = load_isic(tmp_path, shares=halves)
    assert splits.classes == ("benign", "malignant")
    for arrays in splits.values():
        assert [int(n[-1]) // 2 % 2 for n in arrays["id"]] == arrays["label"].tolist()
    change(path, "40,0", "40,3")
    with pytest.raises(ValueError, match="target must be 0 or 1"):
        load_isic(tmp_path, shares=halves)
    path.unlink()
    rows = [f"ISIC_{k},{float(k % 3 == 0)},{float(k % 3 == 1)}" for k in range(8)]
    text = "\n".join(["image_id,melanoma,seborrheic_keratosis", *rows])
    (tmp_path / "ISIC-2017_Training_Part3_GroundTruth.csv").write_text(text)
    splits = load_isic(tmp_path, shares=halves)
    assert splits.classes == ("melanoma", "seborrheic_keratosis", "other")
    for arrays in splits.values():
        assert [int(n[-1]) % 3 for n in arrays["id"]] == arrays["label"].tolist()


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (TRUTH, "ISIC_0000000,1.0,0.0", "ISIC_0000000,1.0,1.0", "several diagnoses"),
        (TRUTH, "ISIC_0000001", "ISIC_0000000", "stand twice"),
        (KNOWN, "ISIC_0000001", "ISIC_0000000", "stand twice"),
        (KNOWN, "image,", "picture,", "no column of pictures"),
        (TRUTH, "MEL,NV,BCC,UNK", "a,b,c,d", ""),
    ],
)
def test_what_is_wrong_with_a_table_is_said(
    file: str, old: str, new: str, message: str, tmp_path: Path
) -> None:
    write_isic(tmp_path)
    change(tmp_path / file, old, new)
    if message:
        with pytest.raises(ValueError, match=message):
            load_isic(tmp_path)
    else:
        assert load_isic(tmp_path).classes == ("a", "b", "c")


def test_bad_arguments_raise(tmp_path: Path) -> None:
    write_isic(tmp_path)
    with pytest.raises(ValueError, match="size must be"):
        load_isic(tmp_path, size=(0, 4))
    with pytest.raises(ValueError, match="shares"):
        load_isic(tmp_path, shares={"train": 0.4})
