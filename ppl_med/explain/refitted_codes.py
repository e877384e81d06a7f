"""Likelihood regret: what a VAE's encoder loses on an image, against the best code for that image.

    regret(x) = max over q of L(x; q) - L(x; q(z | x))        nats, 0 or more
    L(x; q)   = E_q [ log p(x, z) - log q(z) ]

On images like those of training the encoder is near the best; on others it is not, while their
density itself may be high. q runs over diagonal normals, the family of the encoder, so that nothing
is gained by refitting its network instead: one image has one mean and one scale of the code.

The expectation is taken over the same points for every image and step, drawn in pairs of opposite
sign and turned so that their covariance is exactly 1. It is exact where log p(x, z) is quadratic in
z, as of a linear decoder. As the start is among the candidates, a regret is never negative; the
maximum over points that are drawn once makes it slightly too large, less so the more points.

Source: Xiao, Yan and Amit, NeurIPS 2020, arXiv:2003.02977. Departure: theirs refits the weights of
the encoder by 1 draw a step; the optimum is the same.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import torch
import xarray as xr
from torch import Tensor
from torch.distributions import Independent, Normal

from ppl_med.analysis.ood.found import as_found
from ppl_med.axes import SAMPLES
from ppl_med.checks import positive, reject, whole
from ppl_med.explain.function_checks import as_case, check_image
from ppl_med.programs.isolation import preserved_state
from ppl_med.programs.parameters import set_mode
from ppl_med.programs.sites import sample_sites, stated_sites

_POINTS = 32


def likelihood_regret(
    model: Any,
    guide: Any,
    image: Tensor,
    *,
    steps: int = 100,
    learning_rate: float = 0.1,
    particles: int | None = None,
    batch_size: int = 128,
    seed: int = 0,
    case: Sequence[str] | Sequence[int] | None = None,
) -> xr.Dataset:
    """Score images by the regret of the encoder.

    Args:
        model: A model of images, such as ``ppl_med.models.ImageVAE``, with one latent code per
            case.
        guide: Its guide, trained, a normal with independent entries; or an ``Ensemble`` of such,
            whose members become chains.
        image: Images (case, channel, [depth,] row, col), floating point, on the model's device.
        steps: Steps of Adam on mean and log-scale of every code.
        learning_rate: Of the first step, in units of the code and of its log-scale; it falls to 0
            along a cosine.
        particles: Points of the expectation, even, at least twice the size of the code; by default
            32 or as many.
        batch_size: Images refitted together.
        seed: Seed of the points.
        case: Ids of the cases; 0, 1, ... by default.

    Returns:
        Dataset as of ``analysis.ood.score``: ``score`` (case), the mean of ``score_per_draw``
        (chain, draw, case), one draw a chain, nats; ``elbo`` and ``elbo_refitted`` (chain, draw,
        case), nats. ``ood.with_pvalues`` adds p-values against in-distribution images.

    Raises:
        TypeError, ValueError: Malformed images, a setting out of range, or programs that are no
            such pair.
    """
    steps, batch_size = whole("steps", steps), whole("batch_size", batch_size)
    learning_rate = positive("learning_rate", learning_rate)
    seed = whole("seed", seed, least=0)
    if particles is not None and whole("particles", particles, least=2) % 2:
        reject("particles", "even: points come in pairs of opposite sign", particles)
    check_image(image)
    ids = as_case(case, image)
    pairs = list(getattr(guide, "members", [(model, guide)]))
    found = []
    for own_model, own_guide in pairs:
        with preserved_state(own_model, own_guide), pyro.validation_enabled(False):
            set_mode((own_model, own_guide), False)
            parts = []
            for part in image.detach().split(batch_size):
                codes = _Codes(own_model, own_guide, part, particles, seed)
                parts.append(codes.refit(steps, learning_rate))
        found.append(torch.cat(parts, dim=1).cpu().numpy())
    coords = {"chain": np.arange(len(pairs)), "draw": [0], "case": ids}
    before, after = (
        xr.DataArray(values[:, None], coords, (*SAMPLES, "case"))
        for values in np.stack(found, axis=1)
    )
    regret = after - before
    result = as_found(
        regret.mean(SAMPLES).values,
        regret,
        score="likelihood_regret",
        steps=steps,
        learning_rate=learning_rate,
        particles=0 if particles is None else particles,
        seed=seed,
    )
    result["elbo"], result["elbo_refitted"] = before, after
    return result


class _Codes:
    """Codes of some images that are moved from where the encoder puts them."""

    def __init__(
        self, model: Any, guide: Any, image: Tensor, particles: int | None, seed: int
    ) -> None:
        self.model, self.image = model, image
        with torch.no_grad():
            sites = stated_sites(poutine.trace(guide).get_trace(image))
        self.site, normal = _only_normal(sites, len(image))
        self.loc = normal.loc.detach().clone()
        self.log_scale = normal.scale.detach().log()
        size = self.loc[0].numel()
        number = max(_POINTS, 2 * size) if particles is None else particles
        if number < 2 * size:
            reject("particles", f"{2 * size} or more, twice the size of the code", number)
        self.noise = _points(number, size, seed).to(self.loc).view(number, 1, *self.loc.shape[1:])
        self.log_q = -0.5 * size * (1 + np.log(2 * np.pi))  # mean over points, at scale 1

    def refit(self, steps: int, learning_rate: float) -> Tensor:
        """The bound where the encoder puts the code, and the best one, (2, case), float64."""
        moved = [self.loc.requires_grad_(), self.log_scale.requires_grad_()]
        optimizer = torch.optim.Adam(moved, lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        first = best = torch.full((len(self.image),), -torch.inf, dtype=torch.float64)
        for step in range(steps + 1):
            with torch.enable_grad():
                bound = self._bound()
            value = bound.detach().to(best)
            if not value.isfinite().all() and step == 0:
                raise ValueError(
                    "the bound of an image is not finite where the encoder puts its code; train "
                    "the model further, or give images on the scale of training"
                )
            first = value if step == 0 else first
            best = torch.fmax(best, value)
            if step == steps:
                break
            for leaf, slope in zip(moved, torch.autograd.grad(-bound.sum(), moved), strict=True):
                leaf.grad = slope.nan_to_num()
            optimizer.step()
            schedule.step()
        return torch.stack([first, best])

    def _bound(self) -> Tensor:
        """The ELBO of every image, (case,)."""
        z = (self.loc + self.log_scale.exp() * self.noise).flatten(0, 1)
        number, cases = len(self.noise), len(self.image)
        image = self.image.repeat(number, *[1] * (self.image.ndim - 1))
        trace = poutine.trace(poutine.condition(self.model, {self.site: z})).get_trace(image)
        total = torch.zeros(number * cases, dtype=torch.float64, device=image.device)
        for node in sample_sites(trace).values():
            total = total + node["fn"].log_prob(node["value"]).reshape(len(total), -1).sum(1)
        log_q = self.log_q - self.log_scale.flatten(1).sum(1).double()
        return total.view(number, cases).mean(0) - log_q


def _only_normal(sites: Any, cases: int) -> tuple[str, Normal]:
    """The one latent that a guide proposes, and its normal with independent entries."""
    if len(sites) == 1:
        ((name, site),) = sites.items()
        fn = site["fn"]
        while isinstance(fn, Independent):
            fn = fn.base_dist
        if isinstance(fn, Normal) and fn.loc.dim() > 1 and len(fn.loc) == cases:
            return name, fn
    raise ValueError(
        "guide must propose one code per case from a normal with independent entries, such as "
        f"ConditionalNormal(model.posterior_net(), observation='image'); it proposes {[*sites]}"
    )


def _points(number: int, size: int, seed: int) -> Tensor:
    """Points (number, size) of mean 0 and covariance 1, in pairs of opposite sign, float64."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(number // 2, size, generator=generator, dtype=torch.float64)
    half = torch.linalg.qr(half)[0] * (number // 2) ** 0.5
    return torch.cat([half, -half])
