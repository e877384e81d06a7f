"""Labels are bought where the acquisition asks for them, none twice, and none is lost."""

from pathlib import Path
from typing import Any

import active_runs
import numpy as np
import pytest
import torch
import xarray as xr
from active_runs import (
    BUDGET,
    EPOCHS,
    LABELS,
    SIZE,
    START,
    arrays,
    group,
    ids,
    learn,
    masked,
    person,
    pool,
    program,
)
from pyro.infer.autoguide import AutoNormal
from torch import nn

from ppl_med.analysis import scoring
from ppl_med.analysis.acquisition import acquire
from ppl_med.data import Batches
from ppl_med.inference import (
    Ensemble,
    LowRankNormal,
    MeanFieldNormal,
    PointEstimate,
    Reached,
    fit,
    predict,
)
from ppl_med.inference.active.steps import Steps, step_seed
from ppl_med.inference.training.trainer import Trainer
from ppl_med.models import BayesianSegmenter


@pytest.mark.parametrize("by", ["bald", "max_entropy"])
def test_a_run_equals_a_loop_by_hand(by: str) -> None:
    tree = learn(None, acquisition=by, seed=3, figures=scoring.score)
    whole, bought = arrays("pool"), ids(tree, 0)
    for step in range(3):
        seed = step_seed(3, step)
        rows = [whole["id"].index(name) for name in bought]
        part = {name: np.asarray(values)[rows] for name, values in whole.items()}
        torch.manual_seed(3)
        model, guide = program()
        batches = Batches(part, batch_size=8, shuffle=True, seed=3)
        fit(model, guide, batches, epochs=EPOCHS, learning_rate=0.02, seed=seed, progress=False)
        drawn: dict[str, Any] = {"draws": 3, "seed": seed, "progress": False}
        scores = scoring.score(predict(model, guide, active_runs.test_cases(), **drawn))
        for name in ("accuracy", "nll", "ece"):
            assert float(group(tree, "test")[name][step]) == float(scores[name])
        assert int(group(tree, "test")["num_labelled"][step]) == len(bought)
        if step == 2:
            break
        free = [row for row in range(len(whole["id"])) if row not in rows]
        found = predict(model, guide, Batches(whole).subset(free), **drawn)
        bought += acquire(found, by, SIZE, seed=seed)["case"].values.tolist()
        assert ids(tree)[: len(bought)] == bought
    assert len(ids(tree)) == BUDGET == len(set(ids(tree)))
    assert group(tree, "purchases")["label"].values.tolist() == [LABELS[name] for name in ids(tree)]


def test_runs_of_one_seed_are_pairs_and_seeds_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    first_weights: list[torch.Tensor] = []
    step = Steps._program

    def noted(self: Steps, *arguments: Any) -> Any:
        model: Any
        model, guide = step(self, *arguments)
        first_weights.append(next(model.network.net.parameters()).detach().clone())
        return model, guide

    monkeypatch.setattr(Steps, "_program", noted)
    trees = {by: learn(None, acquisition=by, budget=8) for by in ("bald", "random", "power_bald")}
    assert len({tuple(ids(tree, 0)) for tree in trees.values()}) == 1
    assert len({tuple(ids(tree, 1)) for tree in trees.values()}) == 3
    assert all(torch.equal(one, first_weights[0]) for one in first_weights)
    first = group(trees["bald"], "test").isel(step=0)
    for tree in trees.values():
        xr.testing.assert_identical(group(tree, "test").isel(step=0), first)
    other = learn(None, budget=8, seed=1)
    assert ids(other, 0) != ids(trees["bald"], 0)
    assert not torch.equal(first_weights[-1], first_weights[0])


def test_the_start_is_balanced_where_labels_are_known(tmp_path: Path) -> None:
    rare = {name: int(number < 3) for number, name in enumerate(arrays("pool")["id"])}
    options: dict[str, Any] = {"budget": 12, "start": 12, "fit_options": {"epochs": 1}}
    tree = learn(None, rare, **options)
    assert group(tree, "labelled")["class_count"].values.tolist() == [[9, 3]]  # all there are
    assert tree.attrs["balanced"] == 1
    chance = learn(None, rare, balanced=False, **options)
    assert ids(chance) == ids(learn(tmp_path / "run", person(tmp_path), **options))
    assert chance.attrs["balanced"] == 0
    named = learn(None, start=["pool-7", "pool-3"], budget=2, fit_options={"epochs": 1})
    assert ids(named) == ["pool-7", "pool-3"]


