"""The program of a detector: prior of the class bias, guides, draws, and bad input."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
import xarray as xr
from box_batches import CLASSES, batch
from torch import nn

from ppl_med.analysis import detection, scoring
from ppl_med.data import Batches
from ppl_med.inference import (
    SWAG,
    BernoulliDropout,
    ConcreteDropout,
    Ensemble,
    Laplace,
    LowRankNormal,
    MeanFieldNormal,
    PointEstimate,
    RadialNormal,
    fit,
    predict,
)
from ppl_med.likelihoods import Boxes
from ppl_med.models import BayesianDetector
from ppl_med.networks import SmallDetector
from ppl_med.programs.sites import sample_sites
from ppl_med.testing import check_program
from ppl_med.weights import FanInNormal, Normal, NormalByName


def small_detector(**settings: Any) -> BayesianDetector:
    torch.manual_seed(0)
    net = SmallDetector(3, 2, sizes=((16.0,), (32.0,)), width=8)
    return BayesianDetector(net, Boxes(CLASSES, **settings))


# --- the program


def test_the_class_bias_has_a_prior_around_its_start() -> None:
    model = small_detector()
    fn = model.network.prior_distribution()
    views = {n: model.network.layout.views(v) for n, v in (("loc", fn.loc), ("scale", fn.scale))}
    start = torch.tensor(0.01).logit()
    torch.testing.assert_close(views["loc"]["classes.bias"], start.expand(2))
    assert (views["scale"]["classes.bias"] == 1).all()
    assert (views["loc"]["edges.bias"] == 0).all()
    weights = views["scale"]["tower.0.0.weight"]
    torch.testing.assert_close(weights, torch.full_like(weights, math.sqrt(2 / (8 * 9))))
    net = SmallDetector(3, 2, width=8)
    plain = BayesianDetector(net, CLASSES, where="edges.*")
    assert plain.network.layout.names == ["edges.weight", "edges.bias"]


def test_a_prior_by_name_needs_names_and_normals() -> None:
    net = SmallDetector(3, 2, width=8)
    with pytest.raises(ValueError, match="by_name must be patterns over"):
        BayesianDetector(net, CLASSES, prior=NormalByName({"head.*": Normal(1.0)}))
    both = NormalByName({"*.bias": Normal(2.0), "classes.*": Normal(3.0)}, FanInNormal(1.0))
    model = BayesianDetector(net, CLASSES, prior=both)
    scale = model.network.layout.views(model.network.prior_distribution().scale)
    assert (scale["classes.bias"] == 2).all() and (scale["classes.weight"] == 3).all()


@pytest.mark.filterwarnings("ignore:the KL is")  # two cases, and thousands of weights
@pytest.mark.parametrize(
    "guide",
    [partial(SWAG, start=0.0), LowRankNormal, RadialNormal, BernoulliDropout, ConcreteDropout,
     PointEstimate, partial(Ensemble, guide_factory=PointEstimate, members=2)],
    ids=lambda one: getattr(one, "func", one).__name__,
)  # fmt: skip
def test_every_guide_takes_a_detector(guide: Callable[[Any], Any]) -> None:
    model = small_detector()
    program = guide(model)
    fit(model, program, [batch()], epochs=2, learning_rate=1e-3, progress=False)
    tree = predict(model, program, [batch()], draws=2, progress=False)
    assert np.isfinite(tree["log_likelihood/box"]).all()


def test_a_curvature_of_a_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loss|likelihood"):
        model = small_detector()
        fit(model, Laplace(model), [batch()], epochs=1, progress=False)


@pytest.mark.parametrize("settings", [{}, {"match": "best", "focal": 2.0}, {"match": "best"}])
def test_no_score_is_made_of_a_loss(settings: dict[str, Any]) -> None:
    model = small_detector(**settings)
    tree = predict(model, PointEstimate(model), [batch()], draws=1, progress=False)
    if settings == {"match": "best"}:
        assert np.isfinite(scoring.elpd_heldout(tree, mcse=False)["elpd_sum"])
        return
    with pytest.raises(ValueError, match=r"the log-likelihood is no density: (focal|edges)"):
        scoring.elpd_heldout(tree, mcse=False)
    with pytest.raises(ValueError, match="log_likelihood_of"):
        scoring.elpd_loo(tree)
    for site in (None, "box_edge", "box_label"):
        with pytest.raises(ValueError, match=r"tree holds boxes.*detection\.objects"):
            scoring.crps(tree, site)


def test_several_objects_are_observed_through_the_small_net() -> None:
    model = small_detector()
    check_program(model, batch())
    trace = poutine.trace(model).get_trace(**batch())
    assert set(sample_sites(trace)) == {"weights", "box"}


def test_draws_do_not_depend_on_the_batches() -> None:
    model = small_detector(least_score=0.0)
    guide = MeanFieldNormal(model)
    data = {name: torch.cat([one, one.flip(0)]) for name, one in batch().items()}
    trees = [
        predict(model, guide, Batches(data, batch_size=size), draws=2, seed=3, progress=False)
        for size in (4, 1)
    ]
    for group in ("posterior", "posterior_predictive"):
        one, other = (tree[group].to_dataset() for tree in trees)
        xr.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    assert "box_label" not in trees[0]["posterior"]
    assert trees[0]["observed_data/box_edge"].dims == ("case", "box", "edge")


def test_kept_anchors_stand_in_their_order() -> None:
    model = small_detector(keep="anchors")
    tree = predict(model, MeanFieldNormal(model), [batch()], draws=2, progress=False)
    number = model(batch()["image"]).shape[2]
    assert tree["posterior"].sizes["anchor"] == number
    assert np.isfinite(tree["posterior/box_probs"]).all()


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "right edge left of the left": (lambda b: b["box"][0, 0].copy_(torch.tensor([30.0, 6, 4, 28])),
                                    "swap these edges"),
    "no area": (lambda b: b["box"][0, 0].copy_(torch.tensor([4.0, 6, 4, 28])), "no area"),
    "outside": (lambda b: b["box"][0, 0].copy_(torch.tensor([4.0, 6, 90, 28])), "clip boxes"),
    "labels from 1": (lambda b: b["box_label"][0].copy_(torch.tensor([1, 2])), "subtract 1"),
    "unknown class": (lambda b: b["box_label"][0].copy_(torch.tensor([0, 7])), "in 0..1"),
    "no class": (lambda b: b.pop("box_label"), "box_label"),
    "edges after the last": (lambda b: b["box_label"][0, 1].fill_(-1), "label -1"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_boxes_are_named_before_any_work(name: str) -> None:
    spoil, said = BAD[name]
    data = batch()
    spoil(data)
    model = small_detector()
    with pytest.raises(ValueError, match=said):
        fit(model, PointEstimate(model), [data], epochs=1, progress=False)


def test_settings_are_checked() -> None:
    for settings, said in (
        ({"focal": -1.0}, "focal"), ({"least_score": 1.0}, "least_score"), ({"nms": 0.0}, "nms"),
        ({"most": 0}, "most"), ({"keep": "anchors", "proposals": True}, "others in each"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            Boxes(CLASSES, **settings)
    with pytest.raises(ValueError, match="width"):
        SmallDetector(3, 2, width=12)
    with pytest.raises(ValueError, match="head"):
        BayesianDetector(nn.Conv2d(3, 4, 1), CLASSES, where="head")


def test_weights_of_the_small_net_are_below_a_million() -> None:
    assert sum(one.numel() for one in SmallDetector(3, 3).parameters()) < 1_000_000


def test_a_seeded_field_is_the_same(tmp_path: Any) -> None:
    pyro.set_rng_seed(0)
    model = small_detector()
    first, second = (model(batch()["image"]) for _ in range(2))
    assert not torch.equal(first, second), "weights are drawn anew in every run"


def test_readers_train_and_are_kept(tmp_path: Any) -> None:
    """Boxes of two readers, one of whom did not see the second case; through a store on disk."""
    data = batch()
    data["box"] = torch.stack([data["box"], data["box"] + 1], 1)
    data["box_label"] = torch.stack([data["box_label"]] * 2, 1)
    data["reader_present"] = torch.tensor([[True, True], [True, False]])
    model = small_detector()
    guide = PointEstimate(model)
    batches = Batches(data, batch_size=1)
    fit(model, guide, batches, epochs=1, progress=False)
    tree = predict(model, guide, batches, draws=1, progress=False)
    assert tree["observed_data/box_edge"].dims == ("case", "grader", "box", "edge")
    np.testing.assert_array_equal(tree["observed_data/box_edge"], data["box"])
    np.testing.assert_array_equal(tree["constant_data/reader_present"], data["reader_present"])
    spread = detection.reader_spread(tree)  # one pixel apart: variance 1/2 of each object
    np.testing.assert_allclose(spread["spread"], math.sqrt(0.5), rtol=1e-6)
    of_readers = [detection.objects(tree).isel(grader=one, missing_dims="ignore") for one in (0, 1)]
    assert detection.pdq(of_readers[0]).attrs["num_cases"] == 2
    with pytest.raises(ValueError, match="looked at every image"):
        detection.pdq(of_readers[1])
    stored = predict(
        model, guide, batches, draws=1, progress=False, store=tmp_path / "run.zarr"
    )  # fmt: skip
    xr.testing.assert_equal(stored.load(), tree)
