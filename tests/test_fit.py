"""``fit``: the loss it names, its schedules, its history, and what it leaves behind."""

import copy
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from ppl_med.data import Batches, flips_and_turns
from ppl_med.inference import (
    BernoulliDropout,
    ConditionalNormal,
    Ensemble,
    Guides,
    MeanFieldNormal,
    PointEstimate,
    cooldown,
    fit,
    predict,
    warm_up,
)
from ppl_med.inference.training import pace, trainer
from ppl_med.inference.training import precision as precision_of_machine
from ppl_med.models import BayesianClassifier, LatentClassifier
from ppl_med.networks import GaussianEncoder
from ppl_med.weights import Normal, RandomWeights

CLASSES = ("a", "b", "c")
CASES, SIZE = 22, 8
NUM_BATCHES = 3


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)
    )


def arrays(cases: int = CASES) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(cases, 1, 6, 6)).astype("float32")
    return {"image": image, "label": rng.integers(0, 3, cases)}


def batches(**options: Any) -> Batches:
    return Batches(arrays(), batch_size=SIZE, **options)


def train(model: Any, guide: Any, data: Any = None, **options: Any) -> xr.Dataset:
    data = batches() if data is None else data
    settings: dict[str, Any] = {"progress": False, "device": "cpu", **options}
    return fit(model, guide, data, **settings)


def state(*programs: nn.Module) -> dict[str, Tensor]:
    values = {f"{i}.{n}": v for i, p in enumerate(programs) for n, v in p.state_dict().items()}
    return {n: v.clone() for n, v in values.items() if isinstance(v, Tensor)}


# ------------------------------------------------------------------------------------ the loss


def test_a_point_estimate_is_trained_as_by_a_plain_loop() -> None:
    """Maximum likelihood by SGD: the same parameters and losses as torch alone.

    Each case counts the same, so the last, smaller batch counts less than a mean over its cases.
    """
    net = network()
    model: Any = BayesianClassifier(net, CLASSES)
    guide: Any = PointEstimate(model, use_prior=False)
    history = train(
        *(model, guide),
        epochs=2,
        num_cases=1000,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    losses = []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        for batch in batches():
            loss = cross_entropy(net(batch["image"]), batch["label"], reduction="sum")
            loss = loss * NUM_BATCHES / CASES
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    np.testing.assert_allclose(history["nll"], losses, rtol=1e-5)
    assert not history["kl"].any()
    views = model.network.layout.views(guide.parts["weights"].value)
    for name, value in net.named_parameters():
        expected = views[name] if name in views else model.network.net.get_parameter(name)
        torch.testing.assert_close(expected, value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.network.net[1].running_var, net[1].running_var)


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_the_prior_weighs_as_the_data_set_is_large(weight: float) -> None:
    """Maximum a posteriori: the gradient of -log prior enters by kl_weight / num_cases."""
    start = BayesianClassifier(network(), CLASSES, Normal(0.5))
    before = start.network.initial()
    moved, histories = [], []
    for use_prior in (False, True):
        model = copy.deepcopy(start)
        guide: Any = PointEstimate(model, use_prior=use_prior)
        history = train(
            *(model, guide, [next(iter(batches()))]),
            kl_weight=weight,
            num_cases=500,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        )
        moved.append(guide.parts["weights"].value.detach())
        histories.append(history)
    # A point has no entropy: its KL is -log prior, whose gradient is value / scale^2.
    prior = torch.distributions.Normal(0.0, 0.5).log_prob(before).sum() / 500
    assert float(histories[1]["kl"][0]) == pytest.approx(-float(prior), rel=1e-5)
    assert float(histories[0]["kl"][0]) == 0
    expected = -0.1 * weight * before / 0.5**2 / 500
    torch.testing.assert_close(moved[1] - moved[0], expected, rtol=1e-3, atol=1e-7)


def test_the_elbo_is_reported_at_weight_1() -> None:
    model = BayesianClassifier(network(), CLASSES)
    history = train(model, MeanFieldNormal(model), epochs=2, kl_weight=lambda done: done / 2)
    np.testing.assert_allclose(history["elbo"], -(history["nll"] + history["kl"]))
    np.testing.assert_allclose(history["kl_weight"], np.arange(6) / 12)
    assert (history["kl"] > 0).all()


def test_the_kl_of_the_history_is_the_closed_form() -> None:
    model = BayesianClassifier(network(), CLASSES, Normal(0.5))
    guide = MeanFieldNormal(model, init_scale=0.1)
    part: Any = guide.parts["weights"]
    q = torch.distributions.Normal(part.loc, part.scale)
    exact = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 0.5)).sum()
    history = train(model, guide)
    assert float(history["kl"][0]) == pytest.approx(exact.item() / CASES, rel=1e-5)


