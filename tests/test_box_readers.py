"""Readers of boxes: what is mended and counted, and what each format says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reader_folders import linked, write_coco, write_voc

from ppl_med import data


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_boxes_without_area_are_left_out_and_counted(layout: str, tmp_path: Path) -> None:
    kinds: dict[str, Any] = {
        "voc": (write_voc, data.load_voc_boxes),
        "coco": (write_coco, data.load_coco_boxes),
    }
    write, read = kinds[layout]
    write(tmp_path)
    clean = read(tmp_path, size=(8, 16), degenerate="drop")
    assert all((one[name] == 0).all() for one in clean.values()
               for name in ("num_dropped", "num_clipped"))  # fmt: skip
    # The first box gets no width, the second reaches outside, the third lies outside as a whole.
    if layout == "voc":
        path = tmp_path / "Annotations/train1.xml"
        text = path.read_text().replace("<xmax>6<", "<xmax>1<").replace("<xmax>12<", "<xmax>40<")
        path.write_text(text.replace("<xmin>11<", "<xmin>21<").replace("<xmax>16<", "<xmax>30<"))
    else:
        path = tmp_path / "annotations/instances_train.json"
        found = json.loads(path.read_text())
        boxes = ([0, 1, 0, 4], [4, 2, 36, 6], [20, 0, 10, 4])
        for one, box in zip(found["annotations"], boxes, strict=False):
            one["bbox"] = box
        path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"1 of 3 files \(train1\.png: \(0, 1, .*\"drop\""):
        read(tmp_path, size=(8, 16))
    one = read(tmp_path, size=(8, 16), degenerate="drop")["train"]
    assert one["num_dropped"].tolist() == [0, 2, 0] and one["num_clipped"].tolist() == [0, 1, 0]
    assert one["num_boxes"].tolist() == [0, 1, 3] and one["box_label"][1].tolist() == [0, -1, -1]
    assert one["box"][1, 0].tolist() == [4, 2, 16, 8]
    data.check_boxes(one, 2)
    with pytest.raises(ValueError, match=r"did you mean 'cell'|'cell' or 'rod'"):
        read(tmp_path, size=(8, 16), classes=("cel", "rod"), degenerate="drop")


def test_the_two_boxes_without_area_of_the_real_cells(data_folder: Path, tmp_path: Path) -> None:
    folder = data_folder / "bccd"
    if not (folder / "Annotations").is_dir():
        pytest.skip("PPL_MED_DATA names no folder that holds bccd")
    place = linked(folder, tmp_path / "bccd", "JPEGImages", "Annotations") / "ImageSets/Main"
    place.mkdir(parents=True)
    (place / "train.txt").write_text("BloodImage_00338\nBloodImage_00001\n")
    (place / "val.txt").write_text("BloodImage_00343\n")
    with pytest.raises(ValueError, match=r"BloodImage_00338\.jpg: \(503, 336, 504, 337\)"):
        data.load_voc_boxes(tmp_path, size=(60, 80))
    boxes = data.load_voc_boxes(tmp_path, size=(60, 80), degenerate="drop")
    assert [one["num_dropped"].tolist() for one in boxes.values()] == [[1, 0], [1]]


def test_one_list_of_all_pictures_is_one_split_with_the_size_of_its_pixels(tmp_path: Path) -> None:
    write_coco(tmp_path)
    place = tmp_path / "annotations"
    (tmp_path / "images").mkdir()
    (tmp_path / "train").rename(tmp_path / "images/default")
    (place / "instances_train.json").rename(place / "instances_default.json")
    with pytest.raises(FileNotFoundError, match=r"no instances_train\.json.*instances_val\.json"):
        (place / "instances_default.json").rename(place / "mine.json")
        data.load_coco_boxes(tmp_path, size=(4, 12))
    (place / "mine.json").rename(place / "instances_default.json")
    (place / "instances_val.json").unlink()
    found = data.load_coco_boxes(tmp_path, size=(4, 12))  # of 8 x 16 pixels, halved and padded
    assert list(found) == ["all"] and found.classes == ("cell", "rod")
    assert found["all"]["shrunk_by"].tolist() == [[2.0, 2.0]] * 3
    stretched = data.load_coco_boxes(tmp_path, size=(4, 32), resize="scale")["all"]
    assert stretched["shrunk_by"].tolist() == [[2.0, 0.5]] * 3
    # An edge in mm is the same in the picture and in whatever it became.
    whole = data.load_coco_boxes(tmp_path, size=(8, 16))["all"]
    for one in (found["all"], stretched):
        width, true = ((a["box"][..., 2:] - a["box"][..., :2]) for a in (one, whole))
        assert np.allclose(width * one["shrunk_by"][:, None, ::-1], true, equal_nan=True)
    named = found["all"] | {"patient": found["all"]["id"]}
    parts = data.apply_split(named, {"train": ["train0", "train2"], "val": ["train1"]})
    assert [len(one["box"]) for one in parts.values()] == [2, 1]
