"""Several guides as one: each proposes its own sites."""

from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import nn


class Guides(nn.Module):
    """Run guides one after the other, as over weights and over a latent code.

    Args:
        guides: Guides with the model's signature that share no site; plates they may share, such as
            that of the cases.
    """

    def __init__(self, *guides: nn.Module) -> None:
        super().__init__()
        if len(guides) < 2:
            raise ValueError(f"Guides joins two guides or more, got {len(guides)}")
        self.guides = nn.ModuleList(guides)

    def forward(self, *inputs: Any, **options: Any) -> None:
        """Propose every guide's sites."""
        with _PlatesOnce():
            for guide in self.guides:
                guide(*inputs, **options)


class _PlatesOnce(Messenger):
    """Show outer handlers a plate of several guides once: a trace takes no name twice."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            msg["stop"] = msg["name"] in self.seen
            self.seen.add(msg["name"])
