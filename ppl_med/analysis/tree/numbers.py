"""Predicted and observed numbers of a tree, read by parts that fit in memory.

observed_data/<site>              (case, ...)                 NaN where not observed
posterior_predictive/<site>       (chain, draw, case, ...)    finite
posterior/loc, mean               (chain, draw, case, ...)    of the distribution under a draw
posterior/scale, variance         (chain, draw, case, ...)
posterior/quantile                (chain, draw, case, ..., level)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xarray as xr

from ppl_med.analysis.statistics import monte_carlo
from ppl_med.analysis.statistics.case_fill import finite_or_fill, first_entries
from ppl_med.analysis.statistics.total_variance import variance_figures
from ppl_med.analysis.tree.blocks import Block, split_blocks
from ppl_med.analysis.tree.cases import check_cases
from ppl_med.analysis.tree.classes import has_probs
from ppl_med.analysis.tree.distinct_draws import drop_copies
from ppl_med.analysis.tree.groups import check_predictive, class_site, find_group
from ppl_med.axes import SAMPLES

DRAWS = "posterior_predictive"
_BOXES = {"box_edge", "box_label"}
_LOCATIONS, _SPREADS = ("loc", "mean"), ("scale", "variance")


class NumberBlock(NamedTuple):
    """Predicted and observed numbers of a block, float64, each (case, ...)."""

    observed: xr.DataArray  # NaN where not observed
    mean: xr.DataArray  # of the mixture of the draws
    variance: xr.DataArray  # of the mixture of the draws


@dataclass(frozen=True)
class Numbers:
    """Observed and predicted numbers of a tree, not yet read; see `open_numbers`.

    Args:
        observed: (case, ...), NaN where an entry was not observed.
        drawn: (chain, draw, case, ...).
        posterior: ``loc`` with ``scale`` or ``variance`` (chain, draw, case, ...), or empty.
    """

    observed: xr.DataArray
    drawn: xr.DataArray
    posterior: xr.Dataset

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of case and the further axes."""
        return {str(dim): size for dim, size in self.observed.sizes.items()}

    @property
    def num_draws(self) -> int:
        """Chains times draws."""
        return int(self.drawn.sizes["chain"] * self.drawn.sizes["draw"])

    def blocks(self) -> Iterator[Block]:
        """Yield selections that fit the memory limit."""
        yield from split_blocks(self.sizes, self.num_draws)

    def observations(self, block: Block | None = None) -> xr.DataArray:
        """Return what was observed in a block, or all, float64, NaN where nothing was.

        Raises:
            ValueError: An observation is infinite.
        """
        value = self.observed.isel(block or {}).astype(np.float64).load()
        if np.isinf(value.values).any():
            raise ValueError(f"observed {self.observed.name} is infinite somewhere; use NaN.")
        return value

    def draws(self, block: Block | None = None) -> xr.DataArray:
        """Return what was drawn in a block, or all (chain, draw, case, ...).

        Raises:
            ValueError: A draw is not finite.
        """
        drawn = self.drawn.isel(block or {}).astype(np.float64).load()
        if not finite_or_fill(drawn.values, first_entries(self.drawn, block or {})):
            raise ValueError(
                f"The draws of {self.drawn.name} hold NaN or infinite values; find the bad draw."
            )
        return drawn

    def parameters(self, block: Block | None = None) -> xr.Dataset:
        """Return the posterior group of a block, not yet read."""
        return self.posterior.isel(block or {})

    def read(self, block: Block | None = None) -> NumberBlock:
        """Return observation, mean and variance of a block.

        Mean and variance are those of the distribution where the posterior group tells them, else
        of the values drawn.

        Raises:
            ValueError: Values are not finite.
        """
        observed = self.observations(block)
        if self.posterior:
            group = self.parameters(block)
            location = group["loc" if "loc" in group else "mean"].astype(np.float64).load()
            variance = variance_figures(self.posterior, block)[0]["total"][0]
            return NumberBlock(observed, location.mean(SAMPLES).transpose(*observed.dims), variance)
        drawn = self.draws(block)
        spread = monte_carlo.variance_influence(drawn).mean(SAMPLES)
        return NumberBlock(observed, drawn.mean(SAMPLES), spread)


