"""Several findings per case: one tree of all of them, and the tree of one that analyses take."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from posterior_trees import array
from scipy import special, stats
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
from torch import nn

from ppl_med.analysis import calibration, conformal, findings, scoring, uncertainty
from ppl_med.data import Batches
from ppl_med.explain.attribution import attribute
from ppl_med.inference import Lossy, MeanFieldNormal, PointEstimate, fit, functions, predict
from ppl_med.likelihoods import Findings
from ppl_med.models import BayesianClassifier, FindingsClassifier

NAMES = ("effusion", "mass", "nodule")
CASES = 24


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def net(outputs: int = len(NAMES)) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, outputs))


def data(unknown: float = -1) -> dict[str, Any]:
    """What is found, where unknown entries are the same whatever stands for them."""
    found = torch.randint(2, (CASES, len(NAMES))).float()
    found[torch.rand(found.shape) < 0.2] = unknown
    found[0], found[1] = torch.tensor([0.0, unknown, 1.0]), torch.tensor([1.0, 0.0, 0.0])
    kind = found.long() if unknown == unknown else found
    image = torch.randn(CASES, 1, 3, 4)
    return {"image": image, "findings": kind, "id": [f"case {k}" for k in range(CASES)]}


def predicted(arrays: dict[str, Any], **options: Any) -> tuple[Any, xr.DataTree]:
    model = FindingsClassifier(net(), NAMES)
    guide = MeanFieldNormal(model, init_scale=0.5)
    batches = Batches(arrays, batch_size=10)
    return (model, guide), predict(model, guide, batches, draws=5, progress=False, **options)


def test_the_tree_of_one_finding_is_that_of_a_classifier_of_it_alone() -> None:
    """With the weights of its own output, against SciPy's Bernoulli and another model."""
    arrays = data()
    model = FindingsClassifier(net(), NAMES)
    tree = predict(model, PointEstimate(model), [arrays], draws=1, progress=False)
    layer: Any = next(m for m in model.modules() if isinstance(m, nn.Linear))
    for index, name in enumerate(NAMES):
        alone = BayesianClassifier(net(1), ("absent", "present"), likelihood="bernoulli")
        one: Any = next(m for m in alone.modules() if isinstance(m, nn.Linear))
        with torch.no_grad():
            one.weight.copy_(layer.weight[index : index + 1])
            one.bias.copy_(layer.bias[index : index + 1])
        found = arrays["findings"][:, index]
        single = {**arrays, "label": found.clamp(min=0)}
        del single["findings"]
        expected = predict(alone, PointEstimate(alone), [single], draws=1, progress=False)
        got = findings.select(tree, name)
        xr.testing.assert_allclose(got["posterior/probs"], expected["posterior/probs"], rtol=1e-6)
        np.testing.assert_array_equal(got["observed_data/label"], found)
        assert got["observed_data/label"].dtype.kind == "i"
        log_prob = expected["log_likelihood/label"].where(np.asarray(found) >= 0, 0)
        np.testing.assert_allclose(got["log_likelihood/label"], log_prob, rtol=1e-6)
        assert got["posterior_predictive/label"].dims == ("chain", "draw", "case")
        assert got.attrs == tree.attrs
    total: Any = sum(findings.select(tree, name)["log_likelihood/label"] for name in NAMES)
    np.testing.assert_allclose(total, tree["log_likelihood/findings"], rtol=1e-6)


