"""Several guides as one: each proposes its own sites."""

from typing import Any

from torch import nn


class Guides(nn.Module):
    """Run guides one after the other, as over weights and over a latent code.

    Args:
        guides: Guides with the model's signature that share no site.
    """

    def __init__(self, *guides: nn.Module) -> None:
        super().__init__()
        if len(guides) < 2:
            raise ValueError(f"Guides joins two guides or more, got {len(guides)}")
        self.guides = nn.ModuleList(guides)

    def forward(self, *inputs: Any, **options: Any) -> None:
        """Propose every guide's sites."""
        for guide in self.guides:
            guide(*inputs, **options)
