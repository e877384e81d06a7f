"""DICOM folders: every file a film, or the slices of a series put together to a volume.

    <folder>/**/*    DICOM files, whatever they are called and however deep they lie

Slices of one SeriesInstanceUID are ordered by their place along the normal, not by their names or
numbers, and turned to the axes of the NIfTI readers: depth from feet to head, rows from back to
front, columns from left to right.

Reference: DICOM PS3.3, C.7.6.2 (image plane).
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import choice
from ppl_med.data.readers.dicom_files import (
    DicomHeader,
    Window,
    check_window,
    decoder_fix,
    dicom_header,
    is_dicom,
    read_dicom,
)
from ppl_med.data.readers.folders import check_memory, find_place, some_of
from ppl_med.data.readers.image_files import check_size
from ppl_med.data.readers.nifti_files import affine_of
from ppl_med.data.readers.resampling import RESIZES, Resize, at_spacing, moved_affine, to_size
from ppl_med.data.readers.spacings import Spacing, check_spacing, check_spacings

_UNEVEN = 0.05  # of a gap, by which gaps between slices may differ
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM counts from right and front


def load_dicom_films(
    folder: str | PathLike[str],
    *,
    size: tuple[int, int] | None = None,
    resize: Resize = "fit",
    spacing: Spacing = "same",
    window: Window = "file",
) -> dict[str, Any]:
    """Read every DICOM file below a folder as a film of its own, not yet split.

    Labels and sites of a list come with ``from_table``, which reads DICOM files as well.

    Args:
        folder: Holds the files.
        size: Rows and columns wanted; None for those of the files, which must then be one size.
        resize: "fit" scales to the largest that fits and pads with 0, "scale" stretches, "pad"
            crops or pads about the middle.
        spacing: "same" wants one in all files that say theirs, and square pixels; (row, col) in mm
            resamples to it; "mixed" takes them as they are.
        window: See ``read_dicom``: "file", (centre, width) or None.

    Returns:
        Arrays for ``Batches`` and ``apply_split``: "image" float32 (case, channel=1, row, col),
        0 black to 1 white unless ``window`` is None, MONOCHROME1 inverted, or uint8 (case, 3, row,
        col) of pictures in colours; "spacing" float64 (case, 2), mm along row and col, NaN where it
        is not said; "patient", "site" and "series" str (case), empty where the file does not say;
        "filename_or_obj" and "id" str (case).

    Raises:
        FileNotFoundError: There is no such folder, or no DICOM file in it.
        ModuleNotFoundError: pydicom is not installed.
        ValueError: Files are damaged, of several sizes, spacings or frames, of pixels that are not
            square, or compressed without a decoder.
    """
    check_window(window)
    choice("resize", resize, RESIZES)
    check_spacing(spacing, 2)
    if size is not None:
        check_size(size, ("rows", "cols"))
    root, headers = _headers(folder)
    many = [path for path, one in headers.items() if one.frames > 1]
    if many:
        raise ValueError(f"{some_of(many, len(headers))} hold several frames; split them first")
    shapes = {(one.channels, *(one.shape if size is None else size)) for one in headers.values()}
    if len(shapes) > 1 and not isinstance(spacing, tuple):
        raise ValueError(
            f"folder {str(root)!r} holds films of {len(shapes)} sizes (channel, row, col): "
            f"{sorted(shapes)[:5]}; give size=(rows, cols), and keep grey and colour apart"
        )
    check_spacings({path: one.spacing for path, one in headers.items()}, spacing)
    images, steps = [], []
    for path, header in headers.items():
        pixels, step = read_dicom(path, window), np.array(header.spacing)
        old = pixels.shape[1:]
        if isinstance(spacing, tuple):
            pixels = at_spacing(pixels, step, spacing)
        image, growth = to_size(pixels, size or pixels.shape[1:], resize)
        images.append(image)
        steps.append(step * (np.array(old) / pixels.shape[1:]) * growth)
    _check_one_size(images, "rows, cols")
    return {"image": np.stack(images), "spacing": np.stack(steps), **_names(root, headers)}


def load_dicom_series(
    folder: str | PathLike[str],
    *,
    size: tuple[int, int, int] | None = None,
    resize: Resize = "fit",
    spacing: Spacing = "same",
    window: Window = None,
) -> dict[str, Any]:
    """Read every series of slices below a folder as a volume, not yet split.

    Args:
        folder: Holds the files.
        size: Depth, rows and columns wanted; None for those of the series, which must be one size.
        resize: As in ``load_dicom_films``.
        spacing: "same" wants one in all series; (depth, row, col) in mm resamples to it; "mixed"
            takes them as they are.
        window: See ``read_dicom``; None gives the values themselves, for CT in HU.

    Returns:
        Arrays for ``Batches`` and ``apply_split``: "image" float32 (case, channel=1, depth, row,
        col); "spacing" float64 (case, 3), mm; "affine" float64 (case, 4, 4), from index (depth,
        row, col) to mm, RAS+; "patient", "site", "series", "filename_or_obj" (the first slice) and
        "id" (the series) str (case).

    Raises:
        FileNotFoundError: There is no such folder, or no DICOM file in it.
        ModuleNotFoundError: pydicom or nibabel is not installed.
        ValueError: Files are damaged, compressed without a decoder, or in colours; or a series has
            slices without a place, of several shapes or directions, twice in one place, or not
            all at one distance, as where one is missing; or volumes are of several sizes or
            spacings.
    """
    check_window(window)
    choice("resize", resize, RESIZES)
    check_spacing(spacing, 3)
    if size is not None:
        check_size(size, ("depth", "rows", "cols"))
    root, headers = _headers(folder)
    series: dict[str, list[Path]] = {}
    for path, header in headers.items():
        series.setdefault(header.series, []).append(path)
    volumes = {
        name: volume_of_slices({path: headers[path] for path in paths}, window)
        for name, paths in sorted(series.items())
    }
    check_spacings(
        {name: _steps(affine) for name, (_, affine) in volumes.items()}, spacing, "series"
    )
    images, affines = [], []
    for values, affine in volumes.values():
        pixels, old = values[None], values.shape
        if isinstance(spacing, tuple):
            pixels = at_spacing(pixels, _steps(affine), spacing)
        middle = pixels.shape[1:]
        image, growth = to_size(pixels, size or middle, resize)
        images.append(image)
        affine = moved_affine(affine, old, middle, np.array(old) / middle)
        affines.append(moved_affine(affine, middle, size or middle, growth))
    _check_one_size(images, "depth, rows, cols")
    firsts = {paths[0]: headers[paths[0]] for _, paths in sorted(series.items())}
    return {
        "image": np.stack(images),
        "affine": np.stack(affines),
        "spacing": np.stack([_steps(one) for one in affines]),
        **_names(root, firsts),
        "id": np.array(list(volumes)),
    }


def _steps(affine: NDArray[Any]) -> NDArray[np.float64]:
    """Spacing in mm along the columns of an affine."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def _check_one_size(images: Sequence[NDArray[Any]], axes: str) -> None:
    shapes = sorted({one.shape for one in images})
    if len(shapes) > 1:
        raise ValueError(
            f"the folder holds images of {len(shapes)} sizes (channel, {axes}): {shapes[:5]}; give "
            f"size=({axes})"
        )


