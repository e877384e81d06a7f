"""Metadata of the cases, such as patient and site, as coordinates that every result carries."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import xarray as xr

from ppl_med.checks import present, reject

Table: TypeAlias = pd.DataFrame | Mapping[str, Any] | Sequence[str] | str | os.PathLike[str]


def with_columns(tree: xr.DataTree, columns: Table, *, key: str = "id") -> xr.DataTree:
    """Make metadata coordinates of ``case`` in every group.

    Analyses then take ``group="site"`` and results over cases carry the columns, so that
    ``result.groupby("site").mean()`` works.

    Args:
        tree: The tree of ``predict``.
        columns: Names of columns of constant_data; or a table with the ids of the cases in a column
            ``key`` or as its index: a DataFrame, a dict of columns, or a CSV file. Rows of other
            cases are left out.
        key: Column of the table that holds the ids.

    Returns:
        The tree with these coordinates; nothing else changes.

    Raises:
        ValueError: There is no such column, or a case is not in the table, or twice, or lacks a
            value.
    """
    if not isinstance(tree, xr.DataTree):
        raise TypeError(f"tree must be the DataTree of predict, not {type(tree).__name__}")
    groups = {node.path: node.to_dataset(inherit=False) for node in tree.subtree}
    with_cases = {path: group for path, group in groups.items() if "case" in group.dims}
    if not with_cases:
        raise ValueError("tree has no group with the dimension case")
    if isinstance(columns, list | tuple):
        found = _own_columns(groups.get("/constant_data", xr.Dataset()), columns)
    else:
        first = next(iter(with_cases.values()))
        if "case" not in first.coords:
            raise ValueError("tree has no case ids to look up in columns; give the batches an 'id'")
        found = _looked_up(_table(columns, key), first["case"].values.tolist())
    for path, group in with_cases.items():
        kept = group.drop_vars([name for name in found if name in group])
        groups[path] = kept.assign_coords({n: ("case", v) for n, v in found.items()})
    return xr.DataTree.from_dict(groups, name=tree.name)


def _own_columns(group: xr.Dataset, names: Sequence[str]) -> dict[str, np.ndarray]:
    wrong = [name for name in names if name not in group or group[name].dims != ("case",)]
    if wrong or not names:
        known = sorted(str(n) for n, one in group.data_vars.items() if one.dims == ("case",))
        reject("columns", f"names of columns of constant_data, some of {known}", list(names))
    return {name: group[name].values for name in names}


def _table(columns: Any, key: str) -> pd.DataFrame:
    if isinstance(columns, str | os.PathLike):
        columns = pd.read_csv(Path(columns), dtype={key: str})
    table = pd.DataFrame(columns)
    if key not in table.columns and table.index.name != key:
        if isinstance(table.index, pd.RangeIndex):
            reject("key", f"a column of the table, one of {list(table.columns)}", key)
        table.index.name = key
    table = table if table.index.name == key else table.set_index(key)
    table.index = table.index.map(str)
    return table


def _looked_up(table: pd.DataFrame, ids: list[Any]) -> dict[str, np.ndarray]:
    names = [str(one) for one in ids]
    missing = [name for name in names if name not in table.index]
    if missing:
        raise ValueError(
            f"columns lacks {len(missing)} of {len(names)} cases, first {missing[0]!r}; its first "
            f"id is {table.index[0] if len(table) else None!r}"
        )
    rows = table.loc[names]
    if len(rows) > len(names):
        twice = rows.index[rows.index.duplicated()][0]
        raise ValueError(f"columns holds case {twice!r} more than once; keep one row of each")
    found = {}
    for name, column in rows.items():
        values = np.array(present(f"columns: {name}", column.tolist()))
        found[str(name)] = values
    return found
