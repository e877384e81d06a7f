"""Opacities on chest films of COVID-19 and other pneumonias, split by patient.

    index.csv     file, split, width, height, patientid, finding, view, license
    boxes.csv     file, class, xmin, ymin, xmax, ymax: pixels of the film, the last one outside
    images/<file>

Boxes are those of the connected components of radiologists' outlines, and were not drawn as boxes.

Reference: General Blockchain Inc., COVID-19 Chest X-ray Segmentations Dataset, 2020, over films of
Cohen et al., arXiv:2003.11597.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ppl_med.checks import choice, different_names
from ppl_med.data.readers.box_lists import DEGENERATE, Boxes, Degenerate, check_known
from ppl_med.data.readers.chest.films import corners_of, read_films
from ppl_med.data.readers.folders import check_files, find_place, some_of
from ppl_med.data.readers.image_files import check_size
from ppl_med.data.readers.named_splits import Splits
from ppl_med.data.readers.resampling import RESIZES, Resize
from ppl_med.data.readers.table_columns import (
    column,
    names_of,
    naming_table,
    read_csv,
    split_rows,
)

_EDGES = ("xmin", "ymin", "xmax", "ymax")


def load_cxr_lesion_boxes(
    folder: str | PathLike[str],
    *,
    size: tuple[int, int],
    resize: Resize = "fit",
    classes: Sequence[str] | None = None,
    degenerate: Degenerate = "raise",
) -> Splits:
    """Read the splits that the table names.

    Args:
        folder: Holds the tables and ``images``, itself or in a subfolder ``cxr_lesions``.
        size: Rows and columns wanted.
        resize: "fit" scales to the largest that fits and pads with 0, "scale" stretches, "pad"
            crops or pads about the middle; boxes follow.
        classes: Names to keep, in the order of their numbers; by default all, sorted.
        degenerate: What becomes of boxes without area within the film: an error ("raise"), or left
            out and counted ("drop").

    Returns:
        For each split, arrays for ``Batches``: "image" uint8 (case, channel=1, row, col); "box"
        float32 (case, box, 4), x_min, y_min, x_max, y_max in pixels of the image, NaN after the
        last; "box_label" int64 (case, box), -1 after the last; "num_boxes", "num_dropped" and
        "num_clipped" int64 (case): boxes, those left out, and those cut at the border; "finding",
        "view", "license", "patient" and "id" str (case). ``classes`` of the result are the names.

    Raises:
        FileNotFoundError: There is no such folder, table or film.
        ValueError: A table or film is damaged or contradicts the other, a patient is in two splits,
            boxes have no area, or an argument is out of range.
    """
    check_size(size, ("rows", "cols"))
    choice("resize", resize, RESIZES)
    choice("degenerate", degenerate, DEGENERATE)
    needed = ("index.csv", "boxes.csv", "images")
    place = find_place(folder, "cxr_lesions", needed, module=__name__)
    index, table = read_csv(place / "index.csv"), read_csv(place / "boxes.csv")
    with naming_table(index):
        files = names_of(column(index, "file", "file"), "file").tolist()
        patient = names_of(column(index, "patientid", "patientid"), "patientid")
        column(index, "split", "split")
        if len(set(files)) < len(files):
            raise ValueError(f"{len(files) - len(set(files))} films stand in it twice")
        rows = split_rows(index, "split", None, patient, [], 0)
    paths = [place / "images" / one for one in files]
    check_files(paths, needed_by=place / "index.csv")
    with naming_table(table):
        found, names = _boxes(table, files, classes, place / "boxes.csv")
    arrays = read_films(
        paths, [[one] for one in found], size=size, resize=resize, degenerate=degenerate
    )
    arrays = {name: one if name == "image" else one[:, 0] for name, one in arrays.items()
              if name != "spacing"}  # fmt: skip
    for name in ("finding", "view", "license"):
        if name in index:
            arrays[name] = np.array(index[name].fillna("").astype(str).tolist())
    arrays |= {"patient": patient, "id": np.array([Path(one).stem for one in files])}
    splits = {
        split: {name: values[own] for name, values in arrays.items()} for split, own in rows.items()
    }
    return Splits(splits, names)


def _boxes(
    table: pd.DataFrame, files: Sequence[str], classes: Sequence[str] | None, path: Path
) -> tuple[list[Boxes], tuple[str, ...]]:
    """The boxes of every film, and the names of the classes."""
    film = names_of(column(table, "file", "file"), "file")
    kind = names_of(column(table, "class", "class"), "class")
    strangers = sorted(set(film.tolist()) - set(files))
    if strangers:
        raise ValueError(
            f"boxes are of {some_of(strangers, len(set(film.tolist())), 'films')} that index.csv "
            "does not name"
        )
    corners = corners_of(table, _EDGES, np.ones(len(film), bool), film.tolist())
    every = tuple(sorted(set(kind.tolist())))
    names = every if classes is None else different_names("classes", classes)
    check_known(names, every, path)
    return [_of_film(film == one, kind, corners, names) for one in files], names


def _of_film(
    own: NDArray[np.bool_],
    kind: NDArray[Any],
    corners: NDArray[np.float32],
    names: Sequence[str],
) -> Boxes:
    rows = [row for row in np.flatnonzero(own).tolist() if kind[row] in names]
    return corners[rows], np.array([names.index(kind[row]) for row in rows], np.int64)
