"""Swap test: give an image what marks the other class, and see what the network says.

    effect_s,i = p_s(class | swapped image i) - p_s(class | image i)         draw s, case i

The swap changes nothing of the disease (a tag, the shape of the head, the border of the film), so a
network that is right for the right reason has an effect of 0. Every draw of the posterior has an
effect, so its mean over cases has an interval over draws, the uncertainty of the network. The
standard error over cases, or over groups of cases (patients), is the uncertainty of sampling.

Reference: Sdika, "Uncertainties and explainability" (lecture), the brain shape as a confounder.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ppl_med.analysis.tree import check_cases, drop_copies
from ppl_med.axes import SAMPLES
from ppl_med.checks import choice, inside, whole
from ppl_med.explain.attribution.score import Score, class_logits
from ppl_med.explain.draw_intervals import over_draws
from ppl_med.explain.function_checks import (
    Function,
    as_case,
    as_target,
    check_functions,
    check_image,
)

Scale = Literal["probability", "log_odds"]
UNITS = {"probability": "probability", "log_odds": "nats"}


def swap_test(  # noqa: D417
    functions: Sequence[Function],
    image: Tensor,
    swap: Tensor | Callable[[Tensor], Tensor],
    target: int | Tensor,
    *,
    scale: Scale = "probability",
    case: Sequence[str] | Sequence[int] | None = None,
    group: ArrayLike | None = None,
    level: float = 0.95,
    batch_size: int = 256,
) -> xr.Dataset:
    """Measure what a swap does to the probability of a class.

    Arguments that are not listed are those of ``attribute``.

    Args:
        functions: One deterministic callable per posterior draw, image to logits (case, class).
        swap: The images after the swap, or a function that makes them.
        target: Class whose probability is followed, one for all cases or one each.
        scale: Scale of the effect; log-odds of the class against all others do not saturate.
        group: Patient of every case, (case,), where several images are of one.
        level: Level of the intervals over draws.

    Returns:
        ``before`` and ``after`` (chain, draw, case), ``effect``, their difference, and
        ``mean_effect`` (chain, draw) over cases. ``expected_effect``, its mean over draws, with
        ``_lower`` and ``_upper``, the interval over draws, NaN for one, and ``_se``, the standard
        error over cases or groups. ``probability_positive``, the share of draws whose mean effect
        is above 0; ``flips`` (case), whether the most probable class of the draws' mixture changes,
        and ``flip_rate``; ``changed_share`` (case), the share of pixels that the swap changed.

    Raises:
        ValueError: If an argument does not fit, the swapped images have another shape or are not
            finite, the swap changes no pixel, or a callable is not a function of one image.
        TypeError: If images are not floating-point tensors.
    """
    choice("scale", scale, get_args(Scale))
    inside("level", level)
    whole("batch_size", batch_size)
    check_image(image)
    swapped, changed = _swapped(swap, image)
    ids, labels = as_case(case, image), as_target(target, image)
    _groups(group, len(image))
    score = Score("probability", labels)
    index = check_functions(
        functions, image, swapped, lambda name, function, output: score.check(name, output)
    )
    pairs = [
        [_class_probabilities(one, images, batch_size) for images in (image, swapped)]
        for one in functions
    ]
    probs = np.array(pairs)[index.values]  # (chain, draw, before or after, case, class)
    flips = np.diff(probs.mean((0, 1)).argmax(-1), axis=0)[0] != 0
    at = np.broadcast_to(labels.cpu().numpy()[:, None], (*probs.shape[:-1], 1))
    values = np.take_along_axis(probs, at, -1)[..., 0]
    if scale == "log_odds":
        values = np.log(values) - np.log1p(-values)
        if not np.isfinite(values).all():
            raise ValueError("a probability is exactly 0 or 1; use scale='probability'")
    dims = (*SAMPLES, "case")
    coords = {"chain": index["chain"], "draw": index["draw"], "case": ids}
    before, after = (xr.DataArray(values[:, :, at], coords, dims) for at in (0, 1))
    result = swap_effects(before, after, group=group, level=level)
    for name in (*result.data_vars,):
        if name != "probability_positive":
            result[name].attrs["units"] = UNITS[scale]
    result["flips"], result["changed_share"] = ("case", flips), ("case", changed)
    result["flip_rate"] = result["flips"].mean()
    for name in ("flips", "changed_share", "flip_rate"):
        result[name].attrs["units"] = "1"
    return result.assign_attrs(scale=scale)


def swap_effects(
    before: xr.DataArray,
    after: xr.DataArray,
    *,
    group: ArrayLike | None = None,
    level: float = 0.95,
) -> xr.Dataset:
    """What a swap did, from numbers before and after it.

    For what ``swap_test`` cannot run at once, such as cases of several folds with a network each,
    whose ``before`` and ``after`` are joined along the case.

    Args:
        before: Dims (chain, draw, case).
        after: The same dims, of the same cases.
        group: Patient of every case, (case,), where several are of one.
        level: Level of the intervals over draws.

    Returns:
        ``before``, ``after``, ``effect``, ``mean_effect``, ``expected_effect`` with its interval
        and standard error, and ``probability_positive``, as in ``swap_test``.

    Raises:
        ValueError: If dims, lengths, the cases' order or the level do not fit.
    """
    inside("level", level)
    for name, values in (("before", before), ("after", after)):
        if set(values.dims) != {*SAMPLES, "case"}:
            raise ValueError(f"{name} has dims {values.dims}; expected chain, draw and case")
    if before.sizes != after.sizes:
        raise ValueError(f"before has {dict(before.sizes)}, after {dict(after.sizes)}")
    if "case" in before.coords and "case" in after.coords:
        check_cases(after, before, "after", "before")
    groups = _groups(group, before.sizes["case"])
    result = xr.Dataset({"before": before, "after": after})
    result["effect"] = result["after"] - result["before"]
    result["effect"].attrs["long_name"] = "change of the class by the swap"
    result["mean_effect"] = result["effect"].mean("case")
    functions = drop_copies(result[["before", "after"]])
    each = (functions["after"] - functions["before"]).mean("case")
    each.attrs = result["mean_effect"].attrs
    result.update(over_draws("effect", each, level))
    by_case = result["effect"].mean(SAMPLES).values
    result["expected_effect_se"] = ((), _grouped_error(by_case, groups))
    result["probability_positive"] = (result["mean_effect"] > 0).mean()
    result["probability_positive"].attrs["units"] = "1"
    return result.assign_attrs(
        level=level, num_cases=before.sizes["case"], num_groups=len(np.unique(groups))
    )


def swap_frame(image: Tensor, donor: Tensor, width: int) -> Tensor:
    """Put the outer frame of other images on images.

    Args:
        image: Dims (case, channel, row, col).
        donor: Images whose frames they get, of the same shape.
        width: Width of the frame in pixels, less than half the shorter side.

    Raises:
        ValueError: Shapes differ, or the frame is as large as the image.
    """
    if image.shape != donor.shape or image.ndim != 4:
        raise ValueError(
            f"image has shape {tuple(image.shape)}, donor {tuple(donor.shape)}; both must be the "
            "same (case, channel, row, col)"
        )
    whole("width", width)
    if 2 * width >= min(image.shape[2:]):
        raise ValueError(f"width is {width}, which leaves nothing of {tuple(image.shape[2:])}")
    framed = donor.clone()
    inner = slice(width, -width)
    framed[:, :, inner, inner] = image[:, :, inner, inner]
    return framed


def _swapped(
    swap: Tensor | Callable[[Tensor], Tensor], image: Tensor
) -> tuple[Tensor, NDArray[np.float64]]:
    """Images after the swap, and the share of each one's pixels that it changed."""
    swapped = swap if isinstance(swap, Tensor) else swap(image.clone())
    if not isinstance(swapped, Tensor) or swapped.shape != image.shape:
        got = tuple(swapped.shape) if isinstance(swapped, Tensor) else type(swapped).__name__
        raise ValueError(f"swap gave {got}; the images are of shape {tuple(image.shape)}")
    swapped = swapped.detach().to(image)
    if not torch.isfinite(swapped).all():
        raise ValueError("swap gave NaN or infinite intensities")
    changed = (swapped != image).any(1).flatten(1).double().mean(1).cpu().numpy()
    if not changed.any():
        raise ValueError("swap changed no pixel of any image; its effect would be 0 by itself")
    return swapped, changed


def _groups(group: ArrayLike | None, num_cases: int) -> NDArray:
    groups = np.arange(num_cases) if group is None else np.asarray(group)
    if groups.shape != (num_cases,):
        raise ValueError(f"group has shape {groups.shape}; give one for each of {num_cases} cases")
    return groups


@torch.no_grad()
def _class_probabilities(function: Function, image: Tensor, batch_size: int) -> NDArray[np.float64]:
    """Of all classes, (case, class), in float64, where sigmoids saturate later."""
    logits = [class_logits(function(part)).double() for part in image.split(batch_size)]
    return torch.cat(logits).softmax(1).cpu().numpy()


def _grouped_error(values: NDArray[np.float64], groups: NDArray) -> float:
    """Standard error of the mean of cases that come in groups; NaN for one group."""
    codes = np.unique(groups, return_inverse=True)[1]
    sums = np.bincount(codes, values - values.mean())
    size = len(sums)
    if size < 2:
        return float("nan")
    return float(np.sqrt(size / (size - 1) * (sums**2).sum()) / len(values))
