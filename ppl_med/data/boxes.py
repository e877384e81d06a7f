"""Do boxes fit their images and the detector? Said before any work starts.

"box" float (case, [grader,] box, 4) holds x_min, y_min, x_max, y_max in pixels of the image, from
the left edge of its first pixel to the right edge of its last, NaN after the last box; "box_label"
(case, [grader,] box) holds classes 0..K-1 and -1 after the last; "num_boxes" (case, [grader])
counts them. A case without boxes is a case in which there is nothing; so is that of a reader who
marked nothing, unless "reader_present" (case, grader) is False there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_med.axes import EDGES
from ppl_med.checks import whole

_ROUNDING = 1e-3  # pixels by which single precision may put an edge outside


def check_boxes(
    arrays: Mapping[str, Any], num_classes: int | None = None, *, ids: Sequence[Any] | None = None
) -> None:
    """Raise if boxes cannot be learned from or scored.

    Args:
        arrays: Holds "box" and "box_label", and optionally "num_boxes", "image" (case, channel,
            row, col), in which boxes must lie, and "id"; arrays or tensors. On an accelerator it
            waits for the device.
        num_classes: Classes without a background; labels must lie in 0..num_classes-1. None checks
            the lower end.
        ids: Names of the cases for the messages; those of ``arrays``, or positions, if missing.

    Raises:
        TypeError: Labels or counts are no whole numbers, or boxes no floating numbers.
        ValueError: An array is missing or of another shape, a box is not finite, has no area or
            lies outside its image, labels are out of range, or what stands after the last box is
            not NaN and -1. It names the first case and what to do.
    """
    missing = {"box", "box_label"} - arrays.keys()
    if missing:
        raise ValueError(f"arrays lacks {sorted(missing)}; its keys are {sorted(arrays)}")
    box, label = _array(arrays["box"]), _array(arrays["box_label"])
    _check_kinds(box, label)
    ids = arrays.get("id") if ids is None else ids
    is_box = label != -1
    _check_labels(label, is_box, None if num_classes is None else whole("num_classes", num_classes),
                  ids)  # fmt: skip
    _check_padding(box, is_box, ids)
    if arrays.get("num_boxes") is not None:
        _check_counts(_array(arrays["num_boxes"]), is_box, ids)
    _check_area(box, is_box, ids)
    if arrays.get("image") is not None:
        _check_inside(box, is_box, tuple(arrays["image"].shape), ids)


def _array(values: Any) -> NDArray[Any]:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _check_kinds(box: NDArray[Any], label: NDArray[Any]) -> None:
    if box.dtype.kind != "f":
        raise TypeError(
            f"box has dtype {box.dtype}; expected float32: after the last box of a case stands NaN"
        )
    if label.dtype.kind not in "iu":
        raise TypeError(f"box_label has dtype {label.dtype}; expected int64, -1 after the last box")
    if box.ndim not in (3, 4) or box.shape[-1] != len(EDGES):
        raise ValueError(
            f"box has shape {box.shape}; expected (case, box, 4) or (case, grader, box, 4) with "
            f"the edges {', '.join(EDGES)}"
        )
    if label.shape != box.shape[:-1]:
        raise ValueError(
            f"box_label has shape {label.shape} but box {box.shape}; expected {box.shape[:-1]}, "
            "one class for each box"
        )


def _check_labels(
    label: NDArray[Any], is_box: NDArray[np.bool_], num_classes: int | None, ids: Any
) -> None:
    found = label[is_box]
    if not len(found):
        return
    low, high = int(found.min()), int(found.max())
    if low >= 0 and (num_classes is None or high < num_classes):
        return
    bad = is_box & (label < 0)
    if num_classes is not None:
        bad |= label >= num_classes
    allowed = "0 or more" if num_classes is None else f"in 0..{num_classes - 1}"
    fix = "drop the box, or give the detector its class"
    if low == 1 and high == num_classes:
        fix = (
            f"labels run from 1 to {num_classes}, as where 0 is the background, but the library's "
            "detectors have no background class: subtract 1 from labels of boxes"
        )
    elif low < -1 or high == 255:
        fix = "after the last box stands -1, and classes count from 0"
    place = _first(bad)
    raise ValueError(
        f"box_label is {int(label[place])} in {_name(place, ids)}, the first of {_cases(bad)} "
        f"case(s); labels of boxes are {allowed}: {fix}"
    )


def _check_padding(box: NDArray[Any], is_box: NDArray[np.bool_], ids: Any) -> None:
    absent = np.isnan(box)
    for bad, what in (
        (is_box & ~np.isfinite(box).all(-1), "is not finite but has a class"),
        (~is_box & ~absent.all(-1), "has edges but the label -1, which stands after the last box"),
    ):
        if bad.any():
            place = _first(bad)
            raise ValueError(
                f"box {_edges(box[place])} of {_name(place, ids)} {what}; every box needs four "
                "finite edges and a class, and after the last stand NaN and -1"
            )
    gap = is_box[..., 1:] & ~is_box[..., :-1]
    if gap.any():
        raise ValueError(
            f"boxes of {_name(_first(gap), ids)} stand after an empty place; move boxes to the "
            "front, so that NaN and -1 stand after the last"
        )


def _check_counts(count: NDArray[Any], is_box: NDArray[np.bool_], ids: Any) -> None:
    if count.dtype.kind not in "iu":
        raise TypeError(f"num_boxes has dtype {count.dtype}; expected int64")
    found = is_box.sum(-1)
    if count.shape != found.shape:
        raise ValueError(f"num_boxes has shape {count.shape}; expected {found.shape}")
    if (count != found).any():
        place = _first(count != found)
        raise ValueError(
            f"num_boxes is {int(count[place])} but there are {int(found[place])} boxes in "
            f"{_name((*place, 0), ids)}; count labels other than -1"
        )


def _check_area(box: NDArray[Any], is_box: NDArray[np.bool_], ids: Any) -> None:
    for low, high in ((0, 2), (1, 3)):
        bad = is_box & ~(box[..., low] < box[..., high])
        if not bad.any():
            continue
        place = _first(bad)
        start, stop = box[place][low], box[place][high]
        fix = "swap these edges" if stop < start else "drop the box, which has no area"
        raise ValueError(
            f"box {_edges(box[place])} of {_name(place, ids)}, the first of {_cases(bad)} case(s), "
            f"has {EDGES[high]} {stop:g} not above {EDGES[low]} {start:g}: {fix}; boxes are "
            "corners and no widths"
        )


def _check_inside(
    box: NDArray[Any], is_box: NDArray[np.bool_], shape: tuple[int, ...], ids: Any
) -> None:
    if len(shape) != 4 or shape[0] != len(box):
        raise ValueError(
            f"image has shape {shape} but box {box.shape}; expected (case, channel, row, col) and "
            "one entry of box per case"
        )
    rows, cols = shape[2:]
    with np.errstate(invalid="ignore"):
        outside = (box < -_ROUNDING) | (box > np.array([cols, rows, cols, rows]) + _ROUNDING)
    bad = is_box & outside.any(-1)
    if bad.any():
        place = _first(bad)
        fix = "clip boxes to their image"
        if (np.nanmax(box) > 2 * max(rows, cols)) or (bad.sum() > 0.5 * is_box.sum()):
            fix += "; edges are pixels of this image: scale them where the image was resized"
        raise ValueError(
            f"box {_edges(box[place])} of {_name(place, ids)}, the first of {_cases(bad)} case(s), "
            f"reaches outside its image of {cols} columns and {rows} rows: {fix}"
        )


def _first(bad: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(one) for one in np.argwhere(bad)[0])


def _cases(bad: NDArray[np.bool_]) -> int:
    """How many cases have any."""
    return int(bad.reshape(len(bad), -1).any(1).sum())


def _edges(box: NDArray[Any]) -> str:
    return f"({', '.join(f'{one:g}' for one in box)})"


def _name(place: tuple[int, ...], ids: Any) -> str:
    case, *inner = place
    named = "" if ids is None else f" (id {np.asarray(ids)[case].item()!r})"
    grader = f", grader {inner[0]}" if len(inner) == 2 else ""
    return f"case {case}{named}{grader}"
