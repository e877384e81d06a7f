"""Conditional guide: a posterior net reads image and observation and proposes the latent code.

    z | image, observation  ~  Normal(m, diag s^2)        one per case

Reference: Sohn, Lee and Yan, NeurIPS 2015; Kohl et al., NeurIPS 2018 (the posterior net).
"""

from typing import Any

import pyro
from torch import Tensor, nn

from ppl_med.axes import dims
from ppl_med.inference.guides.conditional_guide import ConditionalGuide


class ConditionalNormal(ConditionalGuide):
    """The variational family q(z | image, observation).

    Args:
        encoder: Posterior net, called as ``encoder(image, observation)``; returns the distribution
            of z with event dims (latent,), such as ``networks.GaussianEncoder``.
        site: Name of the latent site.
        observation: Name of the observation's argument; "image" where the model generates the image
            itself, as ``ImageVAE`` does: the encoder is then called as ``encoder(image)``.
    """

    def __init__(self, encoder: nn.Module, site: str = "z", observation: str = "label") -> None:
        super().__init__(observation)
        self.encoder, self.site = encoder, site

    def propose(self, image: Tensor, value: Any) -> None:
        """Sample z from the encoder's distribution."""
        seen = (image,) if self.observation == "image" else (image, value)
        pyro.sample(self.site, self.encoder(*seen), infer=dims("latent"))
