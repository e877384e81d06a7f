"""Films, DICOM files or pictures, as grey levels of one size with the boxes of their readers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ppl_med.data.boxes import check_boxes
from ppl_med.data.readers.box_lists import (
    Boxes,
    Degenerate,
    inside_picture,
    moved_boxes,
    padded,
    refuse_degenerate,
    written,
)
from ppl_med.data.readers.dicom_files import DicomHeader, decoder_fix, dicom_header, read_dicom
from ppl_med.data.readers.folders import check_memory, some_of
from ppl_med.data.readers.image_files import read_grey
from ppl_med.data.readers.named_splits import Splits
from ppl_med.data.readers.resampling import Resize, at_spacing, to_size
from ppl_med.data.readers.spacings import Spacing, check_spacings
from ppl_med.data.readers.table_columns import SHARES, column
from ppl_med.data.splits import apply_split, split_patients

_DICOM = (".dcm", ".dicom")
_FAR = 1.25  # times the side of a film: an edge beyond was drawn on another picture
_SWAP = [1, 0, 1, 0]  # from (row, col) to the order of edges


def find_film(folder: Path, name: str, suffixes: Sequence[str]) -> Path:
    """The file of a film; the first of the suffixes where there is none."""
    tried = [folder / f"{name}{suffix}" for suffix in suffixes]
    return next((path for path in tried if path.is_file()), tried[0])


def corners_of(
    frame: pd.DataFrame, names: Sequence[str], is_box: NDArray[np.bool_], films: Sequence[str]
) -> NDArray[np.float32]:
    """Four columns of numbers (row, 4); rows that are boxes need all of them, others none.

    Raises:
        ValueError: They do not, or a field is no number; it counts the rows and names the film.
    """
    found = np.stack(
        [
            pd.to_numeric(column(frame, one, one), errors="coerce").to_numpy(np.float64)
            for one in names
        ],
        axis=1,
    )
    lacking = is_box & ~np.isfinite(found).all(1)
    given = np.stack([frame[one].notna().to_numpy() for one in names], axis=1)
    for wrong, what in (
        (lacking, "rows of boxes lack numbers in"),
        (~is_box & given.any(1), "rows without a box have entries in"),
    ):
        if wrong.any():
            shown = some_of(
                [films[row] for row in np.flatnonzero(wrong).tolist()], len(films), "rows"
            )
            raise ValueError(f"{shown}: {what} {', '.join(names)}; correct the rows, or drop them")
    return found.astype(np.float32)


def read_films(
    paths: Sequence[Path],
    boxes: Sequence[Sequence[Boxes]],
    *,
    size: tuple[int, int],
    resize: Resize,
    spacing: Spacing = "mixed",
    degenerate: Degenerate = "raise",
) -> dict[str, NDArray[Any]]:
    """Grey films of one size, with boxes of one number of readers each, dims (case, grader, ...).

    Args:
        paths: Films.
        boxes: For each film and reader the corners, in pixels of the film, and classes.
        size: Rows and columns wanted.
        resize: As in ``to_size``.
        spacing: As in ``check_spacings``.
        degenerate: Whether boxes without area inside the film are an error or left out.

    Returns:
        "image" uint8 (case, channel=1, row, col), "box", "box_label", "num_boxes", "num_dropped"
        and "num_clipped" (case, grader, ...), and "spacing" (case, 2), NaN where it is not said.

    Raises:
        ValueError: A film is damaged or in colours, boxes were drawn on a picture of another size,
            spacings differ, or boxes have no area. It names the files.
    """
    check_memory(len(paths) * size[0] * size[1])
    headers = _headers(paths)
    steps = {path: headers[path].spacing if path in headers else (np.nan, np.nan) for path in paths}
    check_spacings(steps, spacing)
    found: dict[str, list[Any]] = {"image": [], "spacing": []}
    moved, counts, empty = list[Boxes](), list[tuple[int, int]](), list[str]()
    for path, readers in zip(paths, boxes, strict=True):
        pixels, step = _grey(path), np.array(steps[path], np.float64)
        shape = (pixels.shape[1], pixels.shape[2])
        scaled = at_spacing(pixels, step, spacing) if isinstance(spacing, tuple) else pixels
        middle = (scaled.shape[1], scaled.shape[2])
        first = np.array(shape) / middle
        image, growth = to_size(scaled, size, resize)
        found["image"].append(image)
        found["spacing"].append(step * first * growth)
        for corners, labels in readers:
            _check_same_film(path, corners, shape)
            inside, has_area, clipped = inside_picture(corners, shape)
            if not has_area.all():
                empty.append(f"{path.name}: {written(corners[~has_area][0])}")
            counts.append((int((~has_area).sum()), int((clipped & has_area).sum())))
            own = (inside[has_area] / first[_SWAP]).astype(np.float32)
            moved.append((moved_boxes(own, middle, size, growth), labels[has_area]))
    if empty and degenerate == "raise":
        refuse_degenerate(empty, len(paths))
    dropped, cut = np.array(counts, np.int64).reshape(-1, 2).T
    flat = padded(moved) | {"num_dropped": dropped, "num_clipped": cut}
    arrays = {name: one.reshape(len(paths), -1, *one.shape[1:]) for name, one in flat.items()}
    arrays["image"] = np.stack(found["image"])
    check_boxes(arrays)
    return arrays | {"spacing": np.stack(found["spacing"])}


def drawn_splits(
    arrays: Mapping[str, Any],
    classes: Sequence[str],
    shares: Mapping[str, float] | None,
    seed: int,
    table: Path,
) -> Splits:
    """Splits by patient, in which films with boxes have about the same share."""
    any_box = arrays["num_boxes"].reshape(len(arrays["id"]), -1).any(1)
    try:
        drawn = split_patients(
            arrays["patient"], SHARES if shares is None else shares, seed=seed, stratify=any_box
        )
    except ValueError as error:
        raise ValueError(f"{table}: {error}") from error
    return Splits(apply_split(arrays, drawn), classes)


def _headers(paths: Sequence[Path]) -> dict[Path, DicomHeader]:
    headers = {path: dicom_header(path) for path in paths if path.suffix.lower() in _DICOM}
    lost = [path for path, one in headers.items() if one.undecodable]
    if lost:
        raise ValueError(
            f"{some_of(lost, len(paths))} are compressed ({headers[lost[0]].undecodable}), "
            f"{decoder_fix()}"
        )
    return headers


def _grey(path: Path) -> NDArray[np.uint8]:
    """A film (1, row, col), 0 black to 255 white."""
    if path.suffix.lower() not in _DICOM:
        return read_grey(path)[None]
    levels = read_dicom(path)
    if len(levels) != 1:
        raise ValueError(f"{path} is in colours; expected a film of grey levels")
    return np.rint(255 * levels).astype(np.uint8)


def _check_same_film(path: Path, corners: NDArray[np.float32], shape: tuple[int, int]) -> None:
    limit = _FAR * np.array([shape[1], shape[0], shape[1], shape[0]])
    far = (corners > limit).any(1)
    if far.any():
        raise ValueError(
            f"{path} has {shape[1]} columns and {shape[0]} rows, but a box "
            f"{written(corners[far][0])}: boxes are in pixels of the film as released; read that, "
            "or scale its boxes as it was resized"
        )
