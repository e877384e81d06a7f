"""Who the cases are: ids that tell calibration from test, groups, and weights, checked once."""

import numpy as np
import xarray as xr

from ppl_med.analysis.tree.groups import find_group
from ppl_med.axes import SAMPLES
from ppl_med.checks import present


def check_cases(array: xr.DataArray, probs: xr.DataArray, name: str, other: str = "probs") -> None:
    """Raise unless ``array`` holds the cases of ``probs`` in the same order.

    Args:
        array: An array with the dimension case.
        probs: Another.
        name: Name of the first, for the error.
        other: Name of the second.
    """
    same = array.sizes["case"] == probs.sizes["case"]
    if same and "case" in array.coords and "case" in probs.coords:
        same = bool(np.all(array["case"].values == probs["case"].values))
    if not same:
        for one in (array, probs):
            present("case", one["case"].values)
        raise ValueError(
            f"{name} and {other} do not hold the same cases in the same order; select the same "
            "cases in every group of the tree, and in every tree."
        )


def other_samples(first: xr.DataArray | xr.Dataset, second: xr.DataArray) -> str:
    """Return "chain" or "draw" where two arrays differ in it, as far as they tell; else ""."""
    for dim in SAMPLES:
        same = first.sizes[dim] == second.sizes[dim]
        if same and dim in first.coords and dim in second.coords:
            same = bool((first[dim].values == second[dim].values).all())
        if not same:
            return dim
    return ""


def case_ids(array: xr.DataArray, name: str = "probs") -> np.ndarray:
    """Return the ids of the cases.

    Raises:
        ValueError: There are none, one is missing (None, NaN or empty) or appears twice.
    """
    if "case" not in array.coords:
        raise ValueError(
            f"{name} has no case ids, so calibration and test cases cannot be told apart; give "
            "the batches an 'id' per case, or assign_coords(case=...)."
        )
    ids = array["case"].values
    present("case", ids)
    names, counts = np.unique(_comparable(ids)[0], return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"Case id {str(names[counts > 1][0])!r} appears {counts.max()} times; repeated "
            "cases are not exchangeable. Keep one of each."
        )
    return ids


def _comparable(*ids: np.ndarray) -> list[np.ndarray]:
    """As they are where all are whole numbers, which sort faster, else as text."""
    if all(one.dtype.kind in "iu" for one in ids):
        return list(ids)
    return [one.astype(str) for one in ids]


def case_coords(array: xr.DataArray, *others: str) -> dict[str, xr.Variable]:
    """Return the coordinates along case, and along ``others``, ids and those of the user."""
    return {
        str(name): coord.variable
        for name, coord in array.coords.items()
        if coord.dims and set(coord.dims) <= {"case", *others}
    }


def check_disjoint(
    first: np.ndarray,
    second: np.ndarray,
    names: str = "Calibration and test",
    why: str = "coverage would not hold",
) -> None:
    """Raise where two sets of cases, such as calibration (or training) and test, share one.

    Args:
        first: Ids (case,).
        second: Others (case,).
        names: What the two are, for the error.
        why: What a shared case does, for the error.
    """
    second, first = _comparable(second, first)
    shared = np.intersect1d(second, first)
    if shared.size:
        raise ValueError(
            f"{names} share {shared.size} case(s), e.g. {str(shared[0])!r}; {why}. Split the cases "
            "first, and give each its own id."
        )


def check_apart(
    first: tuple[object, xr.DataArray],
    second: tuple[object, xr.DataArray],
    group: str | xr.DataArray | None,
    names: tuple[str, str],
) -> None:
    """Raise where a patient has cases in two trees, as far as both say whose theirs are.

    Args:
        first: A tree, and the array of it whose cases they are.
        second: Another.
        group: As for `case_units`; nothing is known of the cases of both where it is "case" or the
            groups of one of them.
        names: Arguments of the caller, for the error.

    Raises:
        ValueError: One has.
    """
    column = "patient" if group is None else group
    if isinstance(column, xr.DataArray) or column == "case":
        return
    people = []
    for tree, array in (first, second):
        if column not in array.coords and column not in find_group(tree, "constant_data"):
            return
        people.append(unit_names(tree, column, array)[0].astype(str))
    shared = np.intersect1d(people[0], people[1])
    if shared.size:
        raise ValueError(
            f"{names[1]} has cases of {shared.size} {column}(s) of whom {names[0]} has others, "
            f"e.g. {str(shared[0])!r}: they look more familiar than those of a new {column}, so "
            f"p-values would be too small. Split by {column}, or pass group='case' if cases of one "
            "are independent."
        )


