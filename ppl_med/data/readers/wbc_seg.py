"""White blood cells of two laboratories: nucleus and cytoplasm of the cell in the middle.

Read from a folder of splits, each with pictures and masks of the same names:

    <split>/images/<number>.png    RGB, about 120 x 120
    <split>/masks/<number>.png     8-bit, 0 background, 1 cytoplasm, 2 nucleus

The splits "train", "val" and "test" are of the first laboratory (Jiangxi Tecom). The pictures of
the second (the CellaVision blog), another stain, camera and magnification, lie in a folder of their
own with ``images`` and ``masks``; they show what a net makes of another site. No file says which
patient a cell is of.

Reference: Zheng, Wang, Wang and Liu, "Fast and robust segmentation of white blood cell images by
self-supervised learning", Micron 107, 2018.
"""

from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import a_path, choice
from ppl_med.data.readers.folders import check_files, find_place, split_files
from ppl_med.data.readers.image_files import (
    centred,
    check_nothing_cut,
    check_size,
    read_classes,
    read_rgb,
)
from ppl_med.data.splits import check_splits

CLASS_NAMES = ("background", "cytoplasm", "nucleus")
SITES = ("tecom", "cellavision")


def load_wbc_seg(
    folder: str | PathLike[str],
    *,
    size: tuple[int, int] = (128, 128),
    resize: Literal["pad", "scale"] = "pad",
    second_site: str | PathLike[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Read the splits that are there, "train" and "val" must be, and the second laboratory's.

    Args:
        folder: Holds the splits, itself or in a subfolder ``wbc_seg``.
        size: Rows and columns wanted.
        resize: "pad" keeps the scale: about its middle, a picture is cropped where it is larger,
            which must not cut a labelled pixel, and where it is smaller its border is repeated,
            with -1 in the mask. "scale" stretches every picture to the size.
        second_site: Folder with ``images`` and ``masks`` of the second laboratory; None leaves it
            out.

    Returns:
        For each split, and for "second_site" if it was asked for, arrays for ``Batches``: "image"
        uint8 (case, channel=3, row, col), red, green, blue; "mask" int8 (case, row, col), ids of
        ``CLASS_NAMES``, -1 where padded; "site" str (case), one of ``SITES``; "id" str (case),
        "<site>-<file name without ending>".

    Raises:
        FileNotFoundError: A folder is not there, or a picture has no mask.
        ValueError: ``size`` would cut labelled pixels, an argument is out of range, a file is not
            as described above, or two splits share an id.
    """
    check_size(size, ("rows", "cols"))
    choice("resize", resize, ("pad", "scale"))
    needed = [f"{split}/{part}" for split in ("train", "val") for part in ("images", "masks")]
    place = find_place(folder, "wbc_seg", needed, module=__name__)
    folders = {split: path.parent for split, path in split_files(place, "{}/images").items()}
    if second_site is not None:
        a_path("second_site", second_site)
        found = find_place(second_site, SITES[1], ("images", "masks"), module=__name__)
        folders["second_site"] = found
    splits = {
        split: _read(path, SITES[split == "second_site"], size, resize)
        for split, path in folders.items()
    }
    check_splits(splits)
    return splits


def _read(folder: Path, site: str, size: tuple[int, int], resize: str) -> dict[str, NDArray[Any]]:
    paths = sorted((folder / "images").glob("*.png"))
    if not paths:
        raise FileNotFoundError(f"{folder / 'images'} holds no .png files")
    check_files([folder / "masks" / path.name for path in paths], needed_by=folder / "images")
    wanted = size if resize == "scale" else None
    images = [read_rgb(path, wanted) for path in paths]
    masks = [read_classes(folder / "masks" / path.name, len(CLASS_NAMES), wanted) for path in paths]
    for path, image, mask in zip(paths, images, masks, strict=True):
        if image.shape[1:] != mask.shape:
            raise ValueError(f"{path} is {image.shape[1:]} but its mask {mask.shape}")
    if resize == "pad":
        check_nothing_cut(masks, [str(path) for path in paths], size)
        images = [centred(image, size) for image in images]
        masks = [centred(mask, size, fill=-1) for mask in masks]
    return {
        "image": np.stack(images),
        "mask": np.stack(masks),
        "site": np.array([site] * len(paths)),
        "id": np.array([f"{site}-{path.stem}" for path in paths]),
    }
