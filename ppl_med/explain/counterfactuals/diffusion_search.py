"""Counterfactuals through a diffusion chain: the image's code, generated anew towards a class."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro.poutine as poutine
import torch
import xarray as xr
from torch import Tensor

from ppl_med.checks import finite, reject, whole
from ppl_med.explain.counterfactuals.diffusion_steps import (
    Denoiser,
    generate,
    generate_towards,
    invert,
)
from ppl_med.explain.counterfactuals.measures import as_numpy, described
from ppl_med.explain.counterfactuals.posterior_predictive import PosteriorPredictive, check_draws
from ppl_med.explain.counterfactuals.search import Ids, Pair, Search
from ppl_med.explain.counterfactuals.second_judge import NOT_JUDGED, second_opinion
from ppl_med.explain.function_checks import Function, map_dims
from ppl_med.programs.isolation import undisturbed
from ppl_med.programs.rng import seed_torch

SCALES = tuple(2.0**doubling for doubling in range(8))
NO_LAW = "none: a guided image follows the law of no model, so its density and spread say nothing"


def diffusion_counterfactual(  # noqa: D417
    functions: Sequence[Function],
    image: Tensor,
    target: int | Tensor,
    *,
    diffusion: Pair,
    scale: float | None = None,
    depth: float = 0.5,
    keep_residual: bool = False,
    margin: float = 1.0,
    steps: int = 25,
    corrections: int = 0,
    second: Sequence[Function] | None = None,
    judges: Sequence[Function] | None = None,
    vae: Pair | None = None,
    particles: int = 64,
    seed: int = 0,
    case: Ids | None = None,
) -> xr.Dataset:
    """What a diffusion chain makes of the image on the way to the target class.

    The image goes up the chain to ``depth``, without random numbers, and down again, pulled at
    every step by the slope of log p(target), of the mean over all draws, at the net's mean of the
    image. What the chain does to an image with no pull at all is in the result: ``reconstruction``
    and its error ``round_trip``. A change of that size explains nothing.

    Arguments that are not listed are those of ``minimal_perturbation``.

    Args:
        diffusion: A model of images by diffusion, such as ``ppl_med.models.ImageDiffusion``, and
            its guide, trained; one draw of the guide's weights serves all images and steps.
        scale: Weight of the classifier against the diffusion, without unit; 1 is Bayes' rule. If
            left out, the least of 1, 2, 4, ..., 128 that reaches the margin, case by case.
        depth: Share of the chain to go up, above 0 to 1: the more, the more may change.
        keep_residual: Add what the way up and down alone loses of the image, ``image -
            reconstruction``: then 0 pull is no change.
        steps: Steps of each way.
        corrections: Fixed-point iterations of each step up, which lower the round-trip error at
            the price of one more pass each.
        second: Functions of another network, trained apart, which judge whether the class flips
            there too; see ``second_opinion``. Without them the result says that it was not judged.
        seed: Seed of the draw of the diffusion's weights, and of the realism's bound.

    Returns:
        As ``minimal_perturbation``, with ``code`` and ``reconstruction``, dims as the image, and
        ``round_trip`` (case), the root mean square of ``image - reconstruction``, in intensities;
        ``scale`` (case); where ``second`` is given, what ``second_opinion`` adds. In ``attrs``:
        ``law`` and ``second_judge``.

    Raises:
        TypeError: As ``minimal_perturbation``, and if the pair is no diffusion of images.
        ValueError: As ``minimal_perturbation``; if an argument is out of range, or the images do
            not fit the diffusion.
    """
    search = Search(functions, image, target, margin, steps, judges, vae, particles, seed, case)
    scales = SCALES if scale is None else (finite("scale", scale, 0),)
    whole("corrections", corrections, 0)
    if second is not None:
        check_draws(second, search.image, search.target)
    with _chain(diffusion, search.image, finite("depth", depth, 0, 1), steps, seed) as denoiser:
        code = invert(denoiser, search.image, corrections)
        reconstruction = generate(denoiser, code)
        found, used = _found(search, denoiser, code, scales, margin, keep_residual, reconstruction)
    for name, values in {"round trip": reconstruction, "guided chain": found}.items():
        if not bool(values.isfinite().all()):
            raise ValueError(
                f"the {name} gave images that are not finite; train the diffusion further, or "
                "give a smaller scale or depth"
            )
    result = search.judged(found, search.predictive.log_odds(found) >= margin)
    dims, lost = map_dims(search.image), search.image - reconstruction
    result = result.assign(
        code=(dims, as_numpy(code)),
        reconstruction=(dims, as_numpy(reconstruction)),
        round_trip=("case", as_numpy(lost.flatten(1).square().mean(1).sqrt())),
        scale=("case", as_numpy(used)),
    )
    result = described(result).assign_attrs(
        method="diffusion",
        depth=depth,
        steps=steps,
        corrections=corrections,
        keep_residual=int(keep_residual),
        law=NO_LAW,
        second_judge=NOT_JUDGED,
    )
    return result if second is None else second_opinion(result, second, device=image.device)


def _found(
    search: Search,
    denoiser: Denoiser,
    code: Tensor,
    scales: Sequence[float],
    margin: float,
    keep_residual: bool,
    reconstruction: Tensor,
) -> tuple[Tensor, Tensor]:
    """The counterfactuals of the least scale that reaches the margin, and that scale (case,)."""
    residual = search.image - reconstruction if keep_residual else torch.zeros_like(code)
    found, used = reconstruction + residual, torch.zeros(len(code)).to(code)
    left = torch.ones(len(code), dtype=torch.bool, device=code.device)
    for scale in scales:
        own = PosteriorPredictive(search.predictive.functions, search.target[left])
        extra = residual[left]

        def pull(
            mean: Tensor, own: PosteriorPredictive = own, extra: Tensor = extra
        ) -> tuple[Tensor, Tensor]:
            return own.log_loss_and_slope(mean + extra)

        found[left] = generate_towards(denoiser, code[left], pull, scale) + extra
        used[left] = scale
        left = search.predictive.log_odds(found) < margin
        if not bool(left.any()):
            break
    return found, used


@contextmanager
def _chain(
    diffusion: Pair, image: Tensor, depth: float, steps: int, seed: int
) -> Iterator[Denoiser]:
    """The chain of a pair under one draw of its weights; programs stay as they were."""
    model, guide = diffusion
    missing = [name for name in ("mean_image", "network", "noising") if not hasattr(model, name)]
    if missing:
        raise TypeError(
            "diffusion must be a model of images by diffusion and its guide, such as "
            f"ImageDiffusion with Guides(PointEstimate(model), Noising(model.noising, "
            f"observation='image')); {type(model).__name__} has no {', '.join(missing)}"
        )
    if hasattr(guide, "members"):
        raise TypeError(
            "diffusion must be one pair, and its guide is an ensemble; give one of its members"
        )
    process = model.noising
    top = round(depth * process.num_steps)
    if not 1 <= steps <= top:
        reject(
            "steps",
            f"from 1 to {max(top, 1)}, those of the chain up to the depth",
            steps,
            fix="take fewer steps, a larger depth, or train a longer chain",
        )
    with undisturbed(model, guide):
        seed_torch(seed)
        tracer: Any = poutine.trace(guide)
        trace = tracer.get_trace(image[:1])
        net: Callable[..., Any] = poutine.replay(model.network.drawn, trace=trace)(len(image))
        mean = lambda state, step: model.mean_image(net, state, step)  # noqa: E731
        tried = mean(image, 1)
        if tried.shape != image.shape:
            raise ValueError(
                f"diffusion gives images {tuple(tried.shape)} for images {tuple(image.shape)}; "
                "give the model that was trained on such images"
            )
        yield Denoiser(mean, process.kept, process.grid(steps, start=top))
