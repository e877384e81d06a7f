"""What every reader of a data set promises, in one table; a new reader adds a row.

Whether the arrays are those of the files is tested reader by reader, in the files beside this one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chest_folders import write_cxr_lesions, write_rsna, write_vindr
from reader_folders import (
    crops,
    lidc_contents,
    malaria_contents,
    medmnist_contents,
    pneumoniamnist_contents,
    write_bccd,
    write_brains,
    write_camvid,
    write_cells,
    write_cityscapes,
    write_coco,
    write_decathlon,
    write_films,
    write_hippocampus,
    write_isic,
    write_lidc_slices,
    write_make3d,
    write_nyuv2,
    write_series,
    write_table,
    write_voc,
    write_wbc,
)

from ppl_med import data

DTYPES = {
    "image": ("uint8", "float32"),
    "label": ("int64",),
    "mask": ("int8",),
    "depth": ("float32",),
    "value": ("float32",),
    "findings": ("int8",),
    "box": ("float32",),
    "box_label": ("int64",),
    "spacing": ("float64",),
    "affine": ("float64",),
}
RAW = ("brains", "decathlon", "hippocampus", "dicom_series")  # grey levels in their own unit


@dataclass(frozen=True)
class Reader:
    """A reader and a small data set of its kind.

    Args:
        write: Writes the data set into a folder.
        read: Reads it, split by split.
        observation: Array that a model would be conditioned on; None where others give it.
        files: Needed files: each lost, then damaged.
        pictures: Files whose loss may go unnoticed; each damaged.
        patients: Array by which cases are kept in one split, where there is one.
        subfolder: Where the data set may lie as well.
    """

    write: Callable[[Path], Any]
    read: Callable[[Path], dict[str, dict[str, Any]]]
    observation: str | None
    files: tuple[str, ...]
    pictures: tuple[str, ...] = ()
    patients: str | None = None
    subfolder: str | None = None


def write_malaria(folder: Path) -> None:
    np.savez(folder / "malaria.npz", **malaria_contents())


def write_pneumoniamnist(folder: Path) -> None:
    np.savez(folder / "pneumoniamnist.npz", **pneumoniamnist_contents())


def write_lidc(folder: Path) -> None:
    for split in ("train", "val"):
        np.savez(folder / f"lidc_{split}.npz", **lidc_contents(split, num_cases=4))


def write_crops(folder: Path, num_crops: int = 5) -> None:
    import pickle

    (folder / "crops.pickle").write_bytes(pickle.dumps(crops(num_crops)))
    data.convert_lidc_pickle(folder / "crops.pickle", folder / "crops.npz")


def write_camvid_folders(folder: Path) -> None:
    write_camvid(folder)
    for split in ("train", "val"):
        (folder / f"{split}.txt").unlink()


def write_chestmnist(folder: Path) -> None:
    np.savez(folder / "chestmnist.npz", **medmnist_contents("chestmnist"))


def write_lidc_crops(folder: Path) -> None:
    write_crops(folder, 12)
    (folder / "crops.npz").rename(folder / "lidc_crops.npz")


READERS = {
    "load_bccd_counts": Reader(
        write_bccd,
        lambda folder: data.load_bccd_counts(folder, size=(6, 8)),
        "value",
        (
            "ImageSets/Main/val.txt",
            "JPEGImages/BloodImage_train1.jpg",
            "Annotations/BloodImage_val0.xml",
        ),
        subfolder="bccd",
    ),
    "load_brains": Reader(
        write_brains,
        data.load_brains,
        "label",
        ("participants.tsv",),
        pictures=("sub-03/anat/sub-03_T1w.nii.gz",),
        patients="patient",
        subfolder="brains",
    ),
    "load_camvid": Reader(
        write_camvid,
        data.load_camvid,
        "mask",
        ("train.txt", "train/0001train_001.png", "valannot/0001val_002.png"),
        subfolder="camvid",
    ),
    "load_camvid, folders alone": Reader(
        write_camvid_folders,
        data.load_camvid,
        "mask",
        ("trainannot/0001train_001.png",),
        pictures=("train/0001train_001.png",),
        subfolder="CamVid",
    ),
    "load_cityscapes": Reader(
        write_cityscapes,
        lambda folder: data.load_cityscapes(folder, size=(4, 8)),
        "mask",
        ("gtFine/train/köln/köln_000001_000019_gtFine_labelIds.png",),
        pictures=("leftImg8bit/train/ulm/ulm_000001_000019_leftImg8bit.png",),
        subfolder="cityscapes",
        patients="site",
    ),
    "load_coco_boxes": Reader(
        write_coco,
        lambda folder: data.load_coco_boxes(folder, size=(8, 8)),
        "box",
        ("annotations/instances_train.json", "val/val1.png"),
        subfolder="coco",
    ),
    "load_cxr_lesion_boxes": Reader(
        write_cxr_lesions,
        lambda folder: data.load_cxr_lesion_boxes(folder, size=(8, 12)),
        "box",
        ("images/c3.png",),
        pictures=("index.csv", "boxes.csv"),
        patients="patient",
        subfolder="cxr_lesions",
    ),
    "load_decathlon": Reader(
        write_decathlon,
        lambda folder: data.load_decathlon(folder, size=(8, 9, 8)),
        "mask",
        ("dataset.json", "imagesTr/la_001.nii.gz", "labelsTr/la_002.nii.gz"),
    ),
    "load_dicom_films": Reader(
        write_films,
        lambda folder: {"all": data.load_dicom_films(folder)},
        None,
        (),
        pictures=("deep/1.dcm",),
        patients="patient",
    ),
    "load_dicom_series": Reader(
        write_series,
        lambda folder: {"all": data.load_dicom_series(folder)},
        None,
        (),
        pictures=("0-1.dcm",),
        patients="patient",
    ),
    "load_hippocampus": Reader(
        write_hippocampus,
        lambda folder: data.load_hippocampus(folder, size=(8, 9, 8)),
        "mask",
        (
            "val.txt",
            "imagesTr/hippocampus_train1.nii.gz",
            "labelsTr/hippocampus_val2.nii.gz",
        ),
        subfolder="hippocampus",
    ),
    "load_isic": Reader(
        write_isic,
        lambda folder: data.load_isic(folder, size=(6, 8)),
        "label",
        ("ISIC_2019_Training_Input/ISIC_0000003.jpg",),
        pictures=("ISIC_2019_Training_GroundTruth.csv", "ISIC_2019_Training_Metadata.csv"),
        patients="patient",
        subfolder="isic",
    ),
    "load_lidc": Reader(
        write_lidc,
        lambda folder: data.load_lidc(folder, size=64),
        "mask",
        ("lidc_train.npz", "lidc_val.npz"),
        patients="patient",
        subfolder="lidc",
    ),
    "load_lidc, slices": Reader(
        write_lidc_slices,
        lambda folder: data.load_lidc(folder, size=64),
        "mask",
        ("LIDC-IDRI-0002/nodule-0/mask-2/slice-1.png",),
        pictures=("LIDC-IDRI-0002/nodule-0/images/slice-1.png",),
        patients="patient",
        subfolder="LIDC-IDRI-slices",
    ),
    "load_lidc, crops": Reader(
        write_lidc_crops,
        lambda folder: data.load_lidc(folder, size=64, resize="average"),
        "mask",
        (),
        pictures=("lidc_crops.npz",),
        patients="patient",
        subfolder="lidc",
    ),
    "load_lidc_crops": Reader(
        write_crops,
        lambda folder: {"all": data.load_lidc_crops(folder / "crops.npz")},
        "mask",
        ("crops.npz",),
        patients="patient",
    ),
    "load_make3d": Reader(
        write_make3d,
        lambda folder: data.load_make3d(folder, size=(10, 18)),
        "depth",
        ("Train400Depth/depth_sph_corr-10.21op2-p-015t000.mat",),
        pictures=("Test134/img-op1-p-046t000.jpg",),
        subfolder="make3d",
    ),
    "load_malaria": Reader(
        write_malaria,
        data.load_malaria,
        "label",
        ("malaria.npz",),
        patients="patient",
        subfolder="malaria",
    ),
    "load_malaria, pictures": Reader(
        write_cells,
        lambda folder: data.load_malaria(folder, size=(6, 6)),
        "label",
        (),
        pictures=("cell_images/Parasitized/C31P1thinF_IMG_2015_cell_1.png",),
        patients="patient",
        subfolder="malaria",
    ),
    "load_medmnist": Reader(
        write_chestmnist,
        lambda folder: data.load_medmnist(folder, "chestmnist"),
        "findings",
        ("chestmnist.npz",),
        subfolder="chestmnist",
    ),
    "load_nyuv2": Reader(
        write_nyuv2,
        data.load_nyuv2,
        "depth",
        ("nyu_depth_v2_labeled.mat",),
        pictures=("splits.mat",),
        subfolder="nyuv2",
    ),
    "load_pneumoniamnist": Reader(
        write_pneumoniamnist,
        data.load_pneumoniamnist,
        "label",
        ("pneumoniamnist.npz",),
        subfolder="pneumoniamnist",
    ),
    "load_rsna_boxes": Reader(
        write_rsna,
        lambda folder: data.load_rsna_boxes(folder, size=(8, 12)),
        "box",
        ("stage_2_train_labels.csv", "stage_2_train_images/p03-a.dcm"),
        pictures=("stage_2_detailed_class_info.csv",),
        patients="patient",
        subfolder="rsna",
    ),
    "from_table": Reader(
        write_table,
        lambda folder: data.from_table(folder / "cases.csv"),
        "label",
        ("cases.csv", "pictures/ä03.png"),
        patients="patient",
    ),
    "load_vindr_boxes": Reader(
        write_vindr,
        lambda folder: data.load_vindr_boxes(folder, size=(8, 12)),
        "box",
        ("train.csv", "train/f03.dicom"),
        patients="patient",
        subfolder="vindr",
    ),
    "load_voc_boxes": Reader(
        write_voc,
        lambda folder: data.load_voc_boxes(folder, size=(8, 8)),
        "box",
        ("ImageSets/Main/val.txt", "JPEGImages/train1.png", "Annotations/val1.xml"),
        subfolder="voc",
    ),
    "load_wbc_seg": Reader(
        write_wbc,
        lambda folder: data.load_wbc_seg(folder, size=(16, 16)),
        "mask",
        ("train/masks/001.png",),
        pictures=("train/images/001.png",),
        subfolder="wbc_seg",
    ),
}
ALL = pytest.mark.parametrize("name", READERS)


def each_file(*kinds: str) -> Any:
    return pytest.mark.parametrize(
        ("name", "file"),
        [
            (name, file)
            for name, reader in READERS.items()
            for kind in kinds
            for file in getattr(reader, kind)
        ],
    )


def made(name: str, folder: Path) -> Reader:
    folder.mkdir(parents=True, exist_ok=True)
    READERS[name].write(folder)
    return READERS[name]


def test_the_table_has_every_public_reader() -> None:
    public = {name for name in data.__all__ if name.startswith("load_")} | {"from_table"}
    public -= {"load_split"}  # a split file is no data set
    assert public == {name.partition(",")[0] for name in READERS}
    assert public == {reader.function.__name__ for reader in data.READERS.values()}
    for name, reader in data.READERS.items():
        assert reader.function.__name__ in (f"load_{name}", f"from_{name}")


@ALL
def test_the_registry_says_what_is_read(name: str, tmp_path: Path) -> None:
    registered = {one.function.__name__: one for one in data.READERS.values()}
    told = registered[name.partition(",")[0]]
    splits = made(name, tmp_path).read(tmp_path)
    assert told.split == (list(splits) != ["all"])
    axes = {len(dims) + 1 for dims in told.dims}
    for arrays in splits.values():
        assert arrays["image"].ndim in axes
        assert not told.observed or set(told.observed) & arrays.keys()
    endings = {path.name.partition(".")[2] for path in tmp_path.rglob("*") if path.is_file()}
    assert any(one.endswith(tuple(told.formats)) for one in endings)


@ALL
def test_every_split_is_what_batches_take(name: str, tmp_path: Path) -> None:
    reader = made(name, tmp_path)
    for arrays in reader.read(tmp_path).values():
        cases = len(arrays["id"])
        assert cases > 0 and {len(values) for values in arrays.values()} == {cases}
        assert arrays["id"].dtype.kind == "U"
        assert arrays["image"].ndim in (4, 5) and np.isfinite(arrays["image"]).all()
        for key in DTYPES.keys() & arrays.keys():
            assert arrays[key].dtype.name in DTYPES[key], key
        if arrays["image"].dtype == np.float32 and name.removeprefix("load_") not in RAW:
            assert arrays["image"].min() >= 0 and arrays["image"].max() <= 1
        if "mask" in arrays:
            data.check_masks(arrays["image"], arrays["mask"], ids=arrays["id"].tolist())
        if "depth" in arrays:
            np.testing.assert_array_equal(
                np.isnan(arrays["depth"]).sum((1, 2)), arrays["num_masked"]
            )
        batch = next(iter(data.Batches(arrays, batch_size=2)))
        data.check_batch(batch)
        assert reader.observation is None or reader.observation in batch
        assert len(batch["id"]) == min(2, cases)


@ALL
def test_ids_and_patients_are_in_one_split_only(name: str, tmp_path: Path) -> None:
    reader = made(name, tmp_path)
    splits = reader.read(tmp_path)
    ids = [one for arrays in splits.values() for one in arrays["id"].tolist()]
    assert len(set(ids)) == len(ids)
    told = {"patient"} & {reader.patients}
    assert all(({"patient"} & arrays.keys()) == told for arrays in splits.values())
    if reader.patients:
        found = [set(arrays[reader.patients].tolist()) for arrays in splits.values()]
        assert len(set.union(*found)) == sum(map(len, found))


@ALL
def test_another_reading_and_another_place_give_the_same(name: str, tmp_path: Path) -> None:
    reader = made(name, tmp_path / "plain")
    inner = READERS[name].subfolder
    elsewhere = tmp_path / "Röntgen 図"
    made(name, elsewhere / inner if inner else elsewhere)
    first = reader.read(tmp_path / "plain")
    for second in (reader.read(tmp_path / "plain"), reader.read(elsewhere)):
        assert list(first) == list(second)
        for split, arrays in first.items():
            assert arrays.keys() == second[split].keys()
            for key in arrays.keys() - {"filename_or_obj"}:  # where it lies
                values = arrays[key]
                np.testing.assert_array_equal(values, second[split][key])


@ALL
def test_a_wrong_folder_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("nowhere", "empty"):
        with pytest.raises(FileNotFoundError, match=folder):
            READERS[name].read(tmp_path / folder)


@each_file("files")
def test_a_missing_file_is_named(name: str, file: str, tmp_path: Path) -> None:
    reader = made(name, tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(FileNotFoundError, match=Path(file).name):
        reader.read(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
@each_file("files", "pictures")
def test_a_damaged_file_is_named(name: str, file: str, damage: str, tmp_path: Path) -> None:
    reader = made(name, tmp_path)
    path = tmp_path / file
    content = path.read_bytes()
    lines = path.suffix in (".txt", ".csv")
    if damage == "cut" and lines:
        content = content.replace(b"\n", b"\xff\n")  # no text: any shorter list is a list
    kinds = {"empty": b"", "text": b"404: not found\n" * 20, "cut": content[: len(content) // 2]}
    path.write_bytes(content if damage == "cut" and lines else kinds[damage])
    with pytest.raises((ValueError, FileNotFoundError), match=path.name):
        reader.read(tmp_path)
