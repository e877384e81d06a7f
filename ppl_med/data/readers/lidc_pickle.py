"""The LIDC crops that most code on ambiguous segmentation was trained on, out of their pickle.

``data_lidc.pickle`` is a dict {name: {"image", "masks", "series_uid"}}: 15,096 crops of 128 x 128,
pixels 0..1, four masks each. A pickle is a program, and loading one from a stranger runs it. Here
nothing of it is run: the few names that arrays need are answered by stand-ins that only note what
they were given, every other name is refused, and arrays are built from the noted bytes.
"""

import pickle
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import a_path
from ppl_med.data.readers.array_files import read_npz
from ppl_med.data.readers.folders import naming_file
from ppl_med.data.readers.pickle_contents import check_pickle
from ppl_med.storage.atomic import replacing

SIDE = 128
_NAMES = ("images", "masks", "series_uid", "name")
_FIX = "write it with convert_lidc_pickle"
_MOST_COPIES = 20  # bytes of the arrays for one byte of the file: some share empty masks
_KINDS = "biufSU"  # of dtypes: numbers and strings, no objects


class _Noted:
    """What a pickle gave for one array, one dtype or one scalar; runs nothing."""

    def __init__(self, kind: str, *arguments: Any) -> None:
        self.kind, self.arguments = kind, arguments
        self.state: Any = ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _noting(kind: str) -> Callable[..., _Noted]:
    def note(*arguments: Any) -> _Noted:
        return _Noted(kind, *arguments)

    return note


def _latin1(text: Any, encoding: Any) -> _Noted:
    """``codecs.encode`` for the one encoding in which old pickles keep bytes."""
    if not isinstance(text, str) or not isinstance(encoding, str) or encoding != "latin1":
        raise pickle.UnpicklingError("refused to encode by other things than latin1")
    return _Noted("encoded", text)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _noting("dtype"),
    ("_codecs", "encode"): _latin1,
}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _noting("array")
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _noting("scalar")
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _noting("buffer")


