"""The noising processes are what they say: laws by Bayes' rule, draws by tests of fit."""

from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
from noised_masks import Classes
from scipy import stats

from ppl_med.inference import Noising
from ppl_med.programs.noising import CategoricalNoise, GaussianNoise, StepsOfBatch, signal_kept
from ppl_med.testing import assert_mean, assert_uniform

FALSE_ALARM = 1e-6
SEEN = torch.ones(1, dtype=torch.bool)
PAIRS = [(4, 3), (2, 1), (4, 1), (3, 1)]


def pixels(values: Any) -> torch.Tensor:
    """One case with a row of pixels."""
    return torch.as_tensor(values)[None, None]


# --- the schedule


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("num_steps", [2, 4, 25, 1000])
def test_signal_falls_from_one_to_nothing(schedule: Any, num_steps: int) -> None:
    kept = signal_kept(num_steps, schedule)
    assert kept.dtype == torch.float64 and kept[0] == 1 and len(kept) == num_steps + 1
    assert (kept.diff() < 0).all() and 0 < kept[-1] < 1e-3


def test_hardening_divides_the_signal_to_noise_ratio() -> None:
    plain, hard = signal_kept(50), signal_kept(50, hardening=0.3)
    ratio = (hard / (1 - hard) / (plain / (1 - plain)))[1:]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.09))


def test_the_linear_schedule_of_a_thousand_steps_is_the_published_one() -> None:
    beta = np.linspace(1e-4, 0.02, 1000)
    np.testing.assert_allclose(signal_kept(1000, "linear")[1:], np.cumprod(1 - beta), rtol=1e-12)


@pytest.mark.parametrize("num_steps", [2, 3, 5, 24, 25, 101])
def test_steps_of_a_shorter_chain_fall_from_the_last_to_none(num_steps: int) -> None:
    noise = CategoricalNoise(2, num_steps)
    for number in range(1, num_steps + 1):
        pairs = noise.grid(number)
        steps = [pairs[0][0], *(earlier for _, earlier in pairs)]
        assert steps[0] == num_steps and steps[-1] == 0 and len(steps) == number + 1
        assert (np.diff(steps) < 0).all()
        assert abs(np.diff(steps) + num_steps / number).max() <= 1
    for wrong in (0, num_steps + 1):
        with pytest.raises(ValueError, match=f"sampling_steps must be from 1 .* {num_steps}"):
            noise.grid(wrong)


# --- classes


@pytest.mark.parametrize("num_classes", [2, 3])
def test_states_of_classes_follow_products_of_transition_matrices(num_classes: int) -> None:
    noise = CategoricalNoise(num_classes, 4, hardening=0.7)
    truth = Classes(noise.kept, num_classes)
    every = pixels(range(num_classes))
    for t in range(1, 5):
        found = noise.noised(every, noise.kept[t][None], SEEN).base_dist.probs[0, 0]
        np.testing.assert_allclose(found, truth.step(t, 0), atol=1e-6)


@pytest.mark.parametrize(("later", "earlier"), PAIRS)
@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_posterior_of_classes_is_bayes_rule(num_classes: int, later: int, earlier: int) -> None:
    noise = CategoricalNoise(num_classes, 4)
    truth = Classes(noise.kept, num_classes).posterior(later, earlier)
    start, noised = (pixels(x.ravel()) for x in np.indices((num_classes, num_classes)))
    at = noise.at(torch.tensor([later]), torch.tensor([earlier]))
    found = noise.posterior(noised, start, at, SEEN).base_dist.probs
    np.testing.assert_allclose(found.view(truth.shape), truth, atol=1e-6)


