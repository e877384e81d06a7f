"""Cases from a table: what is read, and what is said before the first image is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from reader_folders import save_dicom, save_volume, write_table

from ppl_med.data import Batches, from_table, split_patients
from ppl_med.data.readers import read_dataset, table_files

nibabel = pytest.importorskip("nibabel", reason="needs the extra `data`")
pydicom = pytest.importorskip("pydicom", reason="needs the extra `data`")


def frame(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "cases.csv", dtype={"patient": str})


def rejects(message: str, *args: Any, error: type[Exception] = ValueError, **options: Any) -> None:
    """The table is refused, and no image is decoded before."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(error, match=message):
        patch.setattr(table_files, "read_pixels", None)
        from_table(*args, **options)


# ------------------------------------------------------------------------------------ what is read


def test_the_arrays_are_those_of_the_files(tmp_path: Path) -> None:
    truth = write_table(tmp_path)
    splits = from_table(tmp_path / "cases.csv")
    assert splits.classes == ("healthy", "ill") and splits.likelihood == "categorical"
    rows = frame(tmp_path).set_index("path")
    seen = []
    for arrays in splits.values():
        for case, one in enumerate(arrays["id"].tolist()):
            seen.append(one)
            np.testing.assert_array_equal(arrays["image"][case, 0], truth[one])
            row = rows.loc[one]
            assert splits.classes[arrays["label"][case]] == row["label"]
            assert arrays["patient"][case] == row["patient"] and len(row["patient"]) == 3
            assert arrays["site"][case] == row["site"] and arrays["age"][case] == row["age"]
    assert sorted(seen) == sorted(truth)
    again = read_dataset("table", tmp_path / "cases.csv")
    np.testing.assert_array_equal(again["val"]["id"], splits["val"]["id"])
    with pytest.raises(ValueError, match="did you mean 'camvid'"):
        read_dataset("cam_vid", tmp_path)


def test_every_split_has_its_share_of_patients_and_of_labels(tmp_path: Path) -> None:
    write_table(tmp_path, cases=40)
    for seed in range(5):
        splits = from_table(tmp_path / "cases.csv", seed=seed)
        assert [len(set(one["patient"])) for one in splits.values()] == [12, 4, 4]
        assert [one["label"].mean() for one in splits.values()] == [0.5] * 3
        assert list(splits) == ["train", "val", "test"]
    shares = {"fit": 0.5, "look": 0.5}
    assert list(from_table(tmp_path / "cases.csv", shares=shares)) == ["fit", "look"]


def test_strata_are_divided_within_one_patient_of_their_share() -> None:
    rng = np.random.default_rng(0)
    patients = np.array([f"p{k:03d}" for k in range(100)])
    label = rng.choice(["rare", "usual", "common"], 100, p=[0.1, 0.3, 0.6])
    shares = {"train": 0.6, "val": 0.2, "test": 0.2}
    split = split_patients(patients, shares, seed=1, stratify=label)
    assert [len(one) for one in split.values()] == [60, 20, 20]
    for value in np.unique(label):
        for name, share in shares.items():
            found = np.isin(patients[label == value], split[name]).sum()
            assert abs(found - share * (label == value).sum()) <= 1.5
    order = rng.permutation(100)
    assert split_patients(patients[order], shares, seed=1, stratify=label[order]) == split
    assert split_patients(patients, shares, seed=2, stratify=label) != split
    with pytest.raises(ValueError, match="stratify has 3 entries and patients 100"):
        split_patients(patients, shares, stratify=label[:3])
    # A patient of several labels counts by the rarest.
    both = split_patients(["a", "a", "b", "c", "d"], {"x": 0.5, "y": 0.5}, stratify=[1, 0, 0, 1, 0])
    assert all(len({"a", "c"} & set(one)) == 1 for one in both.values())


def test_a_semicolon_or_a_frame_serves_as_well(tmp_path: Path) -> None:
    write_table(tmp_path)
    text = (tmp_path / "cases.csv").read_text("utf-8")
    (tmp_path / "excel.csv").write_text("\ufeff" + text.replace(",", ";"), "utf-8")
    ones = [from_table(tmp_path / name) for name in ("cases.csv", "excel.csv")]
    ones.append(from_table(frame(tmp_path), tmp_path))
    for one in ones[1:]:
        for key, values in ones[0]["train"].items():
            np.testing.assert_array_equal(values, one["train"][key])