def test_the_stopping_rule_sees_validation_alone(tmp_path: Path) -> None:
    held_out = Batches(arrays("validation", 30), batch_size=30)
    seen: list[xr.Dataset] = []

    def after_two(validation: xr.Dataset) -> bool:
        seen.append(validation)
        return validation.sizes["step"] == 2

    tree = learn(None, stopping=after_two, validation=held_out)
    assert tree.attrs["stopped_by"] == "stopping" and tree.attrs["num_validation"] == 30
    assert len(ids(tree)) == START + SIZE
    for one in seen:
        steps = one.sizes["step"]
        xr.testing.assert_identical(one, group(tree, "validation").isel(step=slice(steps)))
    assert not group(tree, "validation")["nll"].equals(group(tree, "test")["nll"])


def test_a_figure_that_is_reached_stops() -> None:
    scores = {"accuracy": ("step", [0.5, 0.9]), "nll": ("step", [0.7, 0.2])}
    held_out = xr.Dataset({**scores, "ece": ("step", [0.1, np.nan])})
    assert Reached("accuracy", at_least=0.9)(held_out)
    assert not Reached("accuracy", at_least=0.9)(held_out.isel(step=[0]))
    assert Reached("nll", at_most=0.2)(held_out) and not Reached("nll", at_most=0.1)(held_out)
    assert not Reached("ece", at_most=1.0)(held_out)
    with pytest.raises(ValueError, match="figure must be 'accuracy', 'nll' or 'ece'"):
        Reached("auc", at_least=0.9)(held_out)
    for wrong in ({}, {"at_least": 0.5, "at_most": 0.6}, {"at_least": np.nan}):
        with pytest.raises(ValueError, match="at_least"):
            Reached("accuracy", **wrong)


def segmenter() -> tuple[nn.Module, nn.Module]:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model = BayesianSegmenter(net, ["outside", "inside"])
    return model, MeanFieldNormal(model)


@pytest.mark.parametrize("by", ["power_bald", "foreground_random", "max_entropy"])
def test_slices_are_bought_with_their_masks(by: str, tmp_path: Path) -> None:
    whole = masked("slices")
    known = dict(zip(whole["id"], whole["mask"], strict=True))
    options = {} if by == "foreground_random" else {"aggregation": "mean"}
    tree = learn(
        tmp_path,
        lambda names: [known[name] for name in names],
        make_program=segmenter,
        pool=Batches(whole, batch_size=4),
        test=Batches(masked("others"), batch_size=12),
        acquisition=by,
        acquisition_options=options,
        figures=scoring.score,
        start=2,
        size=3,
        budget=8,
    )
    rows = [whole["id"].index(name) for name in ids(tree)]
    inside = [int(whole["mask"][rows[:number]].sum()) for number in (2, 5, 8)]
    counts = group(tree, "labelled")["class_count"]
    assert counts.sel({"class": "inside"}).values.tolist() == inside
    assert counts.sum("class").values.tolist() == [2 * 64, 5 * 64, 8 * 64]
    assert counts.attrs["units"] == "pixels" and "label" not in group(tree, "purchases")
    assert np.isfinite(group(tree, "test")["nll"].values).all()


GUIDES: dict[str, tuple[Any, str]] = {
    "MeanFieldNormal": (MeanFieldNormal, "batch_bald"),
    "LowRankNormal": (lambda model: LowRankNormal(model, rank=2), "epig"),
    "PointEstimate": (PointEstimate, "max_entropy"),
    "Ensemble": (lambda model: Ensemble(model, PointEstimate, members=3), "variation_ratio"),
    "AutoNormal": (AutoNormal, "bald"),
    "features": (MeanFieldNormal, "core_set"),
}


@pytest.mark.parametrize("name", GUIDES)
def test_every_guide_buys(name: str) -> None:
    make, by = GUIDES[name]

    def pair() -> tuple[Any, Any]:
        model, _ = program()
        return model, make(model)

    keep = ("feature:1",) if by == "core_set" else ()
    options: dict[str, Any] = {"keep": keep, "subsample": 20, "warm_start": True}
    options["draws"] = 1 if name == "Ensemble" else 3
    tree = learn(None, make_program=pair, acquisition=by, **options)
    assert len(set(ids(tree))) == BUDGET
    scores = group(tree, "purchases")["score"].values
    assert np.isfinite(scores[START:]).all() and (scores[START:] >= 0).all()


