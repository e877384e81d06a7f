"""Small data sets in the layouts of the readers, and what was written, as the truth."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

CAMVID_SIZE = (12, 16)


def write_camvid(folder, splits=("train", "val"), size=CAMVID_SIZE):
    """Write labels 0..11 and PNG images, which lose nothing; return both by id."""
    rng, truth = np.random.default_rng(0), {}
    for split in splits:
        lines = []
        for kind in (split, f"{split}annot"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        for k in range(3):
            name = f"0001{split}_{k:03d}"
            image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            label = rng.integers(0, 12, size, dtype=np.uint8)
            Image.fromarray(image).save(folder / split / f"{name}.png")
            Image.fromarray(label).save(folder / f"{split}annot" / f"{name}.png")
            lines.append(f"{split}/{name}.png {split}annot/{name}.png")
            truth[name] = (image, label)
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return truth


WBC_SIZES = [(12, 12), (10, 14), (16, 12)]


def write_site(folder: Path, first: int) -> dict[str, Any]:
    """Three cells: labels fill the middle of pictures of several sizes."""
    rng, truth = np.random.default_rng(first), {}
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number, size in enumerate(WBC_SIZES, first):
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        mask = np.zeros(size, np.uint8)
        mask[3:-3, 3:-3] = rng.integers(1, 3, (size[0] - 6, size[1] - 6))
        Image.fromarray(image).save(folder / "images" / f"{number:03d}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:03d}.png")
        truth[f"{number:03d}"] = (image.transpose(2, 0, 1), mask)
    return truth


def write_wbc(folder: Path) -> dict[str, Any]:
    return write_site(folder / "train", 1) | write_site(folder / "val", 11)


def write_bccd(folder: Path) -> dict[str, list[str]]:
    """Pictures of one colour; boxes in random order; return the names of the boxes by id."""
    rng, truth = np.random.default_rng(0), {}
    for part in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (folder / part).mkdir(parents=True)
    for split in ("train", "val"):
        ids = [f"BloodImage_{split}{k}" for k in range(3)]
        (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(ids) + "\n")
        for k, one in enumerate(ids):
            picture = np.full((24, 32, 3), 40 * (k + 1), np.uint8)
            Image.fromarray(picture).save(folder / f"JPEGImages/{one}.jpg", quality=95)
            names = rng.choice(["RBC", "WBC", "Platelets"], 4 * k + 1, p=[0.8, 0.1, 0.1]).tolist()
            boxes = "".join(
                f"<object><name>{name}</name><bndbox><xmin>1</xmin></bndbox></object>"
                for name in names
            )
            text = f"<annotation><filename>{one}.jpg</filename>{boxes}</annotation>"
            (folder / f"Annotations/{one}.xml").write_text(text)
            truth[one] = names
    return truth


ROWS, COLS, CASES = 6, 8, 5


def write_nyuv2(folder: Path, scenes: bool = True, splits: bool = True) -> dict[str, Any]:
    """As MATLAB sees the arrays: (row, col, channel, case) and (row, col, case)."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (ROWS, COLS, 3, CASES), dtype=np.uint8)
    depths = rng.uniform(1, 9, (ROWS, COLS, CASES)).astype(np.float32)
    raw = depths.copy()
    raw[0, :3, 1], raw[1, 0, 1], raw[2, 2, 1] = 0, np.nan, -1
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"], file["depths"], file["rawDepths"] = images.T, depths.T, raw.T
        if scenes:
            names = [f"kitchen_{k // 2}" for k in range(CASES)]
            references = np.empty((1, CASES), h5py.ref_dtype)
            for k, name in enumerate(names):
                codes = np.frombuffer(name.encode("utf-16-le"), np.uint16)[:, None]
                references[0, k] = file.create_dataset(f"#refs#/{k}", data=codes).ref
            file.create_dataset("scenes", data=references, dtype=h5py.ref_dtype)
    if splits:
        numbers = {"trainNdxs": [[1], [2], [4]], "testNdxs": [[3], [5]]}
        savemat(folder / "splits.mat", numbers)
    return {"images": images, "depths": depths, "raw": raw}


PARTS = {"train": ["10.21op2-p-015t000", "math7-p-282t0"], "test": ["op1-p-046t000"]}


IMAGES = {"train": "Train400Img", "test": "Test134"}


DEPTHS = {"train": "Train400Depth", "test": "Gridlaserdata"}


