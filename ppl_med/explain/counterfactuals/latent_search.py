"""Counterfactuals of a conditional VAE: the code of the case, decoded as another class."""

from collections.abc import Sequence
from typing import Literal

import torch
import xarray as xr
from torch import Tensor

from ppl_med.checks import choice
from ppl_med.explain.counterfactuals.measures import as_numpy, described
from ppl_med.explain.counterfactuals.search import Ids, Pair, Search
from ppl_med.explain.counterfactuals.tangent_search import Smooth, nearest_point
from ppl_med.explain.function_checks import Function


def latent_counterfactual(  # noqa: D417
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
    case: Ids | None = None,
) -> xr.Dataset:
    """The image that a conditional VAE generates from the case's code, as another class.

    The code is the mean of q(z | image, present class). ``decode(code, target)`` keeps what the
    code holds of the case and changes the class. Where that does not reach the margin, the nearest
    code that does is searched, in units of the code's prior.

    A code must mean the same in both classes, and no likelihood demands that: a VAE of two classes
    with little in common may pair their images at will. Look at what it keeps, or take
    ``encode_as="target"``: the code under which the image is most probable in the target class.
    Arguments that are not listed are those of ``minimal_perturbation``.

    Args:
        vae: A model with ``decode(z, label)``, such as ``ppl_med.models.ConditionalVAE``, and its
            guide, whose ``encoder(image, label)`` is q(z), such as ``ConditionalNormal``; of the
            same classes, trained.
        encode_as: Class under which the image is encoded: ``"present"`` asks what this case would
            be as the target, ``"target"`` for the nearest image of the target.
        search: Whether to move the code where the class does not flip by itself.
        keep_residual: Add what the VAE does not hold of the image, ``image - decode(code,
            present)``: a smaller change, whose noise is the image's own.

    Returns:
        As ``minimal_perturbation``, with ``code`` and ``counterfactual_code`` (case, latent).

    Raises:
        TypeError: As ``minimal_perturbation``, and if the pair is not a conditional VAE.
        ValueError: As ``minimal_perturbation``; if decoded images have another shape.
    """
    if not hasattr(vae[0], "decode") or not hasattr(vae[1], "encoder"):
        names = [type(program).__name__ for program in vae]
        raise TypeError(
            "vae must be a model with decode(z, label) and a guide with encoder(image, label), "
            f"such as ConditionalVAE and ConditionalNormal, got {names}"
        )
    choice("encode_as", encode_as, ("present", "target"))
    checked = Search(functions, image, target, margin, steps, judges, vae, particles, seed, case)
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
        "code": (("case", "latent"), as_numpy(code)),
        "counterfactual_code": (("case", "latent"), as_numpy(found)),
    }
    result = described(result.assign(codes))
    return result.assign_attrs(method="latent", keep_residual=int(keep_residual))


class _Generator:
    """Images of codes, under a fixed target."""

    def __init__(self, vae: Pair, search: Search, as_target: bool, keep_residual: bool) -> None:
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
        """Log-odds of the target, as a function of the code."""
        predictive = self.search.predictive

        def value_and_slope(code: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                code = code.detach().clone().requires_grad_()
                image = self.model.decode(code, self.search.target) + self.residual
            value, slope = predictive.log_odds_and_slope(image.detach())
            return value, torch.autograd.grad(image, code, slope)[0]

        return Smooth(lambda code: predictive.log_odds(self.image(code)), value_and_slope)