def test_the_number_of_cases_is_read_off_the_batches() -> None:
    class Pairs(Dataset):
        def __len__(self) -> int:
            return CASES

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {name: torch.as_tensor(values[index]) for name, values in arrays().items()}

    model = BayesianClassifier(network(), CLASSES)
    start = copy.deepcopy(model)
    found = []
    loader = DataLoader(Pairs(), batch_size=SIZE)
    for data, options in (
        (batches(), {}),
        (loader, {}),
        ([*loader], {}),
        ([*loader], {"num_cases": CASES}),
        ([*loader], {"num_cases": 2 * CASES}),
    ):
        model.load_state_dict(start.state_dict())
        found.append(float(train(model, PointEstimate(model), data, **options)["kl"][0]))
    assert found[:4] == [found[0]] * 4
    assert found[4] == pytest.approx(found[0] / 2)


# ------------------------------------------------------------------------------------ schedules


def rates(monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[float]:
    """Learning rates that the optimizer's steps saw."""
    seen: list[float] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    model = BayesianClassifier(network(), CLASSES)
    optimizer = lambda parameters: Watched(parameters, lr=0.2)  # noqa: E731
    train(model, PointEstimate(model), epochs=4, optimizer=optimizer, **options)
    return seen


def test_learning_rate_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    done = np.arange(12) / 12
    np.testing.assert_allclose(rates(monkeypatch), 0.2)
    cosine = 0.1 * (1 + np.cos(math.pi * done))
    np.testing.assert_allclose(rates(monkeypatch, schedule="cosine"), cosine)
    linear: Callable[[float], float] = lambda finished: 1 - finished  # noqa: E731
    np.testing.assert_allclose(rates(monkeypatch, schedule=linear), 0.2 * (1 - done))


def test_learning_rate_is_of_adam() -> None:
    """Adam's first step moves every parameter by the learning rate, whatever the gradient."""
    model = BayesianClassifier(network(), CLASSES)
    guide = PointEstimate(model)
    part: Any = guide.parts["weights"]
    before = part.value.detach().clone()
    train(model, guide, [next(iter(batches()))], learning_rate=0.003)
    moved = (part.value.detach() - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.003), rtol=1e-3, atol=0)


def test_cooldown() -> None:
    factor = cooldown(0.5)
    np.testing.assert_allclose([factor(done) for done in (0.0, 0.5, 0.75, 1.0)], [1, 1, 0.5, 0])
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match="fraction must be in"):
            cooldown(wrong)


def test_warm_up() -> None:
    weight = warm_up(0.25, 0.8)
    assert [weight(x) for x in (0, 0.125, 0.25, 0.5, 1)] == pytest.approx([0, 0.4, 0.8, 0.8, 0.8])
    model = BayesianClassifier(network(), CLASSES)
    falling = warm_up(0.3, start=4.0)
    assert [falling(done) for done in (0.0, 0.15, 0.3, 1.0)] == [4.0, 2.5, 1.0, 1.0]
    history = train(model, MeanFieldNormal(model), epochs=2, kl_weight=warm_up())
    np.testing.assert_allclose(history["kl_weight"], [0, 1 / 3, 2 / 3, 1, 1, 1])
    for wrong in ((0, 1), (1.1, 1), (0.5, -1)):
        with pytest.raises(ValueError, match=r"fraction must|weight must"):
            warm_up(*wrong)


