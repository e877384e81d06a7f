"""Results in half precision, and of moments with few whole draws: bounds, and what stays exact."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from killed_runs import cases, classifier
from posterior_trees import array
from rank_processes import run_together
from scipy.special import logsumexp
from test_regions import Death, assert_same_bits, predicted

from ppl_med import storage
from ppl_med.analysis import (
    class_subsets,
    moments,
    scoring,
    segmentation,
    uncertainty,
)
from ppl_med.analysis.tree import open_classes
from ppl_med.data import Batches, symmetries
from ppl_med.inference import Lossy, MeanFieldNormal, PointEstimate, predict, predict_augmented
from ppl_med.inference.prediction.tree_builder import Chunk, TreeBuilder
from ppl_med.models import BayesianRegressor, BayesianSegmenter
from ppl_med.storage import class_modes, log_float16

FORMS = [Lossy("float16"), Lossy(whole_draws=2), Lossy("float16", whole_draws=2)]
ROUNDING = 2.0**-11
CASES = 30


def entropy(probs: np.ndarray) -> np.ndarray:
    return -(probs * np.log(np.where(probs > 0, probs, 1))).sum(-1)


@pytest.mark.parametrize("alpha", [30, 1, 0.1, 0.01])
@pytest.mark.parametrize("classes", [2, 10, 300])
def test_errors_are_within_the_bounds(alpha: float, classes: int) -> None:
    """Of Dirichlet probabilities, some of which are zero; Σ p log² p is the bound's main part."""
    p = np.random.default_rng(classes).dirichlet(np.full(classes, alpha), 3000)
    logs = xr.DataArray(log_float16.encoded(p), dims=("case", "class"))
    x = np.log(np.maximum(p, np.exp(log_float16.LOWEST)))
    off = np.abs(logs.values.astype(float) - x)
    assert (off <= np.maximum(ROUNDING * np.abs(x), 2.0**-25) * (1 + 1e-9)).all()
    q = log_float16.decoded(logs).values
    np.testing.assert_allclose(q.sum(1), 1, rtol=1e-12)
    before = entropy(p)
    clipped = classes * np.exp(log_float16.LOWEST)  # what is added to the sum at most
    first = ROUNDING * ((p * x**2).sum(1) + before**2)
    bound = 1.01 * first + clipped * (17 + before) + 1e-7
    assert (np.abs(entropy(q) - before) <= bound).all()
    if classes == 2:  # which is no empty promise; of many classes, errors of some cancel
        assert (np.abs(entropy(q) - before) > 0.1 * bound).any()


def test_chunks_along_any_axis_and_one_case_are_decoded_alike() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(4), (2, 3, 5))
    dims = ("chain", "draw", "case", "class")
    logs = xr.DataArray(log_float16.encoded(p), dims=dims, attrs=log_float16.STORED)
    whole = log_float16.decoded(logs)
    for part in (logs.chunk({"class": 1}), logs.chunk(draw=2, case=3)):
        np.testing.assert_array_equal(log_float16.decoded(part), whole)
    np.testing.assert_array_equal(log_float16.decoded(logs.isel(case=2)), whole.isel(case=2))


@pytest.mark.parametrize("alpha", [30, 1, 0.1])
def test_probabilities_that_are_read_are_within_their_bound(alpha: float) -> None:
    """They sum to one again, so that the errors of other classes are in each."""
    p = np.random.default_rng(1).dirichlet(np.full(3, alpha), 20000)
    p = p[(p > 2e-7).all(1)]
    q = log_float16.decoded(xr.DataArray(log_float16.encoded(p), dims=("case", "class"))).values
    bound = (np.abs(np.log(p)) + entropy(p)[:, None]) * ROUNDING + 1e-7
    off = np.abs(q / p - 1)
    assert (off <= 1.01 * bound).all() and (off > 0.5 * bound).any()


