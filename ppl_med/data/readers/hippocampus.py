"""Hippocampus: MR volumes of the Medical Segmentation Decathlon, outlined in two parts.

Read from a folder in the layout of the decathlon (task 4) with lists of the splits:

    imagesTr/<case>.nii.gz    volume
    labelsTr/<case>.nii.gz    0 background, 1 anterior, 2 posterior
    train.txt, val.txt        file names in imagesTr, one a line; test.txt, where it is there

The volumes are cut-outs around one hippocampus, 31 to 45 by 40 to 59 by 24 to 47 voxels of 1 mm³.
Each is of another person. Grey levels have no unit, and differ a thousandfold between volumes.

References: Antonelli et al., "The Medical Segmentation Decathlon", Nature Communications 13, 2022.
Simpson et al., arXiv:1902.09063.
"""

from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import choice
from ppl_med.data.readers.folders import (
    check_files,
    find_place,
    read_list,
    split_files,
)
from ppl_med.data.readers.image_files import centred, check_nothing_cut, check_size
from ppl_med.data.readers.nifti_files import check_one_grid, read_volume
from ppl_med.data.splits import check_splits

CLASS_NAMES = ("background", "anterior", "posterior")
SIZE = (48, 64, 48)  # voxels; holds every volume whole and can be halved four times


def load_hippocampus(
    folder: str | PathLike[str],
    *,
    size: tuple[int, int, int] = SIZE,
    outside: Literal["background", "ignore"] = "background",
    standardize: bool = True,
) -> dict[str, dict[str, Any]]:
    """Read the splits that are there; "train" and "val" must be.

    Volumes are turned to the same axes: depth from feet to head, rows from back to front, columns
    from left to right. Each is brought to one size about its middle: where it is larger it is
    cropped, which must not cut a labelled voxel, where it is smaller its border is repeated.

    Args:
        folder: Holds ``imagesTr``, ``labelsTr`` and the lists, itself or in ``hippocampus``.
        size: Depth, rows and columns wanted, in voxels.
        outside: What padded voxels count as in the mask: "background", since the cut-outs hold the
            whole hippocampus, so that nobody predicts volume there, or "ignore", -1.
        standardize: Bring each volume to mean 0 and standard deviation 1 over its own voxels, since
            the scanners share no scale; False keeps the grey levels.

    Returns:
        For each split, arrays for ``Batches``: "image" float32 (case, channel=1, depth, row, col);
        "mask" int8 (case, depth, row, col), ids of ``CLASS_NAMES``; "voxel_volume" float64 (case),
        mm³, by which a count of voxels becomes a volume; "spacing" float64 (case, 3), mm along
        depth, row and col; "id" str (case), file name without ending.

    Raises:
        FileNotFoundError: There is no such folder, or a list or a file that a list names is
            missing.
        ModuleNotFoundError: nibabel is not installed.
        ValueError: ``size`` would cut labelled voxels, an argument is out of range, a file is not
            as described above, or two splits share a case.
    """
    check_size(size, ("depth", "rows", "cols"))
    choice("outside", outside, ("background", "ignore"))
    needed = ("train.txt", "val.txt", "imagesTr", "labelsTr")
    place = find_place(folder, "hippocampus", needed, module=__name__)
    lists = split_files(place, "{}.txt")
    names = {split: read_list(path) for split, path in lists.items()}
    for split, path in lists.items():
        paths = [place / part / one for one in names[split] for part in ("imagesTr", "labelsTr")]
        check_files(paths, needed_by=path)
    check_splits({split: {"id": values} for split, values in names.items()})
    cases = {split: [_read(place, name) for name in names[split]] for split in lists}
    masks = [case["mask"] for split in lists for case in cases[split]]
    check_nothing_cut(masks, [name for split in lists for name in names[split]], size)
    return {
        split: _stacked(cases[split], names[split], size, outside, standardize) for split in lists
    }


def _read(place: Path, name: str) -> dict[str, NDArray[Any]]:
    """One volume and its mask as they are, on the axes of ``load_hippocampus``."""
    (image, grey), (label, mask) = (
        read_volume(place / part / name, kind)
        for part, kind in (("imagesTr", np.float32), ("labelsTr", None))
    )
    check_one_grid(name, image, label)
    if not np.isfinite(grey).all() or grey.min() == grey.max():
        raise ValueError(f"{place / 'imagesTr' / name} has NaN or infinite voxels, or one level")
    if not np.isin(np.unique(mask), range(len(CLASS_NAMES))).all():
        raise ValueError(
            f"{place / 'labelsTr' / name} holds {np.unique(mask)[:5]}; expected 0, 1 and 2"
        )
    return {
        "image": grey.T,
        "mask": mask.T.astype(np.int8),
        "spacing": np.linalg.norm(image.affine[:3, :3], axis=0)[::-1],
        "voxel_volume": np.abs(np.linalg.det(image.affine[:3, :3])),
    }


def _stacked(
    cases: list[dict[str, NDArray[Any]]],
    names: list[str],
    size: tuple[int, int, int],
    outside: str,
    standardize: bool,
) -> dict[str, NDArray[Any]]:
    image = np.empty((len(cases), 1, *size), np.float32)
    for index, case in enumerate(cases):
        grey = case["image"]
        if standardize:
            grey = (grey - grey.mean(dtype=np.float64)) / grey.std(dtype=np.float64)
        image[index, 0] = centred(grey, size)
    fill = 0 if outside == "background" else -1
    return {
        "image": image,
        "mask": np.stack([centred(case["mask"], size, fill=fill) for case in cases]),
        "voxel_volume": np.array([case["voxel_volume"] for case in cases]),
        "spacing": np.stack([case["spacing"] for case in cases]),
        "id": np.array([name.removesuffix(".gz").removesuffix(".nii") for name in names]),
    }
