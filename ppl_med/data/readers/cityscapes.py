"""Cityscapes: street scenes of cities, nineteen classes.

Read from a folder as it is distributed:

    leftImg8bit/<split>/<city>/<city>_<sequence>_<frame>_leftImg8bit.png    RGB, 1024 x 2048
    gtFine/<split>/<city>/<city>_<sequence>_<frame>_gtFine_labelIds.png     8-bit, ids 0..33

The nineteen classes of the evaluation are kept, in the order of their train ids; all other ids are
-1. The split "test" has no labels and is not read. No city is in two splits.

Reference: Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR
2016.
"""

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_med.data.readers.folders import check_files, check_memory, find_place
from ppl_med.data.readers.image_files import check_size, read_classes, read_rgb, resized
from ppl_med.data.splits import check_splits

CLASS_NAMES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
    "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle",
    "bicycle",
)  # fmt: skip
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_NUM_IDS = 34
_IMAGE, _LABEL = "_leftImg8bit.png", "_gtFine_labelIds.png"


def load_cityscapes(
    folder: str | PathLike[str], *, size: tuple[int, int] = (128, 256)
) -> dict[str, dict[str, Any]]:
    """Read "train" and "val".

    Args:
        folder: Holds ``leftImg8bit`` and ``gtFine``, itself or in a subfolder ``cityscapes``.
        size: Rows and columns wanted: images are averaged over the area of the new pixel, labels
            taken at its middle. All 3,475 scenes are held in memory.

    Returns:
        For each split, arrays for ``Batches``: "image" uint8 (case, channel=3, row, col), red,
        green, blue; "mask" int8 (case, row, col), ids of ``CLASS_NAMES``, -1 for all else; "site"
        str (case), the city; "id" str (case), "<city>_<sequence>_<frame>".

    Raises:
        FileNotFoundError: There is no such folder, a split has no images, or an image no label.
        ValueError: ``size`` is none, a file is not as described above, or two splits share a city.
    """
    check_size(size, ("rows", "cols"))
    needed = [f"{part}/{split}" for split in ("train", "val") for part in ("leftImg8bit", "gtFine")]
    place = find_place(folder, "cityscapes", needed, module=__name__)
    splits = {split: _read(place, split, size) for split in ("train", "val")}
    check_splits(splits, "site")
    return splits


def _read(place: Path, split: str, size: tuple[int, int]) -> dict[str, NDArray[Any]]:
    images = sorted((place / "leftImg8bit" / split).glob(f"*/*{_IMAGE}"))
    if not images:
        raise FileNotFoundError(f"{place / 'leftImg8bit' / split} holds no <city>/*{_IMAGE}")
    ids = [path.name.removesuffix(_IMAGE) for path in images]
    cities = [path.parent.name for path in images]
    labels = [
        place / "gtFine" / split / city / f"{one}{_LABEL}"
        for city, one in zip(cities, ids, strict=True)
    ]
    check_files(labels, needed_by=place / "leftImg8bit" / split)
    check_memory(4 * len(images) * size[0] * size[1])
    to_class = np.full(_NUM_IDS, -1, np.int8)
    to_class[list(LABEL_IDS)] = np.arange(len(LABEL_IDS))
    pictures, masks = [], []
    for image, label in zip(images, labels, strict=True):
        pixels, numbers = read_rgb(image), read_classes(label, _NUM_IDS)
        if pixels.shape[1:] != numbers.shape:
            raise ValueError(f"{image} is {pixels.shape[1:]} but its label {numbers.shape}")
        pictures.append(resized(pixels, size, "area"))
        masks.append(to_class[resized(numbers.astype(np.uint8), size, "nearest")])
    return {
        "image": np.stack(pictures),
        "mask": np.stack(masks),
        "site": np.array(cities),
        "id": np.array(ids),
    }
