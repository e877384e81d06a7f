"""Every analysis keeps the same promises: one table, one test a promise."""

import re
from collections.abc import Sequence
from functools import cache, partial
from types import ModuleType
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from analysis_table import (
    ANALYSES,
    AUGMENTED,
    AUGMENTED_PIXELS,
    CASES,
    DEPTHS,
    GRADERS,
    HOLES,
    MODULES,
    MOMENTS,
    NO_ANALYSES,
    PIXELS,
    SAMPLED,
    SIDE,
    WHOLE,
    Analysis,
    Kind,
    Result,
    with_copies,
)
from analysis_table import MAPS as MAP_KIND
from posterior_trees import array

from ppl_med.axes import SAMPLES
from ppl_med.storage import class_modes, log_float16
from ppl_med.storage.padding import pad_dataset

ROWS = pytest.mark.parametrize("name", ANALYSES)
MAPS = pytest.mark.parametrize(
    "name",
    [
        name
        for name, row in ANALYSES.items()
        if row.kind
        in (PIXELS, SAMPLED, AUGMENTED_PIXELS, DEPTHS, GRADERS, WHOLE, MOMENTS, MAP_KIND)
    ],
)
READERS = pytest.mark.parametrize("name", [name for name, row in ANALYSES.items() if row.reads])


# Of the tree, under every scheduler.
CHUNKS = {
    "threads": {"case": 5},
    "synchronous": {"case": 4, "draw": 1, "row": 3},
    "cluster": {"case": 8},
}
FEW_BYTES = 2**13  # of a block, so that there are several


def tree_of(row: Analysis) -> xr.DataTree:
    """A tree for an analysis."""
    return row.kind.build(CASES, "c")


def in_chunks(tree: xr.DataTree, chunks: dict[str, int]) -> xr.DataTree:
    """The lazy tree, in chunks along those of the dimensions that it has."""
    dims = {dim for group in tree.subtree for dim in group.dims}
    return tree.chunk({dim: size for dim, size in chunks.items() if dim in dims})


def run(row: Analysis, tree: xr.DataTree) -> xr.Dataset:
    """The result as a Dataset."""
    found: Result = row.run(tree)
    if isinstance(found, xr.Dataset):
        return found.compute()
    return found.compute().to_dataset(name=str(found.name or "result"), promote_attrs=True)


def with_holes(tree: xr.DataTree, kind: Kind, cases: Sequence[int] = HOLES) -> xr.DataTree:
    """The tree with some cases, and of maps one row of every case, not observed."""
    group, name = kind.observed.split("/")
    node = tree[group].to_dataset()
    array = node[name].copy(deep=True)
    nothing: Any = -1 if array.dtype.kind == "i" else np.nan
    array[{"case": list(cases)}] = nothing
    if "row" in array.dims and kind.rows:
        array[{"row": 0}] = nothing
    result = tree.copy()
    result[group] = xr.DataTree(node.assign({name: array}))
    return result


def without_holes(found: Any, *, rows: bool) -> Any:
    """The part of a tree or result that was observed."""
    kept: dict[str, Any] = {"case": [case for case in range(CASES) if case not in HOLES]}
    if rows:
        kept["row"] = slice(1, None)
    return found.isel(kept, missing_dims="ignore")


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_analysis_has_a_row(module: ModuleType) -> None:
    short = module.__name__.removeprefix("ppl_med.analysis.")
    rows = {name.split("/")[0] for name in ANALYSES}
    functions = {name for name in module.__all__ if callable(getattr(module, name))}
    assert {f"{short}.{name}" for name in functions} <= rows | NO_ANALYSES


@cache
def in_memory(name: str) -> xr.Dataset:
    """The result of a loaded tree."""
    return run(ANALYSES[name], tree_of(ANALYSES[name]))


