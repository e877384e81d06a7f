"""BatchNorm adapted to a domain: PyTorch's training mode is the oracle, and nothing is touched."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats
from torch import Tensor, nn

from ppl_med.data import Batches
from ppl_med.inference import (
    BernoulliDropout,
    Ensemble,
    MeanFieldNormal,
    PointEstimate,
    predict,
)
from ppl_med.inference.adaptation import Beta, adapt
from ppl_med.models import BayesianClassifier, BayesianSegmenter

CLASSES, CASES = ("a", "b", "c"), 22


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 6),
        nn.BatchNorm1d(6),
        nn.Linear(6, len(CLASSES)),
    )


def images(seed: int, number: int = CASES, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.5, 2.0, number).view(-1, 1, 1, 1)
    return torch.randn(number, 1, 8, 8, generator=generator) * scale + shift


def batches(image: Tensor, size: int = 5) -> Batches:
    return Batches({"image": image, "label": np.zeros(len(image), int)}, batch_size=size)


@pytest.fixture
def pair() -> tuple[BayesianClassifier, PointEstimate]:
    """A net whose running statistics are exactly those of source images."""
    net = network()
    for layer in net.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = None  # a cumulative mean
            nn.init.uniform_(layer.weight, 0.5, 1.5)
    net(images(1))
    model = BayesianClassifier(net.eval(), CLASSES)
    return model, PointEstimate(model)


def probs(model: Any, guide: Any, data: Batches, draws: int = 1, **options: Any) -> np.ndarray:
    tree = predict(model, guide, data, draws=draws, progress=False, device="cpu", **options)
    found: Any = tree["posterior/probs"]
    return np.asarray(found.values)


def state(*modules: nn.Module) -> dict[str, Tensor]:
    """Copies of all tensors."""
    named = {f"{i}.{k}": v for i, m in enumerate(modules) for k, v in m.state_dict().items()}
    return {name: value.clone() for name, value in named.items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("size", [4, 7, CASES])
def test_domain_statistics_are_those_of_all_images_as_one_batch(pair: Any, size: int) -> None:
    model, guide = pair
    ward = images(2, shift=1.5)
    before = state(model, guide)
    new = adapt(model, guide, batches(ward, size), draws=1, progress=False, device="cpu")
    found = probs(*new, batches(ward, 6))[0, 0]
    source = probs(model, guide, batches(ward, 6))[0, 0]
    after = state(model, guide)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)

    oracle = copy.deepcopy(model).network.net.train()
    with torch.no_grad():
        expected = oracle(ward).softmax(1)
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)
    assert np.abs(found - source).max() > 0.02


def test_batch_statistics_are_those_of_training_mode(pair: Any) -> None:
    model, guide = pair
    ward = images(2, number=12, shift=1.5)
    before = state(model, guide)
    new = adapt(model, guide, batches(ward), statistics="batch", draws=1)
    found = probs(*new, batches(ward, 4))[0, 0]
    after = state(model, guide)
    assert all(torch.equal(before[name], after[name]) for name in before)
    oracle = copy.deepcopy(model).network.net.train()
    with torch.no_grad():
        expected = torch.cat([oracle(part).softmax(1) for part in ward.split(4)])
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)
    with pytest.raises(ValueError, match="takes 2 or more"):
        probs(*new, batches(ward[:9], 4))


def test_prior_cases_pool_source_and_domain_as_their_union_does(pair: Any) -> None:
    """The first layer's statistics are those of both sets together."""
    model, guide = pair
    ward = images(2, number=11, shift=1.5)
    new = adapt(
        model, guide, batches(ward), prior_cases=CASES, draws=1, progress=False, device="cpu"
    )
    found = new[1].draw(0)
    first = next(
        name for name in found if name.startswith("norm_mean") and found[name].numel() == 4
    )
    conv = copy.deepcopy(model).network.net[0]
    with torch.no_grad():
        both = conv(torch.cat([images(1), ward])).transpose(0, 1).flatten(1).double()
    np.testing.assert_allclose(found[first], both.mean(1), atol=1e-5)
    # Running variances of PyTorch divide by n - 1.
    variance = found[first.replace("mean", "variance")]
    np.testing.assert_allclose(variance, both.var(1, correction=0), rtol=1e-3)
    much = adapt(
        model, guide, batches(ward), prior_cases=1e12, draws=1, progress=False, device="cpu"
    )
    np.testing.assert_allclose(
        probs(*much, batches(ward)), probs(model, guide, batches(ward)), atol=1e-5
    )


