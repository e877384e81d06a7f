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
from typing import Any, Literal

from ppl_med.checks import choice
from ppl_med.data.readers.decathlon import VolumeSettings, read_outlined
from ppl_med.data.readers.folders import (
    check_files,
    find_place,
    read_list,
    split_files,
)
from ppl_med.data.readers.image_files import check_size

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
        depth, row and col; "affine" float64 (case, 4, 4), from index (depth, row, col) to mm, RAS+;
        "filename_or_obj" str (case); "id" str (case), file name without ending.

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
    settings = VolumeSettings(size, outside, standardize, len(CLASS_NAMES))
    return read_outlined(place, names, settings, needed_by=place)
