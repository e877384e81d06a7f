"""Draws that a sampler has left, as the guide of ``predict``, ``functions`` and ``save``.

    latents | draw s  =  the s-th sample        no parameters, nothing to train

Made by ``sample`` and ``from_mcmc``; draw s of a prediction is sample s, whatever the seed. Where
fewer draws are asked for than were kept, they are evenly spaced over the chain.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import xarray as xr
from torch import Tensor, nn

from ppl_med.axes import SAMPLES
from ppl_med.checks import whole

DRAWS = 32  # of a guide that can be drawn from at will
_SITE, _STAT = "samples_", "stat_"


class KeptDraws(nn.Module):
    """Samples of the global latents of a program, of one chain.

    Args:
        samples: By site, dims (draw, ...), as many draws of each.
        stats: Figures of the sampler by name, dims (draw,).
        attrs: What else to tell of the sampler.

    Raises:
        ValueError: If there are none, or not equally many of every site.
    """

    def __init__(
        self,
        samples: Mapping[str, Tensor],
        stats: Mapping[str, Tensor] | None = None,
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        stats = stats or {}
        lengths = {name: len(values) for name, values in {**stats, **samples}.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ValueError(f"samples must hold equally many draws of every site, got {lengths}")
        self.num_draws = next(iter(lengths.values()))
        self.sites, self.stats, self.attrs = list(samples), list(stats), dict(attrs or {})
        for position, values in enumerate(samples.values()):
            self.register_buffer(f"{_SITE}{position}", torch.as_tensor(values).detach().clone())
        for name, values in stats.items():
            self.register_buffer(f"{_STAT}{name}", torch.as_tensor(values).detach().clone())

    def draw(self, draw: int) -> dict[str, Tensor]:
        """Values of all sites in one draw."""
        most = self.num_draws - 1
        whole("draw", draw, 0, most, fix=f"{self.num_draws} were kept: pass draws={most + 1}")
        return {name: values[draw] for name, values in self.samples().items()}

    def samples(self) -> dict[str, Tensor]:
        """All draws by site, dims (draw, ...)."""
        return {name: getattr(self, f"{_SITE}{i}") for i, name in enumerate(self.sites)}

    def statistics(self) -> dict[str, Tensor]:
        """Figures of the sampler by name, dims (draw,)."""
        return {name: getattr(self, f"{_STAT}{name}") for name in self.stats}

    def evenly(self, draws: int) -> "KeptDraws":
        """So many of the draws, evenly spaced over the chain."""
        last = self.num_draws - 1
        chosen = torch.from_numpy(np.unique(np.linspace(0, last, draws).round().astype(int)))
        parts = (self.samples(), self.statistics())
        samples, stats = ({n: v[chosen.to(v.device)] for n, v in p.items()} for p in parts)
        return KeptDraws(samples, stats, self.attrs)

    def get_extra_state(self) -> dict[str, Any]:
        """Names of sites and figures, in order, which the names of the tensors do not tell."""
        return {"sites": self.sites, "stats": self.stats, "attrs": self.attrs}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Counterpart of ``get_extra_state``."""
        self.sites, self.stats = list(state["sites"]), list(state["stats"])
        self.attrs = dict(state["attrs"])

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        # Files of earlier versions do not hold them.
        state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, *inputs: Any, num_cases: int | None = None, **options: Any) -> None:
        """Propose the first draw; the arguments are the model's and are not used."""
        for name, value in self.draw(0).items():
            pyro.sample(name, dist.Delta(value).to_event(value.ndim))


class KeptChains(nn.Module):
    """Several chains of kept draws, the ``chain`` axis of the results.

    Args:
        chains: Of each chain, its samples by site, dims (draw, ...).
        stats: Of each chain, figures of the sampler by name, dims (draw,), under ArviZ's names.
        attrs: What else to tell of the sampler.
    """

    def __init__(
        self,
        chains: Sequence[Mapping[str, Tensor]],
        stats: Sequence[Mapping[str, Tensor]] | None = None,
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        own = stats or [{} for _ in chains]
        self.chains = nn.ModuleList(
            KeptDraws(samples, figures, attrs) for samples, figures in zip(chains, own, strict=True)
        )

    @property
    def attrs(self) -> dict[str, Any]:
        """What else is told of the sampler."""
        return dict(self.chains[0].attrs)  # type: ignore[arg-type]

    @property
    def num_draws(self) -> int:
        """Draws of a chain, of the shortest one."""
        return min(int(chain.num_draws) for chain in self.chains)  # type: ignore[arg-type]

    def evenly(self, draws: int) -> "KeptChains":
        """So many of the draws of every chain, evenly spaced."""
        few = [chain.evenly(draws) for chain in self.chains]  # type: ignore[operator]
        return KeptChains(
            [one.samples() for one in few], [one.statistics() for one in few], self.attrs
        )

    def posterior(self) -> xr.DataTree:
        """The draws of all latents, as a tree with the groups ``posterior`` and ``sample_stats``.

        For diagnostics of the weights themselves, by ``analysis.convergence`` and ArviZ: groups
        ``posterior`` (chain, draw, axes of the site) and ``sample_stats`` (chain, draw). Labels of
        a net's hidden units may be exchanged, so chains that agree in every prediction may differ
        here; what counts is in the tree of ``predict``.
        """
        chains: list[Any] = list(self.chains)
        values = {
            name: torch.stack([chain.samples()[name][: self.num_draws] for chain in chains])
            for name in chains[0].sites
        }
        arrays = {
            name: ([*SAMPLES, *_axes(name, value.ndim - 2)], value.cpu().numpy())
            for name, value in values.items()
        }
        coords = {"chain": range(len(chains)), "draw": range(self.num_draws)}
        groups = {"/posterior": xr.Dataset(arrays, coords)}
        if (stats := self.sample_stats()) is not None:
            groups["/sample_stats"] = stats
        return xr.DataTree.from_dict(groups)

    def sample_stats(self) -> xr.Dataset | None:
        """Figures of the sampler, dims (chain, draw); None where nobody noted any."""
        chains: list[Any] = list(self.chains)
        if not chains[0].stats:
            return None
        found = {
            name: (
                SAMPLES,
                torch.stack([chain.statistics()[name][: self.num_draws] for chain in chains])
                .cpu()
                .numpy(),
            )
            for name in chains[0].stats
        }
        coords = {"chain": range(len(chains)), "draw": range(self.num_draws)}
        return xr.Dataset(found, coords, self.attrs)

    def forward(self, *inputs: Any, **options: Any) -> None:
        """Not a single program."""
        raise TypeError("KeptChains is not one program: pass it to predict or functions as a guide")


def _axes(site: str, number: int) -> list[str]:
    return ["weight"] if number == 1 else [f"{site}_dim_{axis}" for axis in range(number)]


def taken_draws(guide: Any, draws: int | None) -> tuple[Any, int]:
    """The guide to draw from, and how many draws: of kept chains all, or evenly spaced ones.

    Raises:
        ValueError: ``draws`` is no whole number from 1 on, or more than were kept.
    """
    if draws is not None:
        draws = whole("draws", draws)
    if not isinstance(guide, KeptChains):
        return guide, DRAWS if draws is None else draws
    kept = guide.num_draws
    if draws is None or draws == kept:
        return guide, kept
    whole("draws", draws, most=kept, fix=f"{kept} were kept of every chain")
    return guide.evenly(draws), draws
