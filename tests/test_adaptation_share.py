"""The posterior of the source share against a grid of its density, and what cannot be adapted."""

import copy
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from test_adaptation import CLASSES, batches, images
from torch import Tensor, nn

from ppl_med.axes import dims
from ppl_med.data import Batches, symmetries
from ppl_med.inference import MeanFieldNormal, PointEstimate, predict
from ppl_med.inference.adaptation import Beta, adapt
from ppl_med.models import BayesianClassifier, BayesianRegressor

SETTINGS: dict[str, Any] = {"progress": False, "device": "cpu"}
PRIOR, EVIDENCE, CASES = Beta(2.0, 1.5), 1.5, 12


def network() -> nn.Sequential:
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, len(CLASSES)),
    )
    net[1].momentum = None  # type: ignore[assignment]  # a cumulative mean
    net(images(1))
    with torch.no_grad():
        for parameter in net[5].parameters():
            parameter.mul_(8)  # certain enough to tell one share from another
    return net.eval()


def density(net: nn.Sequential, ward: Tensor, grid: np.ndarray) -> np.ndarray:
    """The posterior on a grid of shares, by running the net in evaluation mode at each."""
    norm: Any = net[1]
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    told = []
    with torch.no_grad():
        own = net[0](ward).transpose(0, 1).flatten(1)
        for share in grid:
            norm.running_mean = share * mean + (1 - share) * own.mean(1)
            square = share * (variance + mean**2) + (1 - share) * own.square().mean(1)
            norm.running_var = square - norm.running_mean**2
            views = [net(view).softmax(1).double().numpy() for view in (ward, ward.flip(3))]
            p = (views[0] + views[1]) / 2
            within = stats.entropy(p, axis=1).mean()
            noise = within - np.mean([stats.entropy(view, axis=1).mean() for view in views])
            told.append((stats.entropy(p.mean(0)) - within) / noise)
    weight = stats.beta.pdf(grid, *PRIOR) * np.array(told) ** (EVIDENCE * len(ward))
    found: np.ndarray = weight / weight.sum()
    return found


def test_the_posterior_of_the_share_is_prior_times_signal_over_noise() -> None:
    """KS with 1e-6 false alarms; the prior, or the posterior turned round, is told apart."""
    net, ward = network(), images(2, number=CASES, shift=2.0)
    grid = (np.arange(400) + 0.5) / 400
    weight = density(copy.deepcopy(net), ward, grid)
    model = BayesianClassifier(net, CLASSES)
    new = adapt(model, PointEstimate(model), batches(ward), source_share=PRIOR, evidence=EVIDENCE,
                draws=120, **SETTINGS)  # fmt: skip
    share = np.array([float(new[1].draw(draw)["source_share"]) for draw in range(120)])
    below = np.cumsum(weight)

    def posterior(value: Any) -> Any:
        return np.interp(value, grid + 0.5 / 400, below)

    assert stats.kstest(share, posterior).pvalue > 1e-6
    assert stats.kstest(share, stats.beta(*PRIOR).cdf).pvalue < 1e-9
    assert stats.kstest(1 - share, posterior).pvalue < 1e-9


def test_the_share_stands_in_the_tree() -> None:
    model = BayesianClassifier(network(), CLASSES)
    guide, ward = MeanFieldNormal(model, 0.3), batches(images(2, number=CASES, shift=2.0))
    new = adapt(model, guide, ward, source_share=PRIOR, evidence=EVIDENCE, draws=3, **SETTINGS)
    tree = predict(*new, ward, draws=3, **SETTINGS)
    found = tree["posterior/source_share"]
    assert found.dims == ("chain", "draw") and len(np.unique(found)) == 3
    drawn = [float(new[1].draw(draw)["source_share"]) for draw in range(3)]
    np.testing.assert_allclose(found.values[0], drawn, rtol=1e-6)
    plain = adapt(model, guide, ward, draws=3, **SETTINGS)
    assert "source_share" not in predict(*plain, ward, draws=3, **SETTINGS)["posterior"]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"evidence": 1.0}, "without source_share"),
     ({"evidence": -1.0, "source_share": Beta()}, "evidence"),
     ({"evidence": 1.0, "source_share": Beta(), "views": symmetries(1)}, "views")],
)  # fmt: skip
def test_wrong_evidence_is_named(change: dict[str, Any], message: str) -> None:
    model = BayesianClassifier(network(), CLASSES)
    with pytest.raises(ValueError, match=message):
        adapt(model, PointEstimate(model), batches(images(2)), draws=1, **change, **SETTINGS)


def test_mirror_images_that_always_agree_tell_nothing() -> None:
    net = nn.Sequential(nn.BatchNorm2d(1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 3))
    model = BayesianClassifier(net, CLASSES)
    with pytest.raises(ValueError, match="agree"):
        adapt(model, PointEstimate(model), batches(images(2)), source_share=Beta(), evidence=1.0,
              draws=1, **SETTINGS)  # fmt: skip


def test_numbers_have_no_information() -> None:
    model = BayesianRegressor(nn.Sequential(*list(network())[:-1], nn.Linear(4, 2)))
    ward = Batches({"image": images(2, number=6)}, batch_size=3)
    adapt(model, PointEstimate(model), ward, draws=1, **SETTINGS)
    with pytest.raises(ValueError, match="no site of classes"):
        adapt(
            model,
            PointEstimate(model),
            ward,
            source_share=Beta(),
            evidence=1.0,
            draws=1,
            **SETTINGS,
        )


class Wayward(nn.Module):
    """Two layers of BatchNorm, run in a way that depends on the settings."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.first, self.second, self.way = nn.BatchNorm2d(1), nn.BatchNorm2d(1), way
        self.head = nn.Linear(64, len(CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        layers = [self.first, self.second]
        if self.way == "twice":
            layers.append(self.first)
        if self.way == "order" and float(image.mean()) > 0:
            layers.reverse()
        if self.way == "idle":
            layers.pop()
        for layer in layers:
            image = layer(image)
        found: Tensor = self.head(image.flatten(1))
        return found


@pytest.mark.parametrize(
    ("way", "message"),
    [("twice", r"\['network.net.first'\] run more than once"),
     ("order", "run in another order from batch to batch"),
     ("idle", r"\['network.net.second'\] do not run")],
)  # fmt: skip
def test_layers_that_no_one_set_of_statistics_suits_are_refused(way: str, message: str) -> None:
    model = BayesianClassifier(Wayward(way), CLASSES)
    ward = torch.cat([images(1, number=4, shift=-3.0), images(2, number=4, shift=3.0)])
    with pytest.raises(ValueError, match=message):
        adapt(model, PointEstimate(model), batches(ward, 4), draws=1, **SETTINGS)


def test_guides_with_latents_of_every_case_are_refused() -> None:
    net = network()

    def model(image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None) -> None:
        with pyro.plate("case", num_cases or len(image), subsample=image):
            z = pyro.sample("z", dist.Normal(image.new_zeros(len(image), 2), 1).to_event(1),
                            infer=dims("latent"))  # fmt: skip
            logits = net(image) + z.sum(-1, keepdim=True)
            pyro.sample("label", dist.Categorical(logits=logits), obs=label)

    def guide(image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None) -> None:
        with pyro.plate("case", num_cases or len(image), subsample=image):
            pyro.sample("z", dist.Normal(image.new_zeros(len(image), 2), 1).to_event(1))

    with pytest.raises(ValueError, match="latents of every case"):
        adapt(model, guide, batches(images(2)), draws=1, **SETTINGS)
