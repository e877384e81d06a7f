"""Bernoulli dropout as a guide: q(W) = M diag(z), z ~ Bernoulli(1 - rate) over input units.

q has atoms, so KL(q || prior) is infinite; what dropout training minimises is the quasi-KL
-E_q[log prior(W)] - H(z) (Hron et al., ICML 2018). For a normal prior of scale s it is, up to a
constant, (1 - rate)/2 * |M|^2 / s^2: Gal's objective. It is exact here for every prior, since a
masked weight takes only the values M and 0.

Training draws a mask per example, prediction one mask per draw. Convolutions drop whole channels.

References: Gal and Ghahramani, "Dropout as a Bayesian approximation", ICML 2016. Gal, Hron and
Kendall, "Concrete dropout", NeurIPS 2017.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import register_kl
from torch.nn.modules.conv import _ConvNd

from ppl_med.inference.guides.weight_guide import WeightGuide, WeightPart
from ppl_med.weights import Entry, FlatDistribution, RandomWeights
from ppl_med.weights.distributions import FlatNormalByGroup, refuse_atoms
from ppl_med.weights.estimators import DropoutEstimator, LazyWeights, WeightEstimator


class FlatDropout(FlatDistribution):
    """The distribution of M diag(z) over a flat vector, without a density; a part owns M."""

    def __init__(self, part: "DropoutPart") -> None:
        super().__init__(part.layout.num_weights)
        self.part = part

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor | LazyWeights:  # type: ignore[override]  # noqa: B008
        """One mask, or one mask an example while training."""
        part, entries, rates = self.part, self.part.layout.entries, self.part.rates
        views = part.layout.views(part.weights)
        if part.training and part.per_example and not sample_shape:
            return part.lazy({e.name: self._estimator(e, views[e.name], rates) for e in entries})
        draws = []
        for _ in range(math.prod(sample_shape)):
            ways = [self._estimator(entry, views[entry.name], rates) for entry in entries]
            values = [way.draw() if isinstance(way, WeightEstimator) else way for way in ways]
            draws.append(torch.cat([value.reshape(-1) for value in values]))
        return torch.stack(draws).view(self._extended_shape(sample_shape))

    def _estimator(
        self, entry: Entry, view: Tensor, rates: Mapping[str, float | Tensor]
    ) -> WeightEstimator | Tensor:
        if entry.name not in rates:
            return view
        temperature = self.part.temperature if self.part.training else None
        rate = rates[entry.name]
        return DropoutEstimator(view, rate, entry.transposed, entry.groups, temperature)

    def log_density(self, weights: Tensor) -> Tensor:
        """Not defined."""
        raise NotImplementedError("M diag(z) has atoms and no density; use its quasi-KL")


@register_kl(FlatDropout, FlatDistribution)
def _quasi_kl(q: FlatDropout, p: FlatDistribution) -> Tensor:
    """-E_q[log p(W)] - H(z), exact; H(z) is left out where it is a constant."""
    keep = 1 - q.part.rate_vector
    weights = q.part.weights
    at_zero = p.log_density(torch.zeros_like(weights))
    cross = -(keep * p.log_density(weights) + (1 - keep) * at_zero).sum()
    entropy = q.part.entropy()
    return cross if entropy is None else cross - entropy


@register_kl(FlatDropout, FlatNormalByGroup)
def _learnt_scales(q: FlatDropout, p: FlatNormalByGroup) -> Tensor:
    refuse_atoms()


class DropoutPart(WeightPart):
    """M diag(z) over one site.

    Attributes:
        weights: M, dims (weight,).
        rates: Probability that an input unit is dropped, by name of the layer's weight.
        rate_vector: The same by weight, dims (weight,); 0 where nothing is dropped.
        per_example: Whether training draws a mask an example.
        temperature: Of relaxed masks in training; None for masks of 0 and 1.
    """

    weights: Tensor
    rates: Mapping[str, float | Tensor]
    rate_vector: Tensor
    per_example: bool
    temperature: float | None = None

    def entropy(self) -> Tensor | None:
        """H(z) in nats; None where it is a constant."""
        return None

    def center(self) -> Tensor:
        """Mean of q, dims (weight,)."""
        return self.weights * (1 - self.rate_vector)

    def forward(self) -> FlatDropout:
        """Q of the site."""
        return FlatDropout(self)


class _FixedRatesPart(DropoutPart):
    def __init__(
        self, weights: RandomWeights, rates: Mapping[str, float], per_example: bool
    ) -> None:
        super().__init__(weights)
        self.rates: dict[str, float] = dict(rates)
        self.per_example = per_example
        start = weights.initial()
        vectors = [
            start.new_full((entry.num_weights,), self.rates.get(entry.name, 0.0))
            for entry in self.layout.entries
        ]
        self.register_buffer("rate_vector", torch.cat(vectors))
        self.weights = nn.Parameter(start / (1 - self.rate_vector))

    def get_extra_state(self) -> dict[str, Any]:
        return {**super().get_extra_state(), "rates": self.rates}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Refuse other rates: M is scaled to them."""
        if state["rates"] != self.rates:
            raise ValueError(
                f"the saved guide drops at the rates {state['rates']}, this one at {self.rates}; "
                "build BernoulliDropout with the same rate and skip_first"
            )
        super().set_extra_state(state)


class BernoulliDropout(WeightGuide):
    """Dropout over the input units of linear and convolutional layers.

    No ``nn.Dropout`` is needed in the net, and those it has are not used: the guide masks weights.

    Args:
        model: A model with ``RandomWeights``.
        rate: Probability that a unit is dropped, in (0, 1), for every layer, or a dict from
            weight names (as in ``model.network.layout.names``) to probabilities.
        skip_first: Leave the first layer whole, so that no image channel is dropped; of no effect
            where ``rate`` is a dict.
        per_example: A mask an example in training; False draws one a batch.

    Raises:
        ValueError: If a rate is outside (0, 1), a name is unknown, or no layer is left.
    """

    def __init__(
        self,
        model: Any,
        rate: float | Mapping[str, float] = 0.1,
        *,
        skip_first: bool = True,
        per_example: bool = True,
    ) -> None:
        super().__init__(
            model,
            lambda found: _FixedRatesPart(
                found, rates_by_layer(found, rate, skip_first), per_example
            ),
        )


def rates_by_layer(
    weights: RandomWeights, rate: float | Mapping[str, float], skip_first: bool
) -> dict[str, float]:
    """Dropout rates by name of a layer's weight; a ValueError as ``BernoulliDropout`` says."""
    layers = [entry.name for entry in weights.layout.entries if entry.is_layer_weight]
    if isinstance(rate, Mapping):
        rates = {name: float(value) for name, value in rate.items()}
        unknown = sorted(set(rates) - set(layers))
        if unknown:
            raise ValueError(
                f"rate names {unknown}, which are no layer weights; those are {layers}"
            )
    else:
        modules = weights.net.named_modules()
        all_layers = [path for path, m in modules if isinstance(m, nn.Linear | _ConvNd)]
        skipped = {f"{all_layers[0]}.weight".lstrip(".")} if skip_first and all_layers else set()
        rates = {name: float(rate) for name in layers if name not in skipped}
    wrong = {name: value for name, value in rates.items() if not 0 < value < 1}
    if wrong:
        raise ValueError(f"rate must lie strictly between 0 and 1, got {wrong}")
    if not rates:
        raise ValueError(
            "no layer is left to drop: the random weights hold no linear or convolutional layer "
            "besides the first; pass skip_first=False or choose more parameters with where=..."
        )
    return rates
