"""Where the latents of a program stand in one unconstrained vector.

A sampler moves one vector; a site with a constrained support (a scale, a simplex) is mapped to it
by torch's ``biject_to``, and the density gets the logarithm of the map's Jacobian.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

from ppl_med.programs.sites import Site


class Coordinates:
    """The layout of some latent sites.

    Args:
        sites: Nodes of a trace, by name; their values give the shapes.

    Attributes:
        size: Length of the vector.
        shapes: Of the sites' values.
        dtypes: Of the sites' values.
    """

    def __init__(self, sites: Mapping[str, Site]) -> None:
        self._maps: dict[str, Any] = {n: biject_to(s["fn"].support) for n, s in sites.items()}
        self.shapes = {name: site["value"].shape for name, site in sites.items()}
        self.dtypes = {name: site["value"].dtype for name, site in sites.items()}
        self._free = {n: self._maps[n].inverse_shape(shape) for n, shape in self.shapes.items()}
        self._sizes = [math.prod(shape) for shape in self._free.values()]
        self.size = sum(self._sizes)

    @property
    def names(self) -> list[str]:
        """The sites, in order."""
        return list(self._maps)

    def vector(self, values: Mapping[str, Tensor]) -> Tensor:
        """The unconstrained vector (weight,) of values by site."""
        dtype = self.dtypes[self.names[0]]
        for name in self.names:
            dtype = torch.promote_types(dtype, self.dtypes[name])
        parts = [self._maps[n].inv(values[n].detach().to(dtype)).reshape(-1) for n in self._maps]
        return torch.cat(parts)

    def values(self, vector: Tensor) -> tuple[dict[str, Tensor], Tensor | float]:
        """Values by site, and the logarithm of the Jacobian's determinant."""
        found, volume = {}, 0.0
        parts = vector.split(self._sizes)
        for (name, free), part in zip(self._free.items(), parts, strict=True):
            shaped, bijection = part.view(free), self._maps[name]
            found[name] = bijection(shaped)
            if found[name] is not shaped:  # the identity gives what it was given
                volume = volume + bijection.log_abs_det_jacobian(shaped, found[name]).sum()
        return found, volume

    def samples(self, vectors: Tensor, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """Values by site of vectors (draw, weight), dims (draw, ...).

        They are of a dtype, or of the sites' own.
        """
        with torch.no_grad():
            by_draw = [self.values(vector)[0] for vector in vectors]
        return {
            n: torch.stack([v[n] for v in by_draw]).to(dtype or self.dtypes[n]) for n in self._maps
        }