# ------------------------------------------------------------------------------------ history


def test_history_is_named() -> None:
    model = BayesianClassifier(network(), CLASSES)
    history = train(model, MeanFieldNormal(model), epochs=2, validation=batches())
    assert history.sizes == {"step": 2 * NUM_BATCHES, "validation_epoch": 2}
    assert set(history.data_vars) == {"elbo", "nll", "kl", "kl_weight", "validation_nll"}
    np.testing.assert_array_equal(history["epoch"], [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(history["step"], np.arange(6))
    for name in ("elbo", "nll", "kl", "validation_nll"):
        assert history[name].attrs["units"] == "nats per case"
        assert history[name].dtype == np.float64
    both = train(model, Ensemble(model, PointEstimate, members=2), epochs=2)
    assert both["elbo"].dims == ("chain", "step")
    assert both["epoch"].dims == ("step",)


@pytest.mark.filterwarnings("ignore:posterior collapse")
@pytest.mark.parametrize("kind", ["weights", "latent"])
def test_validation_is_the_mixture_of_draws_that_predict_makes(kind: str) -> None:
    if kind == "weights":
        model: nn.Module = BayesianClassifier(network(), CLASSES)
        guide: nn.Module = MeanFieldNormal(model, init_scale=0.5)
    else:
        model = LatentClassifier(1, CLASSES, width=3)
        guide = ConditionalNormal(GaussianEncoder(1, 2, 3, num_classes=3))
    held_out = Batches(arrays(9), batch_size=4)
    history = train(model, guide, epochs=2, validation=held_out, seed=4, checkpoint=None)
    tree = predict(
        *(model, guide, held_out),
        draws=trainer.VALIDATION_DRAWS,
        seed=4,
        device="cpu",
        progress=False,
    )
    log_likelihood = tree["log_likelihood/label"]
    assert isinstance(log_likelihood, xr.DataArray)
    mixture = np.log(xr.ufuncs.exp(log_likelihood).mean(("chain", "draw")))
    assert float(history["validation_nll"][-1]) == pytest.approx(-float(mixture.mean()), rel=1e-6)


def test_validation_changes_nothing_else() -> None:
    found = []
    start = BayesianClassifier(network(), CLASSES)
    for validation in (None, batches()):
        model = copy.deepcopy(start)
        guide = MeanFieldNormal(model)
        history = train(model, guide, epochs=3, validation=validation)
        found.append((history[["nll", "kl"]].drop_attrs(), state(model, guide)))
    xr.testing.assert_identical(found[0][0], found[1][0])
    for name, value in found[0][1].items():
        torch.testing.assert_close(value, found[1][1][name], rtol=0, atol=0)


def test_progress_shows_eta_elbo_nll_and_kl(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "REFRESH_SECONDS", 0.0)
    model = BayesianClassifier(network(), CLASSES)
    history = train(model, MeanFieldNormal(model), epochs=3, progress=True)
    shown = capsys.readouterr().err
    last = shown.split("\r")[-1]
    assert "9/9" in last
    for name in ("elbo", "nll", "kl"):
        figure = re.search(rf"\b{name}=(-?[\d.e+]+)", last)
        assert figure and float(figure[1]) == pytest.approx(float(history[name][-1]), rel=1e-3)
    assert any(re.search(r"\d\d:\d\d<\d\d:\d\d.*elbo=", part) for part in shown.split("\r"))
    train(model, MeanFieldNormal(model), progress=False)
    assert capsys.readouterr().err == ""


def test_progress_is_shown_in_the_middle_of_a_long_epoch(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "REFRESH_SECONDS", 0.0)
    model = BayesianClassifier(network(), CLASSES)
    train(model, MeanFieldNormal(model), [*batches()] * 8, num_cases=CASES, progress=True)
    shown = capsys.readouterr().err.split("\r")
    assert any(re.search(r" (4|5|6|7|8|9)/24 .*elbo=", part) for part in shown)


# ------------------------------------------------------------------------------------ repeatable


def test_the_seed_decides() -> None:
    start = BayesianClassifier(network(), CLASSES)

    def run(seed: int, before: int) -> xr.Dataset:
        torch.manual_seed(before)
        model = copy.deepcopy(start)
        return train(model, MeanFieldNormal(model), batches(shuffle=True), seed=seed, epochs=2)

    first = run(1, 10)
    xr.testing.assert_identical(run(1, 11), first)
    assert not run(2, 10).equals(first)


def test_the_seed_decides_on_parameters_made_in_the_first_run() -> None:
    def model(image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None) -> None:
        start = pyro.param("start", lambda: torch.randn(3))
        weights = pyro.sample("weights", dist.Normal(torch.zeros(36, 3), 1.0).to_event(2))
        with pyro.plate("case", num_cases or len(image), subsample=image):
            logits = image.flatten(1) @ weights + start
            pyro.sample("label", dist.Categorical(logits=logits), obs=label)

    found = []
    for _ in range(2):
        pyro.clear_param_store()
        torch.randn(7)
        found.append(train(model, AutoNormal(model), seed=3))
    xr.testing.assert_identical(*found)


def test_order_and_augmentation_change_from_epoch_to_epoch() -> None:
    seen: list[Tensor] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = RandomWeights(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)))

        def forward(
            self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
        ) -> Tensor:
            logits = self.network(image)
            if self.training:
                seen.append(image.clone())
            with pyro.plate("case", num_cases or len(image), subsample=image):
                pyro.sample("label", dist.Categorical(logits=logits), obs=label)
            return logits

    model = Watched()
    train(model, PointEstimate(model), batches(shuffle=True), epochs=2)
    epochs = [torch.cat(seen[:3]), torch.cat(seen[3:])]
    assert not torch.equal(*epochs)
    sums = [epoch.sum((1, 2, 3)).sort().values for epoch in epochs]
    torch.testing.assert_close(*sums)
    seen.clear()
    train(model, PointEstimate(model), batches(augment=flips_and_turns), epochs=2)
    epochs = [torch.cat(seen[:3]), torch.cat(seen[3:])]
    assert not torch.equal(*epochs)
    torch.testing.assert_close(*(e.flatten(1).sort(1).values for e in epochs))


