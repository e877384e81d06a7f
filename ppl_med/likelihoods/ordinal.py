"""Ordered classes, such as grades of a disease: the proportional-odds model.

    P(label <= k)  =  sigmoid(cutpoint_k - location(x)),   k = 0..K-2,   cutpoints rising

The network gives one location per case, on the scale of log odds: one unit more multiplies the odds
of a class above k by e, whatever k. McCullagh, "Regression models for ordinal data", Journal of the
Royal Statistical Society B 42, 1980, section 2.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from ppl_med.likelihoods.classes import Categorical


class Ordinal(Categorical):
    """One of K ordered classes from one location: a cumulative logit model.

    The cutpoints are learned as numbers without a prior: the lowest, and the softplus of a number
    for each distance to the next, so they rise whatever the optimiser does. At the start all
    classes are equally probable at location 0. A constant added to location and cutpoints changes
    nothing: the prior over the network's weights sets it.

    Args:
        classes: Class names, K >= 2 of them, in their order.
        event, site, partial: As in ``Categorical``.
    """

    num_outputs = 1

    def __init__(
        self,
        classes: Sequence[str],
        event: Sequence[str] = (),
        site: str = "label",
        *,
        partial: bool = False,
    ) -> None:
        super().__init__(classes, event, site, partial=partial)
        self.raw_cutpoints = nn.Parameter(torch.empty(len(self.classes) - 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make all classes equally probable at location 0."""
        number = len(self.classes)
        cutpoints = torch.logit(torch.arange(1, number, dtype=torch.float64) / number)
        distances = cutpoints.diff()
        raw = distances + (-torch.expm1(-distances)).log()  # softplus of it is the distance
        with torch.no_grad():
            self.raw_cutpoints.copy_(torch.cat([cutpoints[:1], raw]))

    @property
    def cutpoints(self) -> Tensor:
        """Locations at which the odds of neighbouring groups of classes are even, rising."""
        return _rising(self.raw_cutpoints)

    def distribution(self, output: Tensor) -> Any:
        """Categorical of the probabilities between the cutpoints."""
        location = self.class_last(output)
        raw = self.raw_cutpoints.to(location)
        below = _rising(raw) - location
        # sigmoid(b) - sigmoid(a) is sigmoid(b) sigmoid(-a) (1 - exp(a - b)), and the last factor of
        # a distance softplus(r) is sigmoid(r): no difference is taken, so none is lost.
        at_most = logsigmoid(torch.cat([below, -below], -1))
        low, high = at_most.split(len(raw), -1)
        inner = low[..., 1:] + high[..., :-1] + logsigmoid(raw[1:])
        return self.categorical(torch.cat([low[..., :1], inner, high[..., -1:]], -1))


def _rising(raw: Tensor) -> Tensor:
    return torch.cat([raw[:1], softplus(raw[1:])]).cumsum(0)
