"""Findings on chest films with the boxes of several radiologists, as in VinDr-CXR.

    train.csv                 image_id, class_name, [class_id,] rad_id, x_min, y_min, x_max, y_max
    train/<image_id>.dicom    or .dcm, .png, .jpg

As in the Kaggle challenge, or annotations/annotations_train.csv as on PhysioNet. A row is a box of
one reader, in pixels of the film as released; "No finding" rows, without a box, say that this
reader saw nothing. Every film of the training set was read by three of seventeen readers.

Reference: Nguyen et al., "VinDr-CXR: An open dataset of chest X-rays with radiologist's
annotations", Scientific Data 9, 2022.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ppl_med.axes import EDGES
from ppl_med.checks import choice, different_names
from ppl_med.data.readers.box_lists import DEGENERATE, Boxes, Degenerate, check_known
from ppl_med.data.readers.chest.films import corners_of, drawn_splits, find_film, read_films
from ppl_med.data.readers.folders import check_files, find_place, some_of
from ppl_med.data.readers.image_files import check_size
from ppl_med.data.readers.named_splits import Splits
from ppl_med.data.readers.resampling import RESIZES, Resize
from ppl_med.data.readers.spacings import Spacing, check_spacing
from ppl_med.data.readers.table_columns import column, names_of, naming_table, read_csv

NOTHING = "No finding"
_TABLES = ("train.csv", "annotations/annotations_train.csv")
_SUFFIXES = (".dicom", ".dcm", ".png", ".jpg")


def load_vindr_boxes(
    folder: str | PathLike[str],
    *,
    size: tuple[int, int],
    resize: Resize = "fit",
    classes: Sequence[str] | None = None,
    spacing: Spacing = "same",
    degenerate: Degenerate = "raise",
    shares: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Splits:
    """Read the films that readers marked and draw splits, films with boxes spread evenly.

    Args:
        folder: Holds the table and the films, itself or in a subfolder ``vindr``.
        size: Rows and columns wanted.
        resize: "fit" scales to the largest that fits and pads with 0, "scale" stretches, "pad"
            crops or pads about the middle; boxes follow.
        classes: Names of the findings to keep, in the order of their numbers; by default all, in
            the order of class_id, or sorted where there is none. A reader who marked others only
            has marked nothing.
        spacing: "same" wants one in all films that say theirs, and square pixels; (row, col) in mm
            resamples to it; "mixed" takes them as they are.
        degenerate: What becomes of boxes without area within the film: an error ("raise"), or left
            out and counted ("drop").
        shares: Share of patients of every split, 0.6, 0.2 and 0.2 by default.
        seed: Seed of the splits.

    Returns:
        For each split, arrays for ``Batches``: "image" uint8 (case, channel=1, row, col), 0 black
        to 255 white, MONOCHROME1 inverted; "box" float32 (case, grader, box, 4), x_min, y_min,
        x_max, y_max in pixels of the image, NaN after the last; "box_label" int64 (case, grader,
        box), -1 after the last; "num_boxes", "num_dropped" and "num_clipped" int64 (case, grader):
        boxes, those left out, and those cut at the border; "rad_id" str (case, grader) and
        "reader_present" bool (case, grader): False where a film had fewer readers than others,
        which is no reading that found nothing; "spacing" float64 (case, 2), mm along row and col,
        NaN where a film does not say; "patient" and "id" str (case), the image_id: the films do not
        say whose they are. ``classes`` of the result are the names.

    Raises:
        FileNotFoundError: There is no such folder, table or film.
        ModuleNotFoundError: pydicom is not installed and films are DICOM files.
        ValueError: A table or film is damaged, lacks what is needed, or contradicts itself; boxes
            have no area; spacings differ; or an argument is out of range.
    """
    check_size(size, ("rows", "cols"))
    choice("resize", resize, RESIZES)
    choice("degenerate", degenerate, DEGENERATE)
    check_spacing(spacing, 2)
    place = find_place(folder, "vindr", ("train",), module=__name__)
    table = next((place / one for one in _TABLES if (place / one).is_file()), place / _TABLES[0])
    frame = read_csv(table)
    with naming_table(frame):
        film, reader, kind, corners = _rows(frame)
        every = _classes(frame, kind)
    kept = every if classes is None else different_names("classes", classes)
    check_known(kept, every, table)
    ids = list(dict.fromkeys(film.tolist()))
    paths = [find_film(place / "train", one, _SUFFIXES) for one in ids]
    check_files(paths, needed_by=table)
    boxes, names = _by_reader(ids, film, reader, kind, corners, kept)
    arrays = read_films(
        paths, boxes, size=size, resize=resize, spacing=spacing, degenerate=degenerate
    )
    arrays |= {"rad_id": names, "reader_present": names != ""}
    arrays |= {"patient": np.array(ids), "id": np.array(ids)}
    return drawn_splits(arrays, kept, shares, seed, table)


def _rows(
    frame: pd.DataFrame,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[np.float32]]:
    """Film, reader, class and corners of every row, if no reader contradicts himself."""
    film, reader, kind = (
        names_of(column(frame, one, one), one) for one in ("image_id", "rad_id", "class_name")
    )
    is_box = kind != NOTHING
    corners = corners_of(frame, EDGES, is_box, film.tolist())
    pairs = list(zip(film.tolist(), reader.tolist(), strict=True))
    marked = {pair for pair, one in zip(pairs, is_box, strict=True) if one}
    empty = {pair for pair, one in zip(pairs, is_box, strict=True) if not one}
    if both := sorted(marked & empty):
        shown = some_of([f"{one} by {who}" for one, who in both], len(marked | empty), "readings")
        raise ValueError(f"{shown} have boxes and {NOTHING!r}; keep what is right")
    return film, reader, kind, corners


def _classes(frame: pd.DataFrame, kind: NDArray[Any]) -> tuple[str, ...]:
    """Names of the findings, in the order of class_id where there is one."""
    names = sorted(set(kind.tolist()) - {NOTHING})
    if not names:
        raise ValueError("no row is a box")
    if "class_id" not in frame:
        return tuple(names)
    numbers = pd.to_numeric(frame["class_id"], errors="coerce")
    pairs = sorted(set(zip(numbers.tolist(), kind.tolist(), strict=True)))
    if len({number for number, _ in pairs}) < len(pairs) or len(set(kind.tolist())) < len(pairs):
        raise ValueError(
            f"class_id and class_name do not name the same classes: {pairs[:6]}; give each name "
            "one number"
        )
    return tuple(name for _, name in pairs if name != NOTHING)


def _by_reader(
    ids: Sequence[str],
    film: NDArray[Any],
    reader: NDArray[Any],
    kind: NDArray[Any],
    corners: NDArray[np.float32],
    classes: Sequence[str],
) -> tuple[list[list[Boxes]], NDArray[Any]]:
    """What each reader of each film marked, and who it was, dims (case, grader); "" for nobody."""
    rows: dict[str, dict[str, list[int]]] = {one: {} for one in ids}
    for row, (one, who, what) in enumerate(
        zip(film.tolist(), reader.tolist(), kind.tolist(), strict=True)
    ):
        own = rows[one].setdefault(who, [])
        if what in classes:
            own.append(row)
    most = max(map(len, rows.values()))
    boxes, names = list[list[Boxes]](), list[list[str]]()
    for readings in rows.values():
        who = sorted(readings)
        absent = most - len(who)
        names.append([*who, *[""] * absent])
        boxes.append([
            (
                corners[own],
                np.array([classes.index(kind[row]) for row in own], np.int64),
            )
            for own in [*(readings[one] for one in who), *[[]] * absent]
        ])  # fmt: skip
    return boxes, np.array(names)