def test_generators_of_the_process_are_left_as_they_were() -> None:
    class Noisy(Dataset):
        def __len__(self) -> int:
            return CASES

        def __getitem__(self, index: int) -> dict[str, Any]:
            shift = random.random() + np.random.rand()  # noqa: NPY002
            return {"image": torch.full((1, 6, 6), shift), "label": torch.tensor(index % 3)}

    before = pyro.util.get_rng_state()
    model = BayesianClassifier(network(), CLASSES)
    pyro.util.set_rng_state(before)
    train(model, MeanFieldNormal(model), DataLoader(Noisy(), SIZE, shuffle=True))
    after = pyro.util.get_rng_state()
    assert torch.equal(before["torch"], after["torch"])
    np.testing.assert_array_equal(before["numpy"][1], after["numpy"][1])
    assert before["numpy"][2:] == after["numpy"][2:]


def test_generators_are_left_as_they_were_where_fit_fails() -> None:
    before = torch.get_rng_state()
    model = BayesianClassifier(nn.Sequential(nn.Flatten(), nn.Linear(36, 4)), CLASSES)
    guide = MeanFieldNormal(model)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="output"):
        train(model, guide)
    assert torch.equal(before, torch.get_rng_state())


# ------------------------------------------------------------------------------------ modes


def test_modes_and_norm_statistics() -> None:
    model: Any = BayesianClassifier(network(), CLASSES)
    guide = MeanFieldNormal(model)
    modes: list[bool] = []
    model.network.net[1].register_forward_hook(lambda m, *_: modes.append(m.training))
    train(model, guide, validation=batches())
    assert not model.training and not guide.training
    # One pass that checks the batch, its likes for validation, then the steps, then validation.
    steps = [index for index, mode in enumerate(modes) if mode]
    assert len(steps) == NUM_BATCHES and steps == list(range(steps[0], steps[0] + NUM_BATCHES))
    assert int(model.network.net[1].num_batches_tracked) == NUM_BATCHES


