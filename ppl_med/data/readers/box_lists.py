"""Boxes of many pictures as arrays: padded to one number, moved with their picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_med.data.readers.folders import check_memory, some_of
from ppl_med.data.readers.image_files import read_rgb
from ppl_med.data.readers.resampling import Resize, to_size

Boxes = tuple[NDArray[np.float32], NDArray[np.int64]]


def pictures_with_boxes(
    paths: Sequence[Path],
    boxes: Sequence[Boxes],
    ids: Sequence[str],
    size: tuple[int, int],
    resize: Resize,
) -> dict[str, NDArray[Any]]:
    """Arrays of one split: "image", "box", "box_label", "num_boxes" and "id".

    Boxes come as (x_min, y_min, x_max, y_max) in pixels of their picture, and leave in pixels of
    the new one. They are cut at the border of their picture; what is then empty counts as damage.

    Raises:
        ValueError: Boxes have no area; it counts the pictures and names the first.
    """
    check_memory(3 * len(paths) * size[0] * size[1])
    images, moved, empty = [], [], []
    for path, (corners, labels) in zip(paths, boxes, strict=True):
        pixels = read_rgb(path)
        rows, cols = pixels.shape[1:]
        inside = np.clip(corners, 0, np.array([cols, rows, cols, rows], np.float32))
        if ((inside[:, 2:] - inside[:, :2]) <= 0).any():
            empty.append(path.name)
        image, growth = to_size(pixels, size, resize)
        images.append(image)
        moved.append((_moved(inside, (rows, cols), size, growth), labels))
    if empty:
        raise ValueError(
            f"{some_of(empty, len(paths))} have boxes without area inside the picture; mend or "
            "drop these boxes"
        )
    return {"image": np.stack(images), **padded(moved), "id": np.array(list(ids))}


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


def _moved(
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