def open_numbers(tree: xr.DataTree, site: str | None = None) -> Numbers:
    """Find the observed and predicted numbers of a tree, without reading them.

    Args:
        tree: The tree of `predict` on cases with observed numbers.
        site: Name of the site; None takes the only one.

    Raises:
        TypeError, ValueError: The site is missing, ambiguous or holds classes; dimensions or cases
            differ.
    """
    name, value, drawn = find_site(tree, site)
    for group, array in (("observed_data", value), (DRAWS, drawn)):
        if array is None:
            raise ValueError(
                f"tree has no {group}/{name}; call predict on batches with observations."
            )
    assert value is not None and drawn is not None
    check_predictive(drawn, f"{DRAWS}/{name}")
    classes = name == class_site(tree, "observed_data") and has_probs(tree)
    if classes or value.dtype.kind not in "fiu":
        raise TypeError(f"{name} holds classes or {value.dtype}; this is for numbers.")
    if set(drawn.dims) != {*SAMPLES, *value.dims} or "case" not in value.dims:
        raise ValueError(f"{name} has dimensions {value.dims}, its draws {drawn.dims}.")
    check_cases(value, drawn, f"observed {name}")
    value = value.transpose("case", ...)
    drawn = drawn.transpose(*SAMPLES, *value.dims)
    posterior = _distribution(find_group(tree, "posterior"), drawn)
    return Numbers(value, drop_copies(drawn), drop_copies(posterior))


def find_site(
    tree: object, site: str | None = None
) -> tuple[str, xr.DataArray | None, xr.DataArray | None]:
    """Find the observed site of a tree: its name, what was observed, and what was drawn.

    Args:
        tree: The tree of `predict`.
        site: Name of the site; None takes the only one: of those both observed and drawn, else of
            those observed, else of those drawn.

    Raises:
        TypeError: ``tree`` is no DataTree.
        ValueError: None or several, and ``site`` does not choose.
    """
    if not isinstance(tree, xr.DataTree):
        raise TypeError(f"tree must be the DataTree of predict, not {type(tree).__name__}.")
    observed, drawn = (find_group(tree, name) for name in ("observed_data", DRAWS))
    both = sorted(map(str, set(observed) & set(drawn)))
    found = both or sorted(map(str, observed)) or sorted(map(str, drawn))
    if not found and site is None:
        raise ValueError("tree has no observed_data and no posterior_predictive; give site.")
    if _BOXES & ({*found} if site is None else {site}):
        raise ValueError(
            "tree holds boxes, of which draws and observations are not entry by entry of one "
            "object; call ppl_med.analysis.detection.objects(tree) and its metrics"
        )
    if site is None and len(found) > 1:
        raise ValueError(f"tree holds numbers of {found}; choose one with site=.")
    name = found[0] if site is None else site
    if found and name not in {*observed, *drawn}:
        raise ValueError(f"site is {site!r}; observed and predicted are {found}: name one.")
    return name, observed.get(name), drawn.get(name)


def find_distribution(tree: object, *, copies: bool = False) -> xr.Dataset | None:
    """Return the posterior group of a model of numbers, not yet read; None of anything else.

    Args:
        tree: Anything.
        copies: Keep draws that are copies of others.
    """
    group = find_group(tree, "posterior")
    names = set(map(str, group))
    if "probs" in names or not (set(_LOCATIONS) & names and set(_SPREADS) & names):
        return None
    return group if copies else drop_copies(group)


def _distribution(posterior: xr.Dataset, drawn: xr.DataArray) -> xr.Dataset:
    """The parameters of the predicted distribution, where the posterior group has them all."""
    names = [name for name in (*_LOCATIONS, *_SPREADS) if name in posterior]
    kept = posterior[names]
    complete = set(_LOCATIONS) & set(names) and set(_SPREADS) & set(names)
    if not complete or any(set(kept[name].dims) != set(drawn.dims) for name in names):
        return xr.Dataset()
    for name in names:
        check_cases(kept[name], drawn, name)
    return kept.transpose(*drawn.dims)
