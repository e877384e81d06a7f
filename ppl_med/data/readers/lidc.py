"""LIDC lung nodules: 128 x 128 crops of CT slices, each with the outlines of four readers.

Read from ``lidc_train.npz``, ``lidc_val.npz`` and, where it is there, ``lidc_test.npz``, split by
patient; each holds

    images           uint8 (case, row=128, col=128), CT values, each crop stretched to 0..255 by its
                     own least and largest: grey levels of two crops are not one scale
    masks            0 or 1 (case, grader=4, row=128, col=128)
    reader_present   0 or 1 (case, grader): this reader marked the nodule on some slice
    patient          bytes or str (case)
    nodule, slice    integers (case): number of the nodule of the patient, and of the slice

It is read as well from the folders that pylidc exports (layout: ``lidc_slices``) and from the crops
of the community, ``lidc_crops.npz``, written by ``convert_lidc_pickle``, which then are split by
patient.

A reader who saw nothing left a mask of zeros, a real answer as in Kohl et al. (2018). The order of
the readers has no meaning: grader 0 of two images need not be one person.

References: Armato et al., "The Lung Image Database Consortium (LIDC) and Image Database Resource
Initiative (IDRI)", Medical Physics 38, 2011. Kohl et al., "A Probabilistic U-Net for Segmentation
of Ambiguous Images", NeurIPS 2018.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import a_path, choice, reject, whole
from ppl_med.data.readers.array_files import read_npz
from ppl_med.data.readers.folders import find_place, split_files
from ppl_med.data.readers.lidc_pickle import load_lidc_crops
from ppl_med.data.readers.lidc_slices import read_slices, slices_folder
from ppl_med.data.splits import apply_split, check_splits, split_patients

CLASS_NAMES = ("background", "nodule")
SIDE = 128  # pixels of the crops in the files
_KEYS = ("images", "masks", "reader_present", "patient", "nodule", "slice")
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
_CHUNK = 512  # cases resized at a time


def load_lidc(
    folder: str | PathLike[str],
    *,
    size: int = SIDE,
    resize: Literal["crop", "average"] = "crop",
    absent: Literal["empty", "ignore"] = "empty",
    every_slice: bool = False,
    shares: Mapping[str, float] | None = None,
    split_seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Read the splits that are there; "train" and "val" must be.

    Args:
        folder: Holds ``lidc_train.npz`` and the others, or ``lidc_crops.npz``, or folders of
            patients, itself or in a subfolder ``lidc``; the first of these is read.
        size: Rows and columns wanted, at most 128; 64 suits a CPU.
        resize: "crop" keeps the central pixels, so the scale stays, but what lies outside is lost:
            at size 64, one outline in 400 becomes empty. "average" takes means over blocks, so
            everything stays and shrinks; a pixel of the mask is set where at least half its block
            is, and a mask that would vanish keeps its fullest pixel. ``size`` must divide 128.
        absent: What a reader who did not mark the nodule on any slice counts as: "empty" for the
            answer that there is none, "ignore" for no answer, a mask of -1.
        every_slice: Of folders of patients, whether to keep all slices of a nodule, or one or two.
        shares: Of folders and crops, share of the patients for every split; by default 0.6, 0.2,
            0.2.
        split_seed: Seed of these splits.

    Returns:
        For each split, arrays for ``Batches``: "image" float32 (case, channel=1, row, col), grey
        levels / 255, so 0..1; "mask" int8 (case, grader=4, row, col) with the meaning of
        ``CLASS_NAMES``; "reader_present" bool (case, grader); "patient" str, "nodule" and "slice"
        int64 (case); "id" str (case), "<patient>/n<nodule>/s<slice>". Crops have "image", "mask",
        "patient" (their series), and "id" alone.

    Raises:
        FileNotFoundError: There is no such folder, or no file for "train" or "val".
        ValueError: An argument is out of range, a file is not as described above, or a patient is
            in two splits.
    """
    choice("resize", resize, ("crop", "average"))
    choice("absent", absent, ("empty", "ignore"))
    whole("size", size, most=SIDE)
    if resize == "average" and SIDE % size:
        reject("size", f'a divisor of {SIDE} with resize="average"', size)
    root, arrays = a_path("folder", folder), dict[str, Any]()
    if not any((place / "lidc_train.npz").exists() for place in (root, root / "lidc")):
        arrays = _not_split(root, size, resize, absent, every_slice)
    if arrays:
        people = split_patients(
            arrays["patient"], SHARES if shares is None else shares, seed=split_seed
        )
        return apply_split(arrays, people)
    place = find_place(folder, "lidc", ("lidc_train.npz", "lidc_val.npz"), module=__name__)
    splits = {}
    for split, path in split_files(place, "lidc_{}.npz").items():
        arrays = read_npz(path, _KEYS)
        _check(path, arrays)
        splits[split] = _named(arrays, size, resize, absent)
    check_splits(splits, "patient")
    return splits


