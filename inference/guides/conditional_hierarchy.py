"""Conditional guide over several latent codes, each of which depends on those before it.

    z_l | image, observation, z_<l  ~  Normal(m_l, diag s_l^2)        one per case, l = 0, 1, ...

Without the observation it proposes nothing, as ``ConditionalNormal``.

Reference: Kohl et al., "A hierarchical probabilistic U-Net", arXiv:1905.13077, section 3.
"""

from typing import Any

import pyro
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ppl_med.inference.guides.conditional_guide import ConditionalGuide


class ConditionalHierarchy(ConditionalGuide):
    """The variational family q(z0 | image, observation) q(z1 | z0, image, observation) ...

    Args:
        encoder: Posterior net, called as ``encoder(image, draw, observation)``; it calls
            ``draw(level, distribution)`` for the value of every level.
        site: Name of the latent sites without their number.
        observation: Name of the observation's argument.
    """

    def __init__(self, encoder: nn.Module, site: str = "z", observation: str = "mask") -> None:
        super().__init__(observation)
        self.encoder, self.site = encoder, site

    def propose(self, image: Tensor, value: Any) -> None:
        """Sample every code as the encoder asks for it."""

        def draw(level: int, fn: TorchDistributionMixin) -> Tensor:
            return pyro.sample(f"{self.site}{level}", fn)

        self.encoder(image, draw, value)
