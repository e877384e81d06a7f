"""The files that a table names: all compared before any is read, then brought to one shape."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_med.data.readers.dicom_files import Window, decoder_fix
from ppl_med.data.readers.folders import check_memory, some_of
from ppl_med.data.readers.headers import Header, read_header, read_pixels
from ppl_med.data.readers.image_files import read_classes
from ppl_med.data.readers.nifti_files import affine_of, check_one_grid, read_volume
from ppl_med.data.readers.resampling import Resize, at_spacing, moved_affine, to_size
from ppl_med.data.readers.spacings import Spacing, check_spacings

MOST_CLASSES = 127


def find_files(root: Path, names: Sequence[str], what: str = "path") -> list[Path]:
    """The files of a column, relative to a folder.

    Raises:
        FileNotFoundError: Files are not there; it counts them and names the first.
        ValueError: A file is named twice.
    """
    paths = [root / name for name in names]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{some_of(missing, len(paths))} of column {what!r} are not there; correct the names, "
            "or root=, the folder that they start from"
        )
    if len(set(paths)) < len(paths):
        twice = sorted({str(path) for path in paths if paths.count(path) > 1})
        raise ValueError(f"column {what!r} names {some_of(twice, len(paths))} more than once")
    return paths


def check_headers(
    paths: Sequence[Path],
    *,
    size: Sequence[int] | None,
    spacing: Spacing,
    volume: int | None,
) -> list[Header]:
    """What all files say of themselves, if they can be read together.

    Raises:
        ValueError: Films and volumes are mixed, DICOM files are compressed without a decoder, files
            have four axes or frames, pixels are not square, or spacings or sizes differ. It counts
            the files and names the first.
    """
    headers = [read_header(path) for path in paths]
    pairs = list(zip(paths, headers, strict=True))

    def those(wrong: Callable[[Header], bool]) -> list[Path]:
        return [path for path, header in pairs if wrong(header)]

    lost = those(lambda one: bool(one.undecodable))
    if lost:
        names = sorted({one.undecodable for one in headers} - {""})
        raise ValueError(f"{some_of(lost, len(paths))} are compressed ({', '.join(names)}), "
                         f"{decoder_fix()}")  # fmt: skip
    many = those(lambda one: one.volumes > 1 and (one.kind != "volume" or volume is None))
    if many:
        raise ValueError(
            f"{some_of(many, len(paths))} hold several volumes or frames (4D); choose one of a "
            "NIfTI file by volume=, from 0, or store each in a file of its own"
        )
    flat = those(lambda one: len(one.shape) == 2)
    if 0 < len(flat) < len(paths):
        raise ValueError(f"{some_of(flat, len(paths))} are pictures and the others volumes")
    check_spacings({path: header.spacing for path, header in pairs}, spacing)
    shapes = sorted({one.shape for one in headers})
    if size is None and len(shapes) > 1 and not isinstance(spacing, tuple):
        first = headers[0].shape
        others = [f"{path} is {one.shape}" for path, one in pairs if one.shape != first]
        raise ValueError(
            f"{some_of(others, len(paths))} are of another size than {paths[0]}, {first}; give "
            f"size=, such as size={tuple(int(n) for n in np.median(shapes, axis=0))}"
        )
    return headers


def read_files(
    paths: Sequence[Path],
    headers: Sequence[Header],
    masks: Sequence[Path] | None,
    *,
    channels: int,
    size: Sequence[int] | None,
    resize: Resize,
    spacing: Spacing,
    window: Window,
    volume: int | None,
    num_classes: int,
) -> dict[str, NDArray[Any]]:
    """Images, masks and geometry of all cases, by the names of ``Batches``."""
    images, labels = list[NDArray[Any]](), list[NDArray[Any]]()
    geometry: dict[str, list[Any]] = {}
    if size is not None:
        itemsize = 4 if headers[0].kind != "picture" else 1
        check_memory(len(paths) * channels * int(np.prod(size)) * itemsize)
    for number, (path, header) in enumerate(zip(paths, headers, strict=True)):
        pixels, grid = read_pixels(path, colour=channels == 3, window=window, volume=volume)
        label = None
        if masks is not None:
            label = _mask(masks[number], path, grid, num_classes)
            if label.shape != pixels.shape[1:]:
                raise ValueError(
                    f"{path} is {pixels.shape[1:]} but its mask {masks[number]} {label.shape}"
                )
        old, step = pixels.shape[1:], np.array(header.spacing)
        if isinstance(spacing, tuple):
            pixels = at_spacing(pixels, step, spacing)
            label = None if label is None else at_spacing(label, step, spacing, labels=True)
        first = np.array(old) / pixels.shape[1:]
        target = pixels.shape[1:] if size is None else tuple(size)
        if images and images[0].shape[1:] != target:
            raise ValueError(
                f"{path} is {target} at spacing={spacing}, {paths[0]} {images[0].shape[1:]}; give "
                "size= too"
            )
        middle = pixels.shape[1:]
        pixels, growth = to_size(pixels, target, resize)
        images.append(pixels)
        if label is not None:
            labels.append(to_size(label, target, resize, labels=True)[0].astype(np.int8))
        geometry.setdefault("spacing", []).append(step * first * growth)
        if grid is not None:
            affine = moved_affine(affine_of(grid), old, middle, first)
            affine = moved_affine(affine, middle, target, growth)
            geometry.setdefault("affine", []).append(affine)
            geometry.setdefault("filename_or_obj", []).append(str(path))
    arrays = {"image": np.stack(images)}
    if labels:
        arrays["mask"] = np.stack(labels)
    known = {name: np.array(values) for name, values in geometry.items()}
    if np.isnan(known["spacing"]).all():
        del known["spacing"]
    return arrays | known


def _mask(path: Path, image: Path, grid: Any, num_classes: int) -> NDArray[np.int16]:
    if grid is None:
        return read_classes(path, num_classes).astype(np.int16)
    own, values = read_volume(path)
    check_one_grid(str(image), grid, own)
    wrong = values[(values % 1 != 0) | (values < 0) | (values >= num_classes)]
    if wrong.size:
        raise ValueError(f"{path} holds {wrong[0]:g}; expected 0..{num_classes - 1}")
    return values.T.astype(np.int16)