@ROWS
@pytest.mark.parametrize("where", CHUNKS)
def test_a_lazy_tree_gives_the_same(
    name: str, where: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On threads of this process, in one of them, on processes of a cluster; in any blocks."""
    expected = in_memory(name)
    scheduler = request.getfixturevalue("cluster") if where == "cluster" else where
    if where == "synchronous":
        monkeypatch.setattr("ppl_med.analysis.tree.blocks.BLOCK_BYTES", FEW_BYTES)
        monkeypatch.setattr("ppl_med.analysis.tree.masks._BLOCK_BYTES", FEW_BYTES)
    with dask.config.set(scheduler=scheduler):
        found = run(ANALYSES[name], in_chunks(tree_of(ANALYSES[name]), CHUNKS[where]))
    xr.testing.assert_allclose(found, expected, rtol=1e-12)


def stored(tree: xr.DataTree, name: str, **variable: xr.DataArray) -> xr.DataTree:
    """The tree with another variable in the place of its probabilities."""
    result = tree.copy()
    kept = tree["posterior"].to_dataset().drop_vars(name)
    result["posterior"] = xr.DataTree(kept.assign(variable))
    return result


@pytest.mark.parametrize(
    "name",
    [name for name, row in ANALYSES.items() if row.kind not in (AUGMENTED, AUGMENTED_PIXELS)],
)
def test_what_probabilities_are_stored_as_is_read_through_one_door(name: str) -> None:
    """Of logs, all that the probabilities give; of modes, the same as before, or an error."""
    row = ANALYSES[name]
    tree = tree_of(row)
    if "posterior" not in tree.children or "probs" not in tree["posterior"].data_vars:
        return
    probs = array(tree, "posterior/probs")
    logs = probs.copy(data=log_float16.encoded(probs.values)).assign_attrs(log_float16.STORED)
    read = stored(tree, "probs", probs=log_float16.decoded(logs).compute())
    found = run(row, stored(tree, "probs", log_probs=logs))
    xr.testing.assert_allclose(found, run(row, read), rtol=1e-12)
    if "row" not in probs.dims:
        return
    modes = probs.isel({"class": 0}, drop=True).copy(data=class_modes.encoded(probs.values, 3))
    modes = modes.assign_attrs(class_modes.attributes(probs["class"].values))
    try:
        found = run(row, stored(tree, "probs", mode=modes))
    except ValueError as error:
        assert re.search("Lossy.probs='argmax'", str(error)), error
    else:
        xr.testing.assert_allclose(found, in_memory(name))


@READERS
def test_what_was_not_observed_is_left_out_and_counted(name: str) -> None:
    row = ANALYSES[name]
    tree = tree_of(row)
    holes = with_holes(tree, row.kind)
    found = run(row, holes)
    observed = holes[row.kind.observed]
    is_map = "row" in observed.dims and row.kind.rows
    # An analysis that is defined on the rest gives what it gives there.
    rest = without_holes(tree, rows=is_map)
    expected = run(row, rest)
    whole = set(found.dims) & {"case", "row"} and found.sizes.get("case") == CASES
    kept = without_holes(found, rows=is_map) if whole else found
    assert set(kept.data_vars) == set(expected.data_vars)
    xr.testing.assert_allclose(kept.reset_coords(drop=True), expected.reset_coords(drop=True))
    for variable in row.unknown:
        assert np.isnan(found[variable].isel(case=list(HOLES)).values).all(), variable
    missing = observed.isnull() if observed.dtype.kind == "f" else observed == -1
    assert found.attrs["left_out"] == int(missing.sum())
    assert found.attrs["left_out_cases"] == len(HOLES)
    assert found.attrs["num_cases"] == CASES - len(HOLES)
    nothing = in_memory(name).attrs
    assert (nothing["left_out"], nothing["left_out_cases"]) == (0, 0)
    assert nothing["num_cases"] == CASES


@READERS
def test_what_was_not_observed_is_left_out_of_lazy_trees_without_a_warning(name: str) -> None:
    row = ANALYSES[name]
    holes = with_holes(tree_of(row), row.kind)
    found = run(row, in_chunks(holes, CHUNKS["threads"]))
    xr.testing.assert_allclose(found, run(row, holes), rtol=1e-12)


@READERS
def test_nothing_observed_at_all_is_no_number(name: str) -> None:
    row = ANALYSES[name]
    tree = tree_of(row)
    tree = with_holes(tree, row.kind, range(CASES))
    try:
        found = run(row, tree)
    except ValueError as error:
        assert "NaN everywhere, or -1" in str(error)
    else:
        assert all(np.isnan(found[variable].values).all() for variable in row.unknown)
        assert row.unknown or np.isnan(found["iou"])
        assert found.attrs["num_cases"] == 0


@MAPS
@pytest.mark.parametrize("parts", [False, True], ids=["whole", "in parts"])
def test_the_fill_behind_a_smaller_case_counts_nowhere(
    name: str, parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a further case is larger: maps are then filled up with NaN, masks with -1.

    Of a case that is too large by itself, the last parts may be nothing else.
    """
    row = ANALYSES[name]
    if parts:
        in_memory(name)
        monkeypatch.setattr("ppl_med.analysis.tree.blocks.BLOCK_BYTES", FEW_BYTES)
        monkeypatch.setattr("ppl_med.analysis.tree.masks._BLOCK_BYTES", FEW_BYTES)
    tree = tree_of(row)
    filled = tree.map_over_datasets(partial(pad_dataset, sizes={"row": SIDE + 1, "col": SIDE + 2}))
    filled.attrs = tree.attrs
    found, expected = run(row, filled), in_memory(name)
    inside = found.isel(row=slice(SIDE), col=slice(SIDE), missing_dims="ignore")
    xr.testing.assert_allclose(inside, expected)
    for one in found.data_vars.values():
        if "row" in one.dims:
            fill = one.isel(row=slice(SIDE, None)).values
            assert (fill == -1).all() if fill.dtype.kind == "i" else not fill[fill == fill].any()


@ROWS
@pytest.mark.parametrize("one", ["draw", "case"])
def test_one_draw_or_case_works_or_is_refused_for_a_reason(name: str, one: str) -> None:
    row = ANALYSES[name]
    single: dict[str, Any] = {"chain": [0], "draw": [0]} if one == "draw" else {"case": [0]}
    tree = tree_of(row).isel(single, missing_dims="ignore")
    try:
        found = run(row, tree)
    except ValueError as error:
        assert re.search(rf"\b{one}s?\b", str(error)), error
    else:
        assert found.data_vars


@ROWS
def test_chains_are_pooled(name: str) -> None:
    row = ANALYSES[name]
    tree = tree_of(row)
    if "posterior" not in tree.children or row.members:
        return
    pooled = tree.map_over_datasets(as_one_chain)
    pooled.attrs = tree.attrs
    found, expected = strip(run(row, pooled)), strip(in_memory(name))
    assert found.data_vars
    xr.testing.assert_allclose(found, expected)


@ROWS
def test_copies_of_draws_change_nothing(name: str) -> None:
    """An ensemble of point estimates has as many functions as members, however often drawn."""
    row = ANALYSES[name]
    tree = tree_of(row)
    copied = tree.map_over_datasets(partial(with_copies, copies=4))
    copied.attrs = tree.attrs | {"copies": 4}
    both = run(row, copied), in_memory(name)
    found, expected = (one.drop_dims("draw", errors="ignore") for one in both)
    xr.testing.assert_allclose(found, expected)
    assert found.attrs.get("attained_level") == expected.attrs.get("attained_level")


def as_one_chain(group: xr.Dataset) -> xr.Dataset:
    """All draws of all chains as draws of one."""
    if "draw" not in group.dims:
        return group
    stacked = group.stack(all=SAMPLES, create_index=False).rename(all="draw")
    return stacked.expand_dims("chain").transpose(*SAMPLES, ...)


def strip(result: xr.Dataset) -> xr.Dataset:
    """What is of the mixture alone: nothing per draw, no error that knows the chains."""
    names = [n for n, a in result.items() if {*SAMPLES} & set(a.dims) or "mcse" in str(n)]
    return result.drop_vars([*names, *SAMPLES], errors="ignore")


@ROWS
def test_the_order_of_cases_does_not_matter(name: str) -> None:
    row = ANALYSES[name]
    tree = tree_of(row)
    order = np.random.default_rng(0).permutation(CASES)
    found, expected = run(row, tree.isel(case=order)), in_memory(name)
    if "case" in expected.dims:
        expected = expected.isel(case=order)
    xr.testing.assert_allclose(found, expected, rtol=1e-9)


@ROWS
def test_coordinates_of_the_user_stay_with_their_cases(name: str) -> None:
    row = ANALYSES[name]
    found = in_memory(name)
    if "case" not in found.dims:
        return
    given = tree_of(row)[row.kind.observed]
    for coordinate in ("case", "age", "ward"):
        assert coordinate in found.coords, coordinate
        np.testing.assert_array_equal(found[coordinate], given[coordinate])
