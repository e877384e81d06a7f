"""Cases of a calibration analysis: their labels and classes, and who was in the learning set."""

import numpy as np
import xarray as xr

from ppl_med.analysis.conformal.cases import case_ids
from ppl_med.analysis.posterior import Posterior, class_names, observed


def case_labels(tree: Posterior, probs: xr.DataArray) -> xr.DataArray:
    """Return the observed class (case); raise where there is one per pixel."""
    label = observed(tree, probs)
    if label.ndim > 1:
        raise ValueError(
            f"The observation has dimensions {label.dims}: pixels of one case are not "
            "independent, and the intervals would be too narrow. Use one label per case, or "
            "ppl_med.analysis.segmentation.pixel_reliability for masks."
        )
    return label


def check_other_cases(learnt: xr.Dataset, probs: xr.DataArray) -> None:
    """Raise if cases to which a map is applied are among those it was learnt on."""
    shared = np.intersect1d(case_ids(probs).astype(str), learnt["case"].values.astype(str))
    if shared.size:
        raise ValueError(
            f"The map was learnt on {shared.size} of these case(s), e.g. {str(shared[0])!r}: they "
            "would look better calibrated than new ones. Split the cases first."
        )


def check_same_classes(learnt: xr.Dataset, probs: xr.DataArray) -> None:
    """Raise unless ``probs`` has the classes of the map, in the same order."""
    old, new = [str(name) for name in learnt["class"].values], class_names(probs)
    if old != new:
        raise ValueError(f"The map knows the classes {old}; the tree has {new}.")


def samples_of(probs: xr.DataArray) -> dict[str, xr.DataArray]:
    """Return the coordinates of chain and draw, where there are any."""
    return {dim: probs.coords[dim] for dim in ("chain", "draw") if dim in probs.coords}
