"""The log-likelihood of the observation under every draw."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr

from ppl_med.analysis.tree.blocks import Block, split_blocks
from ppl_med.analysis.tree.cases import check_cases
from ppl_med.analysis.tree.classes import OBSERVATIONS
from ppl_med.analysis.tree.left_out import known
from ppl_med.axes import SAMPLES


@dataclass(frozen=True)
class LogLikelihood:
    """The log-likelihood of every draw, not yet read; see `open_log_likelihood`.

    Args:
        array: Nats (chain, draw, case, ...).
        seen: Whether there was an observation (case, ...); None where the tree does not say.
    """

    array: xr.DataArray
    seen: xr.DataArray | None

    def blocks(self) -> Iterator[Block]:
        """Yield selections that fit the memory limit."""
        chains, draws, *_ = self.array.shape
        sizes = {str(dim): self.array.sizes[dim] for dim in self.array.dims[2:]}
        yield from split_blocks(sizes, chains * draws)

    def read(self, block: Block | None = None) -> xr.DataArray:
        """Return the values of a block, or all, float64, NaN where nothing was observed.

        Raises:
            ValueError: Values are NaN where something was observed, or +infinity.
        """
        array = self.array.isel(block or {}).astype(np.float64).load()
        if self.seen is not None:
            seen = self.seen.isel(block or {}).load()
            array = array if seen.all() else array.where(seen, 0.0)
        if np.isnan(array.values).any() or np.isposinf(array.values).any():
            raise ValueError(
                f"log_likelihood {array.name} holds NaN or +infinity; predict again in float64 or "
                "drop those cases."
            )
        return array if self.seen is None or seen.all() else array.where(seen)


def open_log_likelihood(tree: object) -> LogLikelihood | None:
    """Find the log-likelihood of a tree, without reading it.

    Args:
        tree: A tree; anything else carries no log-likelihood.

    Returns:
        The log-likelihood of the label or mask, or of the only observation, whatever its name;
        None where the tree has none.

    Raises:
        ValueError: A dimension is missing, or the observation is of other cases.
    """
    if not isinstance(tree, xr.DataTree) or "log_likelihood" not in tree.children:
        return None
    group = tree["log_likelihood"].to_dataset()
    names = (*OBSERVATIONS, *map(str, group)) if len(group) == 1 else OBSERVATIONS
    name = next((name for name in names if name in group), None)
    if name is None:
        return None
    array = group[name]
    missing = [dim for dim in (*SAMPLES, "case") if dim not in array.dims]
    if missing:
        raise ValueError(f"log_likelihood {name} lacks the dimension(s) {', '.join(missing)}.")
    array = array.transpose(*SAMPLES, "case", ...)
    observed = tree["observed_data"].to_dataset() if "observed_data" in tree.children else {}
    if name not in observed or "case" not in observed[name].dims:
        return LogLikelihood(array, None)
    check_cases(observed[name], array, f"observed {name}", "log_likelihood")
    seen = known(observed[name])
    return LogLikelihood(array, seen.any([dim for dim in seen.dims if dim not in array.dims]))
