"""Blood cells: outlines of two laboratories, and counts; from files made here and the real ones."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reader_folders import write_bccd, write_site, write_wbc

from ppl_med.data import Batches, load_bccd_counts, load_wbc_seg


def test_wbc_keeps_every_pixel_and_names_the_site(tmp_path: Path) -> None:
    truth = {"tecom": write_wbc(tmp_path / "wbc_seg")}
    truth["cellavision"] = write_site(tmp_path / "other", 1)
    splits = load_wbc_seg(tmp_path, size=(16, 16), second_site=tmp_path / "other")
    assert list(splits) == ["train", "val", "second_site"]
    for split, one in splits.items():
        site = "cellavision" if split == "second_site" else "tecom"
        assert one["site"].tolist() == [site] * 3
        assert one["image"].dtype == np.uint8 and one["mask"].dtype == np.int8
        for row, name in enumerate(one["id"].tolist()):
            assert name.startswith(f"{site}-")
            image, mask = truth[site][name.split("-")[1]]
            rows, cols = ((16 - length) // 2 for length in mask.shape)
            place = (slice(rows, rows + mask.shape[0]), slice(cols, cols + mask.shape[1]))
            np.testing.assert_array_equal(one["image"][(row, slice(None), *place)], image)
            np.testing.assert_array_equal(one["mask"][row][place], mask)
            assert (one["mask"][row] == -1).sum() == 16 * 16 - mask.size
    assert next(iter(Batches(splits["train"])))["site"] == ["tecom"] * 3


def test_wbc_cuts_no_labelled_pixel_silently(tmp_path: Path) -> None:
    write_wbc(tmp_path)
    train = load_wbc_seg(tmp_path, size=(10, 8))["train"]
    assert train["mask"].shape == (3, 10, 8) and (train["mask"] > 0).sum() == 6 * 6 + 4 * 8 + 10 * 6
    with pytest.raises(ValueError, match=r"cut labelled pixels of 1.*\(10, 8\) or more loses none"):
        load_wbc_seg(tmp_path, size=(8, 8))


def test_wbc_scaled_to_a_third_takes_the_middles(tmp_path: Path) -> None:
    truth = write_wbc(tmp_path)
    train = load_wbc_seg(tmp_path, size=(4, 4), resize="scale")["train"]
    image, mask = truth["001"]
    np.testing.assert_array_equal(train["mask"][0], mask[1::3, 1::3])
    assert abs(train["image"][0].mean() - image.mean()) < 10


def test_wbc_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither train/images, train/masks"):
        load_wbc_seg(tmp_path)
    write_wbc(tmp_path)
    with pytest.raises(ValueError, match=r"must be \(rows, cols\), all at least 1"):
        load_wbc_seg(tmp_path, size=(0, 8))
    with pytest.raises(FileNotFoundError, match="elsewhere' is not there"):
        load_wbc_seg(tmp_path, second_site=tmp_path / "elsewhere")
    mask = tmp_path / "train" / "masks" / "001.png"
    for pixels, message in [
        (np.full((12, 12), 255, np.uint8), r"holds 255; expected 0\.\.2"),
        (np.zeros((12, 12, 3), np.uint8), "has mode RGB"),
        (np.zeros((12, 13), np.uint8), r"is \(12, 12\) but its mask \(12, 13\)"),
    ]:
        Image.fromarray(pixels).save(mask)
        with pytest.raises(ValueError, match=message):
            load_wbc_seg(tmp_path)
    mask.unlink()
    with pytest.raises(FileNotFoundError, match=r"needs 1 file\(s\) that are not there, first"):
        load_wbc_seg(tmp_path)
    for path in (tmp_path / "val" / "images").glob("*"):
        path.rename(tmp_path / "train" / "images" / path.name)
    for path in (tmp_path / "val" / "masks").glob("*"):
        path.rename(tmp_path / "train" / "masks" / path.name)
    (tmp_path / "train" / "images" / "001.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no \.png files"):
        load_wbc_seg(tmp_path)


def test_bccd_counts_the_boxes(tmp_path: Path) -> None:
    truth = write_bccd(tmp_path / "bccd")
    splits = load_bccd_counts(tmp_path, size=(6, 8), target="Platelets")
    assert list(splits) == ["train", "val"]
    for one in splits.values():
        assert one["image"].shape == (3, 3, 6, 8) and one["image"].dtype == np.uint8
        np.testing.assert_allclose(one["image"].mean((1, 2, 3)), [40, 80, 120], atol=2)
        assert one["value"].dtype == np.float32
        assert one["value"].tolist() == one["num_platelets"].tolist()
        for row, name in enumerate(one["id"].tolist()):
            for kind, column in (
                ("RBC", "num_rbc"),
                ("WBC", "num_wbc"),
                ("Platelets", "num_platelets"),
            ):
                assert one[column][row] == truth[name].count(kind)
    assert next(iter(Batches(splits["train"])))["value"].shape == (3,)


def test_bccd_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither ImageSets/Main/train\.txt"):
        load_bccd_counts(tmp_path)
    write_bccd(tmp_path)
    with pytest.raises(ValueError, match="size must be"):
        load_bccd_counts(tmp_path, size=(4, 0))
    boxes = tmp_path / "Annotations" / "BloodImage_train0.xml"
    for text, message in [
        ("<annotation><object><name>Cell</name></object></annotation>", r"names \['Cell'\]"),
        ("<annotation><object></object></annotation>", r"names \['None'\]"),
        ("<annotation>", "no XML file"),
    ]:
        boxes.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_bccd_counts(tmp_path)
    boxes.unlink()
    with pytest.raises(FileNotFoundError, match="needs 1 file"):
        load_bccd_counts(tmp_path)
    boxes.write_text("<annotation></annotation>")
    (tmp_path / "ImageSets/Main/val.txt").write_text("BloodImage_train0\n")
    with pytest.raises(ValueError, match="train and val share 1"):
        load_bccd_counts(tmp_path)
    (tmp_path / "ImageSets/Main/val.txt").write_text("BloodImage_val0\nBloodImage_val0\n")
    with pytest.raises(ValueError, match="each once"):
        load_bccd_counts(tmp_path)


def test_the_real_white_cells(data_folder: Path) -> None:
    if not (data_folder / "wbc_seg" / "train").is_dir():
        pytest.skip("PPL_MED_DATA names no folder that holds wbc_seg/train")
    splits = load_wbc_seg(data_folder)
    assert [len(one["id"]) for one in list(splits.values())[:2]] == [200, 40]
    for one in splits.values():
        image, mask = one["image"].astype(float), one["mask"]
        assert (mask[:, 64 - 20 : 64 + 20, 64 - 20 : 64 + 20] > 0).mean() > 0.8, "in the middle"
        # The stain makes a nucleus dark, in red most of all; the background is bright.
        red = [image[:, 0][mask == part].mean() for part in range(3)]
        assert red[2] < red[1] < red[0]


def test_the_real_counts(data_folder: Path) -> None:
    if not (data_folder / "bccd" / "JPEGImages").is_dir():
        pytest.skip("PPL_MED_DATA names no folder that holds bccd/JPEGImages")
    splits = load_bccd_counts(data_folder)
    assert [len(splits[split]["id"]) for split in ("train", "val")] == [205, 87]
    for split, one in splits.items():
        texts = [(data_folder / f"bccd/Annotations/{name}.xml").read_text() for name in one["id"]]
        red = [text.count("<name>RBC</name>") for text in texts]
        assert one["num_rbc"].tolist() == one["value"].tolist() == red, split
        assert np.median(one["num_wbc"]) == 1, "each picture was taken for a white cell"