@pytest.mark.parametrize("classes", [[0], [0, 1]])
def test_some_of_the_classes_are_no_distribution(classes: list[int]) -> None:
    """Divided by their sum they would be one: of a class by itself, without any uncertainty."""
    p = np.random.default_rng(0).dirichlet(np.ones(3), (1, 4, 5))
    dims = ("chain", "draw", "case", "class")
    logs = xr.DataArray(log_float16.encoded(p), dims=dims, attrs=log_float16.attributes(3))
    tree = xr.DataTree.from_dict({"/posterior": xr.Dataset({"log_probs": logs})})
    every = uncertainty.entropy(tree)
    np.testing.assert_allclose(every["expected_entropy"], entropy(p).mean((0, 1)), atol=2e-3)
    with pytest.raises(ValueError, match="must sum to one over class"):
        uncertainty.entropy(tree.isel({"class": classes}))
    with pytest.raises(ValueError, match=r"lacks the dimension.* class"):
        uncertainty.entropy(tree.isel({"class": 0}))
    np.testing.assert_allclose(log_float16.decoded(logs.isel({"class": 1})), p[..., 1], rtol=2e-3)


def test_moments_of_some_of_the_classes_are_refused() -> None:
    tree = lossy_tree(FORMS[1])
    with pytest.raises(ValueError, match="must sum to one over class"):
        moments.decompose(tree.isel({"class": [0]}, missing_dims="ignore"))
    chosen = class_subsets.select(tree, ["yes", "no"])
    with pytest.raises(ValueError, match="tree has no posterior_moments"):
        moments.decompose(chosen)


@pytest.mark.parametrize("attribute", ["given", "given_itself"])
def test_moments_say_what_their_draws_are_given(attribute: str) -> None:
    """As the draws do, of which uncertainty refuses to tell."""
    coords = {"chain": [0], "draw": [*range(4)], "case": ["a", "b"], "class": ["no", "yes"]}
    chunk = Chunk(0, 2, ["a", "b"], coords=coords)
    key, dims = ("posterior", "probs"), ("chain", "draw", "case", "class")
    chunk.arrays[key] = np.random.default_rng(0).dirichlet(np.ones(2), (1, 4, 2))
    chunk.dims[key], chunk.attrs[key] = dims, {attribute: "z"}
    groups = FORMS[1].applied(chunk).datasets()
    tree = xr.DataTree.from_dict(groups)
    for analysis in (moments.decompose, uncertainty.entropy):
        with pytest.raises(ValueError, match="given z"):
            analysis(tree)


@pytest.mark.parametrize("join", [storage.join_chains, storage.join_cases])
def test_trees_of_different_forms_are_not_joined(join: Any, exact: xr.DataTree) -> None:
    """What one lacks would be filled with NaN, and be blamed on draws that diverged."""
    for pair in ([exact, lossy_tree(FORMS[0])], [lossy_tree(FORMS[0]), exact]):
        with pytest.raises(ValueError, match=r"different variables.*the same lossy"):
            join(pair)


def test_a_filled_map_and_a_sure_class_stay_what_they_are() -> None:
    p = np.array([[np.nan, np.nan], [1.0, 0.0], [0.5, 0.5]])
    q = log_float16.decoded(xr.DataArray(log_float16.encoded(p), dims=("case", "class"))).values
    assert np.isnan(q[0]).all() and q[2].tolist() == [0.5, 0.5]
    np.testing.assert_allclose(q[1], [1, 0], atol=1.2e-7)


def few() -> Batches:
    return Batches(cases(CASES), batch_size=4)


@pytest.fixture(scope="module")
def exact() -> xr.DataTree:
    return predicted(None, draws=6, resume=False, batches=few())


def lossy_tree(lossy: Lossy, store: Path | None = None) -> xr.DataTree:
    return predicted(store, draws=6, resume=store is not None, lossy=lossy, batches=few())


@pytest.mark.parametrize("lossy", FORMS, ids=str)
def test_what_is_kept_is_exact_and_said(lossy: Lossy, exact: xr.DataTree) -> None:
    found = lossy_tree(lossy)
    assert found.attrs["lossy"] == str(lossy)
    places = [0, 5] if lossy.whole_draws else [*range(6)]
    for name, node in exact.children.items():
        if "prior" in name:  # few draws, which stay
            xr.testing.assert_identical(found[name].to_dataset(), node.to_dataset())
            continue
        kept = node.to_dataset().isel(draw=places, missing_dims="ignore")
        other = found[name].to_dataset()
        if name == "posterior" and lossy.probs:
            assert other["log_probs"].dtype == np.float16
            read = open_classes(found).read()
            off = np.abs(np.log(read) - np.log(kept["probs"]))
            assert float(off.max()) < 2 * ROUNDING * float(-np.log(kept["probs"]).min())
            kept, other = kept.drop_vars("probs"), other.drop_vars("log_probs")
        xr.testing.assert_identical(other, kept)


