"""Several trees as one: independently trained members are chains, and cases follow each other."""

from collections.abc import Collection, Sequence

import xarray as xr

from ppl_med.checks import reject
from ppl_med.storage.padding import largest_sizes, pad_dataset

MOMENTS = "_moments"
"""End of the name of a group that holds moments of the draws of another one."""


def join_chains(trees: Sequence[xr.DataTree], groups: Collection[str] | None = None) -> xr.DataTree:
    """Join the trees of independently trained nets into that of a deep ensemble.

    Args:
        trees: Trees of ``predict`` on the same cases, with as many draws each.
        groups: Names of the groups with draws to join, such as ``("posterior",)``; all by default.

    Returns:
        A tree in which the nets follow each other along ``chain``, counted from 0. Groups without
        draws, and attributes, are those of the first tree; ``guide`` says what was joined and
        ``chains`` how many. Moments of the draws of one net, which are not those of all, are left
        out.

    Raises:
        ValueError: There are no trees, the cases of two differ, or their variables.
    """
    is_list = isinstance(trees, Sequence) and all(isinstance(one, xr.DataTree) for one in trees)
    if not is_list or not trees:
        reject("trees", "one or more trees of predict", trees)
    if groups is not None and (not isinstance(groups, Collection) or isinstance(groups, str)):
        reject("groups", "names of groups, such as ('posterior',)", groups)
    joined = {}
    for name, node in trees[0].children.items():
        if name.endswith(MOMENTS):
            continue
        parts = [tree[name].to_dataset() for tree in trees]
        if "chain" not in node.dims:
            joined[f"/{name}"] = parts[0]
        elif groups is None or name in groups:
            _check_variables(name, parts)
            one = xr.concat(parts, "chain", join="exact", combine_attrs="override")
            joined[f"/{name}"] = one.assign_coords(chain=range(one.sizes["chain"]))
    tree = xr.DataTree.from_dict(joined)
    number = max(node.sizes.get("chain", 0) for node in tree.children.values())
    guide = f"Ensemble of {trees[0].attrs.get('guide', 'nets')}"
    tree.attrs = {**trees[0].attrs, "guide": guide, "chains": number}
    return tree


def join_cases(trees: Sequence[xr.DataTree]) -> xr.DataTree:
    """Join the trees of one posterior on different cases, such as those of several hospitals.

    It is also called ``concat``. ``xarray.concat`` would give what has no cases, such as norms of
    weights, an axis of cases.

    Args:
        trees: Trees of ``predict`` by one model and guide, with the same draws and groups.

    Returns:
        A tree in which the cases follow each other, in the order given. What has no cases, and
        attributes, are those of the first tree. Maps of smaller cases are filled up as `predict`
        does it, with -1 or NaN.

    Raises:
        ValueError: There are no trees; groups, variables or draws differ; what has no cases
            differs, so that the posterior is another one; two trees share a case; or some are of
            training cases and some of held-out ones.
    """
    is_list = isinstance(trees, Sequence) and all(isinstance(one, xr.DataTree) for one in trees)
    if not is_list or not trees:
        reject("trees", "one or more trees of predict", trees)
    kinds = sorted({str(tree.attrs.get("log_likelihood_of", "")) for tree in trees})
    if len(kinds) > 1:
        raise ValueError(
            f"trees are of different kinds of cases, {kinds} by log_likelihood_of: what holds for "
            "training cases does not for others; keep them apart"
        )
    names = [list(tree.children) for tree in trees]
    if any(set(one) != set(names[0]) for one in names):
        raise ValueError(f"trees have different groups: {names}; predict them alike")
    for name in names[0]:
        if "case" in trees[0][name].dims:
            _check_variables(name, [tree[name].to_dataset() for tree in trees])
    joined = {}
    for name in names[0]:
        parts = [tree[name].to_dataset() for tree in trees]
        if "case" not in parts[0].dims:
            joined[f"/{name}"] = parts[0]
            continue
        largest = largest_sizes(parts)
        parts = [pad_dataset(part, largest) for part in parts]
        try:
            one = xr.concat(
                parts,
                "case",
                data_vars="minimal",
                coords="minimal",
                compat="equals",
                join="exact",
                combine_attrs="override",
            )
        except (ValueError, xr.MergeError) as error:
            raise ValueError(
                f"{name}: the trees are not of one posterior, or not of the same variables and "
                f"draws, and cannot be joined along case: {error}"
            ) from error
        ids = one["case"].values.tolist() if "case" in one.coords else []
        if len(set(ids)) < len(ids):
            twice = next(one for one in ids if ids.count(one) > 1)
            raise ValueError(
                f"trees share {len(ids) - len(set(ids))} case id(s), first {twice!r}; join every "
                "case once, and give the batches an 'id'"
            )
        joined[f"/{name}"] = one
    tree = xr.DataTree.from_dict(joined)
    tree.attrs = dict(trees[0].attrs)
    return tree


def _check_variables(group: str, parts: Sequence[xr.Dataset]) -> None:
    """Raise a ValueError where one tree lacks what another has: xarray would fill with NaN."""
    names = [sorted(map(str, part.data_vars)) for part in parts]
    other = next((one for one in names if one != names[0]), None)
    if other is not None:
        raise ValueError(
            f"{group}: the trees have different variables, {names[0]} and {other}; predict them "
            "alike, with the same lossy"
        )
