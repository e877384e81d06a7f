"""Scores of trees larger than memory: the same results, in a memory that does not grow with cases.

Peaks are those that tracemalloc sees; numpy tells it of every buffer. What is returned, a score of
every draw, does grow: a case may take a few times that, but not the size of its features.
"""

import tracemalloc

import numpy as np
import pytest
import xarray as xr
from ood_trees import UNITS, by_class, feature_tree

from ppl_med.analysis import ood
from ppl_med.analysis.ood import confidence, features
from ppl_med.analysis.tree import blocks

CASES, MORE = 500, 4
LIMIT = 2**21  # of which a block holds fewer cases
WIDE, NUM_CLASSES = 40, 30
OF_DRAWS = 8  # times the scores of all draws, joined, copied, their spread taken; features are 40
OF_CLASSIFIERS = (*confidence.SCORES, *features.SCORES)
QUICK = ("mutual_information", "mahalanobis")


def wide_tree(number: int, prefix: str) -> xr.DataTree:
    """Two chains of four draws of many units and classes; further units are noise."""
    tree = feature_tree(number, prefix, dead=WIDE - UNITS, samples=(2, 4))
    group = tree["posterior"].to_dataset()
    feature = group["feature:head"].values
    random = np.random.default_rng(number)
    feature[..., UNITS:] = random.normal(size=feature[..., UNITS:].shape)
    logit = feature @ np.random.default_rng(0).normal(size=(WIDE, NUM_CLASSES))
    dims = ("chain", "draw", "case", "class")
    outputs = {name: (dims, values) for name, values in by_class(logit).items()}
    tree["posterior"] = group.drop_dims("class").assign(outputs)
    return tree


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> xr.DataTree:
    """Chunks as predict makes them: all draws of a run of cases."""
    tree = wide_tree(MORE * CASES, "c")
    numbered = {"case": np.arange(MORE * CASES)}  # Zarr has no text of fixed length
    tree["posterior"] = tree["posterior"].to_dataset().assign_coords(numbered)
    tree["observed_data"] = tree["observed_data"].to_dataset().assign_coords(numbered)
    path = tmp_path_factory.mktemp("ood") / "run.zarr"
    tree.chunk(case=100).to_zarr(path, consolidated=False)
    return xr.open_datatree(path, engine="zarr", consolidated=False, chunks={})


@pytest.fixture(scope="module")
def learnt() -> dict[str, xr.Dataset]:
    """A reference of every score."""
    train, held_out = wide_tree(200, "t"), wide_tree(40, "v")
    return {name: ood.fit_reference(name, train, held_out=held_out) for name in OF_CLASSIFIERS}


def peak(tree: xr.DataTree, reference: xr.Dataset) -> tuple[int, xr.Dataset]:
    """Most bytes held at once, and the result."""
    tracemalloc.start()
    found = ood.score(tree, reference)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most, found


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in OF_CLASSIFIERS]
)
def test_memory_is_constant_in_cases(
    name: str,
    stored: xr.DataTree,
    learnt: dict[str, xr.Dataset],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = ood.score(stored.compute(), learnt[name])
    monkeypatch.setattr(blocks, "BLOCK_BYTES", LIMIT)
    few, _ = peak(stored.isel(case=slice(CASES)), learnt[name])
    most, found = peak(stored, learnt[name])
    xr.testing.assert_allclose(found, whole, rtol=1e-10)
    per_case = (most - few) / (CASES * (MORE - 1))
    scores = 8 * 8
    assert per_case < OF_DRAWS * scores, f"{per_case:.0f} bytes a case"