def test_moments_are_those_of_all_draws(exact: xr.DataTree) -> None:
    tree = lossy_tree(Lossy(whole_draws=2))
    found = tree["posterior_moments"].to_dataset()
    probs, logs = array(exact, "posterior/probs"), array(exact, "log_likelihood/label")
    over = ("chain", "draw")
    np.testing.assert_allclose(found["probs_mean"], probs.mean(over), rtol=1e-12)
    np.testing.assert_allclose(found["probs_variance"], probs.var(over, ddof=1), rtol=1e-9)
    mean = entropy(probs.transpose(..., "class").values).mean((0, 1))
    np.testing.assert_allclose(found["expected_entropy"], mean, rtol=1e-12)
    expected = logsumexp(logs, (0, 1)) - np.log(6)
    np.testing.assert_allclose(found["label_log_mean"], expected, rtol=1e-12)
    assert found["case"].equals(probs["case"])
    every = uncertainty.entropy(exact, mcse=False).merge(uncertainty.variance(exact, mcse=False))
    split = moments.decompose(tree)
    for name in split.data_vars:
        np.testing.assert_allclose(split[name], every[name], rtol=1e-9, atol=1e-14)
    assert "posterior_moments" not in storage.join_chains([tree, tree]).children
    # Analyses see the draws that are kept, and say errors of so many.
    chosen = exact.drop_nodes(["prior", "prior_predictive"])
    chosen = chosen.isel(draw=[0, 5], missing_dims="ignore")
    xr.testing.assert_allclose(scoring.score(tree), scoring.score(chosen))


def write(store: Path, lossy: Lossy, death: Death | None = None) -> None:
    tree = predicted(store, death, draws=6, lossy=lossy, batches=few())
    assert tree["posterior"].sizes["case"] == CASES


def test_ranks_that_resume_write_what_one_process_does(tmp_path: Path) -> None:
    """One of two ranks is killed on the way; three go on."""
    lossy = FORMS[2]
    for name in ("alone", "ranks"):
        (tmp_path / name).mkdir()
    alone, store = tmp_path / "alone" / "run.zarr", tmp_path / "ranks" / "run.zarr"
    write(alone, lossy)
    death = (1, 8, 0.0, None)
    assert 0 not in run_together(write, 2, tmp_path / "first", store, lossy, death)
    assert run_together(write, 3, tmp_path / "second", store, lossy) == [0, 0, 0]
    assert_same_bits(store, alone)


def test_a_run_goes_on_in_its_own_form_alone(tmp_path: Path) -> None:
    lossy_tree(FORMS[0], tmp_path / "run.zarr")
    with pytest.raises(ValueError, match="another lossy: 'probs=float16', now None"):
        predicted(tmp_path / "run.zarr", draws=6, batches=few())


def test_draws_equal_when_rounded_are_no_copies() -> None:
    """Logits far apart: logs of probabilities are 0 and below -16 in every draw."""
    sure = predicted(None, draws=4, resume=False, lossy=FORMS[0])
    logs = array(sure, "posterior/log_probs")
    assert logs.attrs["copies"] == "none"
    same = sure.copy()
    values = np.broadcast_to(logs.values[:, :1], logs.shape)
    same["posterior"] = xr.DataTree(
        sure["posterior"].to_dataset().assign(log_probs=logs.copy(data=values))
    )
    assert open_classes(same).num_samples == (1, 4)
    assert np.isfinite(uncertainty.entropy(same)["mutual_information_mcse"]).all()


def test_copies_stay_copies() -> None:
    model = classifier()
    guide = PointEstimate(model, use_prior=False)
    options: Any = {"draws": 4, "device": "cpu", "progress": False, "lossy": FORMS[0]}
    point = predict(model, guide, Batches(cases(8), batch_size=4), **options)
    assert "copies" not in point["posterior/log_probs"].attrs
    assert open_classes(point).num_samples == (1, 1)
    options |= {"lossy": FORMS[1]}
    with pytest.raises(ValueError, match="copies of each other"):
        predict(model, guide, Batches(cases(8), batch_size=4), **options)