def test_one_finding_that_is_almost_certain_has_no_ties() -> None:
    """log(1 - 1e-9) is -1e-9, although 1 - 1e-9 is 1 in the precision that trees are stored in."""
    odds = np.linspace(20, 22, 6).reshape(1, 2, 3, 1)
    probs = np.stack([special.expit(-odds), special.expit(odds)], 3).astype(np.float32)
    coords = {"finding": ["mass"], "class": ["absent", "present"]}
    groups = {
        "/posterior": xr.Dataset(
            {"probs": (("chain", "draw", "case", "class", "finding"), probs)}, coords
        ),
        "/log_likelihood": xr.Dataset({"f": (("chain", "draw", "case"), odds[..., 0])}),
        "/observed_data": xr.Dataset({"f": (("case", "finding"), np.ones((3, 1), int))}, coords),
    }
    got = findings.select(xr.DataTree.from_dict(groups), "mass")["log_likelihood/label"]
    np.testing.assert_allclose(got, special.log_expit(odds[..., 0]), rtol=1e-6)


@pytest.mark.parametrize("unknown", [-1, float("nan")])
def test_unknown_findings_are_left_out_by_every_step(unknown: float) -> None:
    arrays = data(unknown)
    seen = np.nan_to_num(np.asarray(arrays["findings"]), nan=-1) >= 0
    _, tree = predicted(arrays)
    assert tree["observed_data/findings"].dtype.kind == "i"
    np.testing.assert_array_equal(tree["observed_data/findings"] >= 0, seen)
    scores = findings.each(scoring.score, tree)
    np.testing.assert_array_equal(scores["num_cases"], seen.sum(0))
    mean = array(tree, "posterior/probs").mean(("chain", "draw")).sel({"class": "present"})
    for index, name in enumerate(NAMES):
        rows = seen[:, index]
        label, p = np.asarray(arrays["findings"])[rows, index], mean.values[rows, index]
        row = scores.sel(finding=name)
        np.testing.assert_allclose(row["accuracy"], accuracy_score(label, p > 0.5))
        np.testing.assert_allclose(row["nll"], log_loss(label, p, labels=[0, 1]), rtol=1e-5)
        # The sum over both classes, twice that of one.
        np.testing.assert_allclose(row["brier"], 2 * brier_score_loss(label, p), rtol=1e-5)


def test_unknown_findings_teach_nothing() -> None:
    """The gradient of a fit is that of the known entries, each with its own cross-entropy."""
    arrays = data(float("nan"))
    model = FindingsClassifier(net(), NAMES)
    layer: Any = next(m for m in model.modules() if isinstance(m, nn.Linear))
    start = layer.weight.detach().clone().requires_grad_()
    output = nn.functional.linear(arrays["image"].flatten(1), start, layer.bias.detach())
    known = ~arrays["findings"].isnan()
    loss = nn.functional.binary_cross_entropy_with_logits(
        output[known], arrays["findings"][known], reduction="sum"
    )
    (gradient,) = torch.autograd.grad(loss / CASES, start)
    guide = PointEstimate(model, use_prior=False)
    fit(
        model,
        guide,
        [arrays],
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        epochs=1,
        progress=False,
    )
    learnt = next(iter(functions(model, guide, draws=1)))(torch.eye(12).view(12, 1, 3, 4))
    origin = next(iter(functions(model, guide, draws=1)))(torch.zeros(1, 1, 3, 4))
    weight = (learnt - origin)[:, 0].T
    torch.testing.assert_close(weight.detach(), (start - gradient).detach(), rtol=1e-4, atol=1e-5)


