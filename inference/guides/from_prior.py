"""Guide that proposes nothing: local latents are drawn from the model's own prior.

With ``objective=ImportanceWeighted(K)`` the loss is then the log-mean-exp of the likelihood over K
draws from the prior, as stochastic segmentation networks are trained.
"""

from typing import Any

from torch import nn


class FromPrior(nn.Module):
    """Leave the named local latent sites to the model, ``left_to_prior``."""

    def __init__(self, *sites: str) -> None:
        super().__init__()
        if not sites:
            raise ValueError("FromPrior needs the names of the latent sites, such as 'z'")
        self.left_to_prior = frozenset(sites)

    def forward(self, *inputs: Any, num_cases: int | None = None, **options: Any) -> None:
        """Propose nothing; the arguments are the model's and are not used."""
