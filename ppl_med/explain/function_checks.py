"""Checks of images, targets and function draws, made before any gradient is taken.

A gradient explains a function. A callable that draws random numbers inside, or whose output for one
case depends on the other cases of its batch, is not a function of the image and is refused here.
"""

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ppl_med.axes import SAMPLES, SPACE
from ppl_med.checks import is_whole, present

Function = Callable[[Tensor], Tensor]
# Above this change between two equal calls, relative to the largest output, a callable is random.
RANDOMNESS = 1e-4
# The same for a case with and without company; wider, as batch sizes choose kernels (TF32).
CROSSTALK = 1e-2


def check_image(image: Tensor) -> None:
    """Raise unless ``image`` is finite floating point, (case, channel, [depth,] row, col)."""
    if not isinstance(image, Tensor) or not image.is_floating_point():
        kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(f"image must be a floating-point tensor, got {kind}; call image.float()")
    if image.ndim not in (4, 5) or image.numel() == 0:
        raise ValueError(
            "image must be (case, channel, [depth,] row, col) without empty axes, got shape "
            f"{tuple(image.shape)}; image[None] makes a batch of one"
        )
    if not torch.isfinite(image).all():
        raise ValueError("image holds NaN or infinite intensities; replace them first")


def map_dims(image: Tensor) -> tuple[str, ...]:
    """Names of the axes of an image, and of a map of it."""
    return "case", "channel", *SPACE[image.ndim - 2]


def per_case(values: Tensor, example: Tensor) -> Tensor:
    """One number per case, (case,), with axes to broadcast over an example (case, ...)."""
    return values.view(-1, *[1] * (example.ndim - 1))


def as_baseline(baseline: float | Tensor, image: Tensor) -> Tensor:
    """Return the baseline as a tensor of the image's shape, dtype and device."""
    if isinstance(baseline, Tensor) and baseline.ndim > 0:
        if baseline.shape != image.shape:
            raise ValueError(
                f"baseline must be one number or have the image's shape {tuple(image.shape)}, got "
                f"shape {tuple(baseline.shape)}"
            )
        if not baseline.is_floating_point():
            raise TypeError(f"baseline must be a floating-point tensor, got {baseline.dtype}")
        values = baseline.detach().to(image)
    elif isinstance(baseline, (numbers.Real, Tensor)) and not isinstance(baseline, bool):
        values = torch.full_like(image, float(baseline)).detach()
    else:
        raise TypeError(f"baseline must be a number or a tensor, got {type(baseline).__name__}")
    if not torch.isfinite(values).all():
        raise ValueError("baseline holds NaN or infinite intensities")
    return values


def as_target(target: int | Tensor, image: Tensor) -> Tensor:
    """Return the class to explain as an integer tensor (case) on the image's device."""
    values = torch.as_tensor(target)
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"target must hold integer classes, got {values.dtype}; call target.long()")
    if values.ndim == 0:
        values = values.expand(len(image))
    if values.shape != (len(image),):
        raise ValueError(
            f"target must be one class for all or one each of {len(image)} cases, got shape "
            f"{tuple(values.shape)}"
        )
    return values.to(image.device, torch.int64).contiguous()


def as_case(case: Sequence[str] | Sequence[int] | None, image: Tensor) -> np.ndarray:
    """Return the ids of the cases; 0, 1, ... if None."""
    ids = np.arange(len(image)) if case is None else np.asarray(case)
    present("case", ids if case is None else case)  # an array may turn NaN into text
    if ids.shape != (len(image),):
        raise ValueError(
            f"case must hold one id per image, got shape {ids.shape} for {len(image)} images"
        )
    if len(np.unique(ids)) < len(ids):
        raise ValueError("case holds an id twice; ids name the rows of the result and must differ")
    return ids


def check_functions(
    functions: Sequence[Function],
    image: Tensor,
    baseline: Tensor,
    check: Callable[[str, Function, Any], None],
) -> xr.DataArray:
    """Try every function on the first image and its baseline; the position of each (chain, draw).

    Functions have integer attributes ``chain`` and ``draw``, or none has; they may be made anew
    whenever the sequence is read. ``check`` takes a function's name, the function and its output
    with its graph, and raises if the output is not what is needed.

    Raises:
        ValueError: If a callable is not a function of one image, its output is not what is needed,
            or the labels leave a (chain, draw) out.
    """
    if not isinstance(functions, Sequence):
        raise TypeError(f"functions is {type(functions).__name__}; give a list of callables")
    if len(functions) == 0:
        raise ValueError("functions is empty; give one callable per posterior draw")
    labels = []
    for position, function in enumerate(functions):
        labels.append(tuple(getattr(function, dim, None) for dim in SAMPLES))
        name, pair = f"functions[{position}]", torch.cat([image[:1], baseline[:1]]).detach()
        with torch.enable_grad():
            output = function(pair.clone().requires_grad_().clone())
        check(name, function, output)
        _check_function(function, name, pair, output.detach())
    if all(label == (None, None) for label in labels):
        labels = [(0, position) for position in range(len(functions))]
    return _chain_draw_index(labels)


def check_gradient(name: str, output: Tensor) -> None:
    """Raise unless an output is floating point and carries a gradient."""
    if not output.is_floating_point():
        raise ValueError(
            f"{name} returned {output.dtype}, which has no gradient; return logits, not classes, "
            "or use method='occlusion'"
        )
    if not output.requires_grad:
        raise ValueError(
            f"{name} returned logits that carry no gradient; remove torch.no_grad or detach in it, "
            "or use method='occlusion'"
        )


def _chain_draw_index(labels: list[tuple[Any, ...]]) -> xr.DataArray:
    bad = [pair for pair in labels if not all(map(is_whole, pair))]
    if bad:
        raise ValueError(
            f"functions have (chain, draw) = {bad[0]}; both must be integers, or absent on all"
        )
    chains, draws = (np.unique([label[axis] for label in labels]) for axis in (0, 1))
    if len(set(labels)) < len(labels) or len(labels) != len(chains) * len(draws):
        raise ValueError(
            f"{len(labels)} functions have {len(set(labels))} different (chain, draw) pairs over "
            f"{len(chains)} chains and {len(draws)} draws; every chain needs each draw exactly once"
        )
    position = {label: at for at, label in enumerate(labels)}
    index = [[position[chain, draw] for draw in draws] for chain in chains]
    return xr.DataArray(index, dims=SAMPLES, coords={"chain": chains, "draw": draws})


def _check_function(function: Function, name: str, pair: Tensor, first: Tensor) -> None:
    """Raise unless the output of two images is a finite function of each image alone."""
    if not torch.isfinite(first).all():
        raise ValueError(f"{name} returned NaN or infinite logits for an image or its baseline")
    with torch.no_grad():
        again, swapped, alone = (function(x.clone()) for x in (pair, pair.flip(0), pair[:1]))
    size = first.abs().max()
    if (again - first).abs().max() > RANDOMNESS * size:
        raise ValueError(
            f"{name} gave two outputs for one input: it draws random numbers inside. Use "
            "ppl_med.inference.functions, which fixes the weights, and put networks in eval() mode"
        )
    moved = torch.stack([(alone - first[:1]).abs().max(), (swapped.flip(0) - first).abs().max()])
    if moved.max() > CROSSTALK * size:
        raise ValueError(
            f"{name} gave one image another output in another batch: it mixes the cases, or "
            "numbers them. Put BatchNorm in eval() mode, and give a draw one noise for all cases"
        )
