"""Counterfactuals among all images: the smallest change, and the sparse one."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ppl_med.checks import finite, reject
from ppl_med.explain.counterfactuals.measures import as_numpy, described
from ppl_med.explain.counterfactuals.proximal_gradient import sparse_map
from ppl_med.explain.counterfactuals.search import Bounds, Ids, Pair, Search
from ppl_med.explain.counterfactuals.tangent_search import nearest_point
from ppl_med.explain.function_checks import Function, per_case


def minimal_perturbation(
    functions: Sequence[Function],
    image: Tensor,
    target: int | Tensor,
    *,
    margin: float = 1.0,
    bounds: Bounds | None = None,
    steps: int = 30,
    judges: Sequence[Function] | None = None,
    vae: Pair | None = None,
    particles: int = 64,
    seed: int = 0,
    case: Ids | None = None,
) -> xr.Dataset:
    """The smallest change, in L2, that gives the image another class: an adversarial attack.

    Nothing ties it to what images look like. It is here to be compared with, and measured.

    Args:
        functions: As in ``attribute``, with logits (case, class); the weights of all are held.
        image: Images, floating point, on the functions' device.
        target: The class asked for, one for all cases or a tensor (case).
        margin: Log-odds of the target against the strongest other class to reach, in nats, of the
            predictive probability over all draws. 1 is a probability of 0.73 among two classes.
        bounds: Least and largest intensity of the counterfactual; None for any.
        steps: Tangents to follow, each two passes over all draws.
        judges: Draws that judge the result, such as others than those of the search, which it is
            tuned to; the draws of the search if left out.
        vae: A generative model of images given classes, and its guide: gives ``realism``.
        particles: Draws of its bound; see ``realism.log_density``.
        seed: Seed of the bound.
        case: Ids of the cases; 0, 1, ... by default.

    Returns:
        ``image``, ``counterfactual`` and ``change`` (case, channel, [depth,] row, col). With dims
        (chain, draw, case) of the judges: ``flipped``, ``already`` (said the target before) and
        ``probability``. With dims (case): ``present``, ``target``, ``reached``,
        ``flip_probability``, of the draws that did not say the target already, NaN where all did,
        with ``flip_probability_se`` (the binomial one), ``log_odds``, ``l1``, ``l2``, ``linf``,
        ``sparsity``,
        ``high_frequency_share`` (white noise has ``attrs["white_noise_share"]``), and ``realism``
        and ``realism_of_image``, each with ``_se``, where a VAE is given.

    Raises:
        TypeError: If the image is not floating point or the target not an integer.
        ValueError: If an argument does not fit, the target is unknown or present already, or a
            function is not differentiable, random, or mixes cases.
    """
    search = Search(
        functions, image, target, margin, steps, judges, vae, particles, seed, case, bounds
    )
    image = search.image
    size = image[0].numel() ** 0.5
    stride = 0.25 * size * image.flatten(1).std(1).clamp(min=1e-6)
    low, high = search.box()
    found, reached = nearest_point(
        search.log_odds, image, margin, low=low, high=high, stride=stride, steps=steps
    )
    return search.judged(found, reached).assign_attrs(method="minimal perturbation")


def sparse_additive(  # noqa: D417
    functions: Sequence[Function],
    image: Tensor,
    target: int | Tensor,
    *,
    penalty: float | None = None,
    margin: float = 1.0,
    bounds: Bounds | None = None,
    map_bounds: Bounds | None = None,
    steps: int = 60,
    judges: Sequence[Function] | None = None,
    vae: Pair | None = None,
    particles: int = 64,
    seed: int = 0,
    case: Ids | None = None,
) -> xr.Dataset:
    """The sparse map to take away from the image: ``min M(image - a) + penalty ‖a‖₁`` in a box.

    M is ``-log p(target)``, with the predictive probability over all draws. Arguments that are not
    listed are those of ``minimal_perturbation``.

    Args:
        penalty: In nats per unit of intensity. If left out, the largest of 12 penalties, each half
            of the one before, that reaches the margin; above the first the map is 0.
        margin: As in ``minimal_perturbation``; it also chooses the penalty.
        map_bounds: Least and largest value of the map a, 0 among them: ``(0, inf)`` only takes
            intensity away, as of lesions that are bright.
        steps: Proximal steps of each penalty.

    Returns:
        As ``minimal_perturbation``, with ``penalty`` and ``stationarity`` (case).

    Raises:
        TypeError: As ``minimal_perturbation``.
        ValueError: As ``minimal_perturbation``; if the map's bounds leave 0 out, or the penalty is
            negative.
    """
    search = Search(
        functions, image, target, margin, steps, judges, vae, particles, seed, case, bounds
    )
    image = search.image
    least, most = map_bounds or (-np.inf, np.inf)
    if not least <= 0 <= most or least == most:
        reject("map_bounds", "two numbers with 0 between them, such as (0, inf)", map_bounds)
    low_image, high_image = search.box()
    low = (image - high_image).clamp(min=least)
    high = (image - low_image).clamp(max=most)
    smooth = search.loss_of_map()
    if penalty is None:
        slope = smooth.value_and_slope(torch.zeros_like(image))[1].abs().flatten(1).amax(1)
        penalties = [slope / 2**halving for halving in range(1, 13)]
    else:
        penalty = finite("penalty", penalty, 0)
        penalties = [torch.full((len(image),), penalty).to(image)]

    chosen, gap = torch.zeros_like(image), torch.zeros(len(image)).to(image)
    width = torch.zeros_like(gap)
    reached = torch.zeros(len(image), dtype=torch.bool, device=image.device)
    maps = chosen
    for each in penalties:
        maps, residual = sparse_map(smooth, maps, each, low=low, high=high, steps=steps)
        chosen = torch.where(per_case(reached, image), chosen, maps)
        gap, width = torch.where(reached, gap, residual), torch.where(reached, width, each)
        reached = search.predictive.log_odds(image - chosen) >= margin
        if bool(reached.all()):
            break
    result = search.judged(image - chosen, reached)
    figures = {"penalty": ("case", as_numpy(width)), "stationarity": ("case", as_numpy(gap))}
    return described(result.assign(figures)).assign_attrs(method="sparse additive map")