def test_findings_numbers_and_other_columns(tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "Mass": [0, 1, ""] * 7,
        "Edema": [1, -1, 0] * 7,
        "note": ["", "x"] * 10,
    }
    write_table(tmp_path, **columns)
    splits = from_table(tmp_path / "cases.csv", label=["Mass", "Edema"], value="age")
    assert splits.classes == ("Mass", "Edema") and splits.likelihood == "findings"
    rows = frame(tmp_path).set_index("path").fillna({"Mass": -1, "note": ""})
    for arrays in splits.values():
        for case, one in enumerate(arrays["id"].tolist()):
            row = rows.loc[one]
            assert arrays["findings"][case].tolist() == [row["Mass"], row["Edema"]]
            assert arrays["value"][case] == row["age"] and arrays["note"][case] == row["note"]
            assert arrays["label_of_table"][case] == row["label"]
        assert len(next(iter(Batches(arrays)))["findings"]) == len(arrays["id"])
    rejects(r"'Mass' holds other values .* in 7 of 20 rows \(pictures/ä00", frame(tmp_path).replace(
        {"Mass": {0: 2}}), tmp_path, label=["Mass", "Edema"])  # fmt: skip
    rejects(r"'label' holds no number in 20 of 20 rows \(pictures/ä00.png: 'ill'",
            frame(tmp_path), tmp_path, value="label")  # fmt: skip


def test_masks_follow_their_images(tmp_path: Path) -> None:
    rng, rows, truth = np.random.default_rng(0), [], {}
    for k in range(10):
        image = rng.integers(0, 256, (6, 6 + 2 * (k % 2)), dtype=np.uint8)
        mask = rng.integers(0, 3, image.shape, dtype=np.uint8)
        for kind, pixels in (("image", image), ("mask", mask)):
            Image.fromarray(pixels).save(tmp_path / f"{kind}{k}.png")
        rows.append({"path": f"image{k}.png", "mask": f"mask{k}.png", "patient": k})
        truth[f"image{k}.png"] = image, mask
    names = ["background", "nucleus", "cytoplasm"]
    options: dict[str, Any] = {"mask": "mask", "classes": names, "size": (8, 8), "resize": "pad"}
    splits = from_table(pd.DataFrame(rows), tmp_path, **options)
    for arrays in splits.values():
        for case, one in enumerate(arrays["id"].tolist()):
            image, mask = truth[one]
            side = (8 - mask.shape[1]) // 2
            inner = (slice(1, 7), slice(side, 8 - side))
            np.testing.assert_array_equal(arrays["image"][case, 0][inner], image)
            np.testing.assert_array_equal(arrays["mask"][case][inner], mask)
            assert (arrays["mask"][case] == -1).sum() == 64 - mask.size
    assert splits.classes == tuple(names) and splits["train"]["mask"].dtype == np.int8
    with pytest.raises(ValueError, match=r"mask.*\.png holds 2; expected 0..1"):
        from_table(pd.DataFrame(rows), tmp_path, **options | {"classes": names[:2]})
    rejects(
        "classes must be two or more different names", pd.DataFrame(rows), tmp_path, mask="mask"
    )


