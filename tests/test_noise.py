"""Random numbers that belong to a case: uniform, independent, of the law they are asked for."""

from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from ppl_med.inference.prediction import case_noise
from ppl_med.inference.prediction.case_noise import derive_seed, sample_by_case, uniform
from ppl_med.testing import assert_uniform

FALSE_ALARM = 1e-6
KEYS = (3, 0, 5)
CASES = np.arange(40_000)


def along(axis: str, num: int = 40_000) -> np.ndarray:
    """Numbers that differ in one key only."""
    one = np.zeros(1, dtype=int)
    if axis == "case":
        return uniform(KEYS, "z", np.arange(num), 1)[:, 0]
    if axis == "element":
        return uniform(KEYS, "z", one, num)[0]
    if axis == "site":
        return np.array([uniform(KEYS, f"z_{i}", one, 1)[0, 0] for i in range(num // 10)])
    position = ("seed", "chain", "draw").index(axis)
    found = []
    for value in range(num // 10):
        keys = [1, 2, 3]
        keys[position] = value
        found.append(uniform((keys[0], keys[1], keys[2]), "z", one, 1)[0, 0])
    return np.array(found)


AXES = ["case", "element", "site", "seed", "chain", "draw"]


@pytest.mark.parametrize("axis", AXES)
def test_numbers_are_uniform_along_every_key(axis: str) -> None:
    numbers = along(axis)
    assert_uniform(numbers, FALSE_ALARM)
    low_bits = (numbers * 2**20) % 1
    assert_uniform(low_bits, FALSE_ALARM)


@pytest.mark.parametrize("lag", [1, 2, 7])
@pytest.mark.parametrize("axis", AXES)
def test_neighbours_along_every_key_are_independent(axis: str, lag: int) -> None:
    numbers = along(axis)
    pairs = np.stack([numbers[:-lag], numbers[lag:]])[:, :: lag + 1]  # disjoint pairs
    row, col = (pairs * 8).astype(int)
    counts = np.bincount(8 * row + col, minlength=64)
    assert stats.chisquare(counts).pvalue > FALSE_ALARM
    assert stats.pearsonr(*pairs).pvalue > FALSE_ALARM


def test_draws_of_different_keys_are_independent() -> None:
    first = uniform(KEYS, "z", CASES, 2)
    others = [
        uniform((4, 0, 5), "z", CASES, 2),
        uniform((3, 1, 5), "z", CASES, 2),
        uniform((3, 0, 6), "z", CASES, 2),
        uniform((5, 0, 3), "z", CASES, 2),
        uniform(KEYS, "label", CASES, 2),
        uniform(KEYS, "z", CASES + len(CASES), 2),
        first[:, ::-1],
    ]
    for other in others:
        assert stats.pearsonr(first.ravel(), other.ravel()).pvalue > FALSE_ALARM / len(others)


def test_numbers_belong_to_the_case() -> None:
    order = np.random.default_rng(0).permutation(1000)
    whole = uniform(KEYS, "z", np.arange(1000), 3)
    np.testing.assert_array_equal(uniform(KEYS, "z", order, 3), whole[order])
    np.testing.assert_array_equal(uniform(KEYS, "z", order, 5)[:, :3], whole[order])


def test_numbers_do_not_depend_on_how_many_are_hashed_at_once() -> None:
    num = case_noise._CACHED // 3 + 1  # two cases at once, and one that is left
    cases = np.array([4, 0, 9, 2, 7])
    alone = [uniform(KEYS, "z", cases[i : i + 1], num)[0] for i in range(len(cases))]
    np.testing.assert_array_equal(uniform(KEYS, "z", cases, num), alone)
    assert uniform(KEYS, "z", cases, 0).shape == (5, 0)


@pytest.mark.parametrize("bits", [0, 2**64 - 1])
def test_no_number_is_0_or_1(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case_noise, "_absorb", lambda *_: np.full((1, 1), bits, dtype=np.uint64))
    assert 0 < uniform(KEYS, "z", np.zeros(1, dtype=int), 1).item() < 1


def test_seeds_of_draws_differ() -> None:
    seeds = {derive_seed(s, c, d) for s in range(10) for c in range(10) for d in range(50)}
    assert len(seeds) == 5000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert_uniform(np.array(sorted(seeds)) / 2.0**63, FALSE_ALARM)


DISTRIBUTIONS: dict[str, tuple[Any, tuple[float, ...], Any]] = {
    "normal": (dist.Normal, (2, 3), stats.norm(2, 3)),
    "laplace": (dist.Laplace, (2, 3), stats.laplace(2, 3)),
    "log_normal": (dist.LogNormal, (0.5, 0.8), stats.lognorm(0.8, scale=np.exp(0.5))),
    "half_normal": (dist.HalfNormal, (2,), stats.halfnorm(0, 2)),
    "exponential": (dist.Exponential, (2,), stats.expon(scale=0.5)),
    "uniform": (dist.Uniform, (-1, 2), stats.uniform(-1, 3)),
    "gamma": (dist.Gamma, (0.7, 3), stats.gamma(0.7, scale=1 / 3)),
    "beta": (dist.Beta, (2, 0.5), stats.beta(2, 0.5)),
    "student": (dist.StudentT, (3, 1, 2), stats.t(3, 1, 2)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_continuous_draws_follow_their_law(name: str, dtype: torch.dtype) -> None:
    kind, parameters, law = DISTRIBUTIONS[name]
    fn = kind(*(torch.full([len(CASES)], value, dtype=dtype) for value in parameters))
    drawn = sample_by_case(fn, KEYS, "z", CASES)
    assert drawn is not None and drawn.shape == (len(CASES),) and drawn.dtype == dtype
    assert bool(drawn.isfinite().all())
    assert_uniform(law.cdf(drawn.numpy()), FALSE_ALARM)


def test_categorical_draws_follow_their_law_and_never_take_a_class_of_probability_0() -> None:
    probs = torch.tensor([[0.0, 0.2, 0.0, 0.5, 0.3, 0.0], [0.1, 0.1, 0.1, 0.1, 0.1, 0.5]])
    fn = dist.Categorical(probs=probs.expand(len(CASES), 2, 6))
    drawn = sample_by_case(fn.to_event(1), KEYS, "label", CASES)
    assert drawn is not None and drawn.shape == (len(CASES), 2)
    for column, law in zip(drawn.T, probs.double().numpy(), strict=True):
        counts = np.bincount(column.numpy(), minlength=6)
        assert counts[law == 0].sum() == 0
        expected = law[law > 0] * len(CASES)
        assert stats.chisquare(counts[law > 0], expected).pvalue > FALSE_ALARM
    assert stats.pearsonr(*drawn.T.numpy()).pvalue > FALSE_ALARM


def test_bernoulli_draws_follow_their_law() -> None:
    probs = torch.tensor([0.0, 0.03, 0.5, 1.0])
    fn = dist.Bernoulli(probs.expand(len(CASES), 4)).to_event(1)
    drawn = sample_by_case(fn, KEYS, "label", CASES)
    assert drawn is not None
    for p, count in zip(probs.tolist(), drawn.sum(0).tolist(), strict=True):
        assert stats.binomtest(int(count), len(CASES), round(p, 6)).pvalue > FALSE_ALARM


def test_multivariate_normal_draws_follow_their_law() -> None:
    covariance = torch.tensor([[2.0, 0.9, 0.1], [0.9, 1.0, 0.3], [0.1, 0.3, 0.5]])
    loc = torch.tensor([1.0, -1.0, 0.0])
    fn = dist.MultivariateNormal(loc.expand(len(CASES), 3), covariance)
    drawn = sample_by_case(fn, KEYS, "z", CASES)
    assert drawn is not None
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(covariance), (drawn - loc).T, upper=False
    ).numpy()
    for i in range(3):
        assert_uniform(stats.norm.cdf(white[i]), FALSE_ALARM)
        assert stats.pearsonr(white[i], white[i - 1]).pvalue > FALSE_ALARM


@pytest.mark.parametrize("case_dim", [-1, -2])
def test_the_case_may_stand_on_any_batch_dim(case_dim: int) -> None:
    def draw(positions: np.ndarray) -> torch.Tensor:
        shape = [4, 4]
        shape[case_dim] = len(positions)
        value = sample_by_case(dist.Normal(torch.zeros(shape), 1), KEYS, "z", positions, case_dim)
        assert value is not None
        return value.movedim(case_dim, 0)

    torch.testing.assert_close(draw(np.arange(6))[[5, 2]], draw(np.array([5, 2])))


def test_laws_without_a_known_inverse_are_left_to_the_generator() -> None:
    cases = np.arange(5)
    for fn in (
        dist.Poisson(torch.ones(5)),
        dist.Dirichlet(torch.ones(5, 3)),
        dist.OneHotCategorical(torch.ones(5, 3)),
        dist.Normal(torch.zeros(4), 1),  # the case is not on this dim
        dist.Gamma(torch.ones(5, requires_grad=True), 1.0),  # a gradient through it is wanted
    ):
        assert sample_by_case(fn, KEYS, "z", cases) is None


def test_normal_draws_carry_gradients() -> None:
    loc, scale = torch.zeros(5, requires_grad=True), torch.ones(5, requires_grad=True)
    drawn = sample_by_case(dist.Normal(loc, scale), KEYS, "z", np.arange(5))
    assert drawn is not None
    drawn.sum().backward()
    torch.testing.assert_close(scale.grad, drawn.detach())


def test_a_mixture_is_drawn_by_its_law_and_by_case() -> None:
    """Two coordinates: each follows the mixture's marginal, and both belong to one component."""
    weights = torch.tensor([0.2, 0.5, 0.3])
    locs = torch.tensor([[-4.0, 8.0], [0.0, 0.0], [4.0, -8.0]])

    def mixture(num: int) -> Any:
        parts = dist.Normal(locs.expand(num, 3, 2), 1.0).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(weights.expand(num, 3)), parts)

    values = sample_by_case(mixture(len(CASES)), KEYS, "z", CASES)
    assert values is not None
    for axis in range(2):

        def marginal(x: np.ndarray, axis: int = axis) -> np.ndarray:
            each = stats.norm.cdf(np.asarray(x)[..., None], locs[:, axis].numpy())
            return each @ weights.double().numpy()

        assert stats.kstest(values[:, axis].numpy(), marginal).pvalue > FALSE_ALARM
    near = (values[:, None] - locs).square().sum(-1).argmin(1)
    apart = values - locs[near]
    assert (apart.abs() < 6).all(), "coordinates of different components"
    order = np.random.default_rng(0).permutation(1000)
    some = sample_by_case(mixture(1000), KEYS, "z", CASES[order])
    assert some is not None
    torch.testing.assert_close(some, values[order], rtol=0, atol=0)


def test_independent_mixtures_are_drawn_by_case() -> None:
    """Whatever the batches: four cases, then the last two of them."""
    locs = torch.tensor([-4.0, 4.0])

    def draw(cases: np.ndarray) -> torch.Tensor:
        weights, parts = torch.ones(len(cases), 3, 2), locs.expand(len(cases), 3, 2)
        fn = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(parts, 1.0))
        drawn = sample_by_case(fn.to_event(1), KEYS, "z", cases)
        assert drawn is not None
        return drawn

    torch.testing.assert_close(draw(np.arange(4))[2:], draw(np.array([2, 3])), rtol=0, atol=0)
