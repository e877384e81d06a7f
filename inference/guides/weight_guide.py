"""What every guide over ``RandomWeights`` shares: it finds the sites and owns one part for each."""

from collections.abc import Callable
from typing import Any, cast

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ppl_med.weights import Layout, RandomWeights, find_random_weights
from ppl_med.weights.estimators import LazyWeights, WeightEstimator


def inverse_softplus(scale: Tensor) -> Tensor:
    """The x with softplus(x) = scale > 0, accurate for small scales."""
    return scale + torch.log(-torch.expm1(-scale))


class WeightPart(nn.Module):
    """q over one flat site of a model's random weights; called, it gives the distribution."""

    def __init__(self, weights: RandomWeights) -> None:
        super().__init__()
        self.layout = weights.layout
        self._first: LazyWeights | None = None
        self._once: frozenset[str] | None = None

    def center(self) -> Tensor:
        """Mean of q over the weights, dims (weight,)."""
        raise NotImplementedError(f"{type(self).__name__} states no mean")

    def lazy(self, estimators: dict[str, WeightEstimator | Tensor]) -> LazyWeights:
        """A per-example value; the first one realises every weight and counts its uses."""
        if self._once is None:
            self._once = self._used_once()
        value = LazyWeights(estimators, self._once)
        self._first = value if self._once is None else None
        return value

    def _used_once(self) -> frozenset[str] | None:
        """What the first value's pass used once; None before there was one."""
        if self._first is None or not self._first.uses:
            return None
        return frozenset(name for name, n in self._first.uses.items() if n == 1)

    def get_extra_state(self) -> dict[str, list[str] | None]:
        """Which weights one pass uses once, so that a resumed run continues as it was."""
        once = self._used_once() if self._once is None else self._once
        return {"once": None if once is None else sorted(once)}

    def set_extra_state(self, state: dict[str, list[str] | None]) -> None:
        """Counterpart of ``get_extra_state``."""
        once = state["once"]
        self._once, self._first = (None if once is None else frozenset(once)), None


class WeightGuide(nn.Module):
    """A guide made of one ``WeightPart`` a weight site.

    Args:
        model: A model that holds ``RandomWeights``.
        part: From random weights to a part.

    Raises:
        ValueError: If the model holds none.
    """

    def __init__(self, model: Any, part: Callable[[RandomWeights], WeightPart]) -> None:
        super().__init__()
        found = find_random_weights([model])
        if not found:
            raise ValueError(
                f"model ({type(model).__name__}) holds no RandomWeights; wrap its network in "
                "RandomWeights(net), or for a program of your own use "
                "MeanFieldNormal(model, example=batch) or a pyro.infer.autoguide"
            )
        self.parts = nn.ModuleDict({site: part(weights) for site, weights in found.items()})

    def distribution(self, site: str = "weights") -> Distribution:
        """Q of one weight site."""
        return self.parts[site]()

    def layout(self, site: str = "weights") -> Layout:
        """Which parameters stand where at one weight site."""
        return cast(WeightPart, self.parts[site]).layout

    def center(self, site: str = "weights") -> Tensor:
        """Mean of q over one weight site, dims (weight,), without gradient."""
        part = cast(WeightPart, self.parts[site])
        return part.center().detach().clone()

    def forward(self, *inputs: Any, **options: Any) -> None:
        """Propose every weight site; the arguments are the model's and are not used."""
        for site, part in self.parts.items():
            pyro.sample(site, part())