def metadata_groups(
    tree: object, by: str | xr.DataArray, array: xr.DataArray, argument: str
) -> xr.DataArray:
    """Return the group of every case as text.

    Args:
        tree: A tree whose constant_data holds the column, where ``by`` is a name.
        by: Name of a column of constant_data or of a coordinate of the cases; or the groups
            themselves (case).
        array: What the cases must agree with.
        argument: Name of ``by`` in the caller's signature.

    Returns:
        Names (case).

    Raises:
        TypeError, ValueError: No such column, other cases, or a missing value.
    """
    groups = _column(tree, by, array, argument) if isinstance(by, str) else by
    if not isinstance(groups, xr.DataArray):
        raise TypeError(
            f"{argument} must name a column of constant_data or be a DataArray over case, not "
            f"{type(groups).__name__}."
        )
    if groups.dims != ("case",):
        raise ValueError(f"{argument} has dimensions {groups.dims}; expected ('case',).")
    check_cases(groups, array, argument)
    names = [str(value) for value in present(argument, groups.values)]
    return xr.DataArray(np.array(names), dims="case")


def case_weights(weights: xr.DataArray, array: xr.DataArray) -> np.ndarray:
    """Return the weights of the cases, checked.

    Raises:
        TypeError: No DataArray.
        ValueError: Other cases, or weights that are negative, not finite or all zero.
    """
    if not isinstance(weights, xr.DataArray):
        raise TypeError(f"weights must be a DataArray over case, not {type(weights).__name__}.")
    if weights.dims != ("case",):
        raise ValueError(f"weights has dimensions {weights.dims}; expected ('case',).")
    check_cases(weights, array, "weights")
    values = weights.values.astype(np.float64)
    if not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise ValueError("weights must be finite, not negative, and not all zero.")
    return values


def case_units(
    tree: object, group: str | xr.DataArray | None, array: xr.DataArray
) -> tuple[np.ndarray, str]:
    """Return what stands for itself in an error over cases: the patient, or the case.

    Args:
        tree: The tree of `predict`.
        group: Column or coordinate, or the groups (case); "case" for every case by itself; None
            for the column or coordinate "patient" where there is one, and else the case.
        array: What the cases must agree with.

    Returns:
        The number of the unit of every case (case), by the order of their names, and what it is.

    Raises:
        TypeError, ValueError: As for `metadata_groups`.
    """
    names, kind = unit_names(tree, group, array)
    return np.unique(names, return_inverse=True)[1], kind


def unit_names(
    tree: object, group: str | xr.DataArray | None, array: xr.DataArray
) -> tuple[np.ndarray, str]:
    """Return the name of the unit of every case (case), and what it is; as `case_units`."""
    if group is None:
        known = "patient" in array.coords or "patient" in find_group(tree, "constant_data")
        group = "patient" if known else "case"
    if isinstance(group, str) and group == "case":
        if "case" in array.coords:
            return array["case"].values.astype(str), group
        return np.arange(array.sizes["case"]), group
    names = metadata_groups(tree, group, array, "group").values
    return names, group if isinstance(group, str) else "array"


def _column(tree: object, name: str, array: xr.DataArray, argument: str) -> xr.DataArray:
    group = find_group(tree, "constant_data")
    if name in group:
        return group[name].load()
    if name in array.coords and array.coords[name].dims == ("case",):
        return array.coords[name].reset_coords(drop=True).load()
    if not isinstance(tree, xr.DataTree):
        raise TypeError(
            f"{argument}={name!r} names a column of constant_data, which only a DataTree has; "
            "pass the tree, or the groups as a DataArray over case."
        )
    columns = sorted(
        {*map(str, group), *(str(n) for n, c in array.coords.items() if c.dims == ("case",))}
        - {"case"}
    )
    raise ValueError(
        f"{argument}={name!r} is no column of constant_data and no coordinate of the cases; there "
        f"are {columns}. Give the batches that metadata, or add it by storage.with_columns."
    )