def _not_split(
    root: Path, size: int, resize: str, absent: str, every_slice: bool
) -> dict[str, Any]:
    """The cases of crops or of folders of patients; nothing where neither is there."""
    for crops in (root / "lidc_crops.npz", root / "lidc" / "lidc_crops.npz"):
        if crops.exists():
            found = load_lidc_crops(crops)
            mask = found["mask"]
            image, mask = _sized(found["image"][:, 0], mask, size, resize)
            if absent == "ignore":
                mask = np.where(found["mask"].any((2, 3))[..., None, None], mask, np.int8(-1))
            return found | {"image": image[:, None], "mask": np.ascontiguousarray(mask)}
    place = slices_folder(root)
    if place is None:
        return {}
    arrays = read_slices(place, SIDE, every=every_slice)
    _check(place, arrays)
    return _named(arrays, size, resize, absent)


def _check(path: Path, arrays: dict[str, NDArray]) -> None:
    images, masks, present = arrays["images"], arrays["masks"], arrays["reader_present"]
    if images.dtype != np.uint8 or images.shape[1:] != (SIDE, SIDE) or len(images) == 0:
        raise ValueError(
            f"{path}: images is {images.dtype} {images.shape}; expected uint8 (case, {SIDE}, "
            f"{SIDE})"
        )
    if masks.ndim != 4 or masks.shape[0] != len(images) or masks.shape[2:] != images.shape[1:]:
        raise ValueError(
            f"{path}: masks has shape {masks.shape}; expected (case={len(images)}, grader, {SIDE}, "
            f"{SIDE})"
        )
    if not ((masks == 0) | (masks == 1)).all():
        raise ValueError(f"{path}: masks holds {np.unique(masks)[:5]}; expected 0 and 1")
    if present.shape != masks.shape[:2]:
        raise ValueError(
            f"{path}: reader_present has shape {present.shape}; expected {masks.shape[:2]}"
        )
    for name in _KEYS[3:]:
        if arrays[name].shape != (len(images),):
            raise ValueError(
                f"{path}: {name} has shape {arrays[name].shape}; expected one entry for each of "
                f"the {len(images)} images"
            )
    outlined_by_absent = masks.any((2, 3)) & (present == 0)
    if outlined_by_absent.any():
        case, reader = np.argwhere(outlined_by_absent)[0]
        raise ValueError(
            f"{path}: reader {reader} is absent from case {case} by reader_present but outlined it"
        )


def _named(
    arrays: dict[str, NDArray], size: int, resize: str, absent: str
) -> dict[str, NDArray[Any]]:
    """Give one split the names, shapes and sizes that ``load_lidc`` promises."""
    image, mask = _sized(arrays["images"], arrays["masks"].astype(np.int8), size, resize)
    present = arrays["reader_present"].astype(bool)
    if absent == "ignore":
        mask = np.where(present[..., None, None], mask, np.int8(-1))
    patient = arrays["patient"].astype(str)
    nodule, place = arrays["nodule"].astype(np.int64), arrays["slice"].astype(np.int64)
    parts = zip(patient.tolist(), nodule.tolist(), place.tolist(), strict=True)
    return {
        "image": image[:, None].astype(np.float32) / np.float32(255),
        "mask": np.ascontiguousarray(mask),
        "reader_present": present,
        "patient": patient,
        "nodule": nodule,
        "slice": place,
        "id": np.array([f"{who}/n{number}/s{at}" for who, number, at in parts]),
    }


def _sized(
    image: NDArray, mask: NDArray[np.int8], size: int, resize: str
) -> tuple[NDArray[Any], NDArray[np.int8]]:
    if resize == "crop":
        start = (SIDE - size) // 2
        window = slice(start, start + size)
        return image[:, window, window].astype(np.float32), mask[..., window, window]
    if size < SIDE:
        return _shrink(image, size), _shrink_masks(mask, size)
    return image, mask


def _shrink(pixels: NDArray, size: int) -> NDArray[np.float32]:
    """Means over blocks, dims (..., size, size)."""
    block = pixels.shape[-1] // size
    total = np.zeros((*pixels.shape[:-2], size, size), np.float32)
    for row, col in np.ndindex(block, block):  # whole numbers below 2**24: the sum is exact
        total += pixels[..., row::block, col::block]
    total /= block**2
    return total


def _shrink_masks(mask: NDArray[np.int8], size: int) -> NDArray[np.int8]:
    """Majority over blocks; a mask that was not empty never becomes so."""
    out = np.empty((*mask.shape[:2], size, size), np.int8)
    for start in range(0, len(mask), _CHUNK):
        rows = slice(start, start + _CHUNK)
        share = _shrink(mask[rows], size)
        fullest = share.max((2, 3), keepdims=True)
        out[rows] = (share >= np.minimum(0.5, fullest)) & (fullest > 0)
    return out