def write_make3d(folder: Path, splits: tuple[str, ...] = ("train", "test")) -> dict[str, Any]:
    """Pictures of one colour, which JPEG keeps within a level or two, and grids of 5 x 9."""
    rng, truth = np.random.default_rng(1), {}
    for split in splits:
        (folder / IMAGES[split]).mkdir(parents=True)
        (folder / DEPTHS[split]).mkdir()
        for part in PARTS[split]:
            colour = rng.integers(20, 236, 3).astype(np.uint8)
            picture = np.broadcast_to(colour, (40, 24, 3))
            Image.fromarray(np.ascontiguousarray(picture)).save(
                folder / IMAGES[split] / f"img-{part}.jpg", quality=95, subsampling=0
            )
            grid = rng.uniform(1, 60, (5, 9, 4))
            grid[0, :4, 3] = [81.9, 70.0, 69.9, np.nan]
            grid[1, :2, 3] = [0.0, -3.0]
            name = folder / DEPTHS[split] / f"depth_sph_corr-{part}.mat"
            savemat(name, {"Position3DGrid": grid})
            truth[part] = (colour, grid)
    return truth


VOLUMES = [(6, 8, 5), (7, 9, 6), (5, 7, 8)]  # columns, rows, depth: the order of NIfTI


AFFINE = np.diag([0.5, 1.0, 2.0, 1.0])


def save_volume(path: Path, values: Any, affine: Any = AFFINE, unit: str = "mm") -> None:
    nibabel = pytest.importorskip("nibabel", reason="needs the extra `data`")
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = nibabel.Nifti1Image(values, affine)
    volume.header.set_xyzt_units(unit)
    nibabel.save(volume, path)


def write_hippocampus(folder: Path, splits: tuple[str, ...] = ("train", "val")) -> dict[str, Any]:
    """Three cases a split; labels fill the middle; return grey levels and labels by id."""
    rng, truth = np.random.default_rng(0), {}
    for split in splits:
        names = []
        for k, size in enumerate(VOLUMES):
            name = f"hippocampus_{split}{k}"
            grey = rng.normal(100, 10, size).astype(np.float32)
            label = np.zeros(size, np.uint8)
            label[1:-1, 1:-1, 1:-1] = rng.integers(0, 3, [n - 2 for n in size])
            label[1, 1, 1] = label[-2, -2, -2] = 1
            save_volume(folder / "imagesTr" / f"{name}.nii.gz", grey)
            save_volume(folder / "labelsTr" / f"{name}.nii.gz", label)
            names.append(f"{name}.nii.gz")
            truth[name] = (grey, label)
        (folder / f"{split}.txt").write_text("\n".join(names) + "\n")
    return truth


def write_brains(folder: Path, people: int = 10, affine: Any = None) -> dict[str, Any]:
    """A folder in the layout of BIDS, two scans of the last person; voxels (x, y, z) by id."""
    rng, truth = np.random.default_rng(0), {}
    lines = ["participant_id\tage\tsex\tgroup"]
    for k in range(people):
        name = f"sub-{k:02d}"
        lines.append(f"{name}\t{60 + k}\t{'FM'[k % 2]}\t{('AD', 'CN')[k % 2]}")
        scans = [f"{name}_T1w"] if k < people - 1 else [f"{name}_ses-{s}_T1w" for s in (1, 2)]
        for scan in scans:
            values = rng.uniform(1, 100, (4, 5, 6)).astype(np.float32)
            values[0] = 0
            path = f"{name}/anat/{scan}.nii.gz"
            save_volume(folder / path, values, AFFINE if affine is None else affine)
            truth[path.removesuffix(".nii.gz")] = values
    (folder / "participants.tsv").write_text("\n".join(lines) + "\n")
    return truth


def lidc_contents(split, num_cases=6, seed=0):
    rng = np.random.default_rng([seed, len(split)])
    masks = np.zeros((num_cases, 4, 128, 128), np.uint8)
    present = rng.random((num_cases, 4)) < 0.6
    present[:, 0] = True
    for case, reader in np.argwhere(present):
        row, col = rng.integers(54, 66, 2)
        masks[case, reader, row : row + 4, col : col + 7] = 1
    masks[0, 0] = 0  # present, and saw nothing in this slice
    return {
        "images": rng.integers(0, 256, (num_cases, 128, 128), dtype=np.uint8),
        "masks": masks,
        "reader_present": present.astype(np.uint8),
        "patient": np.array([f"P-{split}-{k // 2}".encode() for k in range(num_cases)]),
        "nodule": np.arange(num_cases, dtype=np.int16) % 2,
        "slice": np.full(num_cases, 5, np.int16),
    }