def test_norm_statistics_stay_where_they_are_frozen() -> None:
    class Frozen(BayesianClassifier):
        def __init__(self) -> None:
            super().__init__(network(), CLASSES)
            self.network = RandomWeights(network(), batch_norm="frozen")

    model = Frozen()
    before = state(model)
    train(model, PointEstimate(model), epochs=2)
    for name, value in state(model).items():
        if "running" in name or "tracked" in name:
            torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_networks_in_a_closure_are_trained_and_then_evaluated() -> None:
    net = network()
    net.eval()
    modes: list[bool] = []
    net[1].register_forward_hook(lambda m, *_: modes.append(m.training))

    def model(
        image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        logits = pyro.module("net", net)(image)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            pyro.sample("label", dist.Categorical(logits=logits), obs=label)
        return logits

    def guide(image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None) -> None:
        """Nothing is latent: maximum likelihood."""

    plain = copy.deepcopy(net).train()
    train(model, guide, optimizer=lambda ps: torch.optim.SGD(ps, lr=0.1))
    assert sum(modes) == NUM_BATCHES and not net.training
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for batch in batches():
        optimizer.zero_grad()
        loss = cross_entropy(plain(batch["image"]), batch["label"], reduction="sum")
        (loss * NUM_BATCHES / CASES).backward()
        optimizer.step()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    before = state(net)
    one = predict(model, guide, batches(), draws=2, progress=False, device="cpu")
    two = predict(model, guide, [*batches()][:1], draws=2, progress=False, device="cpu")
    assert all(torch.equal(value, before[name]) for name, value in state(net).items())
    np.testing.assert_allclose(
        one["posterior/probs"].isel(case=slice(SIZE)), two["posterior/probs"], rtol=1e-5
    )


def test_a_buffer_that_is_infinite_on_purpose_is_no_failure(tmp_path: Path) -> None:
    class Masked(nn.Module):
        mask: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(36, 4)
            self.register_buffer("mask", torch.tensor([0.0, 0.0, 0.0, -math.inf]))

        def forward(self, image: Tensor) -> Tensor:
            return (self.linear(image.flatten(1)) + self.mask).softmax(1)[:, :3]

    model = BayesianClassifier(Masked(), CLASSES)
    path = tmp_path / "run.pt"
    train(model, MeanFieldNormal(model), checkpoint=path, checkpoint_every=0)
    assert path.exists()


def test_norm_statistics_that_are_lost_stop_the_run(tmp_path: Path) -> None:
    """The loss of training does not show them: it is of the batch's own statistics."""
    model: Any = BayesianClassifier(network(), CLASSES)

    def lose(module: nn.BatchNorm2d, *_: Any) -> None:
        assert module.running_var is not None
        if module.training:
            module.running_var = torch.full_like(module.running_var, math.inf)

    model.network.net[1].register_forward_hook(lose)
    path = tmp_path / "run.pt"
    with pytest.raises(FloatingPointError, match=r"running_var stopped being finite"):
        train(model, MeanFieldNormal(model), checkpoint=path, checkpoint_every=0)
    assert not path.exists()


# ------------------------------------------------------------------------------------ guides

GUIDES: dict[str, Callable[[Any], nn.Module]] = {
    "shared": lambda model: MeanFieldNormal(model, estimator="shared"),
    "auto": MeanFieldNormal,
    "dropout": lambda model: BernoulliDropout(model, 0.2),
    "point": PointEstimate,
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES)
def test_training_raises_the_elbo(guide: Callable[[Any], nn.Module], precision: Any) -> None:
    """Classes told apart by brightness; the ELBO of the last epoch beats the first by far."""
    label = np.arange(60) % 3
    noise = 0.1 * np.random.default_rng(0).normal(size=(60, 1, 6, 6))
    image = ((label - 1)[:, None, None, None] + noise).astype("float32")
    model = BayesianClassifier(network(), CLASSES)
    data = Batches({"image": image, "label": label}, batch_size=20, shuffle=True)
    history = train(
        *(model, guide(model), data),
        epochs=40,
        learning_rate=0.01,
        kl_weight=0.01,
        precision=precision,
        schedule="cosine",
    )
    assert history["nll"][-3:].mean() < 0.3 * history["nll"][:3].mean()
    for value in state(model).values():
        assert value.dtype in (torch.float32, torch.int64)
    tree = predict(model, guide(model), data, draws=2, progress=False, device="cpu")
    assert tree["posterior/probs"].dtype == np.float64


def test_imitated_bfloat16_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_of_machine, "has_bfloat16", lambda device: False)
    model = BayesianClassifier(network(), CLASSES)
    with pytest.warns(RuntimeWarning, match="12 times slower"):
        train(model, PointEstimate(model), precision="bfloat16", epochs=1)


