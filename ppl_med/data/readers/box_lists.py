"""Boxes of many pictures as arrays: padded to one number, moved with their picture."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import nearest
from ppl_med.data.boxes import check_boxes
from ppl_med.data.readers.folders import check_memory, some_of
from ppl_med.data.readers.image_files import read_rgb
from ppl_med.data.readers.resampling import Resize, to_size

Boxes = tuple[NDArray[np.float32], NDArray[np.int64]]
Degenerate = Literal["raise", "drop"]
DEGENERATE = ("raise", "drop")


def pictures_with_boxes(
    paths: Sequence[Path],
    boxes: Sequence[Boxes],
    ids: Sequence[str],
    size: tuple[int, int],
    resize: Resize,
    *,
    degenerate: Degenerate = "raise",
    least: float = 0.0,
) -> dict[str, NDArray[Any]]:
    """Arrays of one split: "image", "box", "box_label", "num_boxes", what was mended, and "id".

    Boxes come as (x_min, y_min, x_max, y_max) in pixels of their picture, and leave in pixels of
    the new one. They are cut at the border of their picture; "num_clipped" (case) counts them.
    "shrunk_by" (case, 2) is the size of a new pixel in those of the picture.

    Args:
        paths: Pictures.
        boxes: Corners and classes of each.
        ids: Names of the pictures.
        size: Rows and columns wanted.
        resize: As in ``to_size``.
        degenerate: What becomes of boxes that inside the picture are not wider and higher than
            ``least``: an error, or left out and counted in "num_dropped" (case).
        least: Pixels of the picture.

    Raises:
        ValueError: Boxes have no area; it counts the pictures and names the first.
    """
    check_memory(3 * len(paths) * size[0] * size[1])
    images, moved, empty, counts, growths = [], [], [], [], []
    for path, (corners, labels) in zip(paths, boxes, strict=True):
        pixels = read_rgb(path)
        rows, cols = pixels.shape[1:]
        inside, has_area, clipped = inside_picture(corners, (rows, cols), least)
        if not has_area.all():
            empty.append(f"{path.name}: {written(corners[~has_area][0])}")
        counts.append((int((~has_area).sum()), int((clipped & has_area).sum())))
        image, growth = to_size(pixels, size, resize)
        images.append(image)
        growths.append(growth)
        moved.append((moved_boxes(inside[has_area], (rows, cols), size, growth), labels[has_area]))
    if empty and degenerate == "raise":
        refuse_degenerate(empty, len(paths))
    dropped, cut = np.array(counts, np.int64).reshape(-1, 2).T
    arrays = {"image": np.stack(images), **padded(moved), "id": np.array(list(ids))}
    check_boxes(arrays)
    return arrays | {"num_dropped": dropped, "num_clipped": cut, "shrunk_by": np.stack(growths)}


def inside_picture(
    corners: NDArray[Any], shape: tuple[int, int], least: float = 0.0
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Boxes cut at the border of a picture, which of them have an area, and which were cut."""
    rows, cols = shape
    inside = np.clip(corners, 0, np.array([cols, rows, cols, rows], np.float32)).astype(np.float32)
    has_area = ((inside[:, 2:] - inside[:, :2]) > least).all(1)
    return inside, has_area, (inside != np.asarray(corners, np.float32)).any(1)


def check_known(classes: Sequence[str], found: Collection[str], source: Path) -> None:
    """Raise where a class is nowhere while boxes of other names are there, as after a misspelling.

    Classes that merely do not occur, as in a part of a data set, are welcome.
    """
    unknown = [name for name in classes if name not in found]
    others = sorted(set(found) - set(classes))
    if unknown and others:
        meant = nearest(unknown[0], others)
        raise ValueError(
            f"classes has {unknown[0]!r}, which no box in {source} is of{meant} (others are of"
            f" {', '.join(map(repr, others[:8]))})"
        )


def refuse_degenerate(found: Sequence[str], total: int) -> NoReturn:
    """Raise for boxes without area, each as "file: box"."""
    raise ValueError(
        f"{some_of(found, total)} have boxes without area inside the picture (x_min, y_min, x_max, "
        'y_max, in pixels); mend them, or leave them out by degenerate="drop", which counts them '
        'in "num_dropped"'
    )


def written(corners: NDArray[Any]) -> str:
    """A box as text."""
    return f"({', '.join(f'{one:g}' for one in corners)})"


def padded(boxes: Sequence[Boxes]) -> dict[str, NDArray[Any]]:
    """Boxes of all cases as "box" (case, box, 4), NaN after the last, "box_label" and "num_boxes".

    "box_label" (case, box) is -1 after the last; "num_boxes" (case) counts them. There is room for
    one box at least.
    """
    count = np.array([len(labels) for _, labels in boxes], np.int64)
    most = max(1, int(count.max(initial=0)))
    box = np.full((len(boxes), most, 4), np.nan, np.float32)
    label = np.full((len(boxes), most), -1, np.int64)
    for case, (corners, labels) in enumerate(boxes):
        box[case, : len(labels)], label[case, : len(labels)] = corners, labels
    return {"box": box, "box_label": label, "num_boxes": count}


def moved_boxes(
    corners: NDArray[np.float32],
    old: tuple[int, int],
    new: tuple[int, int],
    growth: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Corners in the pixels of what ``to_size`` made; those that padding or cropping moves too."""
    scaled = np.rint(np.array(old) / growth).astype(int)
    start = np.array([
        (n - s) // 2 if n >= s else -((s - n) // 2) for n, s in zip(new, scaled, strict=True)
    ])  # fmt: skip
    row, col = start
    rows, cols = growth
    out = corners / np.array([cols, rows, cols, rows]) + np.array([col, row, col, row])
    return np.clip(out, 0, [new[1], new[0], new[1], new[0]]).astype(np.float32)
