"""Conditional guide over several latent codes, each of which depends on those before it.

    z_l | image, observation, z_<l  ~  Normal(m_l, diag s_l^2)        one per case, l = 0, 1, ...

Without the observation it proposes nothing, as ``ConditionalNormal``.

Reference: Kohl et al., "A hierarchical probabilistic U-Net", arXiv:1905.13077, section 3.
"""

from typing import Any

import pyro
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn


class ConditionalHierarchy(nn.Module):
    """The variational family q(z0 | image, observation) q(z1 | z0, image, observation) ...

    Args:
        encoder: Posterior net, called as ``encoder(image, draw, observation)``; it calls
            ``draw(level, distribution)`` for the value of every level.
        site: Name of the latent sites without their number.
        observation: Name of the observation's argument.
    """

    def __init__(self, encoder: nn.Module, site: str = "z", observation: str = "mask") -> None:
        super().__init__()
        self.encoder, self.site, self.observation = encoder, site, observation

    def forward(
        self, image: Tensor, *observed: Any, num_cases: int | None = None, **observations: Any
    ) -> None:
        """Propose every code where the observation is given.

        Args:
            image: Dims (case, channel, *space).
            observed: The observation, positionally.
            num_cases: Size of the whole data set, as in the model.
            observations: The observation by its name.
        """
        value = observations.get(self.observation, observed[0] if observed else None)
        if value is None:
            return

        def draw(level: int, law: TorchDistributionMixin) -> Tensor:
            return pyro.sample(f"{self.site}{level}", law)

        with pyro.plate("case", num_cases or len(image), subsample=image):
            self.encoder(image, draw, value)
