"""CamVid street scenes: eleven classes, and the class flips that make them ambiguous.

Read from a folder in the layout of the SegNet tutorial: for each split a list ``<split>.txt`` of
lines "<image file> <label file>", relative to the folder. Labels are 8-bit images of class numbers,
0..10 and 11 for what nobody labelled.

References: Brostow, Fauqueur, Cipolla, "Semantic object classes in video", Pattern Recognition
Letters 30, 2009. Badrinarayanan, Kendall, Cipolla, "SegNet", IEEE TPAMI 39, 2017.
"""

from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_med.data.class_flips import ClassFlips
from ppl_med.data.folders import check_splits, find_place

CLASS_NAMES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
SPLITS = ("train", "val", "test")
UNLABELLED = len(CLASS_NAMES)
FLIPPED = ("road", "pavement", "car", "pedestrian", "tree")
CAMVID_FLIPS = ClassFlips(CLASS_NAMES, [CLASS_NAMES.index(name) for name in FLIPPED])


def load_camvid(
    folder: str | PathLike[str], *, size: tuple[int, int] | None = None
) -> dict[str, dict[str, Any]]:
    """Read the splits that are there; "train" and "val" must be.

    The splits share drives: frames of sequence 0016E5 are in "train" and in "val".

    Args:
        folder: Holds ``train.txt`` and the others, itself or in a subfolder ``camvid``.
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
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"size is {size}; expected (rows, cols), both at least 1")
    place = find_place(folder, "camvid", ("train.txt", "val.txt"), module=__name__)
    lists = {split: place / f"{split}.txt" for split in SPLITS}
    splits = {split: _read(path, size) for split, path in lists.items() if path.is_file()}
    check_splits(splits)
    return splits


def _read(path: Path, size: tuple[int, int] | None) -> dict[str, NDArray[Any]]:
    """One split as arrays."""
    pairs = [line.split() for line in path.read_text().splitlines() if line.strip()]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f'{path} must hold lines "<image file> <label file>"')
    images, masks = [], []
    for names in pairs:
        image, mask = (path.parent / _inside(path, name) for name in names)
        images.append(_image(image, size))
        masks.append(_mask(mask, size))
        if images[-1].shape[:2] != masks[-1].shape or images[-1].shape != images[0].shape:
            raise ValueError(
                f"{image} is {images[-1].shape[:2]}, its label {masks[-1].shape}, the first image "
                f"{images[0].shape[:2]}; expected one size (row, col) for all"
            )
    ids = [PurePosixPath(names[0]).stem for names in pairs]
    return {
        "image": np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)),
        "mask": np.stack(masks),
        "sequence": np.array([one.split("_")[0] for one in ids]),
        "id": np.array(ids),
    }


def _inside(path: Path, name: str) -> PurePosixPath:
    """A name in a list, which must stay in the folder of the list."""
    inner = PurePosixPath(name)
    if inner.is_absolute() or ".." in inner.parts:
        raise ValueError(f"{path} names {name!r}, outside its folder; use relative names")
    return inner


def _image(path: Path, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(path) as file:
        image = file.convert("RGB")
    if size is not None:
        _check_size(path, image.size, size)
        image = image.resize(size[::-1], Image.Resampling.BOX)
    return np.asarray(image)


def _mask(path: Path, size: tuple[int, int] | None) -> NDArray[np.int8]:
    from PIL import Image

    with Image.open(path) as file:
        if file.mode not in ("L", "P"):
            raise ValueError(f"{path} has mode {file.mode}; expected 8-bit class numbers")
        label = file if size is None else file.resize(size[::-1], Image.Resampling.NEAREST)
        mask = np.asarray(label)
    if mask.max() > UNLABELLED:
        raise ValueError(f"{path} holds {mask.max()}; expected 0..{UNLABELLED}")
    return np.where(mask == UNLABELLED, -1, mask).astype(np.int8)


def _check_size(path: Path, own: tuple[int, int], size: tuple[int, int]) -> None:
    if size[0] > own[1] or size[1] > own[0]:
        raise ValueError(f"size is {size}, larger than the {own[1]} x {own[0]} pixels of {path}")
