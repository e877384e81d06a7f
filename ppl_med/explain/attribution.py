"""Attribution of a Bayesian network: which pixels speak for a class, and how surely they do.

Every posterior draw is one deterministic function f_s, so an attribution method gives one map a_s
per draw, and the maps are draws from the posterior of the attribution. This file keeps their first
two moments and the probability of each sign.

    integrated gradients   a(x) = (x - b) * ∫₀¹ ∇f(b + t (x - b)) dt     Gauss-Legendre rule in t
    saliency               a(x) = ∇f(x)                                  signed, not the absolute
    value

Integrated gradients are complete: Σ a(x) = f(x) - f(b). What the rule misses of it is the
completeness delta, which is reported for every draw and case.

References: Sundararajan, Taly and Yan, "Axiomatic attribution for deep networks", ICML 2017 (the 5
% rule for the delta is theirs); Simonyan, Vedaldi and Zisserman, "Deep inside convolutional
networks", 2014. The gradients are taken by captum.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
import xarray as xr
from captum.attr import IntegratedGradients, Saliency
from torch import Tensor
from tqdm.auto import tqdm

from ppl_med.explain.draw_moments import DrawMoments
from ppl_med.explain.function_checks import (
    as_baseline,
    as_case,
    as_target,
    check_choice,
    check_count,
    check_functions,
    check_image,
)

Method = Literal["integrated_gradients", "saliency"]
Output = Literal["logit", "log_probability", "probability"]
DIMS = {4: ("case", "channel", "row", "col"), 5: ("case", "channel", "depth", "row", "col")}


def attribute(
    functions: Sequence[Callable[[Tensor], Tensor]],
    image: Tensor,
    target: int | Tensor,
    *,
    method: Method = "integrated_gradients",
    output: Output = "logit",
    baseline: float | Tensor = 0.0,
    steps: int = 32,
    batch_size: int = 256,
    tolerance: float = 0.05,
    case: Sequence[str] | Sequence[int] | None = None,
    keep_draws: bool = False,
    progress: bool = False,
) -> xr.Dataset:
    """Attribute one class of every case to its pixels, under every posterior draw.

    Draws are visited one after the other and folded into running moments, so memory does not grow
    with their number unless ``keep_draws`` is set. All draws of all chains count the same.

    Args:
        functions: One deterministic callable per posterior draw, image (case, channel, row, col) to
            logits (case, class), as ``ppl_med.inference.functions`` gives them. One logit is the
            log-odds of class 1. Integer attributes ``chain`` and ``draw`` label the result;
            callables with neither become draws 0, 1, ... of chain 0.
        image: Images (case, channel, row, col) or volumes (case, channel, depth, row, col),
            floating point, on the functions' device.
        target: The class to explain, one for all cases or a tensor (case) of them.
        method: ``"saliency"`` is the signed gradient (captum's own default takes its absolute
        value).
        output: What is explained. Softmax ignores a constant added to all logits, so draws of
            ``"logit"`` may differ by a shift that no prediction shows; the other two have no such
            freedom.
        baseline: Where the path of integrated gradients starts: an intensity, or a tensor of the
            image's shape (a blurred image, a healthy reference). Not used by saliency.
        steps: Nodes of the Gauss-Legendre rule. Not used by saliency.
        batch_size: Most images in one forward and backward pass (cases times steps).
        tolerance: A completeness delta beyond this share of ``|f(image) - f(baseline)|`` is counted
            and warned of. Where positive and negative pixels nearly cancel, a tenth of
            Σ |attribution| stands in for that change.
        case: Ids of the cases; 0, 1, ... by default.
        keep_draws: Also return every map, as float32.
        progress: Show a bar over draws.

    Returns:
        With dims (case, channel, [depth,] row, col): ``mean`` and ``sd`` over draws (in the
        output's unit; saliency per unit of intensity), ``probability_positive`` and
        ``probability_negative``, the shares of draws above and below 0. Where the attribution is
        exactly 0 (a pixel equal to the baseline) both are 0. Monte Carlo standard errors for S
        independent draws: sd / sqrt(S) and sqrt(p (1 - p) / S), at most ``probability_mcse_max`` in
        ``attrs``. With one function ``sd`` and both probabilities are NaN and ``attrs["note"]``
        says why.

        With dims (chain, draw, case), for integrated gradients: ``completeness_delta`` =
        Σ attribution - (f(image) - f(baseline)), in the output's unit, and
        ``completeness_delta_relative``, over |f(image) - f(baseline)|; ``attrs`` say how many
        are ``completeness_beyond_tolerance``.

        With ``keep_draws``: ``attribution`` (chain, draw, case, ...). ``target`` (case) names
        the class explained.

    Raises:
        ValueError: If an argument does not fit, a function's output is not finite logits
            (case, class), two equal calls of a function differ (dropout left on, or weights drawn
            inside: a gradient through it explains no one function), a case's output depends on the
            other cases (BatchNorm in training mode), or the output carries no gradient.
        TypeError: If ``image`` or ``baseline`` is not a floating-point tensor, or ``target`` no
            integer.
    """
    check_choice("method", method, Method)
    check_choice("output", output, Output)
    check_count("steps", steps)
    check_count("batch_size", batch_size)
    if not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; it must be above 0")
    check_image(image)
    baseline, target, ids = (
        as_baseline(baseline, image),
        as_target(target, image),
        as_case(case, image),
    )
    index = check_functions(functions, image, baseline, target)

    moments = DrawMoments(tuple(image.shape), len(functions), keep_draws)
    checks = np.full((3, len(functions), len(image)), np.nan)
    size = max(1, batch_size // steps)
    parts = [slice(start, start + size) for start in range(0, len(image), size)]
    bar = tqdm(functions, disable=not progress, desc="attribute", unit="draw")
    for position, function in enumerate(bar):
        forward, maps = _explained(function, output), []
        for part in parts:
            where = image.detach()[part], baseline[part], target[part]
            maps.append(_map(forward, *where, method, steps, batch_size))
            if method == "integrated_gradients":
                checks[:, position, part] = _completeness(forward, maps[-1], *where)
        moments.update(torch.cat(maps).detach().double().cpu().numpy())

    result = moments.dataset(DIMS[image.ndim], index)
    if method == "integrated_gradients":
        completeness = _completeness_dataset(checks, index, tolerance)
        result = xr.merge([result, completeness], combine_attrs="no_conflicts")
    result = result.assign_coords(case=ids).assign(target=("case", target.cpu().numpy()))
    return _described(result, method, output, steps, baseline)


def _map(
    forward: Callable[[Tensor], Tensor],
    image: Tensor,
    baseline: Tensor,
    target: Tensor,
    method: Method,
    steps: int,
    batch_size: int,
) -> Tensor:
    """One draw's attribution of some cases."""
    if method == "saliency":
        return Saliency(forward).attribute(image.clone().requires_grad_(), target, abs=False)
    return IntegratedGradients(forward).attribute(
        image,
        baseline,
        target,
        n_steps=steps,
        method="gausslegendre",
        internal_batch_size=batch_size,
    )


def _explained(function: Callable[[Tensor], Tensor], output: Output) -> Callable[[Tensor], Tensor]:
    """The function in the unit asked for; it gets a copy, which in-place layers may overwrite."""

    def forward(image: Tensor) -> Tensor:
        logits = function(image.clone())
        if logits.shape[1] == 1:  # one logit: the log-odds of class 1, minus those of class 0
            logits = torch.cat([-logits, logits], 1) * (1.0 if output == "logit" else 0.5)
        if output == "log_probability":
            return logits.log_softmax(-1)
        return logits.softmax(-1) if output == "probability" else logits

    return forward


@torch.no_grad()
def _completeness(
    forward: Callable[[Tensor], Tensor],
    attribution: Tensor,
    image: Tensor,
    baseline: Tensor,
    target: Tensor,
) -> np.ndarray:
    """Stack, by case: what Σ attribution misses, the change it should be, and Σ |attribution|."""
    at_image, at_baseline = (
        forward(where).gather(1, target[:, None])[:, 0].double() for where in (image, baseline)
    )
    change = at_image - at_baseline
    delta = attribution.double().flatten(1).sum(1) - change
    return torch.stack([delta, change, attribution.double().abs().flatten(1).sum(1)]).cpu().numpy()


def _completeness_dataset(checks: np.ndarray, index: xr.DataArray, tolerance: float) -> xr.Dataset:
    """Arrange the checks over (chain, draw, case) and warn of what exceeds the tolerance."""
    delta, change, mass = checks[:, index.values]  # each (chain, draw, case)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(delta == 0, 0.0, delta / np.abs(change))
    is_beyond = np.abs(delta) > tolerance * np.maximum(np.abs(change), mass / 10)
    beyond = int(is_beyond.sum())
    if beyond:
        warnings.warn(
            f"integrated gradients miss more than {tolerance:g} of f(image) - f(baseline) in "
            f"{beyond} of {delta.size} (draw, case) pairs, by {np.abs(delta)[is_beyond].max():.3g} "
            "at most; raise steps",
            UserWarning,
            stacklevel=3,
        )
    dims = ("chain", "draw", "case")
    return xr.Dataset(
        {"completeness_delta": (dims, delta), "completeness_delta_relative": (dims, relative)},
        attrs={"completeness_tolerance": tolerance, "completeness_beyond_tolerance": beyond},
    )


def _described(
    result: xr.Dataset, method: Method, output: Output, steps: int, baseline: Tensor
) -> xr.Dataset:
    """Write units and settings into the attributes."""
    unit = "probability" if output == "probability" else "nats"
    if method == "saliency":
        map_unit = f"{unit} per unit of intensity"
    else:
        map_unit = unit
        uniform = bool((baseline == baseline.flatten()[0]).all())
        result.attrs["baseline"] = float(baseline.flatten()[0]) if uniform else "tensor"
        result.attrs["steps"] = steps
    units = {
        "mean": map_unit,
        "sd": map_unit,
        "attribution": map_unit,
        "completeness_delta": unit,
        "completeness_delta_relative": "1",
        "probability_positive": "probability",
        "probability_negative": "probability",
    }
    for name in set(units) & set(result.data_vars):
        result[name].attrs["units"] = units[name]
    result.attrs.update(method=method, output=output)
    return result