def test_analyses_and_explanations_take_one_finding() -> None:
    arrays = data()
    (model, guide), drawn = predicted(arrays)
    kept = {}
    for part in ("one", "other"):  # labels that the model itself has drawn
        found = torch.from_numpy(array(drawn, "posterior_predictive/findings").values[0, 0])
        given = {**arrays, "findings": found, "id": [f"{part} {k}" for k in range(CASES)]}
        kept[part] = predict(model, guide, [given], draws=5, progress=False)
    tree, other = kept["one"], kept["other"]
    one = findings.select(tree, "mass")
    learnt = calibration.fit(one)
    applied = calibration.apply(learnt, findings.select(other, "mass"))
    assert applied["posterior/probs"].sizes["class"] == 2
    sets = conformal.predict_sets(conformal.calibrate(one, 0.2), findings.select(other, "mass"))
    assert sets.sizes["class"] == 2
    entropy = findings.each(uncertainty.entropy, tree)
    assert entropy["predictive_entropy"].dims == ("finding", "case")
    whole = uncertainty.entropy(tree)["predictive_entropy"]  # an entry is then a finding of a case
    np.testing.assert_allclose(entropy["predictive_entropy"], whole.transpose("finding", "case"))
    draws = functions(model, guide, draws=5, finding="mass")
    logits = draws[2](arrays["image"][:4]).detach()
    assert logits.shape == (4, 1)
    p = array(one, "posterior/probs").isel(chain=0, draw=2).sel({"class": "present"})[:4]
    np.testing.assert_allclose(logits[:, 0].sigmoid(), p, rtol=1e-5)
    maps = attribute(draws, arrays["image"][:2], target=1)
    assert maps.sizes["draw"] == 5


@pytest.mark.parametrize(("value", "partial"), [(2.0, True), (0.5, True), (-1.0, False)])
def test_what_is_no_finding_is_refused(value: float, partial: bool) -> None:
    arrays = data()
    arrays["findings"] = arrays["findings"].clamp(min=0).float()
    arrays["findings"][3, 1] = value
    model = FindingsClassifier(net(), Findings(NAMES, partial=partial))
    with pytest.raises(ValueError, match=f"findings must be 0 or 1.*got {value:g} in 1 entries"):
        fit(model, PointEstimate(model), [arrays], progress=False)


def test_one_finding_of_a_tree_that_was_made_smaller() -> None:
    """Its log-likelihood is told from logs too; moments of all draws are those of all findings."""
    every = []
    for lossy in (None, Lossy("float16"), Lossy(whole_draws=2)):
        torch.manual_seed(0)
        every.append(findings.select(predicted(data(), lossy=lossy)[1], NAMES[1]))
    plain, rounded, few = every
    logs = [tree["log_likelihood"].to_dataset() for tree in (plain, rounded)]
    xr.testing.assert_allclose(*logs, rtol=5e-3, atol=1e-4)
    scores = [scoring.score(tree) for tree in (plain, rounded)]
    xr.testing.assert_allclose(*scores, rtol=5e-3, atol=1e-3)
    assert "posterior_moments" not in few.children


def test_names_are_asked_for() -> None:
    _, tree = predicted(data())
    with pytest.raises(ValueError, match="finding must be one of"):
        findings.select(tree, "fracture")
    with pytest.raises(ValueError, match="no axis finding"):
        findings.select(
            tree.map_over_datasets(lambda group: group.drop_dims("finding", errors="ignore")),
            "mass",
        )
    with pytest.raises(ValueError, match=r"finding 'mass': .*there is nothing to compare with"):
        tree["observed_data/findings"].loc[{"finding": "mass"}] = -1
        findings.each(scoring.score, tree)
    model, guide = predicted(data())[0]
    with pytest.raises(ValueError, match="finding must be 'effusion', 'mass' or 'nodule'"):
        functions(model, guide, finding="fracture")
    with pytest.raises(ValueError, match="two or more different names"):
        Findings(NAMES, classes=("absent",))


def test_drawn_findings_are_independent_of_each_other() -> None:
    """Of one function, the frequency of two together is the product, a binomial test."""
    model = FindingsClassifier(net(2), NAMES[:2])
    image = torch.zeros(4000, 1, 3, 4)
    tree = predict(model, PointEstimate(model), [{"image": image}], draws=1, progress=False)
    p = (
        array(tree, "posterior/probs")
        .isel(chain=0, draw=0, case=0)
        .sel({"class": "present"})
        .values
    )
    both = array(tree, "posterior_predictive/findings").values[0, 0].all(-1).sum()
    assert stats.binomtest(int(both), 4000, float(p.prod())).pvalue > 1e-6
