"""Class probabilities of a tree, read by parts that fit in memory.

What is entry by entry is computed by runs of cases. What must see all cases together (ranks,
quantiles, bootstrap) is computed from a table (case, class, ...): the mixture, or one draw. A table
is in memory, the draws never are.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr

from ppl_med.analysis import monte_carlo, tree_blocks
from ppl_med.analysis.posterior import Posterior, check_simplex, find_probabilities
from ppl_med.analysis.tree_blocks import Block, Part

_COPIES = 4  # of the tables of a run: the chunks, the run, the run before, and what is checked


@dataclass(frozen=True)
class Probabilities:
    """Class probabilities of every draw, not yet read; see `open_probs`.

    Args:
        array: (chain, draw, case, class, ...).
    """

    array: xr.DataArray

    @property
    def num_samples(self) -> tuple[int, int]:
        """Chains and draws."""
        return self.array.shape[0], self.array.shape[1]

    def blocks(self) -> Iterator[tuple[Block, xr.DataArray]]:
        """Yield selections that fit the memory limit, and their probabilities, float64.

        Raises:
            ValueError: Values are not finite, negative, or do not sum to one over class.
        """
        sizes = {dim: self.array.sizes[dim] for dim in ("case", *map(str, self.array.dims[4:]))}
        per_entry = int(np.prod(self.num_samples)) * self.array.sizes["class"]
        for block in tree_blocks.blocks(sizes, per_entry):
            yield block, _read(self.array.isel(block))

    def map(self, function: Callable[[xr.DataArray], Part]) -> Part:
        """Return a function of every block (chain, draw, case, class, ...), put together."""
        return tree_blocks.join((block, function(values)) for block, values in self.blocks())

    def mixture(self) -> xr.DataArray:
        """Return the mean over chain and draw (case, class, ...)."""
        return self.map(monte_carlo.mean)

    def draws(self) -> Iterator[xr.DataArray]:
        """Yield the table (case, class, ...) of every draw, chain by chain.

        As many draws as fit the memory limit, and one at least, are read together.

        Raises:
            ValueError: As for `blocks`.
        """
        chains, draws = self.num_samples
        one = 8 * _COPIES * self.array.size // (chains * draws)
        step = max(1, tree_blocks.BLOCK_BYTES // one)
        for chain in range(chains):
            for start in range(0, draws, step):
                run = self.array.isel(chain=[chain], draw=slice(start, start + step))
                yield from _read(run)[0]


def open_probs(tree: Posterior) -> Probabilities:
    """Find the class probabilities of a tree, without reading them.

    Args:
        tree: The tree of `predict`, its posterior group as a Dataset, or ``probs`` itself.

    Raises:
        TypeError, ValueError: As for `ppl_med.analysis.posterior.probabilities`; malformed values
            are found when they are read.
    """
    return Probabilities(find_probabilities(tree))


def _read(array: xr.DataArray) -> xr.DataArray:
    if array.chunks is not None:
        # A slice of a chunk is a view, which would keep the whole chunk in memory.
        array = array.copy(data=array.data.map_blocks(np.copy))
    values = array.astype(np.float64, copy=False).load()
    check_simplex(values)
    return values
