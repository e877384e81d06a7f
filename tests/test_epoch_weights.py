"""Over an epoch every case weighs the same: the mean of the steps' ELBO is that of all cases.

Exactly so for every loader that visits a known number of cases; in expectation where cases are
drawn at random (z-tests at a false-alarm rate of 1e-6).
"""

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from ppl_med.data import Batches
from ppl_med.data.fresh import FreshBatches
from ppl_med.inference import (
    ConditionalNormal,
    ImportanceWeighted,
    PointEstimate,
    elbo_terms,
    fit,
)
from ppl_med.inference.batches import as_loader
from ppl_med.likelihoods import Gaussian
from ppl_med.models import BayesianRegressor, LatentClassifier
from ppl_med.networks import GaussianEncoder
from ppl_med.programs.elbo import total
from ppl_med.testing import assert_mean
from ppl_med.weights import Normal

CASES, SIZE = 13, 5  # batches of 5, 5 and 3
Data = dict[str, Any]


def arrays(cases: int = CASES) -> Data:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(cases, 1, 1, 2)).astype("float32")
    noise = rng.normal(size=cases)
    return {"image": image, "value": (image.reshape(cases, 2) @ [1.0, -2.0] + noise).astype("f4")}


class Cases(Dataset):
    def __init__(self, cases: int = CASES) -> None:
        self.arrays = arrays(cases)

    def __len__(self) -> int:
        return len(self.arrays["image"])

    def __getitem__(self, index: int) -> Data:
        return {name: torch.as_tensor(values[index]) for name, values in self.arrays.items()}


def regressor() -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    likelihood = Gaussian(heteroscedastic=False, init_scale=0.5, loc=0.0, scale=1.0)
    model: Any = BayesianRegressor(net, likelihood, prior=Normal(1.0))
    model.likelihood.log_scale.requires_grad_(False)
    return model


def still(model: Any, guide: Any, batches: Any, **options: Any) -> Any:
    """The history of a run that learns nothing."""
    settings = {"progress": False, "device": "cpu", "epochs": 1, **options}
    return fit(model, guide, batches, optimizer=lambda ps: torch.optim.SGD(ps, lr=0.0), **settings)


def exact_elbo(model: Any, guide: Any, cases: Data, num_cases: int) -> float:
    """Of all cases by the plate of the program, nats per case."""
    with torch.no_grad():
        nll, kl = elbo_terms(model, guide, **cases, num_cases=num_cases)
    return -float(total(nll) + total(kl)) / num_cases


def whole(cases: int | slice = CASES) -> Data:
    cut = slice(cases) if isinstance(cases, int) else cases
    return {name: torch.from_numpy(values[cut]) for name, values in arrays().items()}


class Custom:
    """Batches of a user, which say nothing but a size."""

    num_cases = CASES

    def __init__(self, batches: Any) -> None:
        self.batches = [*batches]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Data]:
        return iter(self.batches)


