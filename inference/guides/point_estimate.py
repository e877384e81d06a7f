"""Point estimate: the frequentist baseline in the guide's place.

    weights  ~  Delta(value)

With ``use_prior`` it is maximum a posteriori (the prior is the penalty), without it maximum
likelihood (put weight decay into the optimizer if you want it). It has no epistemic uncertainty:
all draws are equal, and analyses say so.
"""

from typing import Any

from torch import Tensor, nn

from ppl_med.inference.guides.weight_guide import WeightGuide, WeightPart
from ppl_med.weights import FlatPoint, RandomWeights


class _PointPart(WeightPart):
    def __init__(self, weights: RandomWeights, use_prior: bool) -> None:
        super().__init__(weights)
        self.use_prior = use_prior
        self.value = nn.Parameter(weights.initial())

    def center(self) -> Tensor:
        return self.value

    def forward(self) -> FlatPoint:
        return FlatPoint(self.value, use_prior=self.use_prior)


class PointEstimate(WeightGuide):
    """One value for every weight.

    Args:
        model: A model with ``RandomWeights``.
        use_prior: True for maximum a posteriori, False for maximum likelihood.
    """

    def __init__(self, model: Any, *, use_prior: bool = True) -> None:
        super().__init__(model, lambda found: _PointPart(found, use_prior))
