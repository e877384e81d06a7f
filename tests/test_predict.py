"""``predict``: one function a draw, exact likelihoods, nothing moved, and what the tree holds."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from arviz_stats import loo
from posterior_trees import array
from scipy.special import log_softmax
from scipy.stats import chi2
from test_arviz import CHECKS
from torch import Tensor, nn
from torch.func import functional_call

from ppl_med.analysis import scoring
from ppl_med.inference import (
    BernoulliDropout,
    ConditionalNormal,
    Ensemble,
    MeanFieldNormal,
    PointEstimate,
    fit,
    predict,
)
from ppl_med.inference.prediction.posterior_sampler import PosteriorSampler
from ppl_med.models import BayesianClassifier, LatentClassifier
from ppl_med.networks import GaussianEncoder
from ppl_med.testing import assert_uniform
from ppl_med.weights import Normal

CLASSES = ["a", "b", "c"]
CASES = 7
Pair = tuple[nn.Module, nn.Module]


def classifier(guide: Callable[[Any], nn.Module]) -> Pair:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    model = BayesianClassifier(net, CLASSES, Normal(0.8))
    return model, guide(model)


def latent() -> Pair:
    model = LatentClassifier(1, CLASSES, width=3)
    return model, ConditionalNormal(GaussianEncoder(1, 2, 3, num_classes=3))


PAIRS: dict[str, Callable[[], Pair]] = {
    "point": lambda: classifier(PointEstimate),
    "mean-field": lambda: classifier(lambda model: MeanFieldNormal(model, init_scale=0.5)),
    "dropout": lambda: classifier(lambda model: BernoulliDropout(model, 0.4)),
    "latent": latent,
}


def data(cases: int = CASES) -> tuple[Tensor, Tensor]:
    return torch.randn(cases, 1, 6, 6), torch.arange(cases) % 3


def batches(image: Tensor, label: Tensor | None, size: int) -> list[dict[str, Any]]:
    found = []
    for start in range(0, len(image), size):
        part = slice(start, start + size)
        entry = {"image": image[part]}
        found.append(entry if label is None else {**entry, "label": label[part]})
    return found


def run(pair: tuple[Any, Any], given: list[dict[str, Any]], **options: Any) -> xr.DataTree:
    return predict(*pair, given, **{"draws": 3, "seed": 2, "progress": False, **options})


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_a_draw_is_one_function_whatever_the_batches(make: Callable[[], Pair]) -> None:
    pair, (image, label) = make(), data()
    whole = run(pair, batches(image, label, CASES))
    for size in (1, 4):
        parts = run(pair, batches(image, label, size))
        for path in ("posterior", "log_likelihood"):
            xr.testing.assert_allclose(
                parts[path].to_dataset(), whole[path].to_dataset(), rtol=1e-5, atol=1e-5
            )
        drawn = "posterior_predictive"
        xr.testing.assert_equal(parts[drawn].to_dataset(), whole[drawn].to_dataset())
    again = run(pair, batches(image, label, CASES))
    for path in ("posterior", "log_likelihood", "posterior_predictive"):
        xr.testing.assert_identical(again[path].to_dataset(), whole[path].to_dataset())


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_equal_images_differ_only_by_what_is_drawn_per_case(make: Callable[[], Pair]) -> None:
    pair = make()
    image = data(1)[0].expand(6, -1, -1, -1)
    tree = run(pair, batches(image, None, 2))
    spread = array(tree, "posterior/probs").std("case").max()
    assert spread > 1e-3 if "z" in tree["posterior"] else spread < 1e-6
    assert array(tree, "posterior_predictive/label").std("case").max() > 0


@pytest.mark.parametrize("name", ["point", "mean-field", "dropout"])
def test_probabilities_agree_with_the_drawn_weights_by_hand(name: str) -> None:
    """The net run by itself on the weights, the softmax by SciPy, all in float64."""
    model, guide = PAIRS[name]()
    model, guide = model.double(), guide.double()
    assert isinstance(model, BayesianClassifier)
    image, label = data()
    tree = run((model, guide), batches(image.double(), label, 4))
    sampler = PosteriorSampler(model, guide, {"image": image[:1].double()}, 2, 0)
    layout = model.network.layout
    for draw in range(3):
        views = layout.views(sampler.draw(draw)["weights"])
        logits = functional_call(model.network.net, views, (image.double(),))
        expected = log_softmax(logits.detach().numpy(), axis=1)
        probs = array(tree, "posterior/probs").sel(chain=0, draw=draw)
        np.testing.assert_allclose(probs, np.exp(expected), rtol=1e-11)
        likelihood = array(tree, "log_likelihood/label").sel(chain=0, draw=draw)
        picked = expected[np.arange(CASES), label.numpy()]
        np.testing.assert_allclose(likelihood, picked, rtol=1e-10, atol=1e-14)
        norms = array(tree, "posterior/weight_norm").sel(chain=0, draw=draw)
        assert list(norms["layer"].values) == layout.names
        np.testing.assert_allclose(norms, [view.norm().item() for view in views.values()])


class Confident(nn.Module):
    """A linear net whose first class leads by tens of nats."""

    def __init__(self, lead: float) -> None:
        super().__init__()
        self.linear, self.lead = nn.Linear(36, 3), lead

    def forward(self, image: Tensor) -> Tensor:
        offset = torch.tensor([self.lead, 0.0, 0.0])
        return self.linear(image.flatten(1)) + offset


def test_saturated_logits_leave_no_ties_for_psis() -> None:
    """At a lead of 20 nats a float32 log-probability is exactly 0 for every draw."""
    model = BayesianClassifier(Confident(20.0), CLASSES)
    guide = MeanFieldNormal(model, init_scale=0.5)
    image = torch.randn(8, 1, 6, 6)
    given = batches(image, torch.zeros(8, dtype=torch.int64), 8)
    tree = run((model, guide), given, draws=200, log_likelihood_of="training")
    likelihood = array(tree, "log_likelihood/label")
    assert likelihood.dtype == np.float64
    assert (likelihood.values < 0).all()
    for case in range(8):
        assert len(np.unique(likelihood.isel(case=case))) > 190
    result = loo(tree, pointwise=True, var_name="label")
    assert np.isfinite(result.elpd) and np.isfinite(result.elpd_i).all()
    assert np.isfinite(result.pareto_k).all()


@pytest.mark.parametrize("lead", [60.0, 500.0])
def test_improbable_labels_have_a_finite_likelihood(lead: float) -> None:
    model = BayesianClassifier(Confident(lead), CLASSES)
    image, label = torch.randn(6, 1, 6, 6), torch.tensor([0, 1, 2, 0, 1, 2])
    tree = run((model, PointEstimate(model)), batches(image, label, 3))
    likelihood = array(tree, "log_likelihood/label").isel(chain=0, draw=0)
    assert np.isfinite(likelihood).all()
    assert (likelihood[1:3] < 10 - lead).all()


def test_norm_statistics_parameters_and_generators_are_left_as_they_were() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 3))
    model = BayesianClassifier(net, CLASSES)
    guide = MeanFieldNormal(model)
    given = batches(*data(), 4)
    start = net[1].running_mean

    def states() -> list[Any]:
        numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
        # Python's own generator is left out: the type checks of the test run draw from it.
        return [torch.get_rng_state().tolist(), str(numpy_state)]

    before = states()
    fit(model, guide, given, epochs=2, device="cpu", progress=False)
    assert states() == before
    pair = nn.ModuleList([model, guide])
    after_fit = {name: value.clone() for name, value in pair.named_parameters()}
    after_fit |= {name: value.clone() for name, value in pair.named_buffers()}
    moved = dict(model.named_buffers())["network.net.1.running_mean"]
    assert isinstance(start, Tensor) and not torch.equal(moved, start)
    run((model, guide), given, prior_draws=3)
    assert states() == before
    found = {**dict(pair.named_parameters()), **dict(pair.named_buffers())}
    assert found.keys() == after_fit.keys()
    assert all(torch.equal(found[name], value) for name, value in after_fit.items())


def test_the_tree_in_arvizs_schema() -> None:
    image, label = data()
    given = [
        {
            "image": image[i : i + 4],
            "label": label[i : i + 4],
            "id": [f"p{n}" for n in range(i, min(i + 4, CASES))],
        }
        for i in range(0, CASES, 4)
    ]
    tree = run(PAIRS["mean-field"](), given)
    shapes = {
        "posterior/probs": ("chain", "draw", "case", "class"),
        "posterior/weight_norm": ("chain", "draw", "layer"),
        "posterior_predictive/label": ("chain", "draw", "case"),
        "log_likelihood/label": ("chain", "draw", "case"),
        "observed_data/label": ("case",),
    }
    for path, dims in shapes.items():
        assert array(tree, path).dims == dims, path
    probs = array(tree, "posterior/probs")
    assert probs.dtype == np.float64
    np.testing.assert_allclose(probs.sum("class"), 1, atol=1e-12)
    assert list(probs["class"].values) == CLASSES
    assert list(probs["case"].values) == [f"p{n}" for n in range(CASES)]
    np.testing.assert_array_equal(array(tree, "observed_data/label"), label)
    assert array(tree, "posterior_predictive/label").dtype == np.int64
    wanted = {"model": "BayesianClassifier", "guide": "MeanFieldNormal", "seed": 2}
    assert wanted.items() <= dict(tree.attrs).items()
    assert tree.attrs["log_likelihood_of"] == "held-out"


@pytest.mark.parametrize(
    ("value", "turn"),
    [
        (torch.arange(300) % 7, lambda y: (y == 6).long()),
        (torch.linspace(0.5, 4, 300), lambda y: y.clamp(max=3.99)),
        (torch.rand(300, 4, generator=torch.Generator().manual_seed(0)), lambda y: y.flip(1)),
        (torch.cat([torch.zeros(299), torch.tensor([2.0])]), torch.log1p),
        (torch.full((300,), torch.nan), lambda y: y),
    ],
)
def test_what_a_program_makes_of_its_observation_is_seen(
    value: Tensor, turn: Callable[[Tensor], Tensor]
) -> None:
    """A few cases are looked at; all that differ in kind, and the extremes, are among them."""
    ran = []

    def program(image: Tensor, y: Tensor | None = None, *, num_cases: int | None = None) -> None:
        ran.append(len(image))
        seen = None if y is None else turn(y)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            law = dist.Normal(0.0, 1.0).expand([len(image), *value.shape[1:]])
            pyro.sample("y", law.to_event(value.ndim - 1), obs=seen)

    inputs = {"image": torch.zeros(300, 1, 1, 1), "y": value}
    sampler = PosteriorSampler(program, None, {"image": inputs["image"][:1]}, 0, 0)
    sampler.kept(0)
    ran.clear()
    found = sampler.observations(inputs, np.arange(300))["y"]
    torch.testing.assert_close(found.double(), turn(value).double(), equal_nan=True)
    changed = not torch.equal(turn(value).nan_to_num(), value.nan_to_num())
    assert ran[0] <= 8
    assert ran[1:] == [300] * changed


def test_without_observations_there_is_no_likelihood() -> None:
    tree = run(PAIRS["latent"](), batches(data()[0], None, 4))
    assert set(tree.children) == {"posterior", "posterior_predictive"}
    assert array(tree, "posterior/z").dims == ("chain", "draw", "case", "latent")
    assert array(tree, "posterior/z")["case"].values.tolist() == list(range(CASES))


def test_no_guide_draws_from_the_prior() -> None:
    """|w|^2 / scale^2 of a layer of n weights has the chi-squared law with n degrees."""
    model, guide = PAIRS["mean-field"]()
    image, label = data(2)
    tree = run((model, None), batches(image, label, 2), draws=60)
    assert set(tree.children) == {"prior", "prior_predictive", "observed_data"}
    assert tree.attrs["guide"] == "prior"
    also = run((model, guide), batches(image, label, 2), prior_draws=60)
    assert {"prior", "prior_predictive", "posterior", "log_likelihood"} <= set(also.children)
    for found in (tree, also):
        norm = array(found, "prior/weight_norm").sel(layer="0.weight").values.ravel()
        assert_uniform(chi2(27).cdf((norm / 0.8) ** 2), 1e-6)


def test_what_the_cases_are_is_kept_and_heeded() -> None:
    pair, given = PAIRS["mean-field"](), batches(*data(), 4)
    heldout = run(pair, given)
    assert np.isfinite(float(scoring.elpd_heldout(heldout)["elpd_sum"]))
    training = run(pair, given, log_likelihood_of="training")
    assert training.attrs["log_likelihood_of"] == "training"
    with pytest.raises(ValueError, match="arviz_stats"):
        scoring.elpd_heldout(training)


def test_members_of_an_ensemble_are_chains() -> None:
    model, _ = PAIRS["point"]()
    ensemble = Ensemble(model, PointEstimate, members=3)
    given = batches(*data(), 4)
    probs = array(run((model, ensemble), given), "posterior/probs")
    assert probs.sizes["chain"] == 3
    for chain, member in enumerate(ensemble.members):
        alone = array(run(member, given), "posterior/probs").isel(chain=0)
        np.testing.assert_array_equal(probs.isel(chain=chain), alone)
    assert float(probs.std("chain").max()) > 1e-3


@pytest.fixture(scope="module")
def predicted() -> xr.DataTree:
    """Labels drawn from the program itself, so that it is calibrated."""
    torch.manual_seed(5)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    model = BayesianClassifier(net, ["a", "b"], Normal(0.3))
    guide = MeanFieldNormal(model, init_scale=0.6)
    image = torch.randn(60, 1, 6, 6)
    first = run((model, guide), batches(image, None, 30), draws=1)
    label = torch.from_numpy(array(first, "posterior_predictive/label").values[0, 0])
    return run((model, guide), batches(image, label, 30), draws=200)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_arviz_takes_a_predicted_tree(
    check: Callable[[xr.DataTree], None], predicted: xr.DataTree
) -> None:
    check(predicted)
