"""Boxes around objects, in the layout of COCO.

    annotations/instances_<split>.json    "images", "annotations" with "bbox", "categories"
    <split>/<file_name>                   pictures, or images/<split>/, or images/

The splits are "train" and "val", and "test" where it is there; of COCO itself "train2017" and
"val2017". One list of all pictures, instances_default.json as CVAT writes it, is the split "all",
to be divided by patient with ``split_patients`` and ``apply_split``. Boxes are (x, y, width,
height) in pixels from 0 in the file, and corners here.

Reference: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014.
"""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ppl_med.checks import choice, different_names
from ppl_med.data.readers.box_lists import DEGENERATE, Boxes, Degenerate, pictures_with_boxes
from ppl_med.data.readers.folders import SPLITS, check_files, find_place, naming_file
from ppl_med.data.readers.image_files import check_size
from ppl_med.data.readers.named_splits import Splits
from ppl_med.data.readers.resampling import RESIZES, Resize
from ppl_med.data.splits import check_splits


def load_coco_boxes(
    folder: str | PathLike[str],
    *,
    size: tuple[int, int],
    resize: Resize = "fit",
    classes: Sequence[str] | None = None,
    crowd: bool = False,
    degenerate: Degenerate = "raise",
) -> Splits:
    """Read the splits that are there: "train" must be, or one list of all pictures.

    Args:
        folder: Holds ``annotations/instances_<split>.json`` and the pictures in ``<split>/``,
            ``images/<split>/`` or ``images/``, itself or in a subfolder ``coco``. The only list of
            an export of CVAT, ``instances_default.json``, gives one split, "all": divide it by
            patient, with ``split_patients`` and ``apply_split``.
        size: Rows and columns wanted.
        resize: As in ``load_voc_boxes``.
        classes: Names of the categories to keep, in the order of their numbers; by default all, in
            the order of their ids.
        crowd: Whether boxes around crowds count.
        degenerate: What becomes of boxes without width or height within the picture: an error
            ("raise"), or left out and counted ("drop").

    Returns:
        As ``load_voc_boxes``.

    Raises:
        FileNotFoundError: There is no such folder, or a picture is missing.
        ValueError: A box has no area, categories differ between splits, an argument is out of
            range, or a file is not as described above.
    """
    check_size(size, ("rows", "cols"))
    choice("resize", resize, RESIZES)
    choice("degenerate", degenerate, DEGENERATE)
    place = find_place(folder, "coco", ("annotations",), module=__name__)
    lists = {split: path for split in SPLITS if (path := _list(place, split)) is not None}
    only = place / "annotations" / "instances_default.json"
    if not lists and only.is_file():
        lists["all"] = only
    elif "train" not in lists:
        there = sorted(one.name for one in (place / "annotations").glob("*.json"))
        raise FileNotFoundError(
            f"{place / 'annotations'} has no instances_train.json, instances_train2017.json or "
            f"train.json, and no instances_default.json for all pictures alone; it has {there[:5]}"
        )
    contents = {split: _contents(path) for split, path in lists.items()}
    categories = next(iter(contents.values()))["categories"]
    if any(one["categories"] != categories for one in contents.values()):
        raise ValueError(f"{place / 'annotations'}: the splits have different categories")
    every = tuple(name for _, name in categories)
    names = every if classes is None else different_names("classes", classes)
    for name in names:
        choice("classes", name, every)
    numbers = {number: names.index(name) for number, name in categories if name in names}
    splits = {}
    for split, path in lists.items():
        files = [_picture(place, path, one) for _, one in contents[split]["images"]]
        check_files(files, needed_by=path)
        boxes = _boxes(path, contents[split], numbers, crowd)
        ids = [Path(one).with_suffix("").as_posix() for _, one in contents[split]["images"]]
        splits[split] = pictures_with_boxes(files, boxes, ids, size, resize, degenerate=degenerate)
    check_splits(splits)
    return Splits(splits, names)


def _list(place: Path, split: str) -> Path | None:
    for name in (f"instances_{split}.json", f"instances_{split}2017.json", f"{split}.json"):
        if (place / "annotations" / name).is_file():
            return place / "annotations" / name
    return None


def _contents(path: Path) -> dict[str, Any]:
    """Images and categories as pairs (id, name), and annotations by image."""
    with naming_file(path, "list of COCO"):
        found = json.loads(path.read_text(encoding="utf-8"))
        images = [(int(one["id"]), str(one["file_name"])) for one in found["images"]]
        categories = sorted((int(one["id"]), str(one["name"])) for one in found["categories"])
        boxes: dict[int, list[Mapping[str, Any]]] = {number: [] for number, _ in images}
        if not images or len(boxes) < len(images):
            raise ValueError(f"it has {len(images)} images with {len(boxes)} different ids")
        for one in found["annotations"]:
            x, y, width, height = map(float, one["bbox"])
            kept = {"box": [x, y, x + width, y + height], "category": int(one["category_id"])}
            boxes[int(one["image_id"])].append(kept | {"crowd": bool(one.get("iscrowd", 0))})
        known = {number for number, _ in categories}
        unknown = {box["category"] for part in boxes.values() for box in part} - known
        if unknown:
            raise ValueError(f"boxes are of the categories {sorted(unknown)[:5]}, which are not "
                             "in its list")  # fmt: skip
    return {"images": images, "categories": categories, "boxes": boxes}


def _picture(place: Path, path: Path, name: str) -> Path:
    split = path.stem.removeprefix("instances_")
    outside = Path(name).is_absolute() or ".." in Path(name).parts
    if outside:
        raise ValueError(f"{path} names {name!r}, outside its folder; use relative names")
    tried = [place / split / name, place / "images" / split / name, place / "images" / name]
    return next((one for one in tried if one.is_file()), tried[0])


def _boxes(
    path: Path, contents: Mapping[str, Any], numbers: Mapping[int, int], crowd: bool
) -> list[Boxes]:
    found = []
    for image, _ in contents["images"]:
        kept = [
            one
            for one in contents["boxes"][image]
            if one["category"] in numbers and (crowd or not one["crowd"])
        ]
        corners = np.array([one["box"] for one in kept], np.float32).reshape(-1, 4)
        if not np.isfinite(corners).all():
            raise ValueError(f"{path}: a box of image {image} holds NaN or infinite numbers")
        found.append((corners, np.array([numbers[one["category"]] for one in kept], np.int64)))
    return found