def crops(num_crops=5, seed=0):
    rng = np.random.default_rng(seed)
    return {
        f"LIDC-{k}_slice": {
            "image": rng.random((128, 128)).astype(np.float64 if k % 2 else np.float32),
            "masks": [(rng.random((128, 128)) < 0.1).astype(float) for _ in range(4)],
            "series_uid": np.str_(f"1.3.6.{k // 2}") if k % 2 else f"1.3.6.{k // 2}",
        }
        for k in range(num_crops)
    }


def malaria_contents(seed=0):
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, num_cases, people in [("train", 200, 20), ("val", 30, 3), ("test", 40, 4)]:
        who = rng.integers(0, people, num_cases)
        arrays[f"{split}_images"] = rng.integers(0, 256, (num_cases, 6, 6), dtype=np.uint8)
        # The first fifth of the people are healthy donors.
        label = (who >= people // 5) & (rng.random(num_cases) < 0.6)
        arrays[f"{split}_labels"] = label.astype(np.uint8)[:, None]
        arrays[f"{split}_patient"] = np.array([f"{split[1]}{k}".encode() for k in who])
    return arrays


def pneumoniamnist_contents() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for split, cases in (("train", 6), ("val", 3), ("test", 2)):
        found[f"{split}_images"] = rng.integers(0, 256, (cases, 28, 28), dtype=np.uint8)
        found[f"{split}_labels"] = rng.integers(0, 2, (cases, 1), dtype=np.uint8)
    return found


def write_cells(folder: Path) -> dict[str, Any]:
    """Cells of NIH's release: ten patients with both kinds, five donors; pictures by file name."""
    rng, truth = np.random.default_rng(0), {}
    for person in range(15):
        who = f"C{30 + person}P{person}thinF_IMG" if person < 10 else f"C{person}_thinF_IMG"
        for kind in ("Parasitized", "Uninfected") if person < 10 else ("Uninfected",):
            place = folder / "cell_images" / kind
            place.mkdir(parents=True, exist_ok=True)
            size = tuple(rng.integers(5, 9, 2))
            picture = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            name = f"{who}_2015_cell_{person + 40 * (kind == 'Uninfected')}"
            Image.fromarray(picture).save(place / f"{name}.png")
            truth[name] = picture
    (folder / "cell_images" / "Parasitized" / "Thumbs.db").write_bytes(b"of Windows")
    return truth


def medmnist_contents(name: str, size: int = 28, cases: int = 4) -> dict[str, Any]:
    """Arrays in the form of a data set of MedMNIST; every class is there."""
    from ppl_med.data import MEDMNIST

    kind, rng, found = MEDMNIST[name], np.random.default_rng(0), dict[str, Any]()
    shape = (size,) * kind.dims + ((3,) if kind.channels == 3 else ())
    for split in ("train", "val", "test"):
        found[f"{split}_images"] = rng.integers(0, 256, (cases, *shape), dtype=np.uint8)
        labels = rng.integers(0, len(kind.classes), (cases, 1))
        if kind.likelihood == "findings":
            labels = rng.integers(0, 2, (cases, len(kind.classes)))
        found[f"{split}_labels"] = labels.astype(np.uint8)
    return found


def write_decathlon(
    folder: Path, affine: Any = AFFINE, modalities: int = 1, cases: int = 10
) -> dict[str, Any]:
    """Volumes of several sizes with labels in their middle; grey levels and labels by id."""
    rng, truth = np.random.default_rng(0), {}
    for k in range(cases):
        size = VOLUMES[k % 3]
        shape = size if modalities == 1 else (*size, modalities)
        grey = rng.normal(100, 10, shape).astype(np.float32)
        label = np.zeros(size, np.uint8)
        label[1:-1, 1:-1, 1:-1] = rng.integers(0, 3, [n - 2 for n in size])
        save_volume(folder / "imagesTr" / f"la_{k:03d}.nii.gz", grey, affine)
        save_volume(folder / "labelsTr" / f"la_{k:03d}.nii.gz", label, affine)
        truth[f"la_{k:03d}"] = (grey, label)
    pairs = [
        {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
        for name in truth
    ]
    content = {"labels": {"0": "background", "1": "left", "2": "right"}, "training": pairs}
    (folder / "dataset.json").write_text(json.dumps(content))
    return truth


def write_cityscapes(folder: Path) -> dict[str, Any]:
    rng, truth = np.random.default_rng(0), {}
    for split, cities in (("train", ("ulm", "köln")), ("val", ("lindau",))):
        for city in cities:
            for k in range(2):
                name = f"{city}_{k:06d}_000019"
                image = rng.integers(0, 256, (8, 16, 3), dtype=np.uint8)
                label = rng.integers(0, 34, (8, 16), dtype=np.uint8)
                for part, end, pixels in (
                    ("leftImg8bit", "leftImg8bit", image),
                    ("gtFine", "gtFine_labelIds", label),
                ):
                    place = folder / part / split / city
                    place.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(place / f"{name}_{end}.png")
                truth[name] = (image, label)
    return truth


def write_lidc_slices(folder: Path, patients: int = 5) -> dict[str, Any]:
    """Patients with a nodule of three slices, which all four readers outlined in one half."""
    rng, truth = np.random.default_rng(0), {}
    for person in range(1, patients + 1):
        place = folder / f"LIDC-IDRI-{person:04d}" / "nodule-0"
        images = rng.integers(0, 256, (3, 128, 128), dtype=np.uint8)
        masks = np.zeros((3, 4, 128, 128), np.uint8)
        for reader in range(4 if person % 2 else 3):
            masks[1, reader, 60 : 66 + reader, 60:70] = 255
            masks[2, reader, 60:64, 60 : 62 + 2 * reader] = 255
        for part in ("images", *(f"mask-{reader}" for reader in range(4))):
            (place / part).mkdir(parents=True)
            for k in range(3):
                pixels = images[k] if part == "images" else masks[k, int(part[-1])]
                Image.fromarray(pixels).save(place / part / f"slice-{k}.png")
        truth[f"LIDC-IDRI-{person:04d}"] = (images, masks)
    return truth


BOXES = {"cell": [[0.0, 1.0, 6.0, 5.0], [4.0, 2.0, 12.0, 8.0]], "rod": [[10.0, 0.0, 16.0, 4.0]]}


def write_voc(folder: Path) -> None:
    """Three pictures a split of 8 x 16; the first has no box, the others those of ``BOXES``."""
    rng = np.random.default_rng(0)
    for part in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (folder / part).mkdir(parents=True)
    for split in ("train", "val"):
        ids = [f"{split}{k}" for k in range(3)]
        (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(ids) + "\n")
        for k, one in enumerate(ids):
            picture = rng.integers(0, 256, (8, 16, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / f"JPEGImages/{one}.png")
            found = BOXES.items() if k else ()
            objects = "".join(
                f"<object><name>{name}</name><bndbox><xmin>{x + 1:g}</xmin><ymin>{y + 1:g}</ymin>"
                f"<xmax>{right:g}</xmax><ymax>{bottom:g}</ymax></bndbox></object>"
                for name, boxes in found
                for x, y, right, bottom in boxes
            )
            (folder / f"Annotations/{one}.xml").write_text(f"<annotation>{objects}</annotation>")


def write_coco(folder: Path) -> None:
    """What ``write_voc`` writes, in the other layout."""
    rng = np.random.default_rng(0)
    (folder / "annotations").mkdir(parents=True)
    for number, split in enumerate(("train", "val")):
        (folder / split).mkdir()
        images, found = [], []
        for k in range(3):
            picture = rng.integers(0, 256, (8, 16, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / split / f"{split}{k}.png")
            images.append({"id": 10 * number + k, "file_name": f"{split}{k}.png"})
            for category, boxes in enumerate(BOXES.values() if k else ()):
                found += [
                    {
                        "image_id": 10 * number + k,
                        "category_id": 7 + 2 * category,
                        "bbox": [x, y, right - x, bottom - y],
                    }
                    for x, y, right, bottom in boxes
                ]
        names = [{"id": 7, "name": "cell"}, {"id": 9, "name": "rod"}]
        content = {"images": images, "annotations": found, "categories": names}
        (folder / f"annotations/instances_{split}.json").write_text(json.dumps(content))


def save_dicom(path: Path, pixels: Any, **tags: Any) -> None:
    """Stored numbers (row, col) or colours (row, col, 3) of 8 or 16 bits, with tags by keyword."""
    pydicom = pytest.importorskip("pydicom", reason="needs the extra `data`")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    found = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    found.SOPClassUID, found.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    found.Rows, found.Columns = pixels.shape[:2]
    found.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    found.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        found.PlanarConfiguration = 0
    found.BitsAllocated = found.BitsStored = 8 * pixels.dtype.itemsize
    found.HighBit = found.BitsStored - 1
    found.PixelRepresentation = int(pixels.dtype.kind == "i")
    found.PixelData = np.ascontiguousarray(pixels).tobytes()
    for name, value in tags.items():
        setattr(found, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert pydicom.__version__
    found.save_as(path, enforce_file_format=True)


def write_films(folder: Path) -> dict[str, Any]:
    rng, truth = np.random.default_rng(0), {}
    for k in range(5):
        levels = rng.integers(0, 4096, (6, 8), dtype=np.uint16)
        tags = {"PatientID": f"p{k // 2}", "InstitutionName": f"site {k % 2}"}
        save_dicom(folder / f"deep/{k}.dcm", levels, BitsStored=12, HighBit=11,
                   ImagerPixelSpacing=[0.2, 0.2], SeriesInstanceUID=f"1.2.{k}", **tags)  # fmt: skip
        truth[f"deep/{k}.dcm"] = levels
    return truth


def write_series(folder: Path, slices: int = 4) -> dict[str, Any]:
    """Two axial series, slices 2 mm apart; stored numbers (slice, row, col), HU + 1024."""
    rng, truth = np.random.default_rng(0), {}
    for number in range(2):
        levels = rng.integers(0, 3000, (slices, 5, 6), dtype=np.int16)
        for at in rng.permutation(slices):  # names say nothing of the order
            save_dicom(
                folder / f"{number}-{at * 7 % slices}.dcm",
                levels[at],
                PatientID=f"p{number}",
                SeriesInstanceUID=f"1.2.{number}",
                PixelSpacing=[0.5, 0.25],
                ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
                ImagePositionPatient=[10.0, 20.0, 2.0 * int(at)],
                RescaleSlope=1,
                RescaleIntercept=-1024,
            )
        truth[f"1.2.{number}"] = levels
    return truth


def write_table(folder: Path, cases: int = 20, **columns: Any) -> dict[str, Any]:
    """Pictures of one size and a table of them, two a patient; pixels by path."""
    rng, lines = np.random.default_rng(0), []
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    truth, names = {}, ["path", "label", "patient", "site", "age", *columns]
    for k in range(cases):
        picture = rng.integers(0, 256, (6, 8), dtype=np.uint8)
        name = f"pictures/ä{k:02d}.png"
        Image.fromarray(picture).save(folder / name)
        truth[name] = picture
        row = [name, ("ill", "healthy")[k // 2 % 2], f"{k // 2:03d}", "äbc"[k % 3], str(30 + k)]
        lines.append(",".join([*row, *(str(values[k]) for values in columns.values())]))
    (folder / "cases.csv").write_text("\n".join([",".join(names), *lines]) + "\n", "utf-8")
    return truth


def write_isic(
    folder: Path, pictures: int = 30, classes: tuple[str, ...] = ("MEL", "NV", "BCC")
) -> dict[str, Any]:
    """Pictures of one grey level each, two a lesion but for the last two; pixels by name."""
    rng, truth = np.random.default_rng(0), {}
    (folder / "ISIC_2019_Training_Input").mkdir(parents=True, exist_ok=True)
    labels = ["image," + ",".join((*classes, "UNK"))]
    known = ["image,age_approx,anatom_site_general,lesion_id,sex"]
    for k in range(pictures):
        name, level = f"ISIC_{k:07d}", int(rng.integers(0, 256))
        pixels = np.full((9, 12, 3), level, np.uint8)
        Image.fromarray(pixels).save(folder / f"ISIC_2019_Training_Input/{name}.jpg", quality=95)
        label = k // 2 % len(classes)
        labels.append(name + "".join(f",{float(c == label)}" for c in range(len(classes))) + ",0.0")
        lesion = f"HAM_{k // 2:04d}" if k < pictures - 2 else ""
        age = "" if k % 5 == 4 else 5 * k
        known.append(f"{name},{age},back,{lesion},{('male', 'female')[k % 2]}")
        truth[name] = (level, label)
    for part, lines in (("GroundTruth", labels), ("Metadata", known)):
        (folder / f"ISIC_2019_Training_{part}.csv").write_text("\n".join(lines) + "\n")
    return truth


def linked(folder: Path, target: Path, *names: str) -> Path:
    """A folder in which some of another stands, of which a test reads a part."""
    target.mkdir()
    for name in names:
        (target / name).symlink_to(folder / name)
    return target