def test_every_draw_has_statistics_of_its_own_weights() -> None:
    model = BayesianClassifier(network(), CLASSES)
    guide = MeanFieldNormal(model, 0.2)
    ward = images(3, shift=1.0)
    settings: dict[str, Any] = {"draws": 4, "progress": False, "device": "cpu"}
    new = adapt(model, guide, batches(ward), seed=5, **settings)
    weights = [new[1].draw(draw) for draw in range(4)]
    site = next(name for name in weights[0] if not name.startswith("norm"))
    tree = predict(model, guide, batches(ward), seed=5, **settings)
    adapted_tree = predict(*new, batches(ward), seed=5, **settings)
    first, second = (one["posterior"].to_dataset() for one in (tree, adapted_tree))
    same = [name for name in first.data_vars if "norm" in str(name)]
    xr.testing.assert_identical(first[same], second[same])  # norms of the same weights
    assert same
    assert not torch.equal(weights[0][site], weights[1][site])
    means = torch.stack([one[next(n for n in one if n.startswith("norm_mean"))] for one in weights])
    assert (means.std(0) > 1e-3).all()


@pytest.mark.parametrize("kind", ["dropout", "ensemble"])
def test_other_guides_adapt_too(kind: str) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                        nn.Dropout(0.5), nn.Linear(144, 3))  # fmt: skip
    model = BayesianClassifier(net, CLASSES)
    guide: Any = BernoulliDropout(model) if kind == "dropout" else None
    guide = guide or Ensemble(model, PointEstimate, members=2)
    ward = batches(images(4, shift=2.0))
    new = adapt(model, guide, ward, draws=2, progress=False, device="cpu")
    found, source = probs(*new, ward, draws=2), probs(model, guide, ward, draws=2)
    assert found.shape == source.shape == (2 if kind == "ensemble" else 1, 2, CASES, 3)
    assert np.abs(found - source).max() > 0.01


def test_masks_adapt_too() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))
    model = BayesianSegmenter(net, CLASSES)
    guide = PointEstimate(model)
    ward = Batches({"image": images(4, number=6), "mask": np.zeros((6, 8, 8), int)}, batch_size=4)
    new = adapt(model, guide, ward, draws=1, progress=False, device="cpu")
    assert np.abs(probs(*new, ward) - probs(model, guide, ward)).max() > 1e-3


def test_the_source_share_has_its_prior(pair: Any) -> None:
    """The mean of the first layer is linear in the share: it tells what was drawn."""
    model, guide = pair
    ward = images(2, number=4, shift=1.5)
    draws = 150
    new = adapt(
        model, guide, batches(ward), source_share=Beta(2.0, 5.0), draws=draws, progress=False,
        device="cpu",
    )  # fmt: skip
    plain = adapt(model, guide, batches(ward), draws=1, progress=False, device="cpu")
    name = next(n for n in plain[1].draw(0) if n.startswith("norm_mean"))
    domain = plain[1].draw(0)[name][0]
    source = dict(model.network.net.named_modules())["1"].running_mean[0].double()
    moved = torch.stack([new[1].draw(draw)[name][0] for draw in range(draws)])
    share = ((moved - domain) / (source - domain)).numpy()
    assert stats.kstest(share, stats.beta(2, 5).cdf).pvalue > 1e-6
    assert stats.kstest(share, stats.beta(5, 2).cdf).pvalue < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prior_cases": 0.0}, "prior_cases"),
        ({"prior_cases": 2.0, "source_share": Beta()}, "left out where source_share"),
        ({"source_share": Beta(0.0, 1.0)}, "source_share"),
        ({"statistics": "batch", "prior_cases": 2.0}, "pooled"),
        ({"batches": batches(images(1, number=1))}, "one case"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str, pair: Any) -> None:
    given: dict[str, Any] = {"batches": batches(images(1)), "draws": 1, "progress": False} | change
    with pytest.raises(ValueError, match=message):
        adapt(pair[0], pair[1], given.pop("batches"), device="cpu", **given)


def test_a_net_without_batch_norm_is_refused() -> None:
    model = BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), CLASSES)
    with pytest.raises(ValueError, match="no BatchNorm layer"):
        adapt(model, PointEstimate(model), batches(images(1)), device="cpu")
