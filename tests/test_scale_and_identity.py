"""What scales the likelihood, what tells two runs apart, and what must not be done to a network."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from killed_runs import classifier
from posterior_trees import array
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from ppl_med.axes import dims
from ppl_med.data import Batches
from ppl_med.explain import AttributionConstrained, RightReasons
from ppl_med.inference import (
    BernoulliDropout,
    ConditionalNormal,
    Ensemble,
    MeanFieldNormal,
    PointEstimate,
    fit,
    predict,
)
from ppl_med.inference.batches import as_loader
from ppl_med.inference.checkpoint import settings
from ppl_med.likelihoods import FocalLoss, LabelNoise
from ppl_med.models import BayesianClassifier, ConfounderFreeClassifier, LatentClassifier
from ppl_med.networks import ConvGaussian, GaussianEncoder
from ppl_med.weights import Normal

CASES = 20
Loaders = dict[str, Any]


class Images(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return CASES

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.full((1, 8, 8), float(index))
        return {"image": image, "label": torch.tensor(index % 2)}


def arrays(number: int = CASES) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(number, 1, 8, 8)).astype("float32")
    return {"image": image, "label": rng.integers(0, 2, number), "id": np.arange(number)}


def small(likelihood: Any = "categorical", scale: float = 1.0) -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    return BayesianClassifier(net, ["no", "yes"], prior=Normal(scale), likelihood=likelihood)


# --- the size of the data set


class Odd(Sampler):
    def __iter__(self) -> Any:
        return iter(range(1, CASES, 2))

    def __len__(self) -> int:
        return CASES // 2


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, CASES),
        ({"shuffle": True}, CASES),
        ({"shuffle": True, "drop_last": True}, CASES),  # other cases are dropped every time
        ({"drop_last": True}, 18),
        ({"sampler": SequentialSampler(range(5))}, 5),
        ({"sampler": SubsetRandomSampler(range(7))}, 7),
        ({"sampler": RandomSampler(range(CASES), num_samples=4)}, CASES),
        ({"sampler": WeightedRandomSampler([0.1] * CASES, 8)}, CASES),
        ({"sampler": WeightedRandomSampler([0.1, 0.0, 0.2], 8)}, 2),  # the rest is never drawn
        ({"sampler": DistributedSampler(Images(), 3, 0)}, CASES),
        ({"batch_sampler": BatchSampler(SubsetRandomSampler(range(9)), 3, False)}, 9),
    ],
)
def test_a_sampler_says_how_many_cases_there_are(options: Loaders, size: int) -> None:
    given = options if "batch_sampler" in options else {"batch_size": 6, **options}
    assert as_loader(DataLoader(Images(), **given), None).num_cases == size


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": Odd()},
        {"batch_sampler": [[0, 1], [2, 3]]},
    ],
)
def test_a_sampler_of_another_kind_needs_the_number(options: Loaders) -> None:
    loader = DataLoader(Images(), **options)
    with pytest.raises(ValueError, match="pass num_cases=<size of the data set>"):
        as_loader(loader, None)
    assert as_loader(loader, 10).num_cases == 10


# --- networks that run again in the backward pass


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.ReLU())
        self.last, self.reentrant = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), reentrant

    def forward(self, image: Tensor) -> Tensor:
        return self.last(checkpoint(self.first, image, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", ["point", "shared", "auto", "dropout"])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_gradient_checkpointing_is_refused(kind: str, reentrant: bool) -> None:
    """The pass would be repeated with the network's own weights, not with those that were drawn."""
    model = BayesianClassifier(Checkpointed(reentrant), ["no", "yes"])
    guides: dict[str, Any] = {
        "point": lambda: PointEstimate(model),
        "shared": lambda: MeanFieldNormal(model, estimator="shared"),
        "auto": lambda: MeanFieldNormal(model),
        "dropout": lambda: BernoulliDropout(model, 0.1),
    }
    batches = Batches(arrays(), batch_size=10)
    refused = r"switch checkpointing off|different number of tensors|Recomputed"
    with pytest.raises((RuntimeError, ValueError), match=refused):
        fit(model, guides[kind](), batches, epochs=1, device="cpu", progress=False)


