"""What guides of local latents share: they read the observation, and are silent without it."""

from typing import Any

import pyro
from torch import Tensor, nn


class ConditionalGuide(nn.Module):
    """A guide q(latents | image, observation).

    Without the observation there is nothing to condition on: it proposes nothing, and the latents
    fall back to the model's own prior. So ``predict`` needs no second path.

    Args:
        observation: Name of the observation's argument; "image" where the model generates the image
            itself, which is always there: q(latents | image).
    """

    def __init__(self, observation: str) -> None:
        super().__init__()
        self.observation = observation

    def propose(self, image: Tensor, value: Any) -> None:
        """Sample the latents of every case, inside the plate of cases, given the observation."""
        raise NotImplementedError(f"{type(self).__name__} proposes nothing")

    def forward(
        self, image: Tensor, *observed: Any, num_cases: int | None = None, **observations: Any
    ) -> None:
        """Propose where the observation is given, by its name or after the image."""
        value = observations.get(self.observation, observed[0] if observed else None)
        if value is None and self.observation != "image":
            return
        with pyro.plate("case", num_cases or len(image), subsample=image):
            self.propose(image, value)