class Buckets(Sampler):
    """Batches of unequal sizes, each case once."""

    def __iter__(self) -> Iterator[list[int]]:
        yield from ([0, 1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [11, 12])

    def __len__(self) -> int:
        return 4


def loader(**options: Any) -> DataLoader:
    given = options if "batch_sampler" in options else {"batch_size": SIZE, **options}
    return DataLoader(Cases(), **given)


def in_batches(**options: Any) -> Batches:
    return Batches(arrays(), batch_size=SIZE, **options)


EACH_ONCE: dict[str, Callable[[], Any]] = {
    "ordered": in_batches,
    "shuffled": lambda: in_batches(shuffle=True),
    "one batch": lambda: Batches(arrays(), batch_size=99),
    "batches of one": lambda: Batches(arrays(), batch_size=1),
    "list": lambda: [*in_batches()],
    "list, several passes": lambda: [*in_batches()] * 4,
    "loader": loader,
    "loader, shuffled": lambda: loader(shuffle=True),
    "loader, subset sampler": lambda: loader(sampler=SubsetRandomSampler(range(CASES))),
    "loader, weights without effect": lambda: loader(
        sampler=WeightedRandomSampler([0.2] * CASES, CASES, replacement=False)
    ),
    "loader, buckets": lambda: loader(batch_sampler=Buckets()),
    "own": lambda: Custom(in_batches()),
}


@pytest.mark.parametrize("name", EACH_ONCE)
def test_the_mean_over_an_epoch_is_the_elbo(name: str) -> None:
    """The user says that the cases stand for 1000: prior and likelihood are told apart."""
    model, num_cases = regressor(), 1000
    guide = PointEstimate(model)
    history = still(model, guide, EACH_ONCE[name](), num_cases=num_cases, epochs=2)
    expected = exact_elbo(model, guide, whole(), num_cases)
    means = history["elbo"].groupby("epoch").mean()
    np.testing.assert_allclose(means, expected, rtol=1e-5)


def test_the_first_cases_of_an_epoch_that_drops_its_end_stand_for_all() -> None:
    model = regressor()
    guide = PointEstimate(model)
    found = still(model, guide, in_batches(drop_last=True))["elbo"].mean()
    seen = 2 * SIZE
    exact = exact_elbo(model, guide, whole(seen), seen)
    prior = exact_elbo(model, guide, whole(seen), seen) - exact_elbo(
        model, PointEstimate(model, use_prior=False), whole(seen), seen
    )
    assert float(found) == pytest.approx(exact - prior + prior * seen / CASES, rel=1e-5)
    # A loader in fixed order never shows the rest: those it shows are the data set.
    assert float(still(model, guide, loader(drop_last=True))["elbo"].mean()) == pytest.approx(
        exact, rel=1e-5
    )


def test_the_plate_stays_where_pyro_runs_the_program() -> None:
    """Outside ``fit`` a batch stands for the whole data set."""
    model = regressor()
    guide = PointEstimate(model)
    part = whole(slice(0, 3))
    with torch.no_grad():
        nll, _ = elbo_terms(model, guide, **part, num_cases=CASES)
        own, _ = elbo_terms(model, guide, **part)
    assert float(total(nll)) == pytest.approx(float(total(own)) * CASES / 3, rel=1e-6)


@pytest.mark.filterwarnings("ignore:posterior collapse")
@pytest.mark.parametrize("objective", [None, ImportanceWeighted(particles=1)])
def test_latents_of_each_case_weigh_as_their_observations(objective: Any) -> None:
    """KL of local latents: every batch's closed form, summed."""
    torch.manual_seed(0)
    model = LatentClassifier(1, ["a", "b"], width=3)
    guide = ConditionalNormal(GaussianEncoder(1, 2, 3, num_classes=2))
    rng = np.random.default_rng(1)
    image = rng.normal(size=(CASES, 1, 8, 8)).astype("float32")
    data = Batches({"image": image, "label": np.arange(CASES) % 2}, batch_size=SIZE)
    history = still(model, guide, data, objective=objective, epochs=25 if objective else 1)
    one = next(iter(Batches(data._columns | {"image": image}, batch_size=CASES)))
    with torch.no_grad():
        _, kl = elbo_terms(model, guide, image=one["image"], label=one["label"])
    expected = float(total(kl)) / CASES
    if objective is None:
        assert float(history["kl"].mean()) == pytest.approx(expected, rel=1e-5)
    else:  # one draw a step
        assert_mean(history["kl"].groupby("epoch").mean().values, expected)
        np.testing.assert_allclose(history["bound"], history["elbo"], rtol=1e-5)


# --- cases drawn at random: the estimate of one epoch, for log-densities that are given

VALUES = np.random.default_rng(2).normal(size=CASES) ** 3
WEIGHTS = np.linspace(0.2, 3.0, CASES)


class Positions(Cases):
    def __getitem__(self, index: int) -> Data:
        return {"image": torch.full((1, 1, 1), float(index)), "value": torch.tensor(VALUES[index])}


def estimates(epochs: int, num_cases: int | None = None, **options: Any) -> np.ndarray:
    """Mean over the steps of an epoch of the weighed sum, by epoch."""
    torch.manual_seed(0)
    data = as_loader(DataLoader(Positions(), **{"batch_size": SIZE, **options}), num_cases)
    found = []
    for epoch in range(epochs):
        steps = [
            (data.num_cases / len(batch["value"]) * factor * batch["value"]).sum()
            for batch, factor in data.open(epoch, 0, 0)
        ]
        assert len(steps) == data.num_batches
        found.append(float(torch.stack(steps).mean()))
    return np.array(found)


RANDOM: dict[str, Callable[[], Data]] = {
    "with replacement": lambda: {"sampler": RandomSampler(Positions(), replacement=True)},
    "fewer than there are": lambda: {"sampler": RandomSampler(Positions(), num_samples=7)},
    "dropped last": lambda: {"shuffle": True, "drop_last": True},
    "weighted": lambda: {"sampler": WeightedRandomSampler(WEIGHTS.tolist(), 17)},
    "weighted, dropped last": lambda: {
        "sampler": WeightedRandomSampler(WEIGHTS.tolist(), 17),
        "drop_last": True,
    },
    "first rank of two": lambda: {"sampler": DistributedSampler(Positions(), 2, 0)},
}


@pytest.mark.parametrize("name", RANDOM)
def test_cases_drawn_at_random_weigh_the_same_in_the_long_run(name: str) -> None:
    assert_mean(estimates(250, **RANDOM[name]()), VALUES.sum())


def test_cases_without_weight_are_no_part_of_the_data_set() -> None:
    weights = np.where(np.arange(CASES) < 4, 0.0, WEIGHTS)
    options: Data = {"sampler": WeightedRandomSampler(weights.tolist(), 17)}
    assert as_loader(DataLoader(Positions(), **options), None).num_cases == CASES - 4
    assert_mean(estimates(250, **options), VALUES[4:].sum())
    # The user may say of how many cases those stand.
    assert_mean(estimates(250, CASES, **options), VALUES[4:].sum() * CASES / (CASES - 4))


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_in_fixed_order_see_the_data_once_together(ranks: int, drop_last: bool) -> None:
    """The sampler gives some cases twice to fill the last rank, or leaves them out."""
    shares: list[Data] = [
        {"sampler": DistributedSampler(Positions(), ranks, r, shuffle=False, drop_last=drop_last)}
        for r in range(ranks)
    ]
    seen = CASES - CASES % ranks if drop_last else CASES
    found = np.mean([estimates(1, **share)[0] for share in shares])
    assert found == pytest.approx(VALUES[:seen].sum(), rel=1e-6)


def test_shuffled_ranks_get_a_new_order_every_epoch() -> None:
    data = as_loader(loader(sampler=DistributedSampler(Positions(), 2, 0)), None)
    first, second = ([b["value"] for b, _ in data.open(epoch, 0, 0)] for epoch in (0, 1))
    assert not torch.equal(torch.cat(first), torch.cat(second))


def test_weights_follow_the_cases_through_workers_and_resuming() -> None:
    sampler = WeightedRandomSampler(WEIGHTS.tolist(), 17)
    data = as_loader(DataLoader(Positions(), SIZE, sampler=sampler, num_workers=2), None)

    def read(start: int) -> list[tuple[Data, Any]]:
        torch.manual_seed(3)
        return [*data.open(0, start, 0)]

    share = WEIGHTS / WEIGHTS.sum()
    for batch, factor in read(0):
        at = batch["image"].flatten().long().numpy()
        expected = 4 * len(at) / (17 * share[at] * CASES)
        np.testing.assert_allclose(factor, expected, rtol=1e-5)
    for (batch, factor), (later, same) in zip(read(0)[2:], read(2), strict=True):
        assert torch.equal(batch["image"], later["image"]) and torch.equal(factor, same)


def test_a_weighted_sampler_trains_on_the_data_set() -> None:
    """Through ``fit``: drawn by weights, the mean of the ELBO is that of all cases alike."""
    model = regressor()
    guide = PointEstimate(model)
    data = loader(sampler=WeightedRandomSampler(WEIGHTS.tolist(), 10))
    history = still(model, guide, data, epochs=50)
    means = history["elbo"].groupby("epoch").mean().values
    assert_mean(means, exact_elbo(model, guide, whole(), CASES))


class Unknown(Sampler):
    """Draws with replacement by weights of its own."""

    def __iter__(self) -> Iterator[int]:
        return iter([0, 0, 0, 1, 2, 3, 4])

    def __len__(self) -> int:
        return 7


def test_weights_that_nobody_knows_are_said_to_count() -> None:
    model = regressor()
    with pytest.warns(UserWarning, match=r"visited a case 3 times.*WeightedRandomSampler"):
        still(model, PointEstimate(model), loader(sampler=Unknown()), num_cases=CASES, epochs=3)
    sampler = WeightedRandomSampler(WEIGHTS.tolist(), 7, replacement=False)
    with pytest.raises(ValueError, match=r"without replacement.*replacement=True"):
        still(model, PointEstimate(model), loader(sampler=sampler))


def test_an_epoch_of_another_length_than_it_seemed_is_told() -> None:
    model = regressor()
    sizes = [4, 1, 1, 2]
    cuts = np.cumsum([0, *sizes])
    unequal = [whole(slice(a, b)) for a, b in itertools.pairwise(cuts)]
    with pytest.warns(UserWarning, match=r"8 cases in 4 batches where 13 in 4.*cases_per_epoch"):
        still(model, PointEstimate(model), Custom(unequal))
    told = Custom(unequal)
    told.cases_per_epoch = 8  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        still(model, PointEstimate(model), told)


def test_fresh_cases_are_each_seen_once() -> None:
    def generate(num_cases: int, seed: int) -> Data:
        return arrays(num_cases)

    data = as_loader(FreshBatches(generate, batch_size=4, num_batches=3), None)
    assert [factor for _, factor in data.open(0, 0, 0)] == [1.0, 1.0, 1.0]


# --- what it is for


def ridge(case_weights: np.ndarray, data: Data) -> np.ndarray:
    design = data["image"].reshape(len(data["value"]), 2).astype(float)
    precision = (design * case_weights[:, None]).T @ design / 0.25 + np.eye(2)
    return np.linalg.solve(precision, (design * case_weights[:, None]).T @ data["value"] / 0.25)


def posterior_sd(data: Data) -> np.ndarray:
    design = data["image"].reshape(len(data["value"]), 2).astype(float)
    return np.sqrt(np.diag(np.linalg.inv(design.T @ design / 0.25 + np.eye(2))))


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"batch_size": 50}], ids=str)
def test_the_mode_is_that_of_all_cases(options: Data) -> None:
    """The last two of 130 cases are outliers: alone in a batch, they had the weight of 65."""
    data = arrays(130)
    data["value"][128:] += 3
    model = regressor()
    guide: Any = PointEstimate(model)
    fit(
        *(model, guide, Batches(data, **options)),
        epochs=40,
        optimizer=lambda ps: torch.optim.SGD(ps, lr=0.1),
        schedule=lambda done: (1 - done) ** 2,
        progress=False,
        device="cpu",
    )
    off = (guide.distribution().value.detach().numpy() - ridge(np.ones(130), data)) / posterior_sd(
        data
    )
    assert np.abs(off).max() < 0.3


