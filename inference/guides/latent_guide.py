"""Independent normals over the global latent sites of any Pyro program."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import identity_transform
from torch.nn.functional import softplus

from ppl_med.inference.guides.weight_guide import inverse_softplus
from ppl_med.programs.isolation import undisturbed
from ppl_med.programs.sites import select_arguments

MEDIAN_DRAWS = 15


class _Site(nn.Module):
    """A normal in unconstrained space, carried to the site's support."""

    independent, spread = True, ("raw_scale",)

    def __init__(self, node: dict[str, Any], init_scale: float) -> None:
        super().__init__()
        fn = node["fn"]
        support = fn.support
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        self.transform = biject_to(support)
        draws = torch.stack([fn.sample() for _ in range(MEDIAN_DRAWS)])
        start = self.transform.inv(draws).median(0).values.detach()
        self.loc = nn.Parameter(start.clone())
        self.raw_scale = nn.Parameter(inverse_softplus(torch.full_like(start, init_scale)))
        self.event_dim = len(fn.event_shape)

    def forward(self) -> Any:
        base = dist.Normal(self.loc, softplus(self.raw_scale))
        if self.transform is identity_transform:
            return base.to_event(self.event_dim)
        moved = dist.TransformedDistribution(base, [self.transform])
        return moved.to_event(self.event_dim - len(moved.event_shape))


class LatentNormals(nn.Module):
    """Proposals for all latent sites of a program outside its case plate, but for those to skip.

    The program is traced once on the example, with its draws thrown away. ``init_scale`` is the
    start
    of the standard deviations, in unconstrained space.

    Raises:
        ValueError: If a site is local to a case, or discrete.
    """

    def __init__(
        self, model: Any, example: Mapping[str, Any], skip: frozenset[str], init_scale: float
    ) -> None:
        super().__init__()
        with undisturbed(model), poutine.block():
            trace = poutine.trace(model).get_trace(**select_arguments(model, example))
            self.names: list[str] = []
            self.sites = nn.ModuleList()
            self.frames: list[list[tuple[str, int, int]]] = []
            for name, node in trace.nodes.items():
                hidden = node["type"] != "sample" or node["is_observed"] or site_is_subsample(node)
                if hidden or name in skip:
                    continue
                self._check(name, node)
                self.names.append(name)
                self.sites.append(_Site(node, init_scale))
                stack = node["cond_indep_stack"]
                self.frames.append([(f.name, f.size, f.dim) for f in stack])

    @staticmethod
    def _check(name: str, node: dict[str, Any]) -> None:
        if any(frame.name == "case" for frame in node["cond_indep_stack"]):
            raise ValueError(
                f"latent site {name!r} stands in the plate 'case', one value per case; propose it "
                "by ConditionalNormal and join the two with Guides(first, second)"
            )
        if not node["fn"].has_rsample or node["fn"].support.is_discrete:
            raise ValueError(
                f"latent site {name!r} ({type(node['fn']).__name__}) is discrete; marginalise it"
            )

    def forward(self) -> dict[str, Tensor]:
        """Propose every site."""
        values = {}
        for name, site, frames in zip(self.names, self.sites, self.frames, strict=True):
            with ExitStack() as plates:
                for frame, size, dim in frames:
                    plates.enter_context(pyro.plate(frame, size, dim=dim))
                values[name] = pyro.sample(name, site())
        return values
