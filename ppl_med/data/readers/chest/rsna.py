"""Opacities of pneumonia on chest films, as in the RSNA challenge of 2018.

    stage_2_train_labels.csv           patientId, x, y, width, height, Target
    stage_2_train_images/<patientId>.dcm
    stage_2_detailed_class_info.csv    patientId, class: kept as "finding" where it is there

A row is a box, in pixels of the film from 0; a patient whose Target is 0 has one row without a box,
and nothing is there. The films are of the NIH: behind several patientIds may stand one person, whom
these files do not name, so that splits by patientId are splits by film.

Reference: Shih et al., "Augmenting the NIH Chest Radiograph Dataset with Expert Annotations of
Possible Pneumonia", Radiology: Artificial Intelligence 1, 2019.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ppl_med.checks import choice
from ppl_med.data.readers.box_lists import DEGENERATE, Degenerate
from ppl_med.data.readers.chest.films import corners_of, drawn_splits, find_film, read_films
from ppl_med.data.readers.folders import check_files, find_place, some_of
from ppl_med.data.readers.image_files import check_size
from ppl_med.data.readers.named_splits import Splits
from ppl_med.data.readers.resampling import RESIZES, Resize
from ppl_med.data.readers.spacings import Spacing, check_spacing
from ppl_med.data.readers.table_columns import column, names_of, naming_table, read_csv

_TABLE, _FILMS = "stage_2_train_labels.csv", "stage_2_train_images"
_DETAILS = "stage_2_detailed_class_info.csv"


def load_rsna_boxes(
    folder: str | PathLike[str],
    *,
    size: tuple[int, int],
    resize: Resize = "fit",
    spacing: Spacing = "same",
    degenerate: Degenerate = "raise",
    shares: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Splits:
    """Read the films that have labels and draw splits, films with boxes spread evenly.

    Args:
        folder: Holds the table and the films, itself or in a subfolder ``rsna``.
        size: Rows and columns wanted.
        resize: "fit" scales to the largest that fits and pads with 0, "scale" stretches, "pad"
            crops or pads about the middle; boxes follow.
        spacing: "same" wants one in all films that say theirs, and square pixels; (row, col) in mm
            resamples to it; "mixed" takes them as they are, as the challenge did.
        degenerate: What becomes of boxes without area within the film: an error ("raise"), or left
            out and counted ("drop").
        shares: Share of patients of every split, 0.6, 0.2 and 0.2 by default.
        seed: Seed of the splits.

    Returns:
        For each split, arrays for ``Batches``: "image" uint8 (case, channel=1, row, col), 0 black
        to 255 white, MONOCHROME1 inverted; "box" float32 (case, box, 4), x_min, y_min, x_max, y_max
        in pixels of the image, NaN after the last; "box_label" int64 (case, box), 0 or, after the
        last, -1; "num_boxes", "num_dropped" and "num_clipped" int64 (case): boxes, those left out,
        and those cut at the border; "spacing" float64 (case, 2), mm along row and col, NaN where a
        film does not say; "patient" and "id" str (case); "finding" str (case) where told.

    Raises:
        FileNotFoundError: There is no such folder, table or film.
        ModuleNotFoundError: pydicom is not installed.
        ValueError: A table or film is damaged, lacks what is needed, or contradicts itself; boxes
            have no area; spacings differ; or an argument is out of range.
    """
    check_size(size, ("rows", "cols"))
    choice("resize", resize, RESIZES)
    choice("degenerate", degenerate, DEGENERATE)
    check_spacing(spacing, 2)
    place = find_place(folder, "rsna", (_TABLE, _FILMS), module=__name__)
    frame = read_csv(place / _TABLE)
    ids, boxes = _boxes(frame)
    paths = [find_film(place / _FILMS, one, (".dcm", ".dicom")) for one in ids]
    check_files(paths, needed_by=place / _TABLE)
    details = _details(place / _DETAILS, ids)
    arrays = read_films(
        paths,
        [[(corners, np.zeros(len(corners), np.int64))] for corners in boxes],
        size=size,
        resize=resize,
        spacing=spacing,
        degenerate=degenerate,
    )
    graded = ("image", "spacing")
    arrays = {name: one if name in graded else one[:, 0] for name, one in arrays.items()}
    arrays |= {"patient": np.array(ids), "id": np.array(ids), **details}
    return drawn_splits(arrays, ("opacity",), shares, seed, place / _TABLE)


def _boxes(frame: pd.DataFrame) -> tuple[list[str], list[NDArray[np.float32]]]:
    """Every patient, in the order of the table, and the corners of its boxes."""
    with naming_table(frame):
        who = names_of(column(frame, "patientId", "patientId"), "patientId")
        target = column(frame, "Target", "Target")
        wrong = np.flatnonzero(~target.isin((0, 1)).to_numpy())
        if len(wrong):
            shown = some_of([who[row] for row in wrong.tolist()], len(who), "rows")
            raise ValueError(f"Target must be 0 or 1, which it is not in {shown}")
        is_box = (target == 1).to_numpy()
        found = corners_of(frame, ("x", "y", "width", "height"), is_box, who.tolist())
        both = sorted(set(who[is_box].tolist()) & set(who[~is_box].tolist()))
        if both:
            raise ValueError(
                f"{some_of(both, len(set(who.tolist())), 'patients')} have rows of Target 0 and of "
                "Target 1; keep those that are right"
            )
    found[:, 2:] += found[:, :2]
    rows: dict[str, list[int]] = {one: [] for one in who.tolist()}
    for row in np.flatnonzero(is_box).tolist():
        rows[who[row]].append(row)
    return list(rows), [found[own] for own in rows.values()]


def _details(path: Path, ids: list[str]) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        return {}
    frame = read_csv(path)
    who = names_of(column(frame, "patientId", "patientId"), f"{path}: patientId")
    told = dict(zip(who.tolist(), column(frame, "class", "class").astype(str), strict=True))
    return {"finding": np.array([told.get(one, "") for one in ids])}