def test_a_size_fits_stretches_or_pads(tmp_path: Path) -> None:
    white = np.full((4, 8), 255, np.uint8)
    rows = []
    for k in range(5):
        save_dicom(tmp_path / f"{k}.dcm", white, PatientID=str(k), PixelSpacing=[0.5, 0.5])
        rows.append({"path": f"{k}.dcm", "label": k % 2})
    for resize, filled, spacing in (("fit", 8, [0.25, 0.25]), ("scale", 16, [0.125, 0.25]),
                                    ("pad", 4, [0.5, 0.5])):  # fmt: skip
        size = (16, 16)
        one = from_table(pd.DataFrame(rows), tmp_path, size=size, resize=resize)["train"]  # type: ignore[arg-type]
        image = one["image"][0, 0]
        assert (image == 1).any(1).sum() == filled and image[(16 - filled) // 2].max() == 1
        assert one["spacing"][0].tolist() == spacing
        assert one["patient"].dtype.kind == "U"  # as the files say


def test_volumes_keep_their_place(tmp_path: Path) -> None:
    """The affine leads from an index of the array to the mm where the file has that voxel."""
    grey = np.zeros((8, 6, 4), np.float32)
    grey[5, 2, 1] = 7
    affine = np.array([[-0.5, 0, 0, 10], [0, 0, 2, -3], [0, 1.5, 0, 4], [0, 0, 0, 1.0]])
    rows = []
    for k in range(5):
        save_volume(tmp_path / f"{k}.nii.gz", grey, affine)
        rows.append({"path": f"{k}.nii.gz", "value": 1.0 * k, "patient": k})
    world = (affine @ [5, 2, 1, 1])[:3]
    ways: list[dict[str, Any]] = [
        {},
        {"size": (10, 9, 11), "resize": "pad"},
        {"size": (4, 3, 5), "resize": "pad"},
        {"size": (12, 8, 16), "resize": "scale"},
        {"spacing": (0.75, 1.0, 0.25), "size": (13, 9, 17), "resize": "pad"},
    ]
    for options in ways:
        one = from_table(pd.DataFrame(rows), tmp_path, value="value", **options)["train"]
        image = one["image"][0, 0]
        if image.max() == 0:
            continue
        weight = image / image.sum()
        index = [(weight.sum(tuple({0, 1, 2} - {axis})) * np.arange(n)).sum()
                 for axis, n in enumerate(image.shape)]  # fmt: skip
        np.testing.assert_allclose((one["affine"][0] @ [*index, 1])[:3], world, atol=1e-6)
        steps = np.linalg.norm(one["affine"][0][:3, :3], axis=0)
        np.testing.assert_allclose(one["spacing"][0], steps)
    four = np.stack([grey, 2 * grey], -1)
    save_volume(tmp_path / "0.nii.gz", four)
    for k in range(1, 5):
        save_volume(tmp_path / f"{k}.nii.gz", four)
    for volume in (0, 1):
        one = from_table(pd.DataFrame(rows), tmp_path, value="value", volume=volume)["train"]
        assert one["image"].max() == 7 * (1 + volume)


# ------------------------------------------------------------------- what is wrong is said before


def test_labels_with_gaps(tmp_path: Path) -> None:
    write_table(tmp_path)
    table = frame(tmp_path)
    table.loc[[3, 7], "label"] = None
    rejects(
        r"'label' has no label in 2 of 20 rows \(pictures/ä03.png, pictures/ä07.png\); fill the "
        "gaps, or drop the rows", table, tmp_path,
    )  # fmt: skip
    rejects(r"none of classes=\['ill', 'well'\] in 10 of 20 rows \(pictures/ä02.png: 'healthy'",
            frame(tmp_path), tmp_path, classes=["ill", "well"])  # fmt: skip
    rejects("'path' holds 20 different values.*named by value=", frame(tmp_path), tmp_path,
            label="path")  # fmt: skip
    rejects("holds one class, '1'", frame(tmp_path).assign(label=1), tmp_path)
    assert from_table(frame(tmp_path).assign(label=[0, 1] * 10), tmp_path,
                      classes=["well", "ill"]).classes == ("well", "ill")  # fmt: skip


def test_a_patient_in_two_splits(tmp_path: Path) -> None:
    write_table(tmp_path, split=["train"] * 12 + ["val"] * 8)
    splits = from_table(tmp_path / "cases.csv")
    assert [len(one["id"]) for one in splits.values()] == [12, 8]
    table = frame(tmp_path)
    table["split"] = ["train"] * 13 + ["val"] * 7
    rejects("patients of train and patients of val share 1 id.*'006'", table, tmp_path)
    rejects("split is missing", table.assign(split=[None, *table["split"][1:]]), tmp_path)
    rejects("patient is missing", table.assign(patient=[None, *table["patient"][1:]]), tmp_path)
    rejects("no column 'patient'.*patient=None where every row is another person",
            table.drop(columns="patient"), tmp_path)  # fmt: skip
    free = table.drop(columns="patient")
    assert "patient" not in from_table(free, tmp_path, patient=None)["train"]


def test_missing_files_and_columns(tmp_path: Path) -> None:
    write_table(tmp_path)
    for k in (4, 9):
        (tmp_path / f"pictures/ä{k:02d}.png").unlink()
    rejects(r"2 of 20 files \(.*ä04.png, .*ä09.png\) of column 'path' are not there",
            tmp_path / "cases.csv", error=FileNotFoundError)  # fmt: skip
    write_table(tmp_path)
    table = frame(tmp_path)
    rejects("has no column 'lable' .*did you mean label='label'", table, tmp_path, label="lable")
    rejects("more than once", pd.concat([table, table[:2]]), tmp_path)
    rejects("root '.*nowhere' is no folder", table, tmp_path / "nowhere", error=FileNotFoundError)
    rejects("table has no rows", table[:0], tmp_path)
    rejects("is of no format that is read here", table.assign(path="cases.csv")[:1], tmp_path,
            label=None)  # fmt: skip
    for wrong, message in (
        ({"size": (4, 4, 4, 4)}, "size must be"),
        ({"spacing": (1.0, -1.0)}, "spacing must be"),
        ({"spacing": (1.0,), "size": (4, 4)}, "spacing must be 2 numbers"),
        ({"channels": 2}, "channels must be"),
        ({"window": (40.0, 0.0)}, "window must be"),
    ):
        rejects(message, table, tmp_path, **wrong)


def films(
    folder: Path, spacings: Sequence[tuple[float, float] | None], **tags: Any
) -> pd.DataFrame:
    rng, rows = np.random.default_rng(0), []
    for k, spacing in enumerate(spacings):
        own = {} if spacing is None else {"PixelSpacing": list(spacing)}
        levels = rng.integers(0, 255, (6, 8), dtype=np.uint8)
        save_dicom(folder / f"{k}.dcm", levels, **own, **tags)
        rows.append({"path": f"{k}.dcm", "label": k % 2, "patient": k})
    return pd.DataFrame(rows)


def test_mixed_spacing_and_pixels_that_are_not_square(tmp_path: Path) -> None:
    table = films(tmp_path, [(0.2, 0.2)] * 4 + [(0.4, 0.4)])
    rejects(r"spacing differs from the median, \(0.2, 0.2\) mm, in 1 of 5 files \(.*4.dcm \(0.4",
            table, tmp_path)  # fmt: skip
    kept = from_table(table, tmp_path, spacing="mixed")
    assert sorted(one for part in kept.values() for one in part["spacing"][:, 0]) == [0.2] * 4 + [
        0.4
    ]
    one = from_table(table, tmp_path, spacing=(0.4, 0.4), size=(6, 8), resize="pad")
    assert all((part["spacing"] == 0.4).all() for part in one.values())
    with pytest.raises(ValueError, match=r"at spacing=\(0.4, 0.4\).*give size= too"):
        from_table(table, tmp_path, spacing=(0.4, 0.4))
    table = films(tmp_path, [*[(0.2, 0.2)] * 3, (0.2, 0.3), None])
    rejects(r"pixels are not square in 1 of 5 files \(.*3.dcm 0.2 x 0.3 mm\); give spacing=",
            table, tmp_path)  # fmt: skip
    rejects(r"1 of 5 files \(.*4.dcm\) do not say their spacing", table, tmp_path,
            spacing=(0.2, 0.2))  # fmt: skip
    table = films(tmp_path, [*[(0.2, 0.2)] * 4, None])
    rejects("1 of 5 files .* do not say their spacing and the others do", table, tmp_path)


def test_sizes_and_kinds_that_differ(tmp_path: Path) -> None:
    write_table(tmp_path)
    table = frame(tmp_path)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "pictures/ä05.png")
    rejects(r"1 of 20 files \(.*ä05.png is \(9, 9\)\) are of another size than .*; give size=",
            table, tmp_path)  # fmt: skip
    save_volume(tmp_path / "a.nii.gz", np.zeros((4, 4, 4), np.float32))
    mixed = table.assign(path=[*table["path"][:-1], "a.nii.gz"])
    rejects("19 of 20 files .* are pictures and the others volumes", mixed, tmp_path)
    for k in (0, 1):
        save_volume(tmp_path / f"{k}.nii.gz", np.zeros((4, 4, 4, 2 * k + 1), np.float32))
    two = table[:2].assign(path=["0.nii.gz", "1.nii.gz"])
    rejects(r"1 of 2 files \(.*1.nii.gz\) hold several volumes or frames \(4D\); choose one", two,
            tmp_path, label=None, patient=None)  # fmt: skip


def test_compressed_dicom_without_a_decoder(tmp_path: Path, monkeypatch: Any) -> None:
    from pydicom.pixels import get_decoder
    from pydicom.uid import JPEG2000

    table = films(tmp_path, [(0.2, 0.2)] * 5)
    for k in (1, 3):
        found = pydicom.dcmread(tmp_path / f"{k}.dcm")
        found.file_meta.TransferSyntaxUID = JPEG2000
        found.PixelData = pydicom.encaps.encapsulate([b"\0" * 40])
        found["PixelData"].VR = "OB"
        found.save_as(tmp_path / f"{k}.dcm")
    decoder = type(get_decoder(JPEG2000))
    monkeypatch.setattr(decoder, "is_available", property(lambda self: False))
    rejects(r"2 of 5 files \(.*1.dcm, .*3.dcm\) are compressed \(JPEG 2000.*\), and no decoder for "
            "it is installed: pip install pylibjpeg", table, tmp_path)  # fmt: skip
