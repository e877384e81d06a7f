"""Where on their paths the cases of a batch are, spread evenly over the batch."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor


def stratified(shape: Sequence[int], device: Any = None) -> Tensor:
    """Uniform numbers in [0, 1), one in each of as many equal strata, in random order."""
    number = torch.Size(shape).numel()
    order = torch.randperm(number, device=device)
    place = (order + torch.rand(number, device=device)) / number
    return place.clamp(max=1 - torch.finfo(place.dtype).eps).view(*shape)


class PlacesOfBatch(TorchDistribution):
    """Places in (0, 1) of the cases of a batch, each uniform, together spread evenly (stratified).

    Args:
        shape: Of the batch, such as (case,).
        device: Where to draw.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.unit_interval

    def __init__(self, shape: Sequence[int], device: Any = None) -> None:
        self.device = device
        super().__init__(torch.Size(shape), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "PlacesOfBatch":
        """The same for more cases."""
        return PlacesOfBatch(batch_shape, self.device)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """One place in each of as many equal strata as there are cases, in random order."""
        return stratified(torch.Size(sample_shape) + self.batch_shape, self.device)

    def icdf(self, u: Tensor) -> Tensor:
        """The uniform numbers themselves."""
        return u.to(self.device or u.device)

    def log_prob(self, value: Tensor) -> Tensor:
        """0, each."""
        return torch.zeros(torch.broadcast_shapes(value.shape, self.batch_shape)).to(value)
