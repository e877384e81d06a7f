"""Detectors of pytorch-ood on kept features and logits: theirs, ours, and what is refused."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from ood_trees import feature_tree
from scipy import stats

from ppl_med.analysis import ood
from ppl_med.explain import score_with

detectors = pytest.importorskip("pytorch_ood.detector")
FALSE_ALARM = 1e-6
FEATURES: dict[str, dict[str, Any]] = {
    "KNN": {"k": 5},
    "Mahalanobis": {},
    "RMD": {},
    "GMM": {},
    "ViM": {"d": 3},
    "SHE": {},
    "NNGuide": {"k": 5},
    "fDBD": {},
    "NCI": {},
    "PNML": {},
    "DICE": {"p": 0.5},
}
LOGITS: dict[str, dict[str, Any]] = {
    "EnergyBased": {},
    "MaxLogit": {},
    "MaxSoftmax": {},
    "Entropy": {},
    "GEN": {},
    "KLMatching": {},
    "TemperatureScaling": {},
    "WeightedEBO": {"weights": torch.ones(3)},
}


@pytest.fixture(scope="module")
def train() -> xr.DataTree:
    return feature_tree(300, "t", samples=(1, 3))


@pytest.fixture(scope="module")
def held_out() -> xr.DataTree:
    return feature_tree(60, "v", samples=(1, 3))


@pytest.fixture(scope="module")
def new() -> xr.DataTree:
    return feature_tree(80, "o", shift=2.0, samples=(1, 3))


@pytest.mark.parametrize("name", [*FEATURES, *LOGITS])
def test_every_detector_gives_what_a_score_gives(name: str, train, held_out, new) -> None:
    settings = (FEATURES | LOGITS)[name]
    found = score_with(name, train, new, held_out=held_out, **settings)
    assert found["score_per_draw"].dims == ("chain", "draw", "case")
    mean = found["score_per_draw"].mean(("chain", "draw"))
    np.testing.assert_allclose(found["score"], mean)
    assert ((found["pvalue"] >= 1 / 61) & (found["pvalue"] <= 1)).all()
    assert found.attrs["score"] == f"pytorch_ood.{name}"
    assert ("layer" in found.attrs) == (name in FEATURES)
    inside = score_with(name, train, feature_tree(80, "i", samples=(1, 3)), **settings)
    assert np.isfinite(float(ood.evaluate(inside, found, resamples=0)["auroc"]))


def unsure_tree(tree: xr.DataTree) -> xr.DataTree:
    """The tree with features near 0, and logits that are low and nearly equal."""
    result = tree.copy()
    group = tree["posterior"].to_dataset()
    kept = {"logit": 0.02 * group["logit"] - 5, "feature:head": 0.02 * group["feature:head"]}
    result["posterior"] = group.assign(kept)
    return result


@pytest.mark.parametrize("name", [*FEATURES, *LOGITS])
def test_larger_is_more_unlike(name: str, train, held_out) -> None:
    """Features far along an axis that holds no class; of confidence, what nobody is sure of."""
    settings = (FEATURES | LOGITS)[name]
    inside = feature_tree(200, "i", samples=(1, 3))
    far = feature_tree(200, "o", shift=30.0, samples=(1, 3))
    confidence = name in LOGITS or name in ("SHE", "NNGuide", "DICE")
    others = unsure_tree(feature_tree(200, "f", samples=(1, 3))) if confidence else far
    pair = [score_with(name, train, tree, **settings) for tree in (inside, others)]
    area = float(ood.evaluate(*pair, resamples=0)["auroc"])
    assert area > 0.7, area


PAIRS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "energy": ("EnergyBased", {}, {}),
    "max_logit": ("MaxLogit", {}, {}),
    "knn": ("KNN", {"k": 7}, {"k": 7}),
    "vim": ("ViM", {"d": 2}, {"dimension": 2}),
    "expected_entropy": ("Entropy", {}, {}),
}


@pytest.mark.parametrize("ours", PAIRS)
def test_ours_equal_theirs(ours: str, train, held_out, new) -> None:
    """Over all draws; single precision there, double here."""
    theirs, settings, own = PAIRS[ours]
    found = score_with(theirs, train, new, held_out=held_out, **settings)
    reference = ood.fit_reference(ours, train, held_out=held_out, **own)
    expected = ood.score(new, reference)
    np.testing.assert_allclose(found["score"], expected["score"], rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(found["score_sd"], expected["score_sd"], rtol=2e-2, atol=2e-4)
    assert (abs(found["pvalue"] - expected["pvalue"]) < 2 / 61).all()


def test_confidence_of_one_draw_is_theirs(train, held_out, new) -> None:
    trees = [tree.isel(draw=[0]) for tree in (train, held_out, new)]
    found = score_with("MaxSoftmax", trees[0], trees[2])  # minus the largest probability
    expected = ood.score(trees[2], ood.fit_reference("mcp", trees[1]))
    np.testing.assert_allclose(1 + found["score"], expected["score"], atol=1e-6)


def test_mahalanobis_is_half_of_ours_over_the_number_of_cases(train, held_out, new) -> None:
    """Theirs has the undivided covariance; of these features its small ridge does no harm."""
    found = score_with("Mahalanobis", train, new, held_out=held_out)
    expected = ood.score(new, ood.fit_reference("mahalanobis", train, held_out=held_out))
    np.testing.assert_allclose(found["score"] * 2 * 300, expected["score"], rtol=2e-3)


def test_pvalues_are_uniform_within_the_distribution() -> None:
    pooled = []
    for seed in range(30):
        sizes = {"t": 60, "v": 19, "i": 1}
        trees = [feature_tree(n, p, seed=seed, samples=(1, 2)) for p, n in sizes.items()]
        found = score_with("GMM", trees[0], trees[2], held_out=trees[1])
        pooled.append(float(found["pvalue"][0]))
    counts = np.bincount((20 * np.array(pooled)).round().astype(int), minlength=21)[1:]
    assert stats.chisquare(counts.reshape(2, 10).sum(1)).pvalue > FALSE_ALARM


def test_a_factory_gets_the_last_layer_of_its_draw(train, new) -> None:
    seen = []

    def make(head: torch.nn.Linear) -> Any:
        seen.append(head)
        return detectors.SHE(None, head)

    found = score_with(make, train, new)
    xr.testing.assert_allclose(found, score_with("SHE", train, new))
    assert len(seen) == 3
    feature = torch.tensor(train["posterior/feature:head"].values[0, 1]).float()
    logit = train["posterior/logit"].values[0, 1]
    np.testing.assert_allclose(seen[1](feature).detach(), logit, atol=1e-4)


def test_functions_that_are_copies_are_fitted_once(held_out) -> None:
    trees = [
        feature_tree(n, p, samples=(2, 3), same_in_all_draws=True) for n, p in ((90, "t"), (9, "i"))
    ]
    made = []

    def make() -> Any:
        made.append(0)
        return detectors.GMM(None)

    found = score_with(make, trees[0], trees[1])
    assert len(made) == 1 and float(found["score_sd"].max()) == 0.0


class Broken:
    requires_fit = False

    def predict_logits(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[:, 0] / 0 - logits[:, 0] / 0


def test_misuse_is_refused(train, held_out, new, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(tree: xr.DataTree, name: str) -> xr.DataTree:
        result = tree.copy()
        result["posterior"] = tree["posterior"].to_dataset().drop_vars(name)
        return result

    with pytest.raises(ValueError, match=r"keep=\('logit',\)"):
        score_with("EnergyBased", without(train, "logit"), new)
    with pytest.raises(ValueError, match=r"keep=\('logit',\)"):
        score_with("SHE", without(train, "logit"), new)
    with pytest.raises(ValueError, match="holds no features"):
        score_with("GMM", without(train, "feature:head"), new)
    with pytest.raises(ValueError, match="layer must be one of"):
        score_with("GMM", train, new, layer="hed")
    with pytest.raises(ValueError, match="did you mean 'Mahalanobis'"):
        score_with("Mahalanobs", train, new)
    with pytest.raises(TypeError, match="ODIN has neither predict_features nor predict_logits"):
        score_with(lambda: detectors.ODIN(lambda image: image), train, new)
    with pytest.raises(ValueError, match="NaN or infinite"):
        score_with(Broken, train, new)
    with pytest.raises(ValueError, match="share"):
        score_with("GMM", train, train)
    with pytest.raises(ValueError, match="of 3 draws, the tree has 1 of 2"):
        score_with("GMM", train, new.isel(draw=[0, 1]))
    seen = held_out.copy()
    seen.attrs["log_likelihood_of"] = "training"
    with pytest.raises(ValueError, match="held_out is of training cases"):
        score_with("GMM", train, new, held_out=seen)
    monkeypatch.setitem(sys.modules, "pytorch_ood.detector", None)
    with pytest.raises(ImportError, match="pip install pytorch-ood"):
        score_with("KNN", train, new)


def test_patients_give_the_pvalues_one_case_each(train, held_out, new) -> None:
    case = held_out["posterior"]["case"]
    known = held_out.copy()
    people = xr.DataArray([f"p{i // 5}" for i in range(60)], {"case": case}, ("case",))
    known["constant_data"] = xr.Dataset({"patient": people})
    found = score_with("KNN", train, new, held_out=known, k=1)
    assert found.attrs["n"] == 12
    reference = ood.fit_reference("knn", train, held_out=known, k=1)
    np.testing.assert_array_equal(found["pvalue"], ood.score(new, reference)["pvalue"])
    assert score_with("KNN", train, new, held_out=known, group="case", k=1).attrs["n"] == 60
    teaching = train.copy()
    same = xr.DataArray(["p1"] * 300, {"case": train["posterior"]["case"]}, ("case",))
    teaching["constant_data"] = xr.Dataset({"patient": same})
    with pytest.raises(
        ValueError, match=r"held_out has cases of 1 patient\(s\) of whom tree_in has"
    ):
        score_with("KNN", teaching, new, held_out=known, k=1)
