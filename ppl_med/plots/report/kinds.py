"""What a tree is of, told from what it holds."""

import xarray as xr

from ppl_med.analysis.tree import class_site, find_distribution, find_group
from ppl_med.axes import SAMPLES

_PER_CASE = {*SAMPLES, "case", "class"}


def kind_of(tree: xr.DataTree) -> str:
    """Say what a tree is of: findings, classes, masks, boxes, numbers, maps or "other"."""
    posterior, drawn = (find_group(tree, name) for name in ("posterior", "posterior_predictive"))
    if {"edge_loc", "box_probs"} <= set(posterior):
        return "boxes"
    if "probs" in posterior:
        dims = set(map(str, posterior["probs"].dims))
        if not dims >= _PER_CASE:
            return "other"
        if "finding" in dims:
            return "findings" if dims == {*_PER_CASE, "finding"} else "other"
        return "classes" if dims == _PER_CASE else "masks"
    distribution = find_distribution(tree)
    site = class_site(tree, "posterior_predictive", ("mask",))
    array = drawn.get(site) if site is not None else None
    if distribution is not None:
        array = distribution["loc" if "loc" in distribution else "mean"]
    if array is None or not {*SAMPLES, "case"} <= set(array.dims):
        return "other"
    space = set(array.dims) - {*SAMPLES, "case"}
    if distribution is None and array.dtype.kind in "iub" and {"row", "col"} <= space:
        return "masks"
    if space and not {"row", "col"} <= space:
        return "other"
    return "maps" if space else "numbers"
