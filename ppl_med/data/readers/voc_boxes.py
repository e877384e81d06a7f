"""Boxes around objects, in the layout of Pascal VOC.

    ImageSets/Main/<split>.txt      ids, one a line: train, val and, where it is there, test
    JPEGImages/<id>.jpg or .png     pictures
    Annotations/<id>.xml            <object> elements with <name> and <bndbox>

VOC counts pixels from 1 and includes the last: a box here reaches from xmin - 1 to xmax, the edges
of its pixels.

Reference: Everingham et al., "The PASCAL Visual Object Classes Challenge", IJCV 88, 2010.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ppl_med.checks import a_path, choice, different_names
from ppl_med.data.readers.box_lists import (
    DEGENERATE,
    Boxes,
    Degenerate,
    check_known,
    pictures_with_boxes,
)
from ppl_med.data.readers.folders import (
    check_files,
    find_place,
    naming_file,
    read_list,
    split_files,
)
from ppl_med.data.readers.image_files import check_size
from ppl_med.data.readers.named_splits import Splits
from ppl_med.data.readers.resampling import RESIZES, Resize
from ppl_med.data.splits import check_splits

_LISTS = "ImageSets/Main"
_MOST_BYTES = 2**20  # of a file of boxes, which is parsed in memory a hundred times its size


def load_voc_boxes(
    folder: str | PathLike[str],
    *,
    size: tuple[int, int],
    resize: Resize = "fit",
    classes: Sequence[str] | None = None,
    difficult: bool = False,
    degenerate: Degenerate = "raise",
) -> Splits:
    """Read the splits that are there; "train" and "val" must be.

    Args:
        folder: Holds ``ImageSets``, ``JPEGImages`` and ``Annotations``, itself or in ``voc`` or
            ``bccd``.
        size: Rows and columns wanted.
        resize: "fit" scales to the largest that fits and pads with 0, "scale" stretches, "pad"
            crops or pads about the middle; boxes follow.
        classes: Names to keep, in the order of their numbers; by default all, sorted.
        difficult: Whether boxes marked as difficult count.
        degenerate: What becomes of boxes whose xmax is not above xmin, or ymax not above ymin, as
            written or within the picture: an error ("raise"), or left out and counted ("drop").
            BCCD has two.

    Returns:
        For each split, arrays for ``Batches``: "image" uint8 (case, channel=3, row, col); "box"
        float32 (case, box, 4), x_min, y_min, x_max, y_max in pixels of the image, NaN after the
        last; "box_label" int64 (case, box), -1 after the last; "num_boxes" int64 (case);
        "num_dropped" and "num_clipped" int64 (case), boxes that were left out and boxes that were
        cut at the border of the picture; "shrunk_by" float64 (case, 2), rows and columns of the
        picture that a row and a column of the image cover: where the picture's pixels are known to
        be so many mm, add "spacing", mm * shrunk_by, and objects have edges in mm, too; "id" str
        (case). ``classes`` of the result are the names.

    Raises:
        FileNotFoundError: There is no such folder, or a list or a file that a list names is
            missing.
        ValueError: A box has no area, no box has a name of ``classes`` while there are others, an
            argument is out of range, a file is not as described above, or two splits share an id.
    """
    check_size(size, ("rows", "cols"))
    choice("resize", resize, RESIZES)
    choice("degenerate", degenerate, DEGENERATE)
    needed = (f"{_LISTS}/train.txt", f"{_LISTS}/val.txt", "JPEGImages", "Annotations")
    name = "bccd" if (a_path("folder", folder) / "bccd").is_dir() else "voc"
    place = find_place(folder, name, needed, module=__name__)
    ids = {split: read_list(path) for split, path in split_files(place / _LISTS, "{}.txt").items()}
    check_splits({split: {"id": names} for split, names in ids.items()})
    pictures = {split: [_picture(place, one) for one in names] for split, names in ids.items()}
    for split, names in ids.items():
        files = [place / "Annotations" / f"{one}.xml" for one in names]
        check_files([*files, *pictures[split]], needed_by=place / _LISTS / f"{split}.txt")
    found = {
        split: [_boxes(place / "Annotations" / f"{one}.xml", difficult) for one in names]
        for split, names in ids.items()
    }
    seen = {name for boxes in found.values() for one in boxes for name, _ in one}
    kept = tuple(sorted(seen)) if classes is None else different_names("classes", classes)
    check_known(kept, seen, place / "Annotations")
    splits = {
        split: pictures_with_boxes(
            pictures[split],
            [_numbered(one, kept) for one in boxes],
            ids[split],
            size,
            resize,
            degenerate=degenerate,
            least=1.0,  # as xmax = xmin is written, which has the extent of one pixel
        )
        for split, boxes in found.items()
    }
    return Splits(splits, kept)


def _picture(place: Path, one: str) -> Path:
    folder = place / "JPEGImages"
    jpg, png = folder / f"{one}.jpg", folder / f"{one}.png"
    usual = png if next(folder.glob("*.png"), None) is not None else jpg
    return usual if usual.is_file() or not jpg.is_file() else jpg


def _boxes(path: Path, difficult: bool) -> list[tuple[str, list[float]]]:
    with naming_file(path, "XML file"):
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(
                f"it is larger than the {_MOST_BYTES} bytes of any one picture's boxes"
            )
        found = []
        for one in ElementTree.parse(path).iter("object"):
            if not difficult and one.findtext("difficult", "0").strip() == "1":
                continue
            name = (one.findtext("name") or "").strip()
            corners = [float(one.findtext(f"bndbox/{edge}") or "nan")
                       for edge in ("xmin", "ymin", "xmax", "ymax")]  # fmt: skip
            if not name or not np.isfinite(corners).all():
                raise ValueError("an object lacks its name or an edge of its box")
            found.append((name, [corners[0] - 1, corners[1] - 1, *corners[2:]]))
    return found


def _numbered(boxes: list[tuple[str, list[float]]], names: Sequence[str]) -> Boxes:
    kept: list[tuple[int, Any]] = [
        (names.index(name), corners) for name, corners in boxes if name in names
    ]
    return (
        np.array([corners for _, corners in kept], np.float32).reshape(-1, 4),
        np.array([number for number, _ in kept], np.int64),
    )
