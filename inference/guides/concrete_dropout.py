"""Concrete dropout: Bernoulli dropout whose rates are learnt, one a layer.

    q(W) = M diag(z)        z ~ Bernoulli(1 - rate) over input units,  M = loc / (1 - rate)

In training masks are relaxed, so that the likelihood's gradient reaches the rates:

    z  =  sigmoid( (logit(u) - logit(rate)) / temperature )        u ~ Uniform(0, 1)

Prediction draws masks of 0 and 1. The quasi-KL is that of ``BernoulliDropout``, and the entropy of
the masks counts now, units * H(rate) for each layer: without it rates fall to 0. The location is
kept apart from the rate, so that a rate that moves does not move the mean.

Rates are as free as the data allow: few units, or much data for each, drive them to 0, and the
posterior to a point.

Reference: Gal, Hron and Kendall, "Concrete dropout", NeurIPS 2017, eq. 2 to 5.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ppl_med.checks import positive
from ppl_med.inference.guides.bernoulli_dropout import DropoutPart, rates_by_layer
from ppl_med.inference.guides.weight_guide import WeightGuide
from ppl_med.weights import RandomWeights
from ppl_med.weights.estimators import mask_units


class _LearntRatesPart(DropoutPart):
    spread = ("raw_rates",)
    units: Tensor

    def __init__(
        self,
        weights: RandomWeights,
        start: Mapping[str, float],
        per_example: bool,
        temperature: float,
    ) -> None:
        super().__init__(weights)
        self.per_example, self.temperature = per_example, temperature
        self.dropped = [entry for entry in self.layout.entries if entry.name in start]
        self.loc = nn.Parameter(weights.initial())
        rates = self.loc.new_tensor([start[entry.name] for entry in self.dropped])
        self.raw_rates = nn.Parameter(rates.logit())
        views = self.layout.views(self.loc.detach())
        units = [math.prod(mask_units(views[e.name], e.transposed, e.groups)) for e in self.dropped]
        self.register_buffer("units", self.loc.new_tensor(units), persistent=False)

    @property
    def rates(self) -> dict[str, Tensor]:  # type: ignore[override]
        """Rates by name of the layer's weight, zero-dimensional."""
        names = [entry.name for entry in self.dropped]
        return dict(zip(names, self.raw_rates.sigmoid(), strict=True))

    @property
    def rate_vector(self) -> Tensor:  # type: ignore[override]
        """Rates by weight, dims (weight,)."""
        rates, none = self.rates, self.loc.new_zeros(())
        return torch.cat(
            [rates.get(e.name, none).expand(e.num_weights) for e in self.layout.entries]
        )

    @property
    def weights(self) -> Tensor:  # type: ignore[override]
        """M, dims (weight,)."""
        return self.loc / (1 - self.rate_vector)

    def entropy(self) -> Tensor:
        rates = self.raw_rates.sigmoid()
        own = torch.special.entr(rates) + torch.special.entr(1 - rates)
        return (self.units * own).sum()


class ConcreteDropout(WeightGuide):
    """Dropout over the input units of linear and convolutional layers, at rates that are learnt.

    Args:
        model: A model with ``RandomWeights``.
        rate: Start of the rates, in (0, 1), for every layer, or a dict from weight names to rates.
        temperature: Of the relaxed masks in training, above 0; lower is nearer to masks of 0 and
            1, with gradients of more noise.
        skip_first: Leave the first layer whole, so that no image channel is dropped; of no effect
            where ``rate`` is a dict.
        per_example: A mask an example in training; False draws one a batch.

    Raises:
        ValueError: If a rate is outside (0, 1), a name is unknown, no layer is left, or the
            temperature is not positive.
    """

    def __init__(
        self,
        model: Any,
        rate: float | Mapping[str, float] = 0.1,
        *,
        temperature: float = 0.1,
        skip_first: bool = True,
        per_example: bool = True,
    ) -> None:
        temperature = positive("temperature", temperature)
        super().__init__(
            model,
            lambda found: _LearntRatesPart(
                found, rates_by_layer(found, rate, skip_first), per_example, temperature
            ),
        )

    def rates(self, site: str = "weights") -> dict[str, float]:
        """The learnt rates by name of the layer's weight."""
        part: Any = self.parts[site]
        return {name: rate.item() for name, rate in part.rates.items()}
