"""Guide of a model with several heads: nearly all mass on the head that explains the mask best.

    head | image, mask  ~  (1 - epsilon) at the best head, epsilon/(M - 1) at every other

The probabilities are held fixed while the heads learn, so the ELBO is the loss of Rupprecht et al.
(ICCV 2017, eq. 6), up to the constant KL to the uniform prior. With epsilon 0 heads that are never
best never learn.
"""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_med.checks import share
from ppl_med.inference.guides.conditional_guide import ConditionalGuide


class BestHead(ConditionalGuide):
    """The fixed proposal q(head | image, observation).

    Args:
        model: A model with ``all_heads(image)``, such as ``MultiHeadUNet``.
        epsilon: Share of the heads that are not best, in [0, 1).
        site: Name of the latent site.
        observation: Name of the observation's argument.
    """

    def __init__(
        self, model: Any, epsilon: float = 0.05, site: str = "head", observation: str = "mask"
    ) -> None:
        super().__init__(observation)
        if not hasattr(model, "all_heads"):
            raise TypeError(
                f"model ({type(model).__name__}) has no all_heads(image); use MultiHeadUNet, or "
                "give your model a method that returns logits (case, head, class, *space)"
            )
        share("epsilon", epsilon)
        self._model = [model]  # in a list: its parameters are the model's, not the guide's
        self.epsilon, self.site = epsilon, site

    def propose(self, image: Tensor, value: Tensor) -> None:
        """Sample a head from the fixed probabilities."""
        with torch.no_grad():
            log_probs = self._model[0].all_heads(image).log_softmax(2)
            probs = self._probabilities(log_probs, value)
        pyro.sample(self.site, dist.Categorical(probs=probs))

    def _probabilities(self, log_probs: Tensor, mask: Tensor) -> Tensor:
        """Dims (case, head), from log-probabilities (case, head, class, *space)."""
        num_heads = log_probs.shape[1]
        index = mask.clamp(min=0).long()[:, None, None].expand(-1, num_heads, 1, *mask.shape[1:])
        chosen = log_probs.gather(2, index).squeeze(2)
        explained = torch.where(mask[:, None] < 0, 0.0, chosen).flatten(2).sum(-1)
        best = explained.argmax(1, keepdim=True)
        probs = torch.full_like(explained, self.epsilon / (num_heads - 1))
        return probs.scatter(1, best, 1 - self.epsilon)
