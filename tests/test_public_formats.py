"""Public data sets as they are released: whether the arrays are those of the files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reader_folders import (
    AFFINE,
    BOXES,
    linked,
    medmnist_contents,
    save_volume,
    write_camvid,
    write_cells,
    write_cityscapes,
    write_coco,
    write_decathlon,
    write_lidc_slices,
    write_voc,
)

from ppl_med import data
from ppl_med.data.readers.cityscapes import LABEL_IDS
from ppl_med.data.readers.resampling import resampled, to_size

# ------------------------------------------------------------------------------------ pictures


def test_cells_of_the_release_are_split_by_the_patient_in_their_names(tmp_path: Path) -> None:
    truth = write_cells(tmp_path)
    shares = {"train": 0.6, "val": 0.2, "test": 0.2}
    splits = data.load_malaria(tmp_path, size=(6, 6), shares=shares)
    assert [len(set(one["patient"])) for one in splits.values()] == [9, 3, 3]
    for one in splits.values():
        kinds = set(np.char.ljust(one["patient"], 1).astype("U1"))
        assert kinds == {"P", "C"}  # patients and healthy donors in every split
        for case, name in enumerate(one["id"].tolist()):
            picture = truth[name]
            expected = np.asarray(
                Image.fromarray(picture).resize((6, 6), Image.Resampling.BILINEAR)
            )
            np.testing.assert_array_equal(one["image"][case], expected.transpose(2, 0, 1))
            who = name.split("thin")[0].split("_")[0]
            assert one["patient"][case] == (f"P{who.split('P')[1]}" if "P" in who else who)
            assert one["label"][case] == (tmp_path / f"cell_images/Parasitized/{name}.png").exists()
    half = data.load_malaria(tmp_path, size=(6, 6), shares=shares, fraction=0.5, by="patient")
    assert set(half["train"]["patient"]) < set(splits["train"]["patient"])
    np.testing.assert_array_equal(half["test"]["id"], splits["test"]["id"])
    name = next(iter(truth))
    path = tmp_path / f"cell_images/Parasitized/{name}.png"
    path.rename(path.with_name("cell1.png"))
    with pytest.raises(ValueError, match=r"1 of 25 files \(cell1.png\) do not begin as C<slide>"):
        data.load_malaria(tmp_path)


@pytest.mark.parametrize("name", data.MEDMNIST)
def test_every_set_of_medmnist(name: str, tmp_path: Path) -> None:
    kind = data.MEDMNIST[name]
    size = 64 if name in ("chestmnist", "retinamnist") else 28
    truth = medmnist_contents(name, size, cases=2)
    file = f"{name}.npz" if size == 28 else f"{name}_{size}.npz"
    np.savez(tmp_path / file, **truth)
    splits = data.load_medmnist(tmp_path, name, size=size)
    assert splits.classes == kind.classes and list(splits) == ["train", "val", "test"]
    shape = (2, kind.channels, *(size,) * kind.dims)
    for split, one in splits.items():
        images = truth[f"{split}_images"]
        moved = np.moveaxis(images, -1, 1) if kind.channels == 3 else images[:, None]
        assert one["image"].shape == shape
        np.testing.assert_array_equal(one["image"], moved)
        labels = truth[f"{split}_labels"]
        if kind.likelihood == "findings":
            np.testing.assert_array_equal(one["findings"], labels)
        else:
            np.testing.assert_array_equal(one["label"], labels[:, 0])


def test_what_medmnist_is_not(tmp_path: Path) -> None:
    assert data.MEDMNIST["retinamnist"].likelihood == "ordinal"
    np.savez(tmp_path / "retinamnist.npz", **medmnist_contents("retinamnist"))
    with pytest.raises(FileNotFoundError, match=r"it has \['retinamnist.npz'\]"):
        data.load_medmnist(tmp_path, "retinamnist", size=128)
    with pytest.raises(ValueError, match="name must be 'pathmnist'"):
        data.load_medmnist(tmp_path, "retina")
    wrong = medmnist_contents("retinamnist") | {"val_labels": np.full((4, 1), 5, np.uint8)}
    np.savez(tmp_path / "retinamnist.npz", **wrong)
    with pytest.raises(ValueError, match=r"val_labels holds \[5\]; expected 0 to 4"):
        data.load_medmnist(tmp_path / "retinamnist.npz", "retinamnist")


def test_models_take_the_likelihood_by_its_name() -> None:
    pytest.importorskip("pyro", reason="needs torch")
    from ppl_med.models import BayesianClassifier, FindingsClassifier
    from ppl_med.networks import CompactCNN

    for kind in data.MEDMNIST.values():
        num = len(kind.classes)
        if kind.likelihood == "findings":
            FindingsClassifier(CompactCNN(num_outputs=num), kind.classes)
        else:
            likelihood: Any = kind.likelihood
            BayesianClassifier(CompactCNN(num_outputs=num), kind.classes, likelihood=likelihood)


def test_scenes_of_cities_keep_nineteen_classes(tmp_path: Path) -> None:
    truth = write_cityscapes(tmp_path)
    splits = data.load_cityscapes(tmp_path, size=(8, 16))
    assert set(splits["train"]["site"]) == {"ulm", "köln"}
    for one in splits.values():
        for case, name in enumerate(one["id"].tolist()):
            image, label = truth[name]
            np.testing.assert_array_equal(one["image"][case], image.transpose(2, 0, 1))
            expected = [
                [LABEL_IDS.index(n) if n in LABEL_IDS else -1 for n in row] for row in label
            ]
            np.testing.assert_array_equal(one["mask"][case], expected)
    for part in ("leftImg8bit", "gtFine"):
        (tmp_path / part / "val" / "lindau").rename(tmp_path / part / "val" / "ulm")
    with pytest.raises(ValueError, match="sites of train and sites of val share 1 id"):
        data.load_cityscapes(tmp_path, size=(8, 16))


def test_camvid_with_the_lists_of_its_authors_or_none(tmp_path: Path) -> None:
    write_camvid(tmp_path)
    plain = data.load_camvid(tmp_path)
    for split in ("train", "val"):
        path = tmp_path / f"{split}.txt"
        lines = path.read_text().replace(split + "/", f"/SegNet/CamVid/{split}/")
        path.write_text(lines.replace(f"{split}annot/", f"/SegNet/CamVid/{split}annot/"))
    assert "/SegNet/CamVid/train/" in (tmp_path / "train.txt").read_text()
    theirs = data.load_camvid(tmp_path)
    for split in ("train", "val"):
        (tmp_path / f"{split}.txt").unlink()
    for other in (theirs, data.load_camvid(tmp_path)):
        for split, arrays in plain.items():
            for key, values in arrays.items():
                np.testing.assert_array_equal(values, other[split][key])


# ------------------------------------------------------------------------------------ nodules


def test_nodules_as_pylidc_exports_them(tmp_path: Path) -> None:
    truth = write_lidc_slices(tmp_path)
    splits = data.load_lidc(tmp_path, every_slice=True)
    cases = {
        one: (split, k) for split, arrays in splits.items() for k, one in enumerate(arrays["id"])
    }
    assert len(cases) == 15
    for who, (images, masks) in truth.items():
        for at in range(3):
            split, k = cases[f"{who}/n0/s{at}"]
            np.testing.assert_allclose(splits[split]["image"][k, 0], images[at] / 255, rtol=1e-6)
            np.testing.assert_array_equal(splits[split]["mask"][k], masks[at] // 255)
            present = masks.any((0, 2, 3))
            assert splits[split]["reader_present"][k].tolist() == present.tolist()
    few = data.load_lidc(tmp_path)
    kept = sorted(one for arrays in few.values() for one in arrays["id"].tolist())
    # Slice 1 has the largest union; slice 2 is more where all four readers outlined the nodule.
    assert kept == sorted(
        f"LIDC-IDRI-{k:04d}/n0/s{at}" for k in range(1, 6) for at in ((1, 2) if k % 2 else (1,))
    )
    ignored = data.load_lidc(tmp_path, absent="ignore")
    assert (ignored["train"]["mask"][~ignored["train"]["reader_present"]] == -1).all()


# ------------------------------------------------------------------------------------ volumes


def test_a_task_of_the_decathlon(tmp_path: Path) -> None:
    truth = write_decathlon(tmp_path)
    splits = data.load_decathlon(tmp_path, size=(8, 9, 8), standardize=False)
    assert splits.classes == ("background", "left", "right")
    assert [len(one["id"]) for one in splits.values()] == [6, 2, 2]
    for one in splits.values():
        for case, name in enumerate(one["id"].tolist()):
            grey, label = (part.T for part in truth[name])
            where = one["mask"][case] >= 0
            assert where.sum() == label.size
            np.testing.assert_array_equal(one["mask"][case][where], label.ravel())
            np.testing.assert_array_equal(one["image"][case, 0][where], grey.ravel())
            first = np.argwhere(where)[0]
            np.testing.assert_allclose((one["affine"][case] @ [*first, 1])[:3], 0, atol=1e-9)
        assert (one["spacing"] == [2.0, 1.0, 0.5]).all() and (one["voxel_volume"] == 1).all()
    (tmp_path / "train.txt").write_text("la_001.nii.gz\nla_002.nii.gz\n")
    (tmp_path / "val.txt").write_text("la_003.nii.gz\n")
    listed = data.load_decathlon(tmp_path, size=(8, 9, 8))
    assert listed["train"]["id"].tolist() == ["la_001", "la_002"] and list(listed) == [
        "train",
        "val",
    ]
    fine = data.load_decathlon(tmp_path, size=(16, 9, 8), spacing=(1.0, 1.0, 0.5))
    assert (fine["val"]["spacing"] == [1.0, 1.0, 0.5]).all()
    counts = [(one["val"]["mask"] == 1).sum() for one in (listed, fine)]
    assert counts[1] == 2 * counts[0]


def test_several_modalities_are_channels(tmp_path: Path) -> None:
    truth = write_decathlon(tmp_path, modalities=2)
    both = data.load_decathlon(tmp_path, size=(8, 9, 8), standardize=False)
    second = data.load_decathlon(tmp_path, size=(8, 9, 8), standardize=False, modality=1)
    for split, one in both.items():
        assert one["image"].shape[1] == 2
        np.testing.assert_array_equal(one["image"][:, 1:], second[split]["image"])
        where = one["mask"][0] >= 0
        grey = truth[one["id"][0]][0]
        np.testing.assert_array_equal(one["image"][0, 1][where], grey[..., 1].T.ravel())
    with pytest.raises(ValueError, match=r"volume must be a whole number from 0 to 1, got 2"):
        data.load_decathlon(tmp_path, size=(8, 9, 8), modality=2)


def test_a_task_that_is_not_as_described(tmp_path: Path) -> None:
    truth = write_decathlon(tmp_path)
    grey, label = truth["la_004"]
    for part, values in (("imagesTr", grey), ("labelsTr", label)):
        save_volume(tmp_path / part / "la_004.nii.gz", values, AFFINE * [2, 1, 1, 1])
    with pytest.raises(
        ValueError, match=r"spacing differs .*\(2.0, 1.0, 0.5\) mm, in 1 of 10 files \(la_004"
    ):
        data.load_decathlon(tmp_path, size=(8, 9, 8))
    mixed = data.load_decathlon(tmp_path, size=(8, 9, 8), spacing="mixed")
    assert sum((one["spacing"][:, 2] == 1).sum() for one in mixed.values()) == 1
    save_volume(tmp_path / "labelsTr/la_004.nii.gz", label + np.uint8(1), AFFINE * [2, 1, 1, 1])
    with pytest.raises(ValueError, match=r"la_004.* holds \[1 2 3\]; expected 0, 1 and 2"):
        data.load_decathlon(tmp_path, size=(8, 9, 8), spacing="mixed")
    for change, message in (
        ({"labels": {"0": "a", "2": "b"}}, r"numbers \[0, 2\]"),
        ({"training": []}, "0 pairs"),
        ({"training": [{"image": "a.nii.gz", "label": "b.nii.gz"}]}, "1 of 1 of them"),
        ({"training": ["a.nii.gz"]}, "no list of a task"),
    ):
        content = json.loads((tmp_path / "dataset.json").read_text())
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other/imagesTr").mkdir(exist_ok=True)
        (tmp_path / "other/dataset.json").write_text(json.dumps(content | change))
        with pytest.raises(ValueError, match=message):
            data.load_decathlon(tmp_path / "other", size=(8, 9, 8))
    with pytest.raises(ValueError, match="spacing must be"):
        data.load_decathlon(tmp_path, size=(8, 9, 8), spacing=(1.0, 0.0, 1.0))


def test_the_real_task(data_folder: Path, tmp_path: Path) -> None:
    folder = data_folder / "hippocampus"
    if not (folder / "dataset.json").is_file():
        pytest.skip("PPL_MED_DATA names no folder that holds hippocampus/dataset.json")
    place = linked(folder, tmp_path / "task", "imagesTr", "labelsTr", "dataset.json")
    for split in ("train", "val"):
        names = (folder / f"{split}.txt").read_text().split()[:3]
        (place / f"{split}.txt").write_text("\n".join(names))
    theirs = data.load_hippocampus(place)
    ours = data.load_decathlon(place, size=(48, 64, 48), outside="background")
    assert ours.classes == ("background", "Anterior", "Posterior")
    for key, values in theirs["val"].items():
        np.testing.assert_array_equal(values, ours["val"][key])


# ------------------------------------------------------------------------------------ boxes


@pytest.mark.parametrize("layout", ["voc", "coco"])
@pytest.mark.parametrize(
    ("size", "resize", "factor", "shift"),
    [
        ((8, 16), "fit", (1, 1), (0, 0)),
        ((16, 16), "fit", (1, 1), (0, 4)),
        ((16, 16), "scale", (1, 2), (0, 0)),
        ((4, 8), "fit", (0.5, 0.5), (0, 0)),
        ((12, 20), "pad", (1, 1), (2, 2)),
    ],
)
def test_boxes_follow_their_pictures(
    layout: str, size: Any, resize: Any, factor: Any, shift: Any, tmp_path: Path
) -> None:
    kinds: dict[str, Any] = {
        "voc": (write_voc, data.load_voc_boxes),
        "coco": (write_coco, data.load_coco_boxes),
    }
    write, read = kinds[layout]
    write(tmp_path)
    splits = read(tmp_path, size=size, resize=resize)
    assert splits.classes == ("cell", "rod")
    corners = np.array([one for boxes in BOXES.values() for one in boxes])
    expected = corners * [*factor, *factor] + [*shift, *shift]
    for one in splits.values():
        assert one["num_boxes"].tolist() == [0, 3, 3]
        assert np.isnan(one["box"][0]).all() and (one["box_label"][0] == -1).all()
        for case in (1, 2):
            np.testing.assert_allclose(one["box"][case], expected)
            assert one["box_label"][case].tolist() == [0, 0, 1]
    one = read(tmp_path, size=size, resize=resize, classes=("rod",))["train"]
    assert one["num_boxes"].tolist() == [0, 1, 1] and set(one["box_label"][1]) == {0}


def test_a_bright_object_stays_in_its_box(tmp_path: Path) -> None:
    write_voc(tmp_path)
    picture = np.zeros((8, 16, 3), np.uint8)
    picture[1:5, 0:6] = 255
    Image.fromarray(picture).save(tmp_path / "JPEGImages/train1.png")
    arrays = data.load_voc_boxes(tmp_path, size=(32, 48))["train"]
    left, top, right, bottom = arrays["box"][1, 0]
    inside = arrays["image"][1, 0] > 127
    rows, cols = np.nonzero(inside)
    assert abs(rows.min() - top) <= 0.5 and abs(rows.max() + 1 - bottom) <= 0.5
    assert abs(cols.min() - left) <= 0.5 and abs(cols.max() + 1 - right) <= 0.5


def test_boxes_that_are_none(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc")
    path = tmp_path / "voc/Annotations/val1.xml"
    content = path.read_text()
    for old, new, message in (
        (
            "<xmax>6</xmax>",
            "<xmax>0</xmax>",
            r"1 of 3 files \(val1.png: .*have boxes without area",
        ),
        ("<xmax>6</xmax>", "", "val1.xml .*lacks its name or an edge"),
        ("<name>cell</name>", "", "val1.xml .*lacks its name or an edge"),
    ):
        path.write_text(content.replace(old, new))
        with pytest.raises(ValueError, match=message):
            data.load_voc_boxes(tmp_path, size=(8, 16))
    hard = content.replace("<name>rod</name>", "<name>rod</name><difficult>1</difficult>")
    path.write_text(hard)
    read = data.load_voc_boxes(tmp_path, size=(8, 16))
    assert read["val"]["num_boxes"].tolist() == [0, 2, 3]
    all_of_them = data.load_voc_boxes(tmp_path, size=(8, 16), difficult=True)
    assert all_of_them["val"]["num_boxes"].tolist() == [0, 3, 3]
    write_coco(tmp_path / "coco")
    path = tmp_path / "coco/annotations/instances_train.json"
    found = json.loads(path.read_text())
    for key, value, message in (
        ("category_id", 8, r"categories \[8\], which are not in its list"),
        ("bbox", [float("nan"), 0, 1, 1], "NaN"),
        ("bbox", [0, 0, 0, 1], "without area"),
        ("image_id", 99, "no list of COCO"),
    ):
        change = [
            {**one, key: value} if k == 0 else one for k, one in enumerate(found["annotations"])
        ]
        path.write_text(json.dumps(found | {"annotations": change}))
        with pytest.raises(ValueError, match=message):
            data.load_coco_boxes(tmp_path, size=(8, 16))


def test_the_real_boxes(data_folder: Path, tmp_path: Path) -> None:
    folder = data_folder / "bccd"
    if not (folder / "Annotations").is_dir():
        pytest.skip("PPL_MED_DATA names no folder that holds bccd")
    place = linked(folder, tmp_path / "bccd", "JPEGImages", "Annotations") / "ImageSets/Main"
    place.mkdir(parents=True)
    for split in ("train", "val"):
        names = (folder / f"ImageSets/Main/{split}.txt").read_text().split()[:12]
        (place / f"{split}.txt").write_text("\n".join(names))
    boxes = data.load_voc_boxes(tmp_path, size=(60, 80))
    counts = data.load_bccd_counts(tmp_path, size=(60, 80))
    for split, one in boxes.items():
        for number, name in enumerate(boxes.classes):
            key = {"Platelets": "num_platelets", "RBC": "num_rbc", "WBC": "num_wbc"}[name]
            np.testing.assert_array_equal((one["box_label"] == number).sum(1), counts[split][key])


# ------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(1, 8, 12), (2, 8, 6, 10)])
def test_a_constant_stays_and_a_mean_is_kept(dtype: Any, shape: Any) -> None:
    values = np.full(shape, 7, dtype)
    half = [n // 2 for n in shape[1:]]
    found = resampled(values, half)
    assert found.dtype == dtype and found.shape == (shape[0], *half) and (found == 7).all()
    labels = np.arange(np.prod(shape[1:])).reshape(shape[1:])
    assert set(resampled(labels, half, labels=True).ravel()) <= set(labels.ravel())
    padded, growth = to_size(values, [n + 3 for n in shape[1:]], "pad")
    assert padded.sum() == values.sum() and (growth == 1).all()