@pytest.mark.filterwarnings("ignore:.*collapsed")
def test_a_latent_code_buys() -> None:
    from ppl_med.inference import ConditionalNormal
    from ppl_med.models import LatentClassifier
    from ppl_med.networks import GaussianEncoder

    def pair() -> tuple[nn.Module, nn.Module]:
        model = LatentClassifier(1, ["no", "yes"], width=4)
        return model, ConditionalNormal(GaussianEncoder(1, 2, 4, num_classes=2))

    cases = {
        name: one.repeat(4, 2).repeat(4, 3) if name == "image" else one
        for name, one in arrays("pool").items()
    }
    others = {
        name: one.repeat(4, 2).repeat(4, 3) if name == "image" else one
        for name, one in arrays("heldout", 20).items()
    }
    tree = learn(None, make_program=pair, pool=Batches(cases), test=Batches(others), budget=8)
    assert len(ids(tree)) == 8


def test_warm_start_begins_where_the_step_before_ended(tmp_path: Path) -> None:
    still = {"epochs": 1, "learning_rate": 1e-12}
    tree = learn(None, warm_start=True, fit_options=lambda n: still if n > START else {"epochs": 9})
    first, second = (group(tree, "test")["nll"].values[step] for step in (1, 2))
    start = group(learn(None, fit_options=still), "test")["nll"].values[0]
    assert abs(second - first) < abs(first - start)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 3}, "budget must be a whole number from 4 to 48"),
        ({"budget": 49}, "budget"),
        ({"size": 0}, "size must be"),
        ({"start": ["pool-1", "pool-99"]}, "start must be ids of the pool, got 'pool-99'"),
        ({"acquisition": "blad"}, "bald"),
        ({"acquisition": "core_set"}, "names* a layer: keep="),
        ({"acquisition": "foreground_random"}, "it reads maps"),
        ({"acquisition_options": {"betta": 2}}, "acquisition_options has no 'betta'"),
        ({"draws": 1}, "32 draws"),
        ({"targets": [1]}, "targets must be None for 'bald'"),
        ({"subsample": 3}, "subsample"),
        ({"stopping": Reached("accuracy", at_least=0.5)}, "stopping needs validation"),
        ({"fit_options": {"epoch": 3}}, "did you mean 'epochs'"),
        ({"fit_options": {"seed": 3}}, "fit_options has no 'seed'"),
        ({"oracle": [0, 1]}, "one label for each of the 48 cases"),
        ({"oracle": {"pool-0": 1}}, "no label of 47 of the 48 cases"),
        ({"oracle": np.full(48, 2)}, "oracle: label must be in 0..1"),
        ({"oracle": np.zeros(48)}, "oracle: label has dtype torch.float64"),
        ({"oracle": lambda names: names}, "folder: an oracle that is a function"),
        ({"test": Batches({"image": arrays("pool")["image"]})}, "test holds no 'label'"),
        ({"test": pool()}, "pool and test share 48 id"),
        ({"observation": "mask"}, "observation must be one of the model's arguments"),
        ({"figures": lambda tree: 3}, "figures must be a function that gives a Dataset"),
        ({"make_program": lambda: program()[0]}, "make_program must give a model and its guide"),
        ({"pool": [arrays("pool")]}, "pool"),
        ({"folder": ""}, "folder must be the path"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_bad_input_raises_before_training(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"acquisition": "bald", **changes}
    if "figures" not in changes:
        monkeypatch.setattr(Trainer, "run", None)
    with pytest.raises((ValueError, TypeError), match=message):
        learn(changes.pop("folder", None), **changes)


def test_a_point_estimate_has_no_disagreement() -> None:
    def pair() -> tuple[nn.Module, nn.Module]:
        model, _ = program()
        return model, PointEstimate(model)

    with pytest.raises(ValueError, match="a disagreement between draws"):
        learn(None, make_program=pair, acquisition="bald")


def test_labels_in_the_pool_are_not_looked_at() -> None:
    blind = {name: one for name, one in arrays("pool").items() if name != "label"}
    xr.testing.assert_identical(learn(None, pool=Batches(blind, batch_size=8)), learn(None))


def test_a_free_parameter_of_a_plain_program_is_new_at_every_step() -> None:
    import pyro
    import pyro.distributions as dist
    from torch import Tensor

    starts: list[float] = []

    def model(image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None) -> None:
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("case", num_cases or len(image), subsample=image):
            logits = (image.mean((1, 2, 3)) + shift)[:, None] * torch.tensor([0.0, 1.0])
            pyro.sample("label", dist.Categorical(logits=logits), obs=label)

    def guide(image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None) -> None:
        loc = pyro.param("loc", torch.tensor(0.3))
        starts.append(float(loc.detach()))
        pyro.sample("shift", dist.Normal(loc, 0.5))

    learn(None, make_program=lambda: (model, guide), observation="label", budget=12)
    assert starts.count(starts[0]) >= 3  # a start at each of the three steps
    assert "loc" not in pyro.get_param_store()
