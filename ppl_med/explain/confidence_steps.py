"""ODIN: is an image unlike those of training? A step towards confidence widens the gap.

    p_T = mean over draws of softmax(z / T)
    x' = x - epsilon sign(d/dx (-log max_c p_T(c | x)))
    score = 1 - max_c p_T(c | x')

An image from training gains more confidence by such a step than one from elsewhere. At T = 1 and
epsilon = 0 the score is that of ``analysis.ood``, "mcp". With a large temperature all p_T lie
close to 1 / K, so everything is computed in float64.

`choose_epsilon` takes the step that raises the confidence of in-distribution images most, without
any image from elsewhere (Generalized ODIN).

Sources: Liang, Li and Srikant, ICLR 2018, arXiv:1706.02690; Hsu et al., CVPR 2020,
arXiv:2002.11297. Departure: the step has no factor per channel (theirs divides by the sd of each
colour); give images in the units in which the network reads them.
"""

import math
from collections.abc import Sequence

import torch
import xarray as xr
from torch import Tensor

from ppl_med.analysis.ood.found import as_found
from ppl_med.axes import SAMPLES
from ppl_med.checks import choice, finite, positive, reject
from ppl_med.explain.attribution.score import class_logits
from ppl_med.explain.counterfactuals.posterior_predictive import check_draws
from ppl_med.explain.function_checks import Function, as_case, check_image

GRID = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08)


def odin(
    functions: Sequence[Function],
    image: Tensor,
    *,
    temperature: float = 1000.0,
    epsilon: float = 0.0014,
    gradient: str = "predictive",
    case: Sequence[str] | Sequence[int] | None = None,
) -> xr.Dataset:
    """Score images by ODIN.

    Args:
        functions: One function of images (case, channel, [depth,] row, col) per posterior draw, as
            ``ppl_med.inference.functions`` gives them, with logits (case, class).
        image: Images, floating point, on the functions' device.
        temperature: T, by which logits are divided.
        epsilon: Length of the step, in the units of the image; 0 takes none.
        gradient: "predictive", one step for all draws along the gradient of the mean probability;
            or "draw", where every draw takes its own step.
        case: Ids of the cases; 0, 1, ... by default.

    Returns:
        Dataset as of ``analysis.ood.score``: ``score`` (case), larger is more unlike training;
        ``score_per_draw`` (chain, draw, case), 1 - max of each draw, and its sd ``score_sd``.
        ``ood.with_pvalues`` adds p-values against in-distribution images.

    Raises:
        TypeError, ValueError: Malformed images or functions, or a setting out of range.
    """
    temperature = positive("temperature", temperature)
    epsilon = finite("epsilon", epsilon, least=0)
    choice("gradient", gradient, ("predictive", "draw"))
    check_image(image)
    ids = as_case(case, image)
    image = image.detach()
    place = check_draws(functions, image, torch.zeros(len(image), dtype=torch.int64))
    moved = [image] * len(functions)
    if epsilon > 0 and gradient == "predictive":
        moved = [image + epsilon * _direction(list(functions), image, temperature)] * len(functions)
    elif epsilon > 0:
        moved = [image + epsilon * _direction([one], image, temperature) for one in functions]
    probs = torch.stack(
        [_log_probs(one, x, temperature).exp() for one, x in zip(functions, moved, strict=True)]
    )
    single = 1 - probs.amax(2)
    per_draw = xr.DataArray(
        single.cpu().numpy()[place.values],
        {**place.coords, "case": ids},
        (*SAMPLES, "case"),
    )
    return as_found(
        (1 - probs.mean(0).amax(1)).cpu().numpy(),
        per_draw,
        score="odin",
        temperature=temperature,
        epsilon=epsilon,
        gradient=gradient,
    )


def choose_epsilon(
    functions: Sequence[Function],
    image: Tensor,
    *,
    grid: Sequence[float] = GRID,
    temperature: float = 1000.0,
) -> xr.DataArray:
    """The mean confidence of in-distribution images after each step; the best is an attribute.

    Args:
        functions: As for `odin`.
        image: In-distribution images that the network was not trained on.
        grid: Steps to try, in the units of the image.
        temperature: T.

    Returns:
        Mean over cases of max_c p_T (epsilon), with its standard error over cases in the coordinate
        ``se`` and the step with the largest mean in ``attrs["best"]``.

    Raises:
        TypeError, ValueError: As for `odin`; an empty grid.
    """
    steps = [finite("grid", one, least=0) for one in grid]
    if not steps:
        reject("grid", "a list of steps such as (0.0, 0.01)", grid)
    found = [odin(functions, image, temperature=temperature, epsilon=one)["score"] for one in steps]
    mean = [1 - float(one.mean()) for one in found]
    error = [
        float(one.std(ddof=1)) / len(one) ** 0.5 if len(one) > 1 else math.nan for one in found
    ]
    best = steps[max(range(len(steps)), key=mean.__getitem__)]
    return xr.DataArray(
        mean,
        {"epsilon": steps, "se": ("epsilon", error)},
        ("epsilon",),
        attrs={"units": "probability", "best": best, "temperature": temperature},
    )


def _log_probs(function: Function, image: Tensor, temperature: float) -> Tensor:
    with torch.no_grad():
        return (class_logits(function(image)).double() / temperature).log_softmax(1)


def _direction(functions: Sequence[Function], image: Tensor, temperature: float) -> Tensor:
    """Sign of the gradient of log max_c of the mean probability, one draw in memory at a time."""
    log_mean = torch.stack([_log_probs(one, image, temperature) for one in functions])
    log_mean = log_mean.logsumexp(0) - math.log(len(functions))
    value, top = log_mean.max(1)
    slope = torch.zeros_like(image)
    for function in functions:
        with torch.enable_grad():
            point = image.clone().requires_grad_()
            logits = class_logits(function(point)).double() / temperature
            chosen = logits.log_softmax(1).gather(1, top[:, None])[:, 0]
            slope += torch.autograd.grad((chosen - value).exp().sum(), point)[0]
    return slope.sign()
