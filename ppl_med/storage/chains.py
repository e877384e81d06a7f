"""Several runs as one posterior: independently trained members are chains."""

from collections.abc import Collection, Sequence

import xarray as xr

from ppl_med.checks import reject


def join_chains(trees: Sequence[xr.DataTree], groups: Collection[str] | None = None) -> xr.DataTree:
    """Join the trees of independently trained nets into that of a deep ensemble.

    Args:
        trees: Trees of ``predict`` on the same cases, with as many draws each.
        groups: Names of the groups with draws to join, such as ``("posterior",)``; all by default.

    Returns:
        A tree in which the nets follow each other along ``chain``, counted from 0. Groups without
        draws, and attributes, are those of the first tree; ``guide`` says what was joined and
        ``chains`` how many.

    Raises:
        ValueError: There are no trees, or the cases of two differ.
    """
    is_list = isinstance(trees, Sequence) and all(isinstance(one, xr.DataTree) for one in trees)
    if not is_list or not trees:
        reject("trees", "one or more trees of predict", trees)
    if groups is not None and (not isinstance(groups, Collection) or isinstance(groups, str)):
        reject("groups", "names of groups, such as ('posterior',)", groups)
    joined = {}
    for name, node in trees[0].children.items():
        parts = [tree[name].to_dataset() for tree in trees]
        if "chain" not in node.dims:
            joined[f"/{name}"] = parts[0]
        elif groups is None or name in groups:
            one = xr.concat(parts, "chain", join="exact", combine_attrs="override")
            joined[f"/{name}"] = one.assign_coords(chain=range(one.sizes["chain"]))
    tree = xr.DataTree.from_dict(joined)
    number = max(node.sizes.get("chain", 0) for node in tree.children.values())
    guide = f"Ensemble of {trees[0].attrs.get('guide', 'nets')}"
    tree.attrs = {**trees[0].attrs, "guide": guide, "chains": number}
    return tree
