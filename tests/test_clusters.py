"""Analyses on a cluster: memory, progress and seeds. Equal results are held by test_analyses.py."""

import io
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from analysis_table import Result, class_tree, grader_tree, number_tree, pixel_tree
from dask.callbacks import Callback
from dask.diagnostics import ProgressBar
from posterior_trees import array

from ppl_med import storage
from ppl_med.analysis import (
    calibration,
    case_groups,
    ood,
    scoring,
    segmentation,
    selective,
    uncertainty,
)
from ppl_med.analysis.tree import blocks

GROWTH = 2**28  # bytes
RUN = 1024  # cases of a chunk

SEEDED: dict[str, tuple[Callable[[xr.DataTree], Result], Callable[..., xr.DataTree]]] = {
    "calibration errors": (partial(calibration.errors, replicates=5), class_tree),
    "a ranking": (partial(scoring.discrimination, resamples=9), class_tree),
    "a curve": (
        partial(selective.risk_coverage, score="total", replicates=5, seed=1),
        pixel_tree,
    ),
    "dispersion": (partial(calibration.dispersion, bins=3, replicates=5), number_tree),
    "perfect models": (
        partial(segmentation.presence_reliability, classes=["z"], min_pixels=5, simulations=3),
        grader_tree,
    ),
    "novel cases": (
        lambda tree: ood.evaluate(
            ood.score(tree, ood.fit_reference("mcp", class_tree(9, "other"))),
            ood.score(class_tree(9, "n"), ood.fit_reference("mcp", class_tree(9, "other"))),
            resamples=9,
        ),
        class_tree,
    ),
}


@pytest.mark.parametrize("name", SEEDED)
def test_random_numbers_follow_the_seed_alone(name: str, cluster: Any) -> None:
    """Not the chunks, nor the worker that read them."""
    analysis, build = SEEDED[name]
    tree = build()
    expected = analysis(tree)
    for case in (5, 1):
        with dask.config.set(scheduler=cluster):
            xr.testing.assert_allclose(analysis(tree.chunk(case=case)), expected, rtol=1e-12)


def peak() -> int:
    """Bytes that this process has held at most; of a worker, without those of its parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def large_store(path: Path, cases: int) -> xr.DataTree:
    """Draws of ten classes in chunks of five MB, each of which holds the same numbers."""
    one = np.random.default_rng(0).dirichlet(np.ones(10), (1, 64, 1, RUN)).astype(np.float32)
    tiled = da.tile(da.from_array(one), (1, 1, cases // RUN, 1, 1)).reshape(1, 64, cases, 10)
    ids = {"case": np.arange(cases)}
    posterior = xr.Dataset({"probs": (("chain", "draw", "case", "class"), tiled)}, ids)
    posterior.to_zarr(path, group="posterior", consolidated=False)
    return xr.open_datatree(path, engine="zarr", consolidated=False, chunks={})


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory otherwise")
def test_a_worker_holds_a_part_of_the_store(cluster: Any, tmp_path: Path) -> None:
    """Of one GiB."""
    tree = large_store(tmp_path / "run.zarr", 410 * RUN)
    assert tree["posterior/probs"].nbytes > 2**30
    before = cluster.run(peak)
    with dask.config.set(scheduler=cluster):
        found = uncertainty.entropy(tree, mcse=False)
    after = cluster.run(peak)
    growth = [after[worker] - before[worker] for worker in before]
    assert max(growth) < GROWTH, growth
    name = "predictive_entropy"
    first = uncertainty.entropy(tree.isel(case=slice(RUN)).load(), mcse=False)
    np.testing.assert_allclose(found[name][-RUN:], first[name])


def test_a_bar_of_dask_shows_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bar a block: a block is read, and done, before the next one."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2**13)
    tree = pixel_tree().chunk(case=5)
    shown = io.StringIO()
    with ProgressBar(out=shown, dt=0.01):
        found = uncertainty.entropy(tree)
    xr.testing.assert_allclose(found, uncertainty.entropy(pixel_tree()))
    assert shown.getvalue().count("100% Completed") > 1


def test_resamples_of_a_small_lazy_tree_read_it_once() -> None:
    tree = class_tree()
    groups = xr.DataArray(np.arange(12) // 2, {"case": tree["posterior/case"].values}, "case")
    computed: list[object] = []
    with Callback(start=computed.append):
        found = case_groups.bootstrap(scoring.score, tree.chunk(case=5), groups, resamples=20)
    assert 0 < len(computed) < 20
    xr.testing.assert_allclose(
        found, case_groups.bootstrap(scoring.score, tree, groups, resamples=20)
    )


def test_runs_of_cases_on_workers_have_one_bar(cluster: Any, tmp_path: Path, capsys: Any) -> None:
    """As the page on clusters says: the workers analyse, and progress is of the whole."""
    from distributed import progress

    path = storage.save(pixel_tree(), tmp_path / "run.zarr")

    def figures(cases: slice) -> xr.Dataset:
        tree = xr.open_datatree(path, engine="zarr", consolidated=False)
        return uncertainty.entropy(tree.isel(case=cases))

    futures = cluster.map(figures, [slice(first, first + 5) for first in range(0, 12, 5)])
    with cluster.as_current():
        progress(futures, notebook=False)
    found = xr.concat(cluster.gather(futures), "case")
    xr.testing.assert_allclose(found, uncertainty.entropy(pixel_tree()))
    assert "100% Completed" in capsys.readouterr().out


@pytest.mark.parametrize("flox", [True, False])
def test_means_of_groups_are_those_of_numpy(flox: bool, cluster: Any) -> None:
    """xarray takes flox for the means where it is installed, of lazy arrays too."""
    pytest.importorskip("flox")
    tree = storage.with_columns(pixel_tree(), ["site"])
    result, site = uncertainty.entropy(tree), array(tree, "constant_data/site").values
    lazy = array(tree, "posterior/probs").chunk(case=5).assign_coords(site=("case", site))
    with xr.set_options(use_flox=flox), dask.config.set(scheduler=cluster):
        found = result.groupby("site").mean()
        probs = lazy.groupby("site").mean().compute().transpose(*lazy.dims[:2], "site", ...)
    for index, name in enumerate(found["site"].values):
        rows = site == name
        for variable, figure in result.items():
            mean = figure.values[rows].mean(0)
            np.testing.assert_allclose(found[variable].sel(site=name), mean, rtol=1e-12)
        expected = lazy.values[:, :, rows].mean(2)
        np.testing.assert_allclose(probs[:, :, index], expected, rtol=1e-12)
