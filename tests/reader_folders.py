"""Small data sets in the layouts of the readers, and what was written, as the truth."""

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
