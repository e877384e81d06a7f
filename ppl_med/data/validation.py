"""Does a batch, from whatever loader, hold what a model needs? Said before any work starts."""

from collections.abc import Mapping, Sized

import torch
from torch import Tensor

from ppl_med.data.arrays import check_label_shape
from ppl_med.data.masks import check_image_shape


def check_batch(
    batch: object, *, num_classes: int | None = None, in_channels: int | None = None
) -> None:
    """Raise if a batch cannot be fitted or predicted.

    Reads every pixel once, so it is meant for batches still on the CPU: on an accelerator it waits
    for the device.

    Args:
        batch: Mapping with "image", floating, dims (case, channel, row, col) or (case, channel,
            depth, row, col), and optionally "label", integer, dims (case), "id" and other arrays
            whose first axis is case.
        num_classes: Labels must lie in 0..num_classes-1; None checks the lower end only.
        in_channels: Channels that the network takes; None accepts any.

    Raises:
        TypeError: The batch is no mapping, the image is no floating tensor, labels are no integers.
        ValueError: No image, no cases, wrong rank, wrong channels, NaN or infinite pixels, labels
            out of range, or lengths that differ.
    """
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"batch is a {type(batch).__name__}; expected a dict "
            '{"image": Tensor, "label": Tensor}: wrap the loader so that it yields dicts'
        )
    if "image" not in batch:
        raise ValueError(f'batch has no "image"; its keys are {sorted(map(str, batch))}')
    image = batch["image"]
    _check_image(image, in_channels)
    _check_lengths(batch, len(image))
    _check_pixels(image, batch.get("id"))
    if batch.get("label") is not None:
        _check_label(batch["label"], num_classes, batch.get("id"))


def _check_image(image: object, in_channels: int | None) -> None:
    if not isinstance(image, Tensor):
        raise TypeError(f"image is a {type(image).__name__}; expected a torch.Tensor")
    if not image.is_floating_point():
        raise TypeError(
            f"image has dtype {image.dtype}; expected float32: convert with image.float(), "
            "and bring uint8 to 0..1 with image.float() / 255"
        )
    check_image_shape(image.shape)
    if in_channels is not None and image.shape[1] != in_channels:
        fix = ""
        if image.shape[-1] == in_channels:
            fix = "; channels seem to come last: use image.movedim(-1, 1)"
        elif image.shape[1] == 1:
            fix = (
                f"; repeat the grey one (in from_table: channels={in_channels}), or change the net"
            )
        raise ValueError(
            f"image has {image.shape[1]} channel(s), shape {tuple(image.shape)}, but the network "
            f"takes {in_channels}{fix}"
        )


def _check_lengths(batch: Mapping, num_cases: int) -> None:
    for name, values in batch.items():
        if isinstance(values, str | bytes) or not isinstance(values, Sized):
            continue
        if getattr(values, "ndim", 1) != 0 and len(values) != num_cases:
            raise ValueError(f"{name} has {len(values)} entries but image has {num_cases} cases")


def _check_pixels(image: Tensor, ids: object) -> None:
    # A finite sum proves finite pixels and reads the batch once; a sum may also overflow.
    if torch.isfinite(image.sum(dtype=torch.float64)):
        return
    bad = ~torch.isfinite(image).flatten(1).all(1)
    if bad.any():
        raise ValueError(
            f"image holds NaN or infinite pixels in {int(bad.sum())} case(s): {_cases(bad, ids)}; "
            "replace the pixels or drop the cases"
        )


def _check_label(label: object, num_classes: int | None, ids: object) -> None:
    if not isinstance(label, Tensor):
        raise TypeError(f"label is a {type(label).__name__}; expected an int64 torch.Tensor")
    if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise TypeError(f"label has dtype {label.dtype}; expected int64: use label.long()")
    check_label_shape(label)
    bad = label < 0
    if num_classes is not None:
        bad = bad | (label >= num_classes)
    if bad.any():
        allowed = "0 or more" if num_classes is None else f"in 0..{num_classes - 1}"
        raise ValueError(
            f"label must be {allowed}, but is {label[bad][0].item()} in the first of "
            f"{int(bad.sum())} case(s): {_cases(bad, ids)}"
        )


def _cases(bad: Tensor, ids: object) -> str:
    """Positions, with ids where there are any, of the first five flagged cases."""
    positions = bad.nonzero().flatten().tolist()
    if ids is None:
        names = [f"position {k}" for k in positions[:5]]
    else:
        plain = ids.tolist() if hasattr(ids, "tolist") else list(ids)  # type: ignore[call-overload]
        names = [f"position {k} (id {plain[k]!r})" for k in positions[:5]]
    return ", ".join(names) + (", ..." if len(positions) > 5 else "")
