"""Counterfactuals: what would have to be different in an image for another class.

Three answers, each judged over posterior draws:

    minimal_perturbation    min ‖x' - x‖₂ with x' of the other class: a smallest change exists for
                            any net, and it is an adversarial attack. High frequencies and a low
                            realism say so.
    sparse_additive         min M(x - a) + penalty ‖a‖₁ in a box: what few pixels must lose
    latent_counterfactual   decode(z, other class): the image that a conditional VAE gives the code
                            of this case, as the other class

A posterior has no one decision to flip. The search follows the posterior predictive probability,
the mean over draws; the result says in how many draws the class flips.

References: Szegedy et al., "Intriguing properties of neural networks", ICLR 2014, and Goodfellow,
Shlens and Szegedy, ICLR 2015 (minimal changes are attacks); Dhurandhar et al., "Explanations based
on the missing", NeurIPS 2018 (sparse additive changes); Joshi et al., "Towards realistic individual
recourse", 2019, and Antorán et al., "Getting a CLUE", ICLR 2021 (search in the latent of a VAE).
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ppl_med.explain.attribution.draws import Function
from ppl_med.explain.attribution.score import SPACE
from ppl_med.explain.function_checks import (
    as_case,
    as_target,
    check_choice,
    check_count,
    check_image,
)
from ppl_med.explain.nearest_point import Smooth, nearest_point
from ppl_med.explain.posterior_predictive import PosteriorPredictive, check_draws
from ppl_med.explain.proximal import sparse_map
from ppl_med.explain.realism import log_density

Pair = tuple[Any, Any]
HIGH_FREQUENCY = 0.25  # cycles per pixel: half of what a grid can hold along an axis
UNCHANGED = 0.01  # of a case's intensity range
ATTRS = {
    "image": ("intensity", "image"),
    "counterfactual": ("intensity", "counterfactual image"),
    "change": ("intensity", "counterfactual - image"),
    "present": ("1", "most probable class of the image, over all draws"),
    "target": ("1", "class that was wanted"),
    "reached": ("1", "whether the search reached its margin"),
    "flipped": ("1", "whether the target is the most probable class of the draw"),
    "flip_probability": ("1", "share of draws whose class flips to the target"),
    "flip_probability_se": ("1", "binomial standard error of the flip probability"),
    "probability": ("1", "probability of the target under each draw"),
    "log_odds": ("nat", "log-odds of the target against the strongest other class, over all draws"),
    "l1": ("intensity", "sum of absolute changes"),
    "l2": ("intensity", "Euclidean length of the change"),
    "linf": ("intensity", "largest absolute change"),
    "sparsity": ("1", "share of intensities changed by at most 1 % of the image's range"),
    "high_frequency_share": ("1", "share of the change's power above 0.25 cycles per pixel"),
    "realism": ("nat", "bound on log p(counterfactual, target)"),
    "realism_se": ("nat", "Monte Carlo standard error of the realism"),
    "realism_of_image": ("nat", "bound on log p(image, present class)"),
    "realism_of_image_se": ("nat", "Monte Carlo standard error of the image's realism"),
    "penalty": ("nat / intensity", "penalty on the L1 norm"),
    "stationarity": ("nat / intensity", "largest entry of the proximal gradient; 0 at the optimum"),
    "code": ("1", "latent code that the search starts from"),
    "counterfactual_code": ("1", "latent code of the counterfactual"),
}


def minimal_perturbation(
    functions: Sequence[Function],
    image: Tensor,
    target: int | Tensor,
    *,
    margin: float = 1.0,
    bounds: tuple[float, float] | None = None,
    steps: int = 30,
    judges: Sequence[Function] | None = None,
    vae: Pair | None = None,
    particles: int = 64,
    seed: int = 0,
    case: Sequence[str] | Sequence[int] | None = None,
) -> xr.Dataset:
    """The smallest change, in L2, that gives the image another class: an adversarial attack.

    Nothing ties it to what images look like. It is here to be compared with, and measured.

    Args:
        functions: One deterministic callable per posterior draw, image (case, channel, [depth,]
            row, col) to logits (case, class), as ``ppl_med.inference.functions`` gives them; one
            logit is the log-odds of class 1. The search holds the weights of all draws.
        image: Floating point, on the functions' device.
        target: The class that is wanted, one for all cases or a tensor (case).
        margin: Log-odds of the target against the strongest other class to reach, in nats, of the
            predictive probability over all draws. 1 is a probability of 0.73 of two classes.
        bounds: Least and largest intensity of the counterfactual; None for any.
        steps: Tangents to follow, each two passes over all draws.
        judges: Draws that judge the result, such as others than those of the search, which it is
            tuned to; the draws of the search if left out.
        vae: A generative model of images given classes, and its guide: gives ``realism``.
        particles: Draws of its bound; see ``realism.log_density``.
        seed: Seed of the bound.
        case: Ids of the cases; 0, 1, ... by default.

    Returns:
        ``image``, ``counterfactual`` and ``change`` (case, channel, [depth,] row, col); ``flipped``
        and ``probability`` (chain, draw, case) of the judges. With dims (case): ``present``,
        ``target``, ``reached``, ``flip_probability`` with ``flip_probability_se`` (the binomial
        one, 0 where all draws agree), ``log_odds``, ``l1``, ``l2``, ``linf``, ``sparsity``,
        ``high_frequency_share`` (white noise has ``attrs["white_noise_share"]``), and ``realism``
        and ``realism_of_image``, each with ``_se``, where a VAE is given.

    Raises:
        TypeError: If the image is not floating point or the target no integer.
        ValueError: If an argument does not fit, the target is unknown or present already, or a
            function is not differentiable, random, or mixes cases.
    """
    search = _Search(functions, image, target, margin, bounds, judges, vae, particles, seed, case)
    check_count("steps", steps)
    image = search.image
    size = image[0].numel() ** 0.5
    stride = 0.25 * size * image.flatten(1).std(1).clamp(min=1e-6)
    low, high = search.box()
    found, reached = nearest_point(
        search.log_odds, image, margin, low=low, high=high, stride=stride, steps=steps
    )
    return search.judged(found, reached).assign_attrs(method="minimal perturbation")


def sparse_additive(
    functions: Sequence[Function],
    image: Tensor,
    target: int | Tensor,
    *,
    penalty: float | None = None,
    margin: float = 1.0,
    bounds: tuple[float, float] | None = None,
    map_bounds: tuple[float, float] | None = None,
    steps: int = 60,
    judges: Sequence[Function] | None = None,
    vae: Pair | None = None,
    particles: int = 64,
    seed: int = 0,
    case: Sequence[str] | Sequence[int] | None = None,
) -> xr.Dataset:
    """The sparse map to take away from the image: ``min M(image - a) + penalty ‖a‖₁`` in a box.

    M is ``-log p(target)``, with the predictive probability over all draws.

    Args:
        functions: As in ``minimal_perturbation``.
        image: As in ``minimal_perturbation``.
        target: As in ``minimal_perturbation``.
        penalty: In nats per unit of intensity. If left out, the largest of 12 penalties, each half
            of the one before, that reaches the margin; above the first the map is 0.
        margin: As in ``minimal_perturbation``; says ``reached``, and chooses the penalty.
        bounds: Least and largest intensity of the counterfactual; None for any.
        map_bounds: Least and largest value of the map a, 0 among them: ``(0, inf)`` only takes
            intensity away, as of lesions that are bright.
        steps: Proximal steps of each penalty.
        judges: As in ``minimal_perturbation``.
        vae: As in ``minimal_perturbation``.
        particles: As in ``minimal_perturbation``.
        seed: As in ``minimal_perturbation``.
        case: As in ``minimal_perturbation``.

    Returns:
        As ``minimal_perturbation``, with ``penalty`` and ``stationarity`` (case).

    Raises:
        TypeError: As ``minimal_perturbation``.
        ValueError: As ``minimal_perturbation``; if the map's bounds leave 0 out, or the penalty is
            negative.
    """
    search = _Search(functions, image, target, margin, bounds, judges, vae, particles, seed, case)
    check_count("steps", steps)
    image = search.image
    least, most = map_bounds or (-np.inf, np.inf)
    if not least <= 0 <= most or least == most:
        raise ValueError(f"map_bounds are {map_bounds}; they must hold 0, such as (0, inf)")
    if penalty is not None and not (np.isfinite(penalty) and penalty >= 0):
        raise ValueError(f"penalty is {penalty}; it must be a finite number, 0 or more")
    low_image, high_image = search.box()
    low = (image - high_image).clamp(min=least)
    high = (image - low_image).clamp(max=most)
    smooth = search.loss_of_map()
    if penalty is None:
        slope = smooth.value_and_slope(torch.zeros_like(image))[1].abs().flatten(1).amax(1)
        penalties = [slope / 2**halving for halving in range(1, 13)]
    else:
        penalties = [torch.full((len(image),), float(penalty)).to(image)]

    chosen, gap = torch.zeros_like(image), torch.zeros(len(image)).to(image)
    width = torch.zeros_like(gap)
    reached = torch.zeros(len(image), dtype=torch.bool, device=image.device)
    maps = chosen
    for each in penalties:
        maps, residual = sparse_map(smooth, maps, each, low=low, high=high, steps=steps)
        chosen = torch.where(reached.view(-1, *[1] * (image.dim() - 1)), chosen, maps)
        gap, width = torch.where(reached, gap, residual), torch.where(reached, width, each)
        reached = search.predictive.log_odds(image - chosen) >= margin
        if bool(reached.all()):
            break
    result = search.judged(image - chosen, reached)
    figures = {"penalty": ("case", _numpy(width)), "stationarity": ("case", _numpy(gap))}
    return _described(result.assign(figures)).assign_attrs(method="sparse additive map")


def latent_counterfactual(
    functions: Sequence[Function],
    image: Tensor,
    target: int | Tensor,
    *,
    vae: Pair,
    encode_as: Literal["present", "target"] = "present",
    search: bool = True,
    keep_residual: bool = False,
    margin: float = 1.0,
    steps: int = 30,
    judges: Sequence[Function] | None = None,
    particles: int = 64,
    seed: int = 0,
    case: Sequence[str] | Sequence[int] | None = None,
) -> xr.Dataset:
    """The image that a conditional VAE generates from the case's code, as another class.

    The code is the mean of q(z | image, present class). ``decode(code, target)`` keeps what the
    code holds of the case and changes the class. Where that does not reach the margin, the nearest
    code that does is searched, in units of the code's prior.

    A code must mean the same in both classes, and no likelihood demands that: a VAE of two classes
    with little in common may pair their images at will. Look at what it keeps, or take
    ``encode_as="target"``: the code as which the image is most probable in the target class.

    Args:
        functions: As in ``minimal_perturbation``.
        image: As in ``minimal_perturbation``.
        target: As in ``minimal_perturbation``.
        vae: A model with ``decode(z, label)``, such as ``ppl_med.models.ConditionalVAE``, and its
            guide, whose ``encoder(image, label)`` is q(z), such as ``ConditionalNormal``; of the
            same classes, trained.
        encode_as: Class under which the image is encoded: ``"present"`` asks what this case would
            be as the target, ``"target"`` for the nearest image of the target.
        search: Whether to move the code where the class does not flip by itself.
        keep_residual: Add what the VAE does not hold of the image, ``image - decode(code,
            present)``: a smaller change, whose noise is the image's own.
        margin: As in ``minimal_perturbation``.
        steps: As in ``minimal_perturbation``.
        judges: As in ``minimal_perturbation``.
        particles: As in ``minimal_perturbation``.
        seed: As in ``minimal_perturbation``.
        case: As in ``minimal_perturbation``.

    Returns:
        As ``minimal_perturbation``, with ``code`` and ``counterfactual_code`` (case, latent).

    Raises:
        TypeError: As ``minimal_perturbation``, and if the pair is no conditional VAE.
        ValueError: As ``minimal_perturbation``; if decoded images have another shape.
    """
    _check_vae(vae)
    check_choice("encode_as", encode_as, Literal["present", "target"])
    checked = _Search(functions, image, target, margin, None, judges, vae, particles, seed, case)
    check_count("steps", steps)
    generator = _Generator(vae, checked, encode_as == "target", keep_residual)
    code, found = generator.code, generator.code
    reached = checked.predictive.log_odds(generator.image(code)) >= margin
    if search and not bool(reached.all()):
        edge = torch.full_like(code, torch.inf)
        stride = torch.ones(len(code)).to(code)
        found, reached = nearest_point(
            generator.log_odds, code, margin, low=-edge, high=edge, stride=stride, steps=steps
        )
    result = checked.judged(generator.image(found), reached)
    codes = {
        "code": (("case", "latent"), _numpy(code)),
        "counterfactual_code": (("case", "latent"), _numpy(found)),
    }
    result = _described(result.assign(codes))
    return result.assign_attrs(method="latent", keep_residual=int(keep_residual))


class _Search:
    """What the three share: checked arguments, the predictive probability, and the judgement."""

    def __init__(
        self,
        functions: Sequence[Function],
        image: Tensor,
        target: int | Tensor,
        margin: float,
        bounds: tuple[float, float] | None,
        judges: Sequence[Function] | None,
        vae: Pair | None,
        particles: int,
        seed: int,
        case: Sequence[str] | Sequence[int] | None,
    ) -> None:
        check_image(image)
        check_count("particles", particles)
        if not (np.isfinite(margin) and margin >= 1e-3):
            raise ValueError(f"margin is {margin}; it must be a finite number of nats from 0.001")
        self.image, self.target = image.detach(), as_target(target, image)
        self.bounds = bounds
        _check_bounds(bounds, self.image)
        self.ids = as_case(case, image)
        index = check_draws(functions, self.image, self.target)
        self.judge_index = index if judges is None else check_draws(judges, image, self.target)
        self.predictive = PosteriorPredictive(functions, self.target)
        given = None if judges is None else PosteriorPredictive(judges, self.target)
        self.judge = given or self.predictive
        self.vae, self.particles, self.seed = vae, particles, seed
        self.present = self.predictive.log_probs(self.image).logsumexp(0).argmax(1)
        if bool((self.present == self.target).any()):
            already = self.ids[_numpy(self.present == self.target)].tolist()
            raise ValueError(
                f"target is the present class of cases {already[:8]}; ask for another class, or "
                "leave those cases out"
            )

    @property
    def log_odds(self) -> Smooth:
        """Of the target, as a function of the image."""
        return Smooth(self.predictive.log_odds, self.predictive.log_odds_and_slope)

    def loss_of_map(self) -> Smooth:
        """-log p(target) as a function of what is taken away from the image."""

        def value_and_slope(maps: Tensor) -> tuple[Tensor, Tensor]:
            value, slope = self.predictive.log_loss_and_slope(self.image - maps)
            return value, -slope

        return Smooth(lambda maps: self.predictive.log_loss(self.image - maps), value_and_slope)

    def box(self) -> tuple[Tensor, Tensor]:
        """Least and largest image."""
        low, high = self.bounds or (-np.inf, np.inf)
        return torch.full_like(self.image, low), torch.full_like(self.image, high)

    def judged(self, found: Tensor, reached: Tensor) -> xr.Dataset:
        """Name the images and take every measure."""
        found = found.detach()
        log_probs = self.judge.log_probs(found)
        flipped = _numpy(log_probs.argmax(2) == self.target)
        at = self.target.view(1, -1, 1).expand(len(log_probs), -1, 1)
        probability = _numpy(log_probs.gather(2, at)[:, :, 0].exp())
        share = flipped.mean(0)
        dims, draws = ("case", "channel", *SPACE[self.image.ndim]), ("chain", "draw", "case")
        places = self.judge_index.values
        change = found - self.image
        variables: dict[str, Any] = {
            "image": (dims, _numpy(self.image)),
            "counterfactual": (dims, _numpy(found)),
            "change": (dims, _numpy(change)),
            "flipped": (draws, flipped[places]),
            "probability": (draws, probability[places]),
        }
        figures = {
            "present": _numpy(self.present),
            "target": _numpy(self.target),
            "reached": _numpy(reached),
            "flip_probability": share,
            "flip_probability_se": np.sqrt(share * (1 - share) / len(flipped)),
            "log_odds": _numpy(self.judge.log_odds(found)),
            **_distances(change, self.image),
            **self._realism(found),
        }
        variables |= {name: ("case", values) for name, values in figures.items()}
        index = self.judge_index
        coords = {"case": self.ids, "chain": index["chain"], "draw": index["draw"]}
        result = xr.Dataset(variables, coords=coords)
        noise = float(_is_high(change.shape[2:]).mean())
        return _described(result).assign_attrs(white_noise_share=noise, num_draws=len(flipped))

    def _realism(self, found: Tensor) -> dict[str, np.ndarray]:
        if self.vae is None:
            return {}
        result: dict[str, np.ndarray] = {}
        pairs = {"realism": (found, self.target), "realism_of_image": (self.image, self.present)}
        for name, (image, label) in pairs.items():
            settings = {"particles": self.particles, "seed": self.seed}
            value, error = log_density(self.vae[0], self.vae[1], image, label, **settings)
            result |= {name: _numpy(value), f"{name}_se": _numpy(error)}
        return result


class _Generator:
    """Images of codes, under a fixed target."""

    def __init__(self, vae: Pair, search: _Search, as_target: bool, keep_residual: bool) -> None:
        self.model, self.search = vae[0], search
        for program in vae:
            program.eval()
        with torch.no_grad():
            own_code = vae[1].encoder(search.image, search.present).mean
            own = self.model.decode(own_code, search.present)
            as_other = vae[1].encoder(search.image, search.target).mean
            self.code = as_other if as_target else own_code
        if own.shape != search.image.shape:
            raise ValueError(
                f"vae decodes images {tuple(own.shape)} for images {tuple(search.image.shape)}; "
                "give the model that was trained on such images"
            )
        self.residual = search.image - own if keep_residual else torch.zeros_like(own)

    @torch.no_grad()
    def image(self, code: Tensor) -> Tensor:
        """The counterfactual of a code."""
        return self.model.decode(code, self.search.target) + self.residual

    @property
    def log_odds(self) -> Smooth:
        """Of the target, as a function of the code."""
        predictive = self.search.predictive

        def value_and_slope(code: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                code = code.detach().clone().requires_grad_()
                image = self.model.decode(code, self.search.target) + self.residual
            value, slope = predictive.log_odds_and_slope(image.detach())
            return value, torch.autograd.grad(image, code, slope)[0]

        return Smooth(lambda code: predictive.log_odds(self.image(code)), value_and_slope)


def _check_vae(vae: Pair) -> None:
    if not hasattr(vae[0], "decode") or not hasattr(vae[1], "encoder"):
        names = [type(program).__name__ for program in vae]
        raise TypeError(
            f"vae is {names}; give a model with decode(z, label) and a guide with "
            "encoder(image, label), such as ConditionalVAE and ConditionalNormal"
        )


def _check_bounds(bounds: tuple[float, float] | None, image: Tensor) -> None:
    if bounds is None:
        return
    low, high = bounds
    if not low < high or float(image.min()) < low or float(image.max()) > high:
        raise ValueError(
            f"bounds are {bounds}, the intensities run from {float(image.min()):.4g} to "
            f"{float(image.max()):.4g}; bounds must rise and hold the image"
        )


def _distances(change: Tensor, image: Tensor) -> dict[str, np.ndarray]:
    flat, own = change.flatten(1), image.flatten(1)
    span = (own.amax(1) - own.amin(1))[:, None]
    space = tuple(range(2, change.dim()))
    power = torch.fft.fftn(change.double(), dim=space).abs().square().sum(1).cpu().numpy()
    whole = power.reshape(len(power), -1).sum(1)
    high = (power * _is_high(change.shape[2:])).reshape(len(power), -1).sum(1)
    return {
        "l1": _numpy(flat.abs().sum(1)),
        "l2": _numpy(flat.norm(dim=1)),
        "linf": _numpy(flat.abs().amax(1)),
        "sparsity": _numpy((flat.abs() <= UNCHANGED * span).double().mean(1)),
        "high_frequency_share": high / np.where(whole > 0, whole, np.nan),
    }


def _is_high(shape: Sequence[int]) -> np.ndarray:
    """Which entries of a spectrum are high frequencies."""
    axes = np.meshgrid(*[np.fft.fftfreq(size) for size in shape], indexing="ij")
    return np.sqrt(sum(axis**2 for axis in axes)) > HIGH_FREQUENCY


def _described(result: xr.Dataset) -> xr.Dataset:
    for name in set(result.data_vars) & ATTRS.keys():
        units, long_name = ATTRS[str(name)]
        result[name].attrs.update(units=units, long_name=long_name)
    return result


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()
