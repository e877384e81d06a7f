"""Independent classes of the pixels of a map, drawn and compared cheaply.

Torch's categorical takes half of a training step of a small net: it normalises by a softmax and
draws by exponential numbers, both slow over a short last axis.
"""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.kl import register_kl
from torch.distributions.utils import lazy_property

TINY = 1e-30  # probabilities that are 0 get this, so that their logarithm is finite


class ClassMap(dist.Categorical):
    """A categorical by its probabilities (..., class), which need not be normalised."""

    @lazy_property
    def logits(self) -> Tensor:
        """Log-probabilities, dims (..., class)."""
        return self.probs.clamp(min=TINY).log()

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draws by inverse transform of uniform numbers."""
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            u = torch.rand(shape, dtype=self.probs.dtype, device=self.probs.device)
            edges = self.probs[..., :-1].cumsum(-1)
            return (u.unsqueeze(-1) > edges).sum(-1)


@register_kl(ClassMap, ClassMap)
def _kl(p: ClassMap, q: ClassMap) -> Tensor:
    return (p.probs * (p.logits - q.logits)).sum(-1)
