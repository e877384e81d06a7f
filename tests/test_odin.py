"""ODIN: its limits, pytorch-ood as oracle, and p-values of scores that are made elsewhere."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

from ppl_med.analysis import ood
from ppl_med.analysis.ood.found import as_found
from ppl_med.data import Batches
from ppl_med.explain import choose_epsilon, odin
from ppl_med.inference import MeanFieldNormal, functions, predict
from ppl_med.models import BayesianClassifier

CASES, CLASSES = 12, ("a", "b", "c")


def network() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, len(CLASSES)))


@pytest.fixture
def posterior() -> tuple[BayesianClassifier, MeanFieldNormal, Tensor]:
    model = BayesianClassifier(network(), CLASSES)
    return model, MeanFieldNormal(model, 0.3), torch.randn(CASES, 1, 4, 4)


def test_at_temperature_1_and_without_a_step_it_is_the_maximum_probability(posterior: Any) -> None:
    model, guide, image = posterior
    batches = Batches({"image": image, "label": np.zeros(CASES, int)}, batch_size=5)
    tree = predict(model, guide, batches, draws=6, progress=False, device="cpu")
    mcp = ood.score(
        tree.isel(case=slice(6)), ood.fit_reference("mcp", tree.isel(case=slice(6, 12)))
    )
    found = odin(functions(model, guide, draws=6), image, temperature=1.0, epsilon=0.0)
    for name in ("score", "score_sd"):
        np.testing.assert_allclose(found[name][:6], mcp[name], atol=1e-6)
    single = found["score_per_draw"][..., :6].transpose(*mcp["score_per_draw"].dims)
    assert set(single.dims) == {"chain", "draw", "case"} and single.sizes["draw"] == 6


@pytest.mark.parametrize("temperature", [1.0, 10.0])
@pytest.mark.parametrize("gradient", ["predictive", "draw"])
def test_of_one_network_it_is_that_of_pytorch_ood(temperature: float, gradient: str) -> None:
    detector = pytest.importorskip("pytorch_ood.detector")
    net, image = network().eval(), torch.randn(CASES, 1, 4, 4)
    theirs = detector.ODIN(net, eps=0.05, temperature=temperature, norm_std=None)(image)
    found = odin([net], image, temperature=temperature, epsilon=0.05, gradient=gradient)
    np.testing.assert_allclose(found["score"], 1 + theirs.detach().numpy(), atol=1e-6)
    assert np.isnan(found["score_sd"]).all()


def test_a_high_temperature_keeps_the_order_of_logit_gaps() -> None:
    """At T = 1000 it is, up to 1 / T^2, 1 - (1 + (z_max - mean z) / T) / K."""
    net, image = network().eval(), torch.randn(CASES, 1, 4, 4)
    found = odin([net], image, temperature=1000.0, epsilon=0.0)
    with torch.no_grad():
        logit = net(image).double()
    gap = (logit.amax(1) - logit.mean(1)).numpy()
    expected = 1 - (1 + gap / 1000) / len(CLASSES)
    np.testing.assert_allclose(found["score"], expected, atol=3e-6)
    np.testing.assert_array_equal(np.argsort(found["score"]), np.argsort(-gap))


def test_the_step_follows_the_mean_over_draws(posterior: Any) -> None:
    """It raises the predictive confidence; steps of every draw raise that draw's own."""
    model, guide, image = posterior
    draws = functions(model, guide, draws=8)
    still, moved = (odin(draws, image, temperature=1.0, epsilon=e) for e in (0.0, 0.01))
    assert (moved["score"] < still["score"]).all()
    own = odin(draws, image, temperature=1.0, epsilon=0.01, gradient="draw")
    assert (own["score_per_draw"] <= still["score_per_draw"] + 1e-6).all()
    assert (own["score_per_draw"] != moved["score_per_draw"]).any()


def test_epsilon_is_chosen_by_confidence_on_familiar_images(posterior: Any) -> None:
    model, guide, image = posterior
    found = choose_epsilon(functions(model, guide, draws=3), image, grid=(0, 0.01, 0.05))
    assert found.attrs["best"] == 0.05 and np.all(np.diff(found) > 0)
    assert (found["se"] > 0).all()


def test_pvalues_of_scores_made_elsewhere_are_uniform() -> None:
    """n + 1 ranks, all equally likely: the share at most a is a for a = k / (n + 1)."""
    random, number = np.random.default_rng(0), 19

    def made(count: int, prefix: str) -> xr.Dataset:
        dims, ids = ("chain", "draw", "case"), [f"{prefix}{i}" for i in range(count)]
        single = xr.DataArray(random.normal(size=(1, 1, count)), {"case": ids}, dims)
        return as_found(single.values[0, 0], single, score="mine")

    ranks: list[int] = []
    for _ in range(300):
        found = ood.with_pvalues(made(10, "t"), made(number, "v"))
        ranks.extend(np.round(found["pvalue"].values[:1] * (number + 1)).astype(int))
    counts = np.bincount(ranks, minlength=number + 2)[1:]
    expected = len(ranks) / (number + 1)
    assert ((counts - expected) ** 2 / expected).sum() < 72  # chi2(19), false alarm 1e-7
    assert counts.sum() == len(ranks) and found.attrs["n"] == number

    with pytest.raises(ValueError, match="held_out and found"):
        ood.with_pvalues(made(3, "t"), made(3, "t"))
    with pytest.raises(ValueError, match="found has score 'mine', held_out 'other'"):
        ood.with_pvalues(made(3, "t"), made(3, "v").assign_attrs(score="other"))
    with pytest.raises(TypeError, match="held_out must be"):
        ood.with_pvalues(made(3, "t"), made(3, "v")["score"].to_dataset(name="x"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"epsilon": -0.1}, "epsilon"),
        ({"gradient": "both"}, "gradient"),
        ({"image": torch.full((2, 1, 4, 4), torch.nan)}, "NaN"),
        ({"functions": []}, "functions is empty"),
        ({"functions": [lambda image: image.argmax(-1).float()]}, "functions"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"functions": [network()], "image": torch.randn(2, 1, 4, 4)} | change
    with pytest.raises(ValueError, match=message):
        odin(given.pop("functions"), given.pop("image"), **given)
