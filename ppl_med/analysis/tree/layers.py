"""Features of layers that `predict` kept: posterior/feature:<layer> (chain, draw, case, unit).

``predict(..., keep=("feature:<layer>",))``. They mean something only beside features of the same
functions: two trees are compared where parameters, seed, chains and draws are the same.
"""

import numpy as np
import xarray as xr

from ppl_med.analysis.tree.distinct_draws import drop_copies
from ppl_med.analysis.tree.groups import find_group
from ppl_med.axes import SAMPLES

FEATURE = "feature:"
_IDENTITY = ("parameters_sha256", "seed")


def open_layers(tree: object) -> dict[str, xr.DataArray]:
    """Find the features that were kept, by layer, not yet read; none of a bare array.

    Raises:
        ValueError: Features of other dimensions.
    """
    group = find_group(tree, "posterior")
    found = {}
    for name in map(str, group):
        if not name.startswith(FEATURE):
            continue
        array = group[name].transpose(*SAMPLES, "case", ...)
        if array.ndim != 4:
            raise ValueError(f"{name} has dimensions {array.dims}, not one axis of units.")
        found[name.removeprefix(FEATURE)] = array
    return found


def mean_features(array: xr.DataArray) -> np.ndarray:
    """Return the mean over draws, chains side by side: (case, unit of all chains), float64.

    Chains are nets of their own, whose units do not correspond. One draw is in memory at a time.

    Raises:
        ValueError: A value is NaN or infinite.
    """
    kept = drop_copies(array)
    chains = []
    for chain in range(kept.sizes["chain"]):
        total = np.zeros((kept.sizes["case"], kept.shape[-1]))
        for draw in range(kept.sizes["draw"]):
            total += kept[chain, draw].values
        chains.append(total / kept.sizes["draw"])
    result = np.concatenate(chains, 1)
    bad = int((~np.isfinite(result)).any(1).sum())
    if bad:
        raise ValueError(
            f"{array.name} holds NaN or infinite values in {bad} case(s); drop those cases or find "
            "the draw that diverged."
        )
    return result


def functions_of(tree: xr.DataTree) -> dict[str, str]:
    """Return what tells that draws of two trees are the same functions, where it is known."""
    found = {name: str(tree.attrs.get(name, "")) for name in _IDENTITY}
    return {name: value for name, value in found.items() if value}
