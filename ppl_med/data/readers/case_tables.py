"""Cases from a table of files and labels, as a hospital or a challenge hands them out."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ppl_med.checks import a_path, choice, different_names, reject, whole
from ppl_med.data.readers import table_columns
from ppl_med.data.readers.dicom_files import Window, check_window
from ppl_med.data.readers.image_files import check_size
from ppl_med.data.readers.named_splits import Splits
from ppl_med.data.readers.resampling import RESIZES, Resize
from ppl_med.data.readers.spacings import Spacing, check_spacing
from ppl_med.data.readers.table_files import (
    MOST_CLASSES,
    check_headers,
    find_files,
    read_files,
)


def from_table(
    table: str | PathLike[str] | pd.DataFrame,
    root: str | PathLike[str] | None = None,
    *,
    path: str = "path",
    label: str | Sequence[str] | None = "label",
    value: str | None = None,
    mask: str | None = None,
    patient: str | None = "patient",
    site: str | None = "site",
    split: str | None = "split",
    shares: Mapping[str, float] | None = None,
    classes: Sequence[str] | None = None,
    size: tuple[int, ...] | None = None,
    resize: Resize = "fit",
    spacing: Spacing = "same",
    channels: int | None = None,
    window: Window = "file",
    volume: int | None = None,
    seed: int = 0,
) -> Splits:
    """Read the images that a table names, with labels and metadata, split by patient.

    Pictures (PNG, JPEG, TIFF, ...), DICOM files and NIfTI volumes. What is wrong with the table or
    with what the files say of themselves is said before the first image is decoded.

    Args:
        table: A CSV file whose first line names the columns, or a DataFrame.
        root: Folder that the paths start from; None for that of the table.
        path: Column of image files.
        label: Column of classes, names or numbers; several columns are findings, 0 or 1 each and
            nothing where not known; None where there are none.
        value: Column of numbers to be predicted.
        mask: Column of mask files, of the sizes of the images; ``classes`` then names their
            classes, 0 first.
        patient: Column of patients, by which the splits are drawn; None if each row is another
            person. Of DICOM files without such a column it is their PatientID.
        site: Column of hospitals or scanners, where it is there; of DICOM files without one their
            InstitutionName.
        split: Column that divides the rows, where it is there and ``shares`` is None.
        shares: Share of the patients for every split, drawn so that each has its share of every
            label at every site; by default 0.6 for "train", 0.2 for "val" and "test".
        classes: Names of the classes in the order of their numbers; by default the values of the
            column, sorted.
        size: (rows, cols) or (depth, rows, cols) wanted; needed where files differ.
        resize: "fit" scales to the largest that fits and pads with 0 (masks with -1), "scale"
            stretches, "pad" crops or pads about the middle without scaling.
        spacing: "same" wants one spacing in all files that say theirs, and square pixels; a tuple
            in mm, in the order of ``size``, resamples to it; "mixed" takes them as they are.
        channels: 1 for grey, 3 for colours; by default 3 where any picture has colours.
        window: Of DICOM files: "file", (centre, width) or None; see ``read_dicom``. A tuple serves
            NIfTI volumes too.
        volume: Which volume of NIfTI files with four axes, from 0.
        seed: Seed of the splits.

    Returns:
        For every split arrays for ``Batches``: "image" uint8 (pictures) or float32 (case, channel,
        [depth,] row, col); "label" int64 (case), "findings" int8 (case, finding), "value" float32
        (case), "mask" int8 (case, [depth,] row, col); "patient", "site" str (case); "spacing"
        float64 (case, axis), mm, and for volumes "affine" (case, 4, 4) and "filename_or_obj"; every
        other column by its name; "id" str (case), that column or the path. ``classes`` of the
        result names the classes.

    Raises:
        FileNotFoundError: No such table, or files that it names are missing.
        ModuleNotFoundError: pydicom or nibabel is needed and not installed.
        ValueError: Labels have gaps, a patient is in two splits, spacings or sizes differ, files
            have four axes, pixels are not square, DICOM files are compressed without a decoder, a
            file is damaged, or an argument is out of range. It counts the rows and names the first.
    """
    _check_arguments(size, resize, spacing, channels, window, volume)
    _check_columns(
        label, path=path, value=value, mask=mask, patient=patient, site=site, split=split
    )
    if classes is not None:
        different_names("classes", classes, 2)
    if mask is not None:
        different_names("classes", classes, 2, "mask= needs the names of its classes, 0 first")
        whole("len(classes)", len(classes or ()), 2, MOST_CLASSES)
    frame = table_columns.read_csv(table)
    folder = _root(table, root)
    with table_columns.naming_table(frame):
        names = table_columns.names_of(table_columns.column(frame, path, "path"), path).tolist()
        arrays, found, likelihood = table_columns.observations(
            frame, names, label=label, value=value, classes=classes, masked=mask is not None
        )
        files = find_files(folder, names, path)
        masks = None
        if mask is not None:
            column = table_columns.column(frame, mask, "mask")
            masks = find_files(folder, table_columns.names_of(column, mask).tolist(), mask)
        headers = check_headers(files, size=size, spacing=spacing, volume=volume)
        for role, name in (("patient", patient), ("site", site)):
            arrays |= table_columns.people(frame, role, name, [one.columns for one in headers])
        who = arrays.get("patient", np.array(names))
        used = [
            path,
            value,
            mask,
            patient,
            site,
            *([label] if isinstance(label, str) else label or ()),
        ]
        ids = frame["id"].astype(str).to_numpy() if "id" in frame else names
        arrays |= {"id": np.array(ids, dtype=str)} | table_columns.metadata(frame, [*used, "id"])
        strata = [arrays[name].astype(str) for name in ("label", "site") if name in arrays]
        rows = table_columns.split_rows(frame, split, shares, who, strata, seed)
    images = read_files(
        files,
        headers,
        masks,
        channels=channels or max(one.channels for one in headers),
        size=size,
        resize=resize,
        spacing=spacing,
        window=window,
        volume=volume,
        num_classes=len(classes or ()),
    )
    whole_table = images | {key: values for key, values in arrays.items() if key not in images}
    return Splits(
        {name: {key: one[kept] for key, one in whole_table.items()} for name, kept in rows.items()},
        found,
        likelihood,
    )


def _root(table: Any, root: str | PathLike[str] | None) -> Path:
    """The folder that paths start from."""
    if root is None:
        return a_path("table", table).parent if isinstance(table, str | PathLike) else Path()
    folder = a_path("root", root)
    if not folder.is_dir():
        raise FileNotFoundError(f"root {str(folder)!r} is no folder that is there")
    return folder


def _check_columns(label: Any, **columns: Any) -> None:
    """Raise unless columns are named by texts; findings by several."""
    if not (label is None or isinstance(label, str)):
        label = different_names("label", label)
        columns["label"] = next((one for one in label if not isinstance(one, str)), None)
    for argument, name in columns.items():
        if not (isinstance(name, str) and name) and (name is not None or argument == "path"):
            reject(argument, "the name of a column", name)


def _check_arguments(
    size: Any, resize: Any, spacing: Any, channels: Any, window: Any, volume: Any
) -> None:
    if size is not None:
        check_size(size, ("rows", "cols") if np.size(size) < 3 else ("depth", "rows", "cols"))
    choice("resize", resize, RESIZES)
    check_spacing(spacing, None if size is None else len(size))
    if channels is not None:
        choice("channels", channels, (1, 3))
    check_window(window)
    if volume is not None:
        whole("volume", volume, 0)
