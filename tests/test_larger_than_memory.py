"""Analyses of stored trees: results of the loaded tree, in a memory that does not hold the tree.

Peaks are those that tracemalloc sees; numpy tells it of every buffer. The limit on blocks is set to
a quarter of the tree (a twelfth for masks, whose blocks count fewer copies); no analysis may take
more than 60 %, chunks, results and all.
"""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import xarray as xr
from posterior_trees import array, draw_labels, random_probs
from scipy.special import logsumexp

from ppl_med.analysis import (
    aggregation,
    calibration,
    conformal,
    scoring,
    segmentation,
    selective,
    uncertainty,
)
from ppl_med.analysis.tree import blocks, masks

Analysis: TypeAlias = Callable[[xr.DataTree], xr.Dataset | xr.DataArray]

CASES, LEARNING = 4000, 1500
SIDE, IMAGES = 32, 96
SHARE = 3 / 5

CLASSES: dict[str, Analysis] = {
    "entropy": uncertainty.entropy,
    "variance": lambda tree: uncertainty.variance(tree, mcse=False),
    "summary": uncertainty.summary,
    "score": scoring.score,
    "elpd": scoring.elpd_heldout,
    "reliability": scoring.reliability,
    "corp": scoring.brier_decomposition,
    "errors": lambda tree: calibration.errors(tree, replicates=1),
    "errors by group": lambda tree: calibration.errors_by_group(tree, "site", replicates=0),
    "pava": lambda tree: calibration.pava(tree, replicates=2),
    "temperature": calibration.fit,
    "recalibrated": lambda tree: recalibrated(tree),
    "lac": conformal.calibrate,
    "aps of draws": lambda tree: conformal.calibrate(
        tree, method=conformal.Score("aps", draws="mean_score"), within="site"
    ),
    "coverage": lambda tree: conformal.coverage(sets(tree), second(tree)),
    "risk-coverage": lambda tree: selective.risk_coverage(tree, "total", replicates=0),
}
NUMBERS: dict[str, Analysis] = {
    "crps": lambda tree: scoring.crps(tree, distribution="normal"),
    "quantiles": scoring.quantile_score,
    "intervals": scoring.interval_score,
    "cqr": lambda tree: intervals(tree, "cqr"),
    "normalised": lambda tree: intervals(tree, "normalised"),
}
MASKS: dict[str, Analysis] = {
    "entropy": lambda tree: uncertainty.entropy(tree, mcse=False),
    "score": scoring.score,
    "maps": segmentation.maps,
    "predicted mask": aggregation.predicted_mask,
    "masks": conformal.calibrate_masks,
}


def chosen(analyses: dict[str, Analysis], *quick: str) -> list[Any]:
    """Names of the analyses; all but the quick ones are marked slow."""
    marks = {name: () if name in quick else pytest.mark.slow for name in analyses}
    return [pytest.param(name, marks=mark) for name, mark in marks.items()]


def first(tree: xr.DataTree) -> xr.DataTree:
    """Cases to learn from."""
    return tree.isel(case=slice(LEARNING))


def second(tree: xr.DataTree) -> xr.DataTree:
    """The others."""
    return tree.isel(case=slice(LEARNING, None))


def recalibrated(tree: xr.DataTree) -> xr.Dataset:
    """Calibrated probabilities of the second part."""
    learnt = calibration.fit(first(tree), "isotonic")
    return calibration.apply(learnt, second(tree))["posterior"].to_dataset()


def sets(tree: xr.DataTree) -> xr.Dataset:
    """Prediction sets of the second part."""
    return conformal.predict_sets(conformal.calibrate(first(tree), method="raps"), second(tree))


def intervals(tree: xr.DataTree, method: str) -> xr.Dataset:
    """Conformal intervals of the second part."""
    learnt = conformal.calibrate_intervals(first(tree), method=method)
    return conformal.predict_intervals(learnt, second(tree))


def numbered(probs: xr.DataArray) -> xr.DataArray:
    """Numbers in place of names: Zarr has no text of fixed length."""
    return probs.drop_vars("class").assign_coords(case=np.arange(probs.sizes["case"]))