def test_modes_are_those_of_the_draws() -> None:
    """Analyses of sampled masks give the same, those of probabilities say what is lost."""
    net = torch.nn.Conv2d(1, 3, 3, padding=1)
    model = BayesianSegmenter(net, ["outside", "rim", "core"])
    guide = MeanFieldNormal(model, init_scale=0.3)
    rng = np.random.default_rng(0)
    data: dict[str, Any] = {
        "image": rng.normal(size=(5, 1, 4, 6)).astype(np.float32),
        "mask": rng.integers(0, 3, (5, 4, 6)),
        "id": [f"c{number}" for number in range(5)],
    }
    options: Any = {"draws": 4, "device": "cpu", "progress": False}
    exact = predict(model, guide, Batches(data, batch_size=2), **options)
    tree = predict(model, guide, Batches(data, batch_size=2), lossy=Lossy("argmax"), **options)
    modes = array(tree, "posterior/mode")
    assert modes.dtype == np.int8 and modes.dims == ("chain", "draw", "case", "row", "col")
    np.testing.assert_array_equal(modes, array(exact, "posterior/probs").argmax("class"))
    drawn = [one["posterior_predictive/mask"] for one in (tree, exact)]
    xr.testing.assert_identical(*drawn)
    graded = xr.DataArray(data["mask"][:, None], dims=("case", "grader", "row", "col"))
    graded = graded.assign_coords(case=data["id"])
    found, expected = (
        segmentation.dice_max(one, graded, classes=["rim", "core"]) for one in (tree, exact)
    )
    xr.testing.assert_identical(found, expected)
    for analysis in (uncertainty.entropy, segmentation.maps, scoring.score):
        with pytest.raises(ValueError, match="no probabilities, and this analysis needs them"):
            analysis(tree)


def test_behind_a_smaller_case_no_class_is_the_most_probable() -> None:
    probs = np.full((1, 2, 3), np.nan)
    probs[0, :, :2] = [[0.5, 0.2], [0.5, 0.8]]
    assert class_modes.encoded(probs, 1).tolist() == [[0, 1, -1]]


def test_a_file_holds_half_precision(tmp_path: Path) -> None:
    found = lossy_tree(FORMS[2])
    for suffix in ("nc", "zarr"):
        loaded = storage.load(storage.save(found, tmp_path / f"run.{suffix}"))
        assert isinstance(loaded, xr.DataTree)
        xr.testing.assert_equal(loaded, found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lossy": Lossy(whole_draws=6)}, "whole_draws=6 keeps all of 6 draws"),
        ({"lossy": Lossy("argmax")}, "of maps"),
    ],
)
def test_what_loses_nothing_or_miscounts_is_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predicted(None, draws=6, resume=False, **options)


def test_numbers_have_no_probabilities() -> None:
    model = BayesianRegressor(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)))
    guide = MeanFieldNormal(model)
    batch = {"image": np.zeros((3, 1, 2, 2), np.float32), "value": np.zeros(3, np.float32)}
    options: Any = {"draws": 3, "device": "cpu", "progress": False}
    with pytest.raises(ValueError, match="predicts something else"):
        predict(model, guide, Batches(batch, batch_size=3), lossy=FORMS[0], **options)
    tree = predict(model, guide, Batches(batch, batch_size=3), lossy=FORMS[1], **options)
    assert {"loc_mean", "loc_variance", "value_log_mean"} <= {*tree["posterior_moments"].data_vars}


def test_bad_forms_are_refused() -> None:
    with pytest.raises(ValueError, match="samples that share them"):
        FORMS[1].check(6, 2, TreeBuilder.__new__(TreeBuilder))
    with pytest.raises(ValueError, match="loses nothing"):
        Lossy()
    with pytest.raises(ValueError, match="whole_draws"):
        Lossy(whole_draws=0)
    with pytest.raises(ValueError, match="lossy"):
        predict_augmented(torch.nn.Identity(), None, [], symmetries(2), lossy=FORMS[0])