def test_the_plates_of_a_program_with_two_are_told_apart() -> None:
    """Weights of cases, where another plate stands to their right."""

    def model(image: Tensor, value: Tensor | None = None, *, num_cases: int | None = None) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with (
            pyro.plate("case", num_cases or len(image), subsample=image, dim=-2),
            pyro.plate("reader", 2, dim=-1),
        ):
            pyro.sample("value", dist.Normal(slope, 1.0).expand([1, 1]), obs=value)

    image = torch.arange(CASES).float().reshape(CASES, 1, 1, 1)
    value = torch.randn(CASES, 2, generator=torch.Generator().manual_seed(0))

    class Pairs(Cases):
        def __getitem__(self, index: int) -> Data:
            return {"image": image[index], "value": value[index]}

    class Guide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(0.3))

        def forward(self, image: Tensor, value: Any = None, *, num_cases: Any = None) -> None:
            pyro.sample("slope", dist.Delta(self.slope))

    guide = Guide()
    data = DataLoader(Pairs(), SIZE, sampler=WeightedRandomSampler(WEIGHTS.tolist(), 10))
    history = still(model, guide, data, epochs=50)
    expected = -dist.Normal(0.3, 1.0).log_prob(value).sum() / CASES
    assert_mean(history["nll"].groupby("epoch").mean().values, float(expected))


def test_samplers_in_order_are_read_as_such() -> None:
    data = as_loader(loader(sampler=SequentialSampler(range(5))), None)
    assert (data.num_cases, data.visits.total) == (5, 5)
