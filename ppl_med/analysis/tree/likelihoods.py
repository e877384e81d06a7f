"""The log-likelihood of the observation under every draw."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr

from ppl_med.analysis.tree.blocks import Block, split_blocks
from ppl_med.analysis.tree.cases import check_cases
from ppl_med.analysis.tree.classes import has_probs
from ppl_med.analysis.tree.distinct_draws import drop_copies
from ppl_med.analysis.tree.groups import (
    OBSERVATIONS,
    check_predictive,
    class_site,
    find_group,
)
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


def needed_log_likelihood(
    tree: object, site: str | None = None, name: str = "tree"
) -> LogLikelihood:
    """As `open_log_likelihood`, for analyses that cannot do without.

    Args:
        tree: A tree, called `name` in messages.
        site: Name of the observed site; None takes label or mask, or the only one.
        name: Of the argument.

    Raises:
        ValueError: As there; or there is none, or only a bound of it, or only a loss.
    """
    found = open_log_likelihood(tree, site)
    if found is not None:
        return found
    if isinstance(tree, xr.DataTree) and "evidence_bound" in tree:
        raise ValueError(
            f"{name} holds no log_likelihood but lower bounds of it, in the group evidence_bound: "
            "scores and comparisons of densities are not known. Read the bound by "
            "analysis.scoring.evidence_bound, and score predictions themselves, masks by "
            "analysis.segmentation."
        )
    kind = str(tree.attrs.get("log_likelihood_of")) if isinstance(tree, xr.DataTree) else ""
    if ", but none is known" in kind:
        raise ValueError(
            f"{name} holds no log_likelihood: it would be of {kind}. Score predictions themselves, "
            "masks by analysis.segmentation."
        )
    raise ValueError(
        f"{name} has no log_likelihood; call predict on batches that hold observations, and "
        "pass the tree it returns."
    )


def open_log_likelihood(
    tree: object, site: str | None = None, *, copies: bool = False
) -> LogLikelihood | None:
    """Find the log-likelihood of a tree, without reading it.

    Args:
        tree: A tree; anything else carries no log-likelihood.
        site: Name of the observed site; None takes label or mask, or the only one.
        copies: Keep draws that are copies of others.

    Returns:
        The log-likelihood, or None where the tree has none.

    Raises:
        ValueError: The site is missing or ambiguous, a dimension is missing, or the observation is
            of other cases.
    """
    group = find_group(tree, "log_likelihood")
    known_names = sorted(map(str, group))
    usual = [name for name in OBSERVATIONS if name in known_names][:1] or known_names
    if site not in (None, *known_names) or (site is None and len(usual) > 1):
        raise ValueError(f"site is {site!r}; log_likelihood holds {known_names}: name one.")
    if not usual:
        return None
    name = site or usual[0]
    array = group[name]
    check_predictive(array, f"log_likelihood/{name}")
    missing = [dim for dim in (*SAMPLES, "case") if dim not in array.dims]
    if missing:
        raise ValueError(f"log_likelihood {name} lacks the dimension(s) {', '.join(missing)}.")
    array = array.transpose(*SAMPLES, "case", ...)
    array = array if copies else drop_copies(array)
    observed = find_group(tree, "observed_data")
    if name not in observed or "case" not in observed[name].dims:
        return LogLikelihood(array, None)
    check_cases(observed[name], array, f"observed {name}", "log_likelihood")
    value = observed[name]
    alone = name in OBSERVATIONS and not find_group(tree, "posterior")
    classes = alone or (has_probs(tree) and name == class_site(tree, "observed_data"))
    if not classes:
        value = value.astype(np.float64)  # a number, of which -1 is one like others
    seen = known(value)
    return LogLikelihood(array, seen.any([dim for dim in seen.dims if dim not in array.dims]))