def stored(
    tree: xr.DataTree, path: Path, name: str = "posterior/probs", **chunks: int
) -> xr.DataTree:
    """The tree from a Zarr store with chunks as predict makes them."""
    tree.chunk(chunks).to_zarr(path, consolidated=False)
    opened = xr.open_datatree(path, engine="zarr", consolidated=False, chunks={})
    assert array(opened, name).chunks is not None
    return opened


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> xr.DataTree:
    """A classifier on 4000 cases, 2 chains of 25 draws."""
    probs = random_probs(chains=2, draws=25, cases=CASES, classes=10, noise=0.5)
    probs = numbered(probs)
    rng = np.random.default_rng(1)
    label = draw_labels(probs.mean(("chain", "draw")), rng).values
    likelihood = np.log(probs.values[:, :, np.arange(CASES), label])
    ids = {"case": probs["case"].values}
    groups = {
        "/": xr.Dataset(attrs={"log_likelihood_of": "held-out"}),
        "/posterior": probs.to_dataset(),
        "/log_likelihood": xr.Dataset({"label": (probs.dims[:3], likelihood)}, ids),
        "/observed_data": xr.Dataset({"label": ("case", label)}, ids),
        "/constant_data": xr.Dataset({"site": ("case", rng.integers(0, 2, CASES))}, ids),
    }
    path = tmp_path_factory.mktemp("labelled") / "run.zarr"
    return stored(xr.DataTree.from_dict(groups), path, case=250)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> xr.DataTree:
    """A regression on 4000 cases, 2 chains of 100 draws."""
    rng = np.random.default_rng(3)
    shape = (2, 100, CASES)
    loc = rng.normal(size=CASES) + 0.5 * rng.normal(size=shape)
    scale = rng.uniform(0.5, 2, shape)
    dims, ids = ("chain", "draw", "case"), {"case": np.arange(CASES)}
    groups = {
        "/posterior": xr.Dataset({"loc": (dims, loc), "scale": (dims, scale)}, ids),
        "/posterior_predictive": xr.Dataset({"value": (dims, rng.normal(loc, scale))}, ids),
        "/observed_data": xr.Dataset({"value": ("case", rng.normal(size=CASES))}, ids),
    }
    path = tmp_path_factory.mktemp("measured") / "run.zarr"
    return stored(xr.DataTree.from_dict(groups), path, "posterior/loc", case=250)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> xr.DataTree:
    """A segmenter on 96 images of 32 x 32, 16 draws."""
    extra = {"row": SIDE, "col": SIDE}
    probs = random_probs(chains=1, draws=16, cases=IMAGES, classes=2, extra=extra)
    probs = numbered(probs)
    mask = np.random.default_rng(2).integers(0, 2, (IMAGES, SIDE, SIDE))
    ids = {"case": probs["case"].values}
    groups = {
        "/posterior": probs.to_dataset(),
        "/observed_data": xr.Dataset({"mask": (("case", *extra), mask)}, ids),
    }
    path = tmp_path_factory.mktemp("masked") / "run.zarr"
    return stored(xr.DataTree.from_dict(groups), path, case=24, draw=1)


@pytest.mark.parametrize("name", chosen(CLASSES, "summary", "score", "corp", "lac"))
def test_of_classes(name: str, labelled: xr.DataTree, monkeypatch: pytest.MonkeyPatch) -> None:
    check(CLASSES[name], labelled, monkeypatch)


@pytest.mark.parametrize("name", chosen(NUMBERS, "crps", "cqr"))
def test_of_numbers(name: str, measured: xr.DataTree, monkeypatch: pytest.MonkeyPatch) -> None:
    check(NUMBERS[name], measured, monkeypatch)


@pytest.mark.parametrize("name", chosen(MASKS, "maps"))
def test_of_masks(name: str, masked: xr.DataTree, monkeypatch: pytest.MonkeyPatch) -> None:
    check(MASKS[name], masked, monkeypatch)


def check(analysis: Analysis, tree: xr.DataTree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak and result of the stored tree against the loaded one in a single block."""
    size = sum(part.nbytes for group in tree.subtree for part in group.data_vars.values())
    limits = ((blocks, "BLOCK_BYTES"), (masks, "_BLOCK_BYTES"))
    for module, limit in limits:
        monkeypatch.setattr(module, limit, 2**40)
    expected = analysis(tree.compute())
    for (module, limit), share in zip(limits, (4, 12), strict=True):
        monkeypatch.setattr(module, limit, size // share)
    tracemalloc.start()
    found = analysis(tree)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    xr.testing.assert_allclose(found, expected, rtol=1e-6)
    assert peak < SHARE * size, f"{peak / size:.2f} of the tree"


def test_a_mixture_is_the_mean_of_all_draws(labelled: xr.DataTree) -> None:
    """Scores of the blocks against numpy on the whole array."""
    whole = array(labelled, "posterior/probs").values
    label = array(labelled, "observed_data/label").values
    logs = array(labelled, "log_likelihood/label").values
    result = scoring.score(labelled)
    mixture = whole.mean((0, 1))
    right = mixture.argmax(1) == label
    np.testing.assert_allclose(result["accuracy"], right.mean())
    np.testing.assert_allclose(
        result["nll"], np.log(logs[0, :, 0].size * 2) - logsumexp(logs, (0, 1)).mean()
    )
    np.testing.assert_allclose(
        result["accuracy_per_draw"], (whole.argmax(3) == label).mean(2), rtol=1e-12
    )
