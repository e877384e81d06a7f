"""Draws that a sampler has left, as the guide of ``predict``, ``functions`` and ``save``.

    latents | draw s  =  the s-th sample        no parameters, nothing to train

Made by ``from_mcmc``; draw s of a prediction is sample s, whatever the seed.
"""

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_med.checks import whole


class KeptDraws(nn.Module):
    """Samples of the global latents of a program, of one chain.

    Args:
        samples: By site, dims (draw, ...), as many draws of each.

    Raises:
        ValueError: If there are none, or not equally many of every site.
    """

    def __init__(self, samples: Mapping[str, Tensor]) -> None:
        super().__init__()
        lengths = {name: len(values) for name, values in samples.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ValueError(f"samples must hold equally many draws of every site, got {lengths}")
        self.num_draws = next(iter(lengths.values()))
        self.sites = list(samples)
        for position, values in enumerate(samples.values()):
            self.register_buffer(f"samples_{position}", torch.as_tensor(values).detach().clone())

    def draw(self, draw: int) -> dict[str, Tensor]:
        """Values of all sites in one draw."""
        most = self.num_draws - 1
        whole("draw", draw, 0, most, fix=f"{self.num_draws} were kept: pass draws={most + 1}")
        return {
            name: getattr(self, f"samples_{position}")[draw]
            for position, name in enumerate(self.sites)
        }

    def forward(self, *inputs: Any, num_cases: int | None = None, **options: Any) -> None:
        """Propose the first draw; the arguments are the model's and are not used."""
        for name, value in self.draw(0).items():
            pyro.sample(name, dist.Delta(value).to_event(value.ndim))


class KeptChains(nn.Module):
    """Several chains of kept draws, the ``chain`` axis of the results.

    Args:
        chains: Of each chain, its samples by site, dims (draw, ...).
    """

    def __init__(self, chains: list[Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.chains = nn.ModuleList(KeptDraws(samples) for samples in chains)

    def forward(self, *inputs: Any, **options: Any) -> None:
        """Not a single program."""
        raise TypeError("KeptChains is not one program: pass it to predict or functions as a guide")
