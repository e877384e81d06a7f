"""ODIN: is an image unlike those of training? A step towards confidence widens the gap.

    x' = x + epsilon sign(d/dx S(x)),        score = a constant - S(x')

S is the confidence, by default of the classes (Liang et al.), with a temperature T and score 1 - S:

    S = max_c p_T,        p_T = mean over draws of softmax(z / T)

An image from training gains more confidence by such a step than one from elsewhere. At T = 1 and
epsilon = 0 the score is that of ``analysis.ood``, "mcp". With a large temperature all p_T lie
close to 1 / K, so everything is computed in float64. (Sign and logarithm do not change the step:
the gradient taken is that of log S.)

With ``confidence="output"`` it is Generalized ODIN (Hsu et al.), for functions whose largest output
is high on familiar images, such as ``functions(model.score_program("dividend"), guide)`` of a
``GeneralizedODINClassifier``; the score is -S, without the step "generalized_odin" of
``analysis.ood``:

    S = mean over draws of max_c f_c

`choose_epsilon` takes the step that raises the confidence of in-distribution images most, without
any image from elsewhere (Hsu et al.).

Sources: Liang, Li and Srikant, ICLR 2018, arXiv:1706.02690; Hsu et al., CVPR 2020,
arXiv:2002.11297. Departure: the step has no factor per channel (theirs divides by the sd of each
colour); give images in the units in which the network reads them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

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
    confidence: str = "probability",
    case: Sequence[str] | Sequence[int] | None = None,
) -> xr.Dataset:
    """Score images by ODIN.

    Args:
        functions: One function of images (case, channel, [depth,] row, col) per posterior draw, as
            ``ppl_med.inference.functions`` gives them, with logits (case, class); with
            ``confidence="output"``, with outputs (case, ...) that are high on familiar images.
        image: Images, floating point, on the functions' device.
        temperature: T, by which logits are divided; ``confidence="output"`` has none.
        epsilon: Length of the step, in the units of the image; 0 takes none.
        gradient: "predictive", one step for all draws along the gradient of the mean over draws;
            or "draw", where every draw takes its own step.
        confidence: "probability", the largest of the classes, or "output", the largest output.
        case: Ids of the cases; 0, 1, ... by default.

    Returns:
        Dataset as of ``analysis.ood.score``: ``score`` (case), larger is more unlike training;
        ``score_per_draw`` (chain, draw, case), that of each draw, and its sd ``score_sd``.
        ``ood.with_pvalues`` adds p-values against in-distribution images.

    Raises:
        TypeError, ValueError: Malformed images or functions, or a setting out of range.
    """
    of = _confidence(confidence, temperature)
    epsilon = finite("epsilon", epsilon, least=0)
    choice("gradient", gradient, ("predictive", "draw"))
    check_image(image)
    ids = as_case(case, image)
    image = image.detach()
    place = check_draws(functions, image, torch.zeros(len(image), dtype=torch.int64))
    moved = [image] * len(functions)
    if epsilon > 0 and gradient == "predictive":
        moved = [image + epsilon * of.slope(list(functions), image).sign()] * len(functions)
    elif epsilon > 0:
        moved = [image + epsilon * of.slope([one], image).sign() for one in functions]
    together, single = of.values(functions, moved)
    per_draw = xr.DataArray(
        (of.full - single).cpu().numpy()[place.values],
        {**place.coords, "case": ids},
        (*SAMPLES, "case"),
    )
    return as_found(
        (of.full - together).cpu().numpy(),
        per_draw,
        score="odin",
        **of.attrs,
        epsilon=epsilon,
        gradient=gradient,
    )


def choose_epsilon(
    functions: Sequence[Function],
    image: Tensor,
    *,
    grid: Sequence[float] = GRID,
    temperature: float = 1000.0,
    confidence: str = "probability",
) -> xr.DataArray:
    """The mean confidence of in-distribution images after each step; the best is an attribute.

    Args:
        functions: As for `odin`.
        image: In-distribution images that the network was not trained on.
        grid: Steps to try, in the units of the image.
        temperature: T.
        confidence: As for `odin`.

    Returns:
        Mean over cases of the confidence (epsilon), with its standard error over cases in the
        coordinate ``se`` and the step with the largest mean in ``attrs["best"]``.

    Raises:
        TypeError, ValueError: As for `odin`; an empty grid.
    """
    steps = [finite("grid", one, least=0) for one in grid]
    if not steps:
        reject("grid", "a list of steps such as (0.0, 0.01)", grid)
    of = _confidence(confidence, temperature)
    found = [
        odin(functions, image, temperature=temperature, epsilon=one, confidence=confidence)["score"]
        for one in steps
    ]
    mean = [of.full - float(one.mean()) for one in found]
    error = [
        float(one.std(ddof=1)) / len(one) ** 0.5 if len(one) > 1 else math.nan for one in found
    ]
    best = steps[max(range(len(steps)), key=mean.__getitem__)]
    return xr.DataArray(
        mean,
        {"epsilon": steps, "se": ("epsilon", error)},
        ("epsilon",),
        attrs={"units": confidence, "best": best, **of.attrs},
    )


class _Probability:
    """The largest of the classes' mean probabilities at a temperature."""

    full = 1.0  # confidence

    def __init__(self, temperature: float) -> None:
        self.temperature = positive("temperature", temperature)
        self.attrs: dict[str, Any] = {"temperature": self.temperature}

    def values(
        self, functions: Sequence[Function], images: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Confidence of all draws together (case,), and of each (draw, case), on its images."""
        pairs = zip(functions, images, strict=True)
        probs = torch.stack([self._log_probs(one, image).exp() for one, image in pairs])
        return probs.mean(0).amax(1), probs.amax(2)

    def slope(self, functions: Sequence[Function], image: Tensor) -> Tensor:
        """Gradient of the log confidence, one draw in memory at a time."""
        log_mean = torch.stack([self._log_probs(one, image) for one in functions])
        log_mean = log_mean.logsumexp(0) - math.log(len(functions))
        value, top = log_mean.max(1)
        slope = torch.zeros_like(image)
        for function in functions:
            with torch.enable_grad():
                point = image.clone().requires_grad_()
                logits = class_logits(function(point)).double() / self.temperature
                chosen = logits.log_softmax(1).gather(1, top[:, None])[:, 0]
                slope += torch.autograd.grad((chosen - value).exp().sum(), point)[0]
        return slope

    def _log_probs(self, function: Function, image: Tensor) -> Tensor:
        with torch.no_grad():
            return (class_logits(function(image)).double() / self.temperature).log_softmax(1)


class _Output:
    """The mean over draws of the largest output."""

    full = 0.0
    attrs: Mapping[str, Any] = {"confidence": "output"}

    def values(
        self, functions: Sequence[Function], images: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """As of ``_Probability``."""
        with torch.no_grad():
            pairs = zip(functions, images, strict=True)
            single = torch.stack([one(image).double().amax(1) for one, image in pairs])
        return single.mean(0), single

    def slope(self, functions: Sequence[Function], image: Tensor) -> Tensor:
        """Gradient of the confidence, times the number of draws."""
        slope = torch.zeros_like(image)
        for function in functions:
            with torch.enable_grad():
                point = image.clone().requires_grad_()
                largest = function(point).double().amax(1).sum()
                slope += torch.autograd.grad(largest, point)[0]
        return slope


def _confidence(name: str, temperature: float) -> _Probability | _Output:
    choice("confidence", name, ("probability", "output"))
    return _Probability(temperature) if name == "probability" else _Output()
