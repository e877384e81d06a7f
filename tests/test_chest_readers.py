"""Chest films with boxes: where the boxes lie, who drew them, and what the files lack."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chest_folders import BOX, SHAPE, film, write_cxr_lesions, write_rsna, write_vindr
from PIL import Image
from reader_folders import save_dicom

from ppl_med import data

pydicom = pytest.importorskip("pydicom", reason="needs the extra `data`")

LABELS, DETAILS = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
FILM = "stage_2_train_images/p04-a.dcm"


def by_id(splits: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: {key: values[row] for key, values in one.items()}
        for one in splits.values()
        for row, name in enumerate(one["id"].tolist())
    }


def bounds(image: np.ndarray) -> list[int]:
    row, col = np.nonzero(image > 200)
    return [int(col.min()), int(row.min()), int(col.max()) + 1, int(row.max()) + 1]


def change(path: Path, *pairs: tuple[str, str]) -> None:
    text = path.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


def retag(path: Path, **tags: Any) -> None:
    found = pydicom.dcmread(path)
    for name, value in tags.items():
        setattr(found, name, value)
        if value is None:
            delattr(found, name)
    found.save_as(path)


@pytest.mark.parametrize(
    ("size", "factor", "shift"),
    [((16, 24), 1.0, 0), ((8, 12), 0.5, 0), ((32, 48), 2.0, 0), ((24, 24), 1.0, 4)],
)
def test_rsna_boxes_lie_around_their_opacity(
    size: Any, factor: float, shift: int, tmp_path: Path
) -> None:
    write_rsna(tmp_path)
    splits = data.load_rsna_boxes(tmp_path, size=size)
    assert splits.classes == ("opacity",) and list(splits) == ["train", "val", "test"]
    films = by_id(splits)
    assert len(films) == 12
    for name, one in films.items():
        number = int(name[1:3])
        many = 0 if number % 2 else 2 if number == 4 else 1
        assert one["num_boxes"] == many and one["num_dropped"] == one["num_clipped"] == 0
        assert one["finding"] == ("Lung Opacity", "Normal")[number % 2]
        np.testing.assert_allclose(one["spacing"], 0.2 / factor)
        if many:
            expected = np.array(BOX) * factor + [0, shift, 0, shift]
            np.testing.assert_allclose(one["box"][0], expected)
            if factor >= 1:
                assert np.abs(np.array(bounds(one["image"][0])) - expected).max() <= 1
        else:
            assert one["box_label"].tolist() == [-1, -1] and np.isnan(one["box"]).all()
    for one in splits.values():
        data.check_boxes(one, 1)
        assert one["image"].dtype == np.uint8 and 0 < one["num_boxes"].astype(bool).mean() < 1


def test_a_negative_film_is_inverted_and_resampled_to_mm(tmp_path: Path) -> None:
    write_rsna(tmp_path)
    save_dicom(tmp_path / FILM, 255 - film(4, True), PhotometricInterpretation="MONOCHROME1",
               ImagerPixelSpacing=[0.4, 0.4])  # fmt: skip
    with pytest.raises(ValueError, match=r"spacing differs .* 1 of 12 files \(.*p04-a.dcm \(0.4"):
        data.load_rsna_boxes(tmp_path, size=(16, 24))
    mixed = by_id(data.load_rsna_boxes(tmp_path, size=SHAPE, spacing="mixed"))["p04-a"]
    np.testing.assert_array_equal(mixed["image"][0], film(4, True))
    assert mixed["spacing"].tolist() == [0.4, 0.4]
    made = data.load_rsna_boxes(tmp_path, size=(32, 48), resize="pad", spacing=(0.2, 0.2))
    one = by_id(made)["p04-a"]
    np.testing.assert_allclose(one["box"][0], 2 * np.array(BOX))
    np.testing.assert_allclose(one["spacing"], 0.2)
    assert np.abs(np.array(bounds(one["image"][0])) - 2 * np.array(BOX)).max() <= 1
    other = by_id(made)["p02-a"]  # not scaled, but padded by 8 rows and 12 columns
    np.testing.assert_allclose(other["box"][0], np.add(BOX, [12, 8, 12, 8]))


def test_films_that_say_nothing_of_spacing(tmp_path: Path) -> None:
    write_rsna(tmp_path)
    for path in (tmp_path / "stage_2_train_images").glob("*.dcm"):
        retag(path, PixelSpacing=None)
    splits = data.load_rsna_boxes(tmp_path, size=SHAPE)
    assert all(np.isnan(one["spacing"]).all() for one in splits.values())
    data.Batches(splits["train"], transform=data.MoveWithBoxes(mirror=True, shift=2.0))
    retag(tmp_path / FILM, PixelSpacing=[0.2, 0.2])
    with pytest.raises(ValueError, match=r'do not say their spacing and the others do.*"mixed"'):
        data.load_rsna_boxes(tmp_path, size=SHAPE)


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("Rows", "holds no picture"),
        ("Columns", "holds no picture"),
        ("PhotometricInterpretation", "no PhotometricInterpretation, which says .* black or white"),
        ("BitsStored", "BitsStored|Bits Stored"),
        ("PixelData", "pixel|Pixel"),
    ],
)
def test_a_lacking_tag_is_told_with_its_file(tag: str, message: str, tmp_path: Path) -> None:
    write_rsna(tmp_path)
    retag(tmp_path / FILM, **{tag: None})
    with pytest.raises(ValueError, match=rf"(?s)p04-a\.dcm.*({message})"):
        data.load_rsna_boxes(tmp_path, size=SHAPE)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("p01-a,,,,,0", "p01-a,1,2,3,4,0", r"labels\.csv.*1 of 13 rows \(p01-a\): rows without a"),
        ("p02-a,6,2,12,8,1", "p02-a,6,,12,8,1", r"1 of 13 rows \(p02-a\): rows of boxes lack num"),
        ("p02-a,6,2,12,8,1", "p02-a,6,2,12,8,2", r"Target must be 0 or 1.*1 of 13 rows \(p02-a"),
        ("p01-a,,,,,0", "p02-a,,,,,0", r"1 of 11 patients \(p02-a\) have rows of Target 0 and"),
        ("p02-a,6,2,12,8,1", "p02-a,6,2,-3,8,1", r"1 of 12 files \(p02-a.dcm: \(6, 2, 3, 10\)\)"),
        ("p02-a,6,2,12,8,1", "p02-a,6,2,90,8,1", r"p02-a.dcm has 24 columns .*as released"),
        ("patientId", "patient", "no column 'patientId'.*did you mean patientId='patient'"),
    ],
)
def test_a_wrong_row_is_told(old: str, new: str, message: str, tmp_path: Path) -> None:
    write_rsna(tmp_path)
    (tmp_path / DETAILS).unlink()
    change(tmp_path / LABELS, (old, new))
    with pytest.raises(ValueError, match=message):
        data.load_rsna_boxes(tmp_path, size=SHAPE)


def test_boxes_are_cut_and_left_out_and_counted(tmp_path: Path) -> None:
    write_rsna(tmp_path)
    change(
        tmp_path / LABELS, ("p02-a,6,2,12,8", "p02-a,20,2,6,8"), ("p04-a,6,2,12,8", "p04-a,6,2,0,8")
    )
    films = by_id(data.load_rsna_boxes(tmp_path, size=SHAPE, degenerate="drop"))
    assert films["p02-a"]["num_clipped"] == 1 and films["p02-a"]["box"][0].tolist() == [
        20,
        2,
        24,
        10,
    ]
    assert films["p04-a"]["num_dropped"] == 1 and films["p04-a"]["num_boxes"] == 1
    assert sum(one["num_dropped"] + one["num_clipped"] for one in films.values()) == 2


def test_vindr_keeps_every_reader(tmp_path: Path) -> None:
    write_vindr(tmp_path)
    splits = data.load_vindr_boxes(tmp_path, size=SHAPE)
    assert splits.classes == ("Consolidation", "Nodule/Mass"), "in the order of class_id"
    films = by_id(splits)
    for name, one in films.items():
        number = int(name[1:])
        marked = number % 2 == 0
        assert one["box"].shape == (3, 2, 4)
        if number == 11:
            assert one["rad_id"].tolist() == ["R2", "R9", ""]
            assert one["reader_present"].tolist() == [True, True, False]
            continue
        assert one["rad_id"].tolist() == ["R2", "R5", "R9"] and one["reader_present"].all()
        assert one["num_boxes"].tolist() == ([1, 2, 0] if marked else [0, 0, 0])
        if marked:
            assert one["box"][0, 0].tolist() == BOX == bounds(one["image"][0])
            assert one["box"][1, 0].tolist() == [edge + 1 for edge in BOX]
            assert one["box"][1, 1].tolist() == [1, 1, 5, 6]
            assert one["box_label"].tolist() == [[1, -1], [1, 0], [-1, -1]]
    for one in splits.values():
        data.check_boxes(one, 2)
    batch = next(iter(data.Batches(splits["train"], batch_size=2)))
    assert batch["box"].shape == (2, 3, 2, 4) and len(batch["rad_id"][0]) == 3


def test_vindr_as_on_physionet_as_pictures_and_of_some_classes(tmp_path: Path) -> None:
    write_vindr(tmp_path)
    every = data.load_vindr_boxes(tmp_path, size=SHAPE)
    text = (tmp_path / "train.csv").read_text().splitlines()
    lines = [line.split(",") for line in text]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/annotations_train.csv").write_text(
        "\n".join(",".join([*one[:2], *one[3:]]) for one in lines) + "\n"
    )
    (tmp_path / "train.csv").unlink()
    for path in (tmp_path / "train").glob("*.dicom"):
        Image.fromarray(pydicom.dcmread(path).pixel_array).save(path.with_suffix(".png"))
        path.unlink()
    again = data.load_vindr_boxes(tmp_path, size=SHAPE)
    for split, one in every.items():
        for key, values in one.items():
            np.testing.assert_array_equal(values, again[split][key])
    some = data.load_vindr_boxes(tmp_path, size=SHAPE, classes=("Consolidation",))
    assert by_id(some)["f02"]["num_boxes"].tolist() == [0, 1, 0]
    assert by_id(some)["f02"]["reader_present"].all()
    with pytest.raises(ValueError, match=r"has 'consolidation'.*did you mean 'Consolidation'"):
        data.load_vindr_boxes(tmp_path, size=SHAPE, classes=("consolidation",))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "f01,No finding,14,R2,,,,",
            "f00,No finding,14,R2,,,,",
            r"\(f00 by R2\) have boxes and 'No",
        ),
        ("f02,Nodule/Mass,8,R2", "f02,Nodule/Mass,9,R2", "do not name the same classes"),
        (
            "f02,Nodule/Mass,8,R2,6",
            "f02,Nodule/Mass,8,R2,",
            r"train\.csv.* rows of boxes lack",
        ),
        ("f02,Nodule/Mass,8,R2,6", "f02,Nodule/Mass,8,R2,20", r"\(f02.dicom: \(20, 2, 18, 10\)\)"),
        ("f02,Nodule/Mass,8,R2", "f02,Nodule/Mass,8,", "rad_id is missing"),
    ],
)
def test_a_wrong_reading_is_told(old: str, new: str, message: str, tmp_path: Path) -> None:
    write_vindr(tmp_path)
    change(tmp_path / "train.csv", (old, new))
    with pytest.raises(ValueError, match=message):
        data.load_vindr_boxes(tmp_path, size=SHAPE)


def test_lesions_come_by_their_splits(tmp_path: Path) -> None:
    write_cxr_lesions(tmp_path)
    splits = data.load_cxr_lesion_boxes(tmp_path, size=SHAPE)
    assert list(splits) == ["train", "val"] and splits.classes == ("Consolidation", "Opacity")
    films = by_id(splits)
    assert films["c0"]["box"].tolist() == [BOX, [1, 1, 5, 6]] and films["c0"]["license"] == "CC BY"
    assert films["c0"]["box_label"].tolist() == [1, 0] and films["c3"]["num_boxes"] == 0
    assert bounds(films["c2"]["image"][0]) == films["c2"]["box"][0].tolist()
    change(tmp_path / "index.csv", ("c3.png,train", "c3.png,val"))
    with pytest.raises(ValueError, match=r"index\.csv.*patients of train and .* val share"):
        data.load_cxr_lesion_boxes(tmp_path, size=SHAPE)
    change(tmp_path / "index.csv", ("c3.png,val", "c3.png,train"))
    change(tmp_path / "boxes.csv", ("c2.png", "d2.png"))
    with pytest.raises(ValueError, match=r"boxes\.csv.*1 of 4 films \(d2.png\) that index.csv"):
        data.load_cxr_lesion_boxes(tmp_path, size=SHAPE)


def test_the_real_lesions(data_folder: Path) -> None:
    if not (data_folder / "cxr_lesions" / "images").is_dir():
        pytest.skip("PPL_MED_DATA names no folder that holds cxr_lesions/images")
    splits = data.load_cxr_lesion_boxes(data_folder, size=(128, 128))
    text = (data_folder / "cxr_lesions/boxes.csv").read_text().splitlines()[1:]
    assert sum(int(one["num_boxes"].sum()) for one in splits.values()) == len(text)
    for one in splits.values():
        data.check_boxes(one, 2)
        assert not one["num_dropped"].any() and not one["num_clipped"].any()
