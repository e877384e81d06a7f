"""Do masks fit their images, and images the network? Said before any work starts.

A mask holds class ids from 0, class 0 is the background; -1 marks what nobody annotated: a pixel,
or, where several graders drew, everything of a grader who did not see the image.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import whole

UNANNOTATED = -1


def check_masks(
    image: Any, mask: Any, *, num_classes: int | None = None, ids: Sequence[Any] | None = None
) -> None:
    """Raise if masks cannot be learned from or scored.

    Args:
        image: Dims (case, channel, row, col) or (case, channel, depth, row, col); or a list of
            images without the case axis.
        mask: Whole numbers, dims (case, row, col) or (case, grader, row, col), and likewise with
            depth; or a list of masks without the case axis.
        num_classes: Class ids must lie in 0..num_classes-1, or be -1; None checks the lower end.
        ids: Names of the cases for the messages; positions if missing.

    Raises:
        TypeError: Masks are no numbers, or hold fractions.
        ValueError: Images of unequal sizes, a mask of another size than its image, an axis of
            channels or classes in the place of graders, class ids out of range, an image that
            nobody annotated, or numbers of images and masks that differ.
    """
    image, mask = _stack("image", image, ids), _stack("mask", mask, ids)
    check_image_shape(image.shape)
    if len(image) != len(mask):
        raise ValueError(f"there are {len(image)} images but {len(mask)} masks; pair them up")
    if ids is not None and len(ids) != len(image):
        raise ValueError(f"ids has {len(ids)} entries but there are {len(image)} images")
    mask = whole_mask(mask)
    check_mask_axes(mask, image.shape)
    flat = mask.reshape(len(mask), -1)
    low, high = flat.min(1), flat.max(1)
    bad = low < UNANNOTATED
    if num_classes is not None:
        bad = bad | (high >= num_classes)
    if bad.any():
        first = int(bad.argmax())
        allowed = "0 or more" if num_classes is None else f"0..{num_classes - 1}"
        value = int(low[first] if low[first] < UNANNOTATED else high[first])
        raise ValueError(
            f"mask holds {value} in {_name(first, ids)}; class ids are {allowed}, or -1 for pixels "
            "to ignore: map a code such as 255 to -1"
        )
    if (high == UNANNOTATED).any():
        first = int((high == UNANNOTATED).argmax())
        raise ValueError(
            f"mask is -1 everywhere in {_name(first, ids)}: nobody annotated it; drop the case "
            "(an image in which a grader saw nothing has a mask of zeros)"
        )


def check_image_shape(shape: Sequence[int]) -> None:
    """Raise unless images have the axes of images or volumes, and pixels."""
    if len(shape) not in (4, 5):
        raise ValueError(
            f"image has shape {tuple(shape)}; expected (case, channel, row, col) or (case, "
            "channel, depth, row, col): a missing channel axis is added by image[:, None]"
        )
    if 0 in shape:
        raise ValueError(f"image has shape {tuple(shape)}, empty: there are no pixels to read")


def check_mask_shape(mask_shape: Sequence[int], image_shape: Sequence[int]) -> None:
    """Raise unless a mask has its image's rows and columns, with at most an axis of graders.

    Shapes are (case, [grader,] [depth,] row, col) and (case, channel, [depth,] row, col).
    """
    size = tuple(image_shape[2:])
    rank = len(mask_shape) - len(size)
    if rank not in (1, 2) or tuple(mask_shape[rank:]) != size:
        axes = ", ".join(("depth", "row", "col")[-len(size) :])
        raise ValueError(
            f"mask has shape {tuple(mask_shape)} but image {tuple(image_shape)}; expected (case, "
            f"{axes}) or (case, grader, {axes}) of size {size}: resize masks by nearest neighbour, "
            "and drop an axis of channels by mask[:, 0]"
        )


def whole_mask(mask: NDArray[Any]) -> NDArray[Any]:
    """Class ids as integers or booleans; floats, as many loaders give, are cast if all are whole.

    Raises:
        TypeError: If they are no numbers, or any is a fraction or NaN.
    """
    if mask.dtype.kind in "biu":
        return mask
    fractions = 0
    if mask.dtype.kind == "f":
        whole_numbers = np.rint(mask)
        fractions = int((whole_numbers != mask).sum())  # NaN differs from itself
        if fractions == 0:
            small = mask.size == 0 or np.abs(mask).max() < 2**15
            return whole_numbers.astype(np.int16 if small else np.int64)
    raise TypeError(
        f"mask has dtype {mask.dtype}"
        + (f" and {fractions} of {mask.size} entries are no whole numbers" if fractions else "")
        + "; expected class ids from 0, and -1 where nobody annotated: threshold probabilities, "
        "and resize masks by nearest neighbour"
    )


def check_mask_axes(mask: Any, image_shape: Sequence[int]) -> None:
    """Raise unless a mask has its image's size, with graders on the second axis or without one.

    As ``check_mask_shape``; and an axis of channels or of classes is no axis of graders.

    Args:
        mask: Integers or booleans, an array or a tensor, dims (case, [grader,] *space).
        image_shape: Dims (case, channel, *space).
    """
    check_mask_shape(mask.shape, image_shape)
    if len(mask.shape) < len(image_shape) or 0 in mask.shape:
        return
    shape = tuple(mask.shape)
    if shape[1] == 1:
        raise ValueError(
            f"mask has shape {shape}: its second axis, of size 1, is an axis of channels and not "
            "of graders; use mask[:, 0]"
        )
    if _is_one_hot(mask):
        raise ValueError(
            f"mask has shape {shape}, and in every pixel one of the {shape[1]} planes is 1 and the "
            "others are 0: these are classes (one-hot), not graders; use mask.argmax(1), in a "
            "pipeline of MONAI AsDiscreted('mask', argmax=True)"
        )


def _is_one_hot(mask: Any) -> bool:
    for case in mask:  # graders mostly agree somewhere in the first case, which ends it
        planes = case != 0
        if bool(((case != 1) & planes).any()) or not bool((planes.sum(0) == 1).all()):
            return False
    return True


def check_divisible(size: Sequence[int], num_halvings: int) -> None:
    """Raise unless a network that halves the image so often gets whole numbers of pixels.

    Args:
        size: Size of the image, (row, col) or (depth, row, col), in pixels.
        num_halvings: How often the network halves it: scales - 1.

    Raises:
        ValueError: A size is not divisible by 2^num_halvings; names the padding that would mend it.
    """
    whole("num_halvings", num_halvings, 0)
    factor = 2**num_halvings
    missing = [-length % factor for length in size]
    if any(missing):
        pairs = ", ".join(f"0, {extra}" for extra in reversed(missing))
        target = " x ".join(str(n + extra) for n, extra in zip(size, missing, strict=True))
        raise ValueError(
            f"image is {' x '.join(map(str, size))}; {num_halvings} halvings need sizes divisible "
            f"by {factor}: pad to {target}, images with torch.nn.functional.pad(image, ({pairs})) "
            f"and masks with pad(mask, ({pairs}), value=-1)"
        )


def _stack(name: str, values: Any, ids: Sequence[Any] | None) -> NDArray:
    """One array; a list of arrays must be of one size."""
    if isinstance(values, list | tuple) and values:
        shapes = [np.shape(one) for one in values]
        for case, shape in enumerate(shapes):
            if shape != shapes[0]:
                raise ValueError(
                    f"{name} sizes differ: {shapes[0]} in {_name(0, ids)} but {shape} in "
                    f"{_name(case, ids)}; crop, pad or resize them to one size"
                    + (", and give absent graders masks of -1" if name == "mask" else "")
                )
    array = np.asarray(values)
    if array.size == 0:
        raise ValueError(f"{name} is empty, shape {array.shape}: there are no pixels to read")
    return array


def _name(case: int, ids: Sequence[Any] | None) -> str:
    if ids is None:
        return f"case {case}"
    return f"case {case} (id {np.asarray(ids)[case].item()!r})"