class _Reader(pickle.Unpickler):
    """Knows the names in ``_ALLOWED`` and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a name."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(
                f"refused {module}.{name}: only arrays, numbers, strings, lists and dicts are read"
            )
        return _ALLOWED[module, name]


def convert_lidc_pickle(source: str | PathLike[str], target: str | PathLike[str]) -> int:
    """Turn the pickle into an npz file that any program can read safely.

    Args:
        source: The pickle; trust in it is not needed.
        target: The npz to write, with "images" of the dtype found, at most float32, (case, row,
            col); "masks" uint8 (case, grader, row, col); "series_uid" and "name" str (case). An
            older file is replaced, and only by a whole one.

    Returns:
        Number of crops.

    Raises:
        ValueError: The file names anything but arrays, which is how a pickle runs code, or does not
            hold crops as described above; nothing is written.
    """
    a_path("target", target)
    crops = _read(a_path("source", source))
    if not isinstance(crops, dict) or not crops:
        raise ValueError(f"{source} holds no dict of crops; expected {{name: {{'image', ...}}}}")
    rows = list(_rows(Path(source), crops))
    names, images, masks, series = zip(*rows, strict=True)
    shapes = {one.shape for one in masks}
    if len(shapes) > 1:
        raise ValueError(f"{source} holds masks of shapes {sorted(shapes)}; expected one shape")
    needed = sum(one.nbytes for one in (*images, *masks))
    with replacing(target, "npz file", needed=needed) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            images=np.stack(images),
            masks=np.stack(masks),
            series_uid=np.array(series),
            name=np.array(names),
        )
    return len(rows)


def load_lidc_crops(path: str | PathLike[str]) -> dict[str, Any]:
    """Read crops that ``convert_lidc_pickle`` wrote, not yet split.

    Args:
        path: Path of the npz file.

    Returns:
        Arrays for ``Batches`` and ``apply_split``: "image" float32 (case, channel=1, row, col),
        0..1; "mask" int8 (case, grader, row, col), 0 and 1; "patient" str (case), the series, which
        is what the file has in place of a patient (1,018 series of 1,010 patients in all of LIDC);
        "id" str (case).

    Raises:
        ValueError: The file is not as described.
    """
    arrays = read_npz(a_path("path", path), _NAMES, _FIX)
    images, masks = arrays["images"], arrays["masks"]
    if images.ndim != 3 or images.shape[1:] != (SIDE, SIDE) or images.dtype.kind not in "uf":
        raise ValueError(
            f"{path}: images is {images.dtype} {images.shape}; expected numbers (case, {SIDE}, "
            f"{SIDE}): {_FIX}"
        )
    if len(images) == 0 or not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(f"{path}: images holds other values than 0..1, or none: {_FIX}")
    if masks.ndim != 4 or (len(masks), *masks.shape[2:]) != images.shape or not masks.shape[1]:
        raise ValueError(
            f"{path}: masks has shape {masks.shape}; expected (case={len(images)}, grader, {SIDE}, "
            f"{SIDE}): {_FIX}"
        )
    if masks.dtype.kind not in "biu" or not ((masks == 0) | (masks == 1)).all():
        raise ValueError(f"{path}: masks holds other values than 0 and 1: {_FIX}")
    for name in _NAMES[2:]:
        texts = arrays[name]
        if texts.shape != (len(images),) or texts.dtype.kind != "U" or (texts == "").any():
            raise ValueError(f"{path}: {name} must hold one text for every image: {_FIX}")
    if len(np.unique(arrays["name"])) < len(images):
        raise ValueError(f"{path}: two crops have one name: {_FIX}")
    return {
        "image": images.astype(np.float32)[:, None],
        "mask": masks.astype(np.int8),
        "patient": arrays["series_uid"],
        "id": arrays["name"],
    }


def _read(path: Path) -> Any:
    """The content of a pickle, arrays still as notes."""
    with naming_file(path, "pickle of arrays alone"), path.open("rb") as file:
        check_pickle(path)
        return _Reader(file, encoding="latin1").load()


def _rows(
    source: Path, crops: Mapping[Any, Any]
) -> Iterator[tuple[str, NDArray, NDArray[np.uint8], str]]:
    """Every crop; a ValueError where they are many times as large as their file."""
    left = _MOST_COPIES * source.stat().st_size + 2**24
    for name, crop in crops.items():
        row = _crop(source, name, crop, left)
        left -= row[1].nbytes + row[2].nbytes
        yield row


def _crop(
    source: Path, name: Any, crop: Any, left: int
) -> tuple[str, NDArray, NDArray[np.uint8], str]:
    """Name, image, masks and series of one crop, for which so many bytes are left."""
    where = f"{source}, crop {name!r}"
    if not isinstance(name, str) or not isinstance(crop, Mapping):
        raise ValueError(f"{where}: expected a dict under a name")
    missing = {"image", "masks", "series_uid"} - crop.keys()
    if missing:
        raise ValueError(f"{where} lacks {sorted(missing)}; it holds {sorted(map(str, crop))}")
    image = _array(where, crop["image"])
    found = crop["masks"]
    listed = found if isinstance(found, list | tuple) else list(_array(where, found))
    if SIDE * SIDE * (1 + len(listed)) > left:
        raise ValueError(f"{where}: the file tells of one array in thousands of places")
    masks = [_array(where, one) for one in listed]
    series = crop["series_uid"]
    series = _array(where, series).item() if isinstance(series, _Noted) else series
    if not isinstance(series, str | bytes):
        raise ValueError(f"{where}: series_uid is a {type(series).__name__}; expected a text")
    if not masks or any(one.shape != (SIDE, SIDE) for one in (image, *masks)):
        raise ValueError(
            f"{where} has an image of shape {image.shape} and masks of shapes "
            f"{[one.shape for one in masks]}; expected ({SIDE}, {SIDE}) for all"
        )
    if image.dtype.kind not in "uf" or not (image.min() >= 0 and image.max() <= 1):
        raise ValueError(
            f"{where} has pixels {image.dtype} from {image.min()} to {image.max()}; expected 0..1"
        )
    stacked = np.stack(masks)
    if not ((stacked == 0) | (stacked == 1)).all():
        raise ValueError(f"{where} has masks of other values than 0 and 1")
    small = image.astype(np.float32) if image.itemsize > 4 else image
    text = series.decode() if isinstance(series, bytes) else series
    return name, small, stacked.astype(np.uint8), text


def _array(where: str, note: Any) -> NDArray:
    """Build the array that was noted; numpy arrays come from bytes only."""
    if isinstance(note, np.ndarray):
        return note
    try:
        return _built(note)
    except (AttributeError, IndexError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{where} holds no plain array where one belongs: {error}") from error


def _built(note: Any) -> NDArray:
    """The array of a note; raises on anything but a whole one."""
    if not isinstance(note, _Noted):
        raise TypeError(f"found {type(note).__name__}")
    if note.kind == "array":  # _reconstruct(ndarray, (0,), b"b"), then its state
        _, shape, dtype, by_columns, content = note.state
        order: Literal["C", "F"] = "F" if by_columns else "C"
    elif note.kind == "buffer":  # _frombuffer(content, dtype, shape, order)
        content, dtype, shape, order = note.arguments
    elif note.kind == "scalar":  # scalar(dtype, content)
        (dtype, content), shape, order = note.arguments, (), "C"
    else:
        raise TypeError(f"found a {note.kind}")
    plain = _dtype(dtype)
    return np.frombuffer(_bytes(content), plain).reshape(shape, order=order)


def _bytes(content: Any) -> bytes:
    if isinstance(content, _Noted) and content.kind == "encoded":
        content = content.arguments[0]
    if isinstance(content, str):  # a Python 2 string, read as latin1
        return content.encode("latin1")
    if not isinstance(content, bytes | bytearray):
        raise ValueError(f"the content is {type(content).__name__}, not bytes")
    return bytes(content)


def _dtype(note: Any) -> np.dtype:
    """A dtype of numbers or strings: dtype(code, ...), then a state (version, order, ...)."""
    code, order = note.arguments[0], note.state[1] if note.state else "="
    code, order = (one.decode() if isinstance(one, bytes) else one for one in (code, order))
    if not isinstance(code, str) or not isinstance(order, str) or len(code) > 9:
        raise TypeError("its dtype is no short text")
    if code[:1] not in _KINDS or not code[1:].isdigit() or order not in "<>|=":
        raise ValueError(f"refused dtype {code!r} {order!r}: only numbers and strings are read")
    return np.dtype(f">{code}" if order == ">" else code)
