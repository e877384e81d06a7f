"""Parts of a tree that fit in memory, and predicted numbers read by such parts.

A part is a run of cases; where one case is too large by itself (a volume), a run along its first
further axis. Only what is entry by entry may be computed so: nothing here sees a neighbour.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import xarray as xr

from ppl_med.analysis.number_draws import find_numbers
from ppl_med.analysis.number_variance import variance_figures
from ppl_med.analysis.posterior import check_cases

BLOCK_BYTES = 2**27
_SAMPLES = ("chain", "draw")
_WORK = 6  # float64 arrays of the size of the draws that an analysis holds at once

Block = dict[str, slice]
Part = TypeVar("Part", xr.DataArray, xr.Dataset)


def blocks(sizes: Mapping[str, int], per_entry: int) -> Iterator[Block]:
    """Yield selections that fit the memory limit, in the order of the cases.

    Args:
        sizes: Sizes of case and the further axes, case first.
        per_entry: Numbers that one entry has: draws, times classes.

    Yields:
        Slices for ``isel``: of case, and of the next axis where one case is too large.
    """
    dims = list(sizes)
    inner = int(np.prod([sizes[dim] for dim in dims[1:]]))
    one = max(1, 8 * _WORK * per_entry * inner)
    if one <= BLOCK_BYTES or len(dims) == 1:
        yield from _runs("case", sizes["case"], max(1, BLOCK_BYTES // one))
        return
    rows = max(1, BLOCK_BYTES * sizes[dims[1]] // one)
    for case in range(sizes["case"]):
        for run in _runs(dims[1], sizes[dims[1]], rows):
            yield {"case": slice(case, case + 1), **run}


def join(parts: Iterable[tuple[Block, Part]]) -> Part:
    """Put the results of all blocks together, in the order in which `blocks` yields them."""
    cases: dict[int, list[Part]] = {}
    inner = ""
    for block, part in parts:
        cases.setdefault(block["case"].start, []).append(part)
        inner = next((dim for dim in block if dim != "case"), "")
    rows = [xr.concat(row, inner) if len(row) > 1 else row[0] for row in cases.values()]
    return xr.concat(rows, "case") if len(rows) > 1 else rows[0]


class NumberBlock(NamedTuple):
    """Predicted and observed numbers of a block, float64, each (case, ...)."""

    observed: xr.DataArray  # NaN where not observed
    mean: xr.DataArray  # of the mixture of the draws
    variance: xr.DataArray  # of the mixture of the draws


@dataclass(frozen=True)
class Numbers:
    """Observed and predicted numbers of a tree, not yet read.

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
        yield from blocks(self.sizes, self.num_draws)

    def observations(self, block: Block) -> xr.DataArray:
        """Return what was observed in a block.

        Raises:
            ValueError: An observation is infinite.
        """
        value = self.observed.isel(block).astype(np.float64).load()
        if np.isinf(value.values).any():
            raise ValueError(f"observed {self.observed.name} is infinite somewhere; use NaN.")
        return value

    def draws(self, block: Block) -> xr.DataArray:
        """Return what was drawn in a block (chain, draw, case, ...).

        Raises:
            ValueError: A draw is not finite.
        """
        drawn = self.drawn.isel(block).astype(np.float64).load()
        if not np.isfinite(drawn.values).all():
            raise ValueError(
                f"The draws of {self.drawn.name} hold NaN or infinite values; find the bad draw."
            )
        return drawn

    def parameters(self, block: Block) -> xr.Dataset:
        """Return the posterior group of a block."""
        return self.posterior.isel(block)

    def read(self, block: Block) -> NumberBlock:
        """Return observation, mean and variance of a block.

        Mean and variance are those of the law where the posterior group tells them, else of the
        values drawn.

        Raises:
            ValueError: Values are not finite.
        """
        observed = self.observations(block)
        if self.posterior:
            group = self.parameters(block)
            location = group["loc" if "loc" in group else "mean"].astype(np.float64).load()
            variance = variance_figures(group)[0]["total"][0]
            return NumberBlock(
                observed, location.mean(_SAMPLES).transpose(*observed.dims), variance
            )
        drawn = self.draws(block)
        spread = drawn.var(_SAMPLES, ddof=1) if self.num_draws > 1 else 0 * drawn.mean(_SAMPLES)
        return NumberBlock(observed, drawn.mean(_SAMPLES), spread)


def open_numbers(tree: xr.DataTree, site: str | None = None) -> Numbers:
    """Find the observed and predicted numbers of a tree, without reading them.

    Args:
        tree: The tree of `predict` on cases with observed numbers.
        site: Name of the site; None takes the only one.

    Raises:
        TypeError, ValueError: The site is missing, ambiguous or holds classes; dimensions or cases
            differ.
    """
    observed, drawn = find_numbers(tree, site)
    posterior = tree["posterior"].to_dataset() if "posterior" in tree.children else xr.Dataset()
    return Numbers(observed, drawn, _law(posterior, drawn))


def _law(posterior: xr.Dataset, drawn: xr.DataArray) -> xr.Dataset:
    """The parameters of the predicted law, where the posterior group has them all."""
    names = [name for name in ("loc", "mean", "scale", "variance") if name in posterior]
    kept = posterior[names]
    known = {"loc", "mean"} & set(names) and {"scale", "variance"} & set(names)
    if not known or any(set(kept[name].dims) != set(drawn.dims) for name in names):
        return xr.Dataset()
    for name in names:
        check_cases(kept[name], drawn, name)
    return kept.transpose(*drawn.dims)


def _runs(dim: str, size: int, step: int) -> Iterator[Block]:
    for start in range(0, size, step):
        yield {dim: slice(start, min(start + step, size))}
