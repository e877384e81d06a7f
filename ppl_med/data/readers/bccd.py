"""BCCD: how many red cells, white cells and platelets a picture of a blood smear shows.

Read from a folder in the layout of Pascal VOC:

    ImageSets/Main/train.txt, val.txt    ids, one a line; test.txt, where it is there
    JPEGImages/<id>.jpg                  RGB, 640 x 480
    Annotations/<id>.xml                 a box for every cell, named RBC, WBC or Platelets

A count is the number of boxes. Cells cut by the border are boxed or not as the annotator liked,
and some crowded red cells were left out, so counts carry noise of their own. No file says which
patient a picture is of.

Reference: Shenggan, "BCCD Dataset", 2017, github.com/Shenggan/BCCD_Dataset (MIT).
"""

from os import PathLike
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import choice
from ppl_med.data.readers.folders import (
    check_files,
    find_place,
    naming_file,
    read_list,
    split_files,
)
from ppl_med.data.readers.image_files import check_size, read_rgb
from ppl_med.data.splits import check_splits

KINDS = {"RBC": "num_rbc", "WBC": "num_wbc", "Platelets": "num_platelets"}
_LISTS = "ImageSets/Main"
_MOST_BYTES = 2**20  # of a file of boxes, which is parsed in memory a hundred times its size


def load_bccd_counts(
    folder: str | PathLike[str],
    *,
    size: tuple[int, int] = (120, 160),
    target: Literal["RBC", "WBC", "Platelets"] = "RBC",
) -> dict[str, dict[str, Any]]:
    """Read the splits that are there; "train" and "val" must be.

    Args:
        folder: Holds ``ImageSets``, ``JPEGImages`` and ``Annotations``, itself or in ``bccd``.
        size: Rows and columns wanted; each pixel is an average where the picture shrinks.
        target: The cells whose count is to be predicted.

    Returns:
        For each split, arrays for ``Batches``: "image" uint8 (case, channel=3, row, col), red,
        green, blue; "value" float32 (case), cells of the target per picture, the observation of
        ``BayesianRegressor``; "num_rbc", "num_wbc" and "num_platelets" int64 (case); "id" str
        (case).

    Raises:
        FileNotFoundError: There is no such folder, or a list or a file that a list names is
            missing.
        ValueError: An argument is out of range, a file is not as described above, or two splits
            share an id.
    """
    check_size(size, ("rows", "cols"))
    choice("target", target, KINDS)
    needed = (f"{_LISTS}/train.txt", f"{_LISTS}/val.txt", "JPEGImages", "Annotations")
    place = find_place(folder, "bccd", needed, module=__name__)
    lists = split_files(place / _LISTS, "{}.txt")
    splits = {split: _read(place, path, size, KINDS[target]) for split, path in lists.items()}
    check_splits(splits)
    return splits


def _read(place: Path, path: Path, size: tuple[int, int], target: str) -> dict[str, NDArray[Any]]:
    ids = read_list(path)
    images = [place / "JPEGImages" / f"{one}.jpg" for one in ids]
    boxes = [place / "Annotations" / f"{one}.xml" for one in ids]
    check_files([*images, *boxes], needed_by=path)
    counts = [_counts(one) for one in boxes]
    columns = {name: np.array([count[kind] for count in counts]) for kind, name in KINDS.items()}
    return {
        "image": np.stack([read_rgb(one, size) for one in images]),
        "value": columns[target].astype(np.float32),
        **columns,
        "id": np.array(ids),
    }


def _counts(path: Path) -> dict[str, int]:
    """Number of boxes of each kind."""
    with naming_file(path, "XML file"):
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(
                f"it is larger than the {_MOST_BYTES} bytes of any one picture's boxes"
            )
        names = [one.findtext("name") for one in ElementTree.parse(path).iter("object")]
    unknown = set(names) - set(KINDS)
    if unknown:
        raise ValueError(f"{path} names {sorted(map(str, unknown))}; expected {list(KINDS)}")
    return {kind: names.count(kind) for kind in KINDS}