def test_gradients_of_the_input_are_no_second_run() -> None:
    """A graph that is differentiated twice runs no module again."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.Tanh())
    image = torch.randn(4, 1, 8, 8, requires_grad=True)
    logits = BayesianClassifier(net, ["no", "yes"])(image)
    (slope,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
    slope.square().sum().backward()


# --- what a tree says it is


def test_training_cases_under_latents_of_the_prior_are_said_to_be_that() -> None:
    torch.manual_seed(0)
    model = LatentClassifier(1, ["no", "yes"], width=4)
    guide = ConditionalNormal(GaussianEncoder(1, 2, 4, num_classes=2))
    options: dict[str, Any] = {"draws": 2, "log_likelihood_of": "training", "progress": False}
    tree = predict(model, guide, Batches(arrays(), batch_size=10), **options)
    assert "drawn from their prior" in tree.attrs["log_likelihood_of"]
    plain = predict(small(), PointEstimate(small()), Batches(arrays(), batch_size=10), **options)
    assert plain.attrs["log_likelihood_of"] == "training"


def test_a_loss_in_a_closure_is_named() -> None:
    model, loss = small(), FocalLoss(["no", "yes"])
    net = model.network

    def program(image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None) -> Any:
        logits = net(image)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            loss(logits, label)

    guide = PointEstimate(model)
    options: dict[str, Any] = {"draws": 1, "log_likelihood_of": "training", "progress": False}
    tree = predict(program, guide, Batches(arrays(), batch_size=10), **options)
    assert "training_loss" in tree.attrs and "not what was trained" in str(tree.attrs)


# --- resuming with other settings


class Stop(RuntimeError):
    pass


def broken(batches: Any, after: int) -> Any:
    """Batches that fail once so many were read."""

    class Broken:
        num_cases = batches.num_cases

        def __len__(self) -> int:
            return len(batches)

        def __iter__(self) -> Any:
            for index, batch in enumerate(batches):
                if index == after:
                    raise Stop
                yield batch

    return Broken()


def test_predict_resumes_with_the_same_settings_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppl_med.inference.predictive.CHUNK_CASES", 5)
    batches = Batches(arrays(), batch_size=5)
    options: dict[str, Any] = {"draws": 2, "progress": False, "store": tmp_path / "run.zarr"}

    def model(noise: float) -> Any:
        return small(LabelNoise(["no", "yes"], noise=noise))

    first = model(0.0)
    with contextlib.suppress(Stop):
        predict(first, PointEstimate(first), broken(batches, 2), **options)
    other = model(0.3)
    with pytest.raises(ValueError, match="made with another settings"):
        predict(other, PointEstimate(other), batches, resume=True, **options)
    bare = Batches({n: v for n, v in arrays().items() if n != "label"}, batch_size=5)
    with pytest.raises(ValueError, match="made with another observations"):
        predict(first, PointEstimate(first), bare, resume=True, **options)
    with pytest.raises(ValueError, match="made with another prior_draws"):
        predict(first, PointEstimate(first), batches, resume=True, prior_draws=2, **options)
    tree = predict(first, PointEstimate(first), batches, resume=True, **options)
    assert tree["posterior"].sizes["case"] == tree["log_likelihood"].sizes["case"] == CASES


def test_fit_resumes_with_the_same_prior_only(tmp_path: Path) -> None:
    batches = Batches(arrays(), batch_size=5)
    options: dict[str, Any] = {"epochs": 2, "progress": False, "checkpoint": tmp_path / "run.pt"}
    first = small(scale=1.0)
    with contextlib.suppress(Stop):
        fit(first, MeanFieldNormal(first), broken(batches, 2), checkpoint_every=0, **options)
    other = small(scale=0.1)
    with pytest.raises(ValueError, match=r"settings.*scale=0.1.*scale=1.0"):
        fit(other, MeanFieldNormal(other), broken(batches, 99), resume=True, **options)


def test_draws_from_the_prior_are_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_med.inference.predictive.CHUNK_CASES", 5)
    batches, model = Batches(arrays(), batch_size=5), small()
    options: dict[str, Any] = {"draws": 2, "progress": False}
    whole = predict(model, None, batches, **options)
    store = tmp_path / "run.zarr"
    with contextlib.suppress(Stop):
        predict(model, None, broken(batches, 2), store=store, **options)
    resumed = predict(model, None, batches, store=store, resume=True, **options)
    for group in ("prior", "prior_predictive"):
        own = resumed[group].to_dataset().load()
        for name, values in whole[group].to_dataset().data_vars.items():
            np.testing.assert_allclose(own[name], values, rtol=1e-6)


def test_prior_draws_belong_to_the_same_cases() -> None:
    """A loader that shuffles gives them in the same order again."""

    def program(image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None) -> Any:
        weight = pyro.sample("weight", dist.Normal(0.0, 1e-6))
        with pyro.plate("case", num_cases or len(image), subsample=image):
            law = dist.Normal(image[:, 0, 0, 0] + weight, 1e-6)
            pyro.sample("label", law, obs=label, infer=dims())

    def guide(image: Tensor, *_: Any, **__: Any) -> Any:
        pyro.sample("weight", dist.Normal(0.0, 1e-6))

    own = torch.Generator().manual_seed(3)
    for generator in (None, own):
        loader = DataLoader(Images(), batch_size=6, shuffle=True, generator=generator)
        bare = [{"image": batch["image"]} for batch in loader]
        assert len(bare) == 4
        tree = predict(program, guide, _Bare(loader), draws=1, prior_draws=1, progress=False)
        drawn, prior = (
            array(tree, f"{group}/label").isel(chain=0, draw=0).values
            for group in ("posterior_predictive", "prior_predictive")
        )
        np.testing.assert_allclose(drawn, prior, atol=1e-4)
        assert (np.diff(drawn) < 0).any()


class _Bare:
    """A loader without labels."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader, self.generator = loader, loader.generator

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Any:
        for batch in self.loader:
            yield {"image": batch["image"]}


