"""Whether a map that was learnt on some cases may be applied to others."""

import numpy as np
import xarray as xr

from ppl_med.analysis.tree import case_ids


def check_other_cases(learnt: xr.Dataset, probs: xr.DataArray) -> None:
    """Raise if cases to which a map is applied are among those it was learnt on."""
    shared = np.intersect1d(case_ids(probs).astype(str), learnt["case"].values.astype(str))
    if shared.size:
        raise ValueError(
            f"The map was learnt on {shared.size} of these case(s), e.g. {str(shared[0])!r}: they "
            "would look better calibrated than new ones. Split the cases first."
        )


def check_same_classes(learnt: xr.Dataset, names: list[str]) -> None:
    """Raise unless the classes of a tree are those of the map, in the same order."""
    old, new = [str(name) for name in learnt["class"].values], names
    if old != new:
        raise ValueError(f"The map knows the classes {old}; the tree has {new}.")
