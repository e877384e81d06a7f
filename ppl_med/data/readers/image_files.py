"""Pictures and masks from image files, and how they are brought to one size."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import is_whole
from ppl_med.data.readers.folders import naming_file

MAX_PIXELS = 10**8  # of a picture; a small file may hold many more


def check_size(size: Any, axes: tuple[str, ...]) -> None:
    """Raise unless a size names one positive number for each of the axes."""
    right = np.ndim(size) == 1 and len(size) == len(axes)
    if not right or not all(is_whole(one) and one >= 1 for one in size):
        shown = tuple(size) if np.ndim(size) else size
        example = ", ".join(["64"] * len(axes))
        raise ValueError(
            f"size must be ({', '.join(axes)}), all at least 1, such as ({example}), got {shown}"
        )


def read_rgb(
    path: Path,
    size: tuple[int, int] | None = None,
    how: Literal["linear", "area"] = "linear",
) -> NDArray[np.uint8]:
    """A picture, dims (channel=3, row, col), red, green, blue; ``how`` as in ``resized``.

    Grey levels of 16 bits are scaled to 8 by their type: 65535 becomes 255. A turn that the
    camera noted (EXIF) is made, as every viewer makes it.
    """
    picture = _read(path)
    if picture.mode.startswith("I;16"):
        levels = np.asarray(picture).astype(np.float32) / 257
        image = np.repeat(np.rint(levels).astype(np.uint8)[..., None], 3, axis=2)
    elif picture.mode in ("I", "F"):
        raise ValueError(
            f"{path} has mode {picture.mode}, 32 bits, whose range nobody knows; save it with 8 "
            "or 16 bits"
        )
    else:
        with naming_file(path, "picture"):
            seen = picture.convert("RGBA") if "transparency" in picture.info else picture
            image = np.asarray(seen.convert("RGB"))
    return resized(image.transpose(2, 0, 1), size, how)


def read_grey(path: Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """A picture as grey levels, dims (row, col): the luma of colours, else as ``read_rgb``."""
    from PIL import Image

    rgb = read_rgb(path, size)
    if (rgb[0] == rgb[1]).all() and (rgb[0] == rgb[2]).all():
        return rgb[0]
    return np.asarray(Image.fromarray(rgb.transpose(1, 2, 0)).convert("L"))


def read_classes(
    path: Path, num_classes: int, size: tuple[int, int] | None = None
) -> NDArray[np.int8]:
    """An 8-bit image of class ids, 0..num_classes-1, as a mask with dims (row, col).

    It is turned as ``read_rgb`` turns a picture. At another size, each pixel is taken at the middle
    of the new one.
    """
    picture = _read(path)
    if picture.mode not in ("L", "P"):
        raise ValueError(f"{path} has mode {picture.mode}; expected 8-bit class numbers")
    mask = np.asarray(picture)
    if mask.max() >= num_classes:
        raise ValueError(f"{path} holds {mask.max()}; expected 0..{num_classes - 1}")
    return nearest(mask, size).astype(np.int8)


def _read(path: Path) -> Any:
    """A picture as Pillow has it, decoded and turned upright.

    Checksums are compared where the format has them (PNG). JPEG has none: a damaged file that can
    still be decoded is read as a picture that looks damaged.
    """
    from PIL import Image, ImageOps

    with naming_file(path, "picture"), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is our own
        with Image.open(path) as file:
            if file.width * file.height > MAX_PIXELS:
                raise ValueError(
                    f"it has {file.width} x {file.height} pixels, and {MAX_PIXELS:.0e} are the most"
                )
            if file.format == "PNG":
                file.verify()  # which closes it
        with Image.open(path) as file:
            file.load()
            return ImageOps.exif_transpose(file)


def resized(
    picture: NDArray[np.uint8],
    size: tuple[int, int] | None,
    how: Literal["linear", "area", "nearest"] = "linear",
) -> NDArray[np.uint8]:
    """A picture at another size, dims ([channel=3,] row, col); without a size, as it is.

    "linear" is a linear filter that averages where it shrinks, "area" the average over the area of
    the new pixel, "nearest" the value at its middle.
    """
    from PIL import Image

    if size is None:
        return picture
    filters = {
        "linear": Image.Resampling.BILINEAR,
        "area": Image.Resampling.BOX,
        "nearest": Image.Resampling.NEAREST,
    }
    last = np.ascontiguousarray(picture.transpose(1, 2, 0) if picture.ndim == 3 else picture)
    image = np.asarray(Image.fromarray(last).resize(size[::-1], filters[how]))
    return image.transpose(2, 0, 1) if picture.ndim == 3 else image


def nearest(values: NDArray[Any], size: Sequence[int] | None) -> NDArray[Any]:
    """Values at the middles of new pixels, dims (..., *space); all of them without a size."""
    if size is None:
        return values
    places = (
        ((2 * np.arange(new) + 1) * old) // (2 * new)
        for new, old in zip(size, values.shape[-len(size) :], strict=True)
    )
    return values[(..., *np.ix_(*places))]


def centred(
    values: NDArray[Any], size: Sequence[int], *, fill: float | None = None
) -> NDArray[Any]:
    """The middle of an array (..., *space) at another size: cropped where larger, else padded.

    ``fill`` is what pads; None repeats the value at the border.
    """
    pads, parts = [], list[Any]([...])
    for old, new in zip(values.shape[-len(size) :], size, strict=True):
        start, extra = max(old - new, 0) // 2, max(new - old, 0)
        parts.append(slice(start, start + new))
        pads.append((extra // 2, extra - extra // 2))
    cropped = values[tuple(parts)]
    widths = [(0, 0)] * (values.ndim - len(size)) + pads
    if fill is None:
        return np.pad(cropped, widths, mode="edge")
    return np.pad(cropped, widths, constant_values=fill)


def check_nothing_cut(
    masks: Sequence[NDArray[Any]], names: Sequence[str], size: Sequence[int]
) -> None:
    """Raise if bringing masks (*space) to a size, the middle kept, would cut off any of a class.

    0 is the background. The message counts the cases and says what size would do.
    """
    cut, enough = [], np.array(size)
    for mask, name in zip(masks, names, strict=True):
        lost = int((mask > 0).sum() - (centred(mask, size, fill=0) > 0).sum())
        if lost:
            cut.append(f"{name} ({lost} pixels)")
            enough = np.maximum(enough, _least_size(mask))
    if cut:
        raise ValueError(
            f"size is {tuple(size)}, which would cut labelled pixels of {len(cut)} case(s): "
            f"{', '.join(cut[:5])}; {tuple(enough.tolist())} or more loses none"
        )


def _least_size(mask: NDArray[Any]) -> list[int]:
    """Smallest lengths whose centred window holds every labelled pixel."""
    least = []
    for places, old in zip(np.nonzero(mask), mask.shape, strict=True):
        fits = [
            new
            for new in range(1, old + 1)
            if (old - new) // 2 <= places.min() and places.max() < (old - new) // 2 + new
        ]
        least.append(fits[0])
    return least