# --- numbers of NumPy


def test_rates_of_numpy_are_read_back(tmp_path: Path) -> None:
    """Such as one of np.logspace: a checkpoint is read without NumPy's types."""
    model, batches = classifier(), Batches(arrays(), batch_size=10)

    def sgd(parameters: Any) -> Any:
        return torch.optim.SGD(parameters, lr=np.float64(1e-3))

    for name, given in (("adam", {"learning_rate": np.float64(1e-3)}), ("sgd", {"optimizer": sgd})):
        options: dict[str, Any] = {"epochs": 1, "progress": False, **given}
        options["checkpoint"] = tmp_path / f"{name}.pt"
        guide = MeanFieldNormal(model)
        first = fit(model, guide, batches, **options)
        again = fit(model, guide, batches, resume=True, **options)
        xr.testing.assert_identical(again, first)


# --- start values and precision


def test_members_start_with_prior_components_apart() -> None:
    torch.manual_seed(0)
    net = ConvGaussian(1, 6, channels=(4, 8), num_convolutions=1, components=8)

    def spread(one: nn.Module) -> float:
        return float(one.get_parameter("parameters_of_z.bias").detach()[: 8 * 6].std())

    before = spread(net)
    for module in net.modules():
        reset: Any = getattr(module, "reset_parameters", lambda: None)
        reset()
    assert before > 0.5 and spread(net) > 0.5


def test_laws_of_codes_are_of_full_precision() -> None:
    net, image = GaussianEncoder(1, 2, 4), torch.randn(3, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        law: Any = net(image)
    assert law.base_dist.loc.dtype == law.base_dist.scale.dtype == torch.float32


def test_an_ensemble_still_starts_anew() -> None:
    model = small()
    guide = Ensemble(model, PointEstimate, members=2)
    history = fit(model, guide, Batches(arrays(), batch_size=10), epochs=1, progress=False)
    assert history.sizes["chain"] == 2


def test_the_weights_of_other_losses_are_part_of_what_is_resumed() -> None:
    def constrained(weight: float) -> str:
        return settings(AttributionConstrained(small(), [RightReasons(weight)]))

    def adversarial(weight: float) -> str:
        parts = nn.Flatten(), nn.Linear(16, 2)
        return settings(ConfounderFreeClassifier(*parts, ["no", "yes"], 16, weight=weight))

    for build in (constrained, adversarial):
        assert build(3.0) == build(3.0) != build(300.0)