@pytest.mark.parametrize(("later", "earlier"), PAIRS)
@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_reverse_step_is_the_sum_over_classes(
    num_classes: int, later: int, earlier: int
) -> None:
    noise = CategoricalNoise(num_classes, 4)
    truth = Classes(noise.kept, num_classes).posterior(later, earlier)
    probs = torch.rand(1, 1, num_classes, num_classes).softmax(-1)
    at = noise.at(torch.tensor([later]), torch.tensor([earlier]))
    found = noise.reverse(pixels(range(num_classes)), probs, at).base_dist.probs[0, 0]
    expected = np.einsum("tk,kts->ts", probs[0, 0].numpy(), truth)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_a_state_says_of_the_mask_is_its_likelihood() -> None:
    noise = CategoricalNoise(3, 4)
    truth = Classes(noise.kept, 3)
    found = noise.log_weight(pixels(range(3)), noise.kept[2][None])[0, 0]
    np.testing.assert_allclose(found.exp(), truth.step(2, 0).T, atol=1e-6)


# --- numbers


@pytest.mark.parametrize(("later", "earlier"), [*PAIRS, (1000, 500)])
def test_the_posterior_of_numbers_is_that_of_joint_normals(later: int, earlier: int) -> None:
    noise = GaussianNoise(2, max(later, 4))
    kept_s, kept_t = (float(noise.kept[n]) for n in (earlier, later))
    # x_s and x_t given x_0: means, variances and covariance
    between = kept_t / kept_s
    slope = np.sqrt(between) * (1 - kept_s) / (1 - kept_t)
    variance = (1 - kept_s) - slope * np.sqrt(between) * (1 - kept_s)
    x_0, x_t = torch.tensor([-1.0, 1.0, 1.0]), torch.tensor([0.3, -2.0, 1.4])
    at = noise.at(torch.tensor([later]), torch.tensor([earlier]))
    law = noise.posterior(x_t.view(1, 1, 1, 3), x_0.view(1, 1, 1, 3), at, SEEN).base_dist
    mean = np.sqrt(kept_s) * x_0 + slope * (x_t - np.sqrt(kept_t) * x_0)
    np.testing.assert_allclose(law.mean.view(-1), mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(law.variance.view(-1), [variance] * 3, rtol=1e-4)


def test_the_first_of_many_steps_has_its_own_variance() -> None:
    noise = GaussianNoise(2, 1000)
    law = noise.noised(torch.ones(1, 1, 1, 1), noise.kept[1][None], SEEN).base_dist
    np.testing.assert_allclose(float(law.variance), float(1 - noise.kept[1]), rtol=1e-5)


# Gaps in nats per dimension between the log-density of x_0 ~ N(0, v) and the bound of the best
# mean of x_0 under the cosine schedule, as computed outside of ppl_med, to the digits given. The
# posterior's variance is none at the last step, which takes the right one.
GAPS: dict[tuple[str, float], dict[int, str]] = {
    ("right", 1.0): dict.fromkeys((25, 50, 100, 250, 1000), "0.0000"),
    ("right", 0.01): dict.fromkeys((25, 50, 100, 250, 1000), "0.0000"),
    ("most", 1.0): {25: "0.0000", 50: "0.0000", 250: "0.0000"},
    ("most", 0.25): {25: "0.0238", 50: "0.0121", 250: "0.0024"},
    ("most", 0.01): {25: "0.34", 50: "0.19", 250: "0.039"},
    ("least", 1.0): {25: "1.03", 50: "0.93", 100: "0.78", 250: "0.59", 1000: "0.41"},
}


def gap(noise: GaussianNoise, kind: str, v: float) -> float:
    """Log-density of N(0, v) minus the bound, in expectation: everything is normal."""
    steps = torch.arange(1, noise.num_steps + 1)
    at = noise.at(steps, steps - 1)
    later = at.later * v + 1 - at.later
    right = (at.earlier * v + 1 - at.earlier) * noise.most_variance(at) / later
    own = noise.least_variance(at)
    reverse = {"right": right, "most": noise.most_variance(at), "least": own}[kind]
    if kind == "least":
        reverse = torch.where(steps == 1, right, reverse)
    # The mean of x_s given x_t and x_0 takes x_0 with this weight; x_0 given x_t varies by that.
    ones, zeros = torch.ones(len(steps), 1, 1, 1), torch.zeros(len(steps), 1, 1, 1)
    weight = noise.mean(zeros, ones, at).double().flatten()
    error = weight.square() * v * (1 - at.later) / later
    kl = 0.5 * ((own + error) / reverse - 1 + (reverse / own).log())
    last = 0.5 * ((2 * torch.pi * reverse[0]).log() + error[0] / reverse[0])
    end = noise.kept[-1] * v + (1 - noise.kept[-1])
    prior = 0.5 * (end - 1 - (1 - noise.kept[-1]).log())
    entropy = 0.5 * (1 + np.log(2 * np.pi * v))
    return float(kl[1:].sum() + last + prior - entropy)


@pytest.mark.parametrize(("kind", "v"), GAPS)
def test_gaps_of_normal_data_are_those_of_the_reverse_variance(kind: str, v: float) -> None:
    for num_steps, expected in GAPS[kind, v].items():
        digits = len(expected.partition(".")[2])
        assert abs(gap(GaussianNoise(2, num_steps), kind, v) - float(expected)) < 0.6 * 10**-digits


# --- draws of the guide


CASES = 4000


def draws(noise: Any, *, num_steps: int) -> dict[str, Any]:
    """Values of the guide's sites, for many cases whose one pixel is of class 1."""
    batch = {"image": torch.zeros(CASES, 1, 1, 1), "mask": torch.ones(CASES, 1, 1).long()}
    trace = poutine.trace(Noising(noise)).get_trace(**batch)
    nodes: dict[str, Any] = dict(trace.nodes)
    found = {n: nodes[n]["value"] for n in nodes if nodes[n]["type"] == "sample"}
    assert f"x{num_steps}" in found
    return found


def check_classes(values: Any, truth: Any) -> None:
    """Chi-square of counts against chances."""
    counts = np.bincount(np.asarray(values).ravel(), minlength=len(truth))
    assert stats.chisquare(counts, counts.sum() * truth).pvalue > FALSE_ALARM


def check_numbers(values: Any, kept: float, start: float = 1.0) -> None:
    law = stats.norm(np.sqrt(kept) * start, np.sqrt(1 - kept))
    assert_uniform(law.cdf(np.asarray(values).ravel()), FALSE_ALARM)


def test_every_state_of_the_whole_chain_has_its_marginal() -> None:
    noise = CategoricalNoise(3, 4, form="slow")
    truth, found = Classes(noise.kept, 3), draws(noise, num_steps=4)
    for t in range(1, 5):
        check_classes(found[f"x{t}"], truth.step(t, 0)[1])
    pair = 3 * found["x2"] + found["x3"]  # two states in a row
    check_classes(pair, (truth.step(2, 0)[1][:, None] * truth.step(3, 2)).ravel())
    numbers = GaussianNoise(2, 4, form="slow")
    found = draws(numbers, num_steps=4)
    for t in range(1, 5):
        check_numbers(found[f"x{t}"], float(numbers.kept[t]))
    # What x_3 has beyond its share of x_2 is the noise of one step, independent of x_2.
    between = float(numbers.kept[3] / numbers.kept[2])
    rest = ((found["x3"] - between**0.5 * found["x2"]) / (1 - between) ** 0.5).flatten()
    check_numbers(rest, 0.0)
    assert_mean(rest * found["x2"].flatten(), 0.0)


def test_every_state_at_a_random_step_has_its_marginal() -> None:
    noise = CategoricalNoise(3, 4)
    truth, found = Classes(noise.kept, 3), draws(noise, num_steps=4)
    check_classes(found["x4"], truth.step(4, 0)[1])
    for t in range(1, 5):
        at = found["at_step"] == t
        assert int(at.sum()) == CASES / 4, "steps of a batch are spread evenly"
        check_classes(found["noised"][at], truth.step(t, 0)[1])
        if t > 1:
            check_classes(found["earlier"][at], truth.step(t - 1, 0)[1])
            pair = 3 * found["earlier"][at] + found["noised"][at]
            joint = truth.step(t - 1, 0)[1][:, None] * truth.step(t, t - 1)
            check_classes(pair, joint.ravel())
    numbers = GaussianNoise(2, 4)
    found = draws(numbers, num_steps=4)
    check_numbers(found["x4"], float(numbers.kept[4]))
    for t in range(1, 5):
        at = found["at_step"] == t
        check_numbers(found["noised"][at], float(numbers.kept[t]))
        if t > 1:
            check_numbers(found["earlier"][at], float(numbers.kept[t - 1]))


@pytest.mark.parametrize("form", ["fast", "slow"])
def test_pixels_that_nobody_annotated_are_noise_at_every_step(form: Any) -> None:
    for noise in (CategoricalNoise(3, 4, form=form), GaussianNoise(2, 4, form=form)):
        batch = {"image": torch.zeros(CASES, 1, 1, 2), "mask": torch.ones(CASES, 1, 2).long()}
        batch["mask"][..., 1] = -1
        trace: Any = poutine.trace(Noising(noise)).get_trace(**batch)
        states = ["noised", "earlier"] if form == "fast" else ["x1", "x2", "x3"]
        for name in ("x4", *states):
            unseen = trace.nodes[name]["value"][..., 1]
            if isinstance(noise, CategoricalNoise):
                check_classes(unseen, np.full(3, 1 / 3))
            else:
                check_numbers(unseen, 0.0)


def test_a_mask_is_noised_as_the_classes_it_has() -> None:
    mask = torch.tensor([[[0, 1], [1, 0]]])
    assert torch.equal(GaussianNoise(2, 4).encode(mask), (2.0 * mask - 1)[:, None])
    three = GaussianNoise(3, 4).encode(torch.tensor([[[0, 2]]]))
    assert three[0, :, 0].T.tolist() == [[1, -1, -1], [-1, -1, 1]]
    volume = GaussianNoise(3, 4, spatial_dims=3).encode(torch.zeros(2, 4, 5, 6))
    assert volume.shape == (2, 3, 4, 5, 6)


# --- steps


def test_steps_are_uniform_and_spread_over_the_batch() -> None:
    law = StepsOfBatch(4, (3, 6))
    drawn = torch.stack([law.sample() for _ in range(600)])
    assert drawn.shape == (600, 3, 6) and drawn.min() == 1 and drawn.max() == 4
    for place in ((0, 0), (2, 5), (1, 3)):  # each case, whatever the others have
        check_classes(drawn[:, *place] - 1, np.full(4, 0.25))
    counts = torch.stack([(drawn == t).flatten(1).sum(1) for t in range(1, 5)], 1)
    assert counts.min() >= 18 // 4 - 1 and counts.max() <= -(-18 // 4) + 1
    assert torch.equal(StepsOfBatch(4, (8,)).sample().bincount()[1:], torch.full((4,), 2))


def test_steps_of_one_case_are_spread_over_its_particles() -> None:
    """By uniform numbers, as in predictions: each case has strata of its own."""
    u = torch.rand(4, 500, dtype=torch.float64)
    steps = StepsOfBatch(4, (4, 500)).icdf(u)
    assert torch.equal(steps.sort(0).values, torch.arange(1, 5)[:, None].expand(4, 500))
    one = StepsOfBatch(3, (1, 3000)).icdf(torch.rand(1, 3000, dtype=torch.float64))
    check_classes(one - 1, np.full(3, 1 / 3))
    two = StepsOfBatch(3, (2, 3000)).icdf(torch.rand(2, 3000, dtype=torch.float64))
    assert two[0].max() == 2 and two[1].min() == 2
    check_classes(two - 1, np.full(3, 1 / 3))
    edge = StepsOfBatch(5, (2,)).icdf(torch.tensor([0.0, 1.0]))
    assert edge.tolist() == [1, 5]


def test_the_density_of_steps_is_uniform() -> None:
    law = StepsOfBatch(4, (2,)).expand((3, 2))
    assert law.batch_shape == (3, 2) and law.sample().shape == (3, 2)
    torch.testing.assert_close(law.log_prob(law.sample()), torch.full((3, 2), -np.log(4)))
    with pyro.plate("case", 2):
        assert pyro.sample("at_step", StepsOfBatch(4, (2,))).shape == (2,)