def test_bfloat16_is_used_and_likelihoods_are_not_rounded() -> None:
    seen: list[torch.dtype] = []
    model: Any = BayesianClassifier(network(), CLASSES)
    model.network.net[4].register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    history = train(model, PointEstimate(model), precision="bfloat16", epochs=1)
    assert torch.bfloat16 in seen
    rounded = history["nll"].values.astype(np.float32)
    as_bfloat16 = torch.from_numpy(rounded).bfloat16().float().numpy()
    assert not np.array_equal(rounded, as_bfloat16)


def test_joined_guides_warn_of_the_latent_that_collapsed() -> None:
    """The KL of the weights must not hide that of the code."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = RandomWeights(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)))
            self.coords = {"class": list(CLASSES)}

        def forward(
            self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
        ) -> Tensor:
            logits = self.network(image)
            with pyro.plate("case", num_cases or len(image), subsample=image):
                loc = torch.zeros(len(image), 2)
                pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
                pyro.sample("label", dist.Categorical(logits=logits), obs=label)
            return logits

    class Prior(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2))

        def forward(self, image: Tensor, label: Tensor) -> Any:
            return dist.Normal(self.loc.expand(len(image), 2), 1.0).to_event(1)

    model = Both()
    guide = Guides(MeanFieldNormal(model), ConditionalNormal(Prior()))
    with pytest.warns(UserWarning, match="collapse: the latent 'z'"):
        train(model, guide)


def test_a_second_fit_goes_on_where_the_first_ended() -> None:
    model = BayesianClassifier(network(), CLASSES)
    guide = PointEstimate(model)
    first = train(model, guide, epochs=30, learning_rate=0.01)
    second = train(model, guide, epochs=1, learning_rate=1e-9, seed=1)
    assert second["nll"].mean() < 0.8 * first["nll"][:3].mean()


def test_the_net_of_the_caller_stays_as_it_was() -> None:
    net = network()
    before = state(net)
    model = BayesianClassifier(net, CLASSES)
    train(model, MeanFieldNormal(model))
    assert all(torch.equal(value, before[name]) for name, value in state(net).items())
    with torch.no_grad():
        functional_call(net, dict(net.named_parameters()), next(iter(batches()))["image"])


def test_arguments_may_have_any_name() -> None:
    def model(
        features: Tensor, target: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        mean = features @ slope
        with pyro.plate("case", num_cases or len(features), subsample=features):
            pyro.sample("target", dist.Normal(mean, 0.3), obs=target)
        return mean

    features = torch.randn(40, 2)
    data = [{"features": features, "target": features @ torch.tensor([1.0, -2.0])}]
    guide = MeanFieldNormal(model, example=data[0])
    history = train(model, guide, data * 50, epochs=4, learning_rate=0.05, num_cases=40)
    assert history["nll"][-1] < 0.3 * history["nll"][0]
    tree = predict(model, guide, data, draws=50, progress=False, device="cpu")
    slope = tree["posterior/slope"].mean(("chain", "draw"))
    np.testing.assert_allclose(slope, [1, -2], atol=0.2)
    assert set(tree["posterior"].data_vars) == {"loc", "scale", "slope"}
    data[0]["features"][3, 1] = math.nan
    for verb in (train, lambda *pair: predict(*pair, progress=False)):
        with pytest.raises(ValueError, match="features holds NaN"):
            verb(model, guide, data)
