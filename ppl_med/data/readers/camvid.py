"""CamVid street scenes: eleven classes, and the class flips that make them ambiguous.

Read from a folder in the layout of the SegNet tutorial: for each split a list ``<split>.txt`` of
lines "<image file> <label file>", relative to the folder, or as that tutorial has them, from
``/SegNet/CamVid/`` on. Without lists, every picture in ``<split>/`` has a label of the same name in
``<split>annot/``. Labels are 8-bit images of class numbers, 0..10 and 11 for what nobody labelled.

References: Brostow, Fauqueur, Cipolla, "Semantic object classes in video", Pattern Recognition
Letters 30, 2009. Badrinarayanan, Kendall, Cipolla, "SegNet", IEEE TPAMI 39, 2017.
"""

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import a_path
from ppl_med.data.readers.folders import check_files, find_place, read_table, split_files
from ppl_med.data.readers.image_files import check_size, read_classes, read_rgb, resized
from ppl_med.data.splits import check_splits
from ppl_med.data.synthetic.class_flips import ClassFlips

CLASS_NAMES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
)  # fmt: skip
UNLABELLED = len(CLASS_NAMES)
FLIPPED = ("road", "pavement", "car", "pedestrian", "tree")
CAMVID_FLIPS = ClassFlips(CLASS_NAMES, [CLASS_NAMES.index(name) for name in FLIPPED])


def load_camvid(
    folder: str | PathLike[str], *, size: tuple[int, int] | None = None
) -> dict[str, dict[str, Any]]:
    """Read the splits that are there; "train" and "val" must be.

    The splits share drives: frames of sequence 0016E5 are in "train" and in "val".

    Args:
        folder: Holds ``train.txt`` and the others, or ``train``, ``trainannot`` and the others,
            itself or in a subfolder ``camvid`` or ``CamVid``.
        size: Rows and columns wanted, at most those of the files; None for theirs. Images are
            averaged over the area of the new pixel, labels taken at its middle.

    Returns:
        For each split, arrays for ``Batches``: "image" uint8 (case, channel=3, row, col), red,
        green, blue; "mask" int8 (case, row, col), ids of ``CLASS_NAMES``, -1 unlabelled;
        "sequence" str (case), the drive; "id" str (case), name of the image file without ending.
        ``CAMVID_FLIPS`` turns the masks into ambiguous ones.

    Raises:
        FileNotFoundError: There is no such folder, or no list for "train" or "val", or a file that
            a list names is missing.
        ValueError: ``size`` is no smaller size, or a list or file is not as described above.
    """
    if size is not None:
        check_size(size, ("rows", "cols"))
    place = _place(a_path("folder", folder))
    lists = split_files(place, "{}.txt") or split_files(place, "{}annot")
    splits = {split: _read(path, size) for split, path in lists.items()}
    check_splits(splits)
    return splits


def _place(root: Path) -> Path:
    """The folder of the data set: one of folders alone, where there is no list."""
    for place in (root, root / "camvid", root / "CamVid"):
        lists = any((place / f"{split}.txt").exists() for split in ("train", "val"))
        if not lists and all((place / f"{split}annot").is_dir() for split in ("train", "val")):
            return place
    return find_place(root, "camvid", ("train.txt", "val.txt"), module=__name__)


def _pairs(path: Path) -> list[list[Path]]:
    """Picture and label of every case of a split: of its list, or of its folder of labels."""
    if path.is_dir():
        pictures = sorted((path.parent / path.name.removesuffix("annot")).glob("*.png"))
        if not pictures:
            raise FileNotFoundError(f"{path.parent} has labels in {path.name} but no pictures")
        return [[one, path / one.name] for one in pictures]
    return [
        [path.parent / name for name in names]
        for names in read_table(path, 2, strip="/SegNet/CamVid/")
    ]


def _read(path: Path, size: tuple[int, int] | None) -> dict[str, NDArray[Any]]:
    """One split as arrays."""
    pairs = _pairs(path)
    check_files([file for pair in pairs for file in pair], needed_by=path)
    images, masks = list[NDArray[np.uint8]](), list[NDArray[np.uint8]]()
    for image, mask in pairs:
        pixels, classes = read_rgb(image), read_classes(mask, UNLABELLED + 1)
        own, first = pixels.shape[1:], (images[0].shape[1:] if images else None)
        if own != classes.shape or (size is None and first not in (None, own)):
            raise ValueError(
                f"{image} is {own}, its label {classes.shape}, the first image {first or own}; "
                "expected one size (row, col) for all"
            )
        if size is not None and (size[0] > own[0] or size[1] > own[1]):
            raise ValueError(
                f"size is {size}, larger than the {own[0]} x {own[1]} pixels of {image}"
            )
        images.append(resized(pixels, size, "area"))
        masks.append(resized(classes.astype(np.uint8), size, "nearest"))
    ids = [image.stem for image, _ in pairs]
    labels = np.stack(masks).astype(np.int8)
    return {
        "image": np.ascontiguousarray(np.stack(images)),
        "mask": np.where(labels == UNLABELLED, np.int8(-1), labels),
        "sequence": np.array([one.split("_")[0] for one in ids]),
        "id": np.array(ids),
    }