def volume_of_slices(
    headers: dict[Path, DicomHeader], window: Window
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The slices of one series as a volume (depth, row, col), and its affine.

    Raises:
        ValueError: See ``load_dicom_series``.
    """
    import nibabel

    ordered = _in_order(headers)
    first, last = headers[ordered[0]], headers[ordered[-1]]
    rows, cols = first.shape
    check_memory(4 * rows * cols * len(ordered))
    values = np.stack([read_dicom(path, window)[0] for path in ordered]).astype(np.float32)
    step = (np.array(last.origin) - np.array(first.origin)) / max(len(ordered) - 1, 1)
    if len(ordered) == 1:
        step = np.cross(first.orientation[:3], first.orientation[3:])
    affine = np.eye(4)
    affine[:3, 0] = np.array(first.orientation[:3]) * first.spacing[1]
    affine[:3, 1] = np.array(first.orientation[3:]) * first.spacing[0]
    affine[:3, 2], affine[:3, 3] = step, first.origin
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(values.T, _TO_RAS @ affine))
    return np.ascontiguousarray(np.asarray(image.dataobj).T), affine_of(image)


def _in_order(headers: dict[Path, DicomHeader]) -> list[Path]:
    """Slices along the normal; a ValueError where they are no volume."""
    name = next(iter(headers.values())).series
    where = f"series {name!r} of {len(headers)} slices"
    ordered = sorted(headers, key=lambda path: headers[path].position)
    lost = [p for p in ordered if np.isnan([headers[p].position, *headers[p].spacing]).any()]
    if lost:
        raise ValueError(
            f"{where}: {some_of(lost, len(headers))} lack ImagePositionPatient, "
            "ImageOrientationPatient or PixelSpacing; films are read by load_dicom_films"
        )
    kinds = {(one.shape, one.channels, one.frames) for one in headers.values()}
    turns = np.array([one.orientation for one in headers.values()])
    steps = np.array([one.spacing for one in headers.values()])
    if len(kinds) > 1 or next(iter(kinds))[1:] != (1, 1):
        raise ValueError(f"{where}: (shape, channels, frames) are {sorted(kinds)}; expected one")
    if np.ptp(turns, axis=0).max() > 1e-3 or np.ptp(steps, axis=0).max() > 1e-3:
        raise ValueError(f"{where}: slices lie in several directions or spacings, as scouts do")
    places = np.array([headers[path].position for path in ordered])
    gaps = np.diff(places)
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2]) if len(gaps) else 1.0
    wrong = np.flatnonzero(np.abs(gaps - usual) > _UNEVEN * max(usual, 1e-6))
    if usual <= 0 or len(wrong):
        at = int(wrong[0]) if len(wrong) else 0
        raise ValueError(
            f"{where}: {len(wrong)} of {len(gaps)} gaps between slices are not {usual:g} mm, first "
            f"{gaps[at]:g} mm after {ordered[at]}: a slice is missing or there twice"
        )
    return ordered


def _headers(folder: str | PathLike[str]) -> tuple[Path, dict[Path, DicomHeader]]:
    root = find_place(folder, "dicom", (), module=__name__)
    paths = [path for path in sorted(root.rglob("*")) if _may_be_dicom(path)]
    if not paths:
        raise FileNotFoundError(f"folder {str(root)!r} holds no DICOM files")
    headers = {path: dicom_header(path) for path in paths}
    lost = [path for path, one in headers.items() if one.undecodable]
    if lost:
        raise ValueError(
            f"{some_of(lost, len(paths))} are compressed ({headers[lost[0]].undecodable}), "
            f"{decoder_fix()}"
        )
    return root, headers


def _may_be_dicom(path: Path) -> bool:
    named = path.suffix.lower() in (".dcm", ".dicom", ".ima")
    return path.name != "DICOMDIR" and path.is_file() and (named or is_dicom(path))


def _names(root: Path, headers: dict[Path, DicomHeader]) -> dict[str, NDArray[Any]]:
    ones: Sequence[DicomHeader] = list(headers.values())
    return {
        "patient": np.array([one.patient for one in ones]),
        "site": np.array([one.site for one in ones]),
        "series": np.array([one.series for one in ones]),
        "filename_or_obj": np.array([str(path) for path in headers]),
        "id": np.array([path.relative_to(root).as_posix() for path in headers]),
    }
