"""What a guide's proposals promise: latents left to the prior on purpose, laws that never learn."""

from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import Independent


def left_to_prior(guide: Callable[..., Any]) -> frozenset[str]:
    """Latent sites that a guide, or one of joined guides, leaves to the model's prior.

    Args:
        guide: A guide; one that leaves sites has their names as ``left_to_prior``.
    """
    modules = guide.modules() if isinstance(guide, nn.Module) else [guide]
    names: list[frozenset[str]] = [getattr(one, "left_to_prior", frozenset()) for one in modules]
    return frozenset().union(*names)


def follows_prior(site: Mapping[str, Any], name: str, left: frozenset[str]) -> bool:
    """Whether a latent site of a model follows its prior on purpose.

    Args:
        site: The site.
        name: Its name.
        left: What the guide leaves to the prior, see ``left_to_prior``.
    """
    return name in left or not (site["infer"] or {}).get("proposed", True)


def is_fixed(fn: Any) -> bool:
    """Whether no parameter of a distribution learns, so that its draws need no gradient.

    Args:
        fn: The distribution.
    """
    while isinstance(fn, Independent | dist.MaskedDistribution):
        fn = fn.base_dist
    values = (getattr(fn, name) for name in fn.arg_constraints if name in vars(fn))
    return not any(isinstance(value, Tensor) and value.requires_grad for value in values)
