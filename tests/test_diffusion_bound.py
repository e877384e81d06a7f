"""The bound of a diffusion equals the sum over all paths, in both forms and by every estimator."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
from noised_masks import Classes, TableNet, normal_bound, point
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from ppl_med.inference import Noising, elbo_terms
from ppl_med.models import CategoricalDiffusion, GaussianDiffusion
from ppl_med.programs.elbo import bound_by_case, total
from ppl_med.testing import assert_mean

NAMES = ("a", "b", "c")
FORMS = ("slow", "fast")
CASES = 500
Bound = Callable[[Any, Any, dict[str, Any]], float]


def diffusion(
    num_classes: int, num_steps: int, form: Any, size: float = 1.0, **settings: Any
) -> CategoricalDiffusion:
    """A chain whose net is a table, in evaluation of its weights as they are."""
    net = TableNet(num_classes, num_classes, num_steps, size)
    return CategoricalDiffusion(net, NAMES[:num_classes], num_steps, form=form, **settings)


def logits_of(model: Any, image: Tensor) -> Any:
    """The table's logits (pixel, class) at (t, x_t), read without the model's program."""
    net, number = model.network.net, model.noising.num_classes

    def logits(t: int, state: tuple[int, ...]) -> Any:
        signs = 2.0 * np.eye(number)[list(state)].T - 1
        noised = torch.tensor(signs, dtype=net.table.dtype).view(1, number, 1, -1)
        step = torch.tensor([t / model.noising.num_steps], dtype=net.table.dtype)
        features = image.view(1, 1, 1, -1).to(net.table)
        with torch.no_grad():
            return net(features=features, noised=noised, step=step)[0, :, 0].T.numpy()

    return logits


def copies(mask: tuple[int, ...], image: float = 0.4, number: int = CASES) -> dict[str, Tensor]:
    """Many cases of the same mask."""
    shape = (number, 1, 1, len(mask))
    return {"image": torch.full(shape, image), "mask": torch.tensor(mask).expand(number, 1, -1)}


def own(model: Any, guide: Any, batch: dict[str, Any]) -> float:
    nll, kl = elbo_terms(model, guide, **batch)
    return -float(total(nll) + total(kl))


def by_case(model: Any, guide: Any, batch: dict[str, Any]) -> float:
    proposed = poutine.trace(guide).get_trace(**batch)
    replayed = poutine.replay(model, trace=proposed)
    return float(bound_by_case(poutine.trace(replayed).get_trace(**batch), proposed).sum())


def stock(kind: Any) -> Bound:
    def bound(model: Any, guide: Any, batch: dict[str, Any]) -> float:
        given = pyro.condition(model, data={"weights": model.network.initial()})
        hidden = poutine.block(given, hide=["weights"])
        return -kind().loss(hidden, Noising(model.noising), **batch)

    return bound


BOUNDS: dict[str, Bound] = {
    "own": own,
    "by case": by_case,
    "stock": stock(Trace_ELBO),
}


def samples(bound: Bound, model: Any, batch: dict[str, Tensor], runs: int = 24) -> Any:
    guide, number = point(model), len(batch["image"])
    with torch.no_grad():
        return np.array([bound(model, guide, batch) / number for _ in range(runs)])


# --- classes


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_bound_of_one_pixel_is_the_sum_over_all_paths(
    num_classes: int, form: Any, name: str
) -> None:
    model = diffusion(num_classes, 4, form)
    truth = Classes(model.noising.kept, num_classes)
    batch = copies((1,))
    logits = logits_of(model, batch["image"][0])
    exact, evidence = truth.bound(logits, (1,)), truth.log_evidence(logits, (1,))
    assert exact < evidence - 0.05, "a table that is no posterior leaves a gap"
    assert_mean(samples(BOUNDS[name], model, batch), exact)


@pytest.mark.parametrize("form", FORMS)
def test_where_the_net_knows_the_data_the_bound_is_the_evidence(form: Any) -> None:
    """Classes equally frequent: every path has the same weight, so the slow form has no spread."""
    model = diffusion(3, 4, form, size=0.0)
    truth = Classes(model.noising.kept, 3)
    batch = copies((2,))
    logits = logits_of(model, batch["image"][0])
    evidence = truth.log_evidence(logits, (2,))
    assert np.isclose(evidence, -np.log(3))
    assert np.isclose(truth.bound(logits, (2,)), evidence, atol=1e-12)
    found = samples(stock(Trace_ELBO), model, batch)
    if form == "slow":
        np.testing.assert_allclose(found, evidence, atol=1e-5)
    else:
        assert_mean(found, evidence)


@pytest.mark.parametrize("form", FORMS)
def test_batches_of_unequal_size_of_several_pixels_have_the_same_bound(form: Any) -> None:
    """Every case with its own image and mask, some known in part; a batch stands for all data."""
    model = diffusion(2, 3, form, hardening=0.7)
    truth = Classes(model.noising.kept, 2)
    masks = [(0, 0), (0, 1), (1, -1), (1, 1), (-1, 1)]
    images = torch.linspace(-1, 1, 10).view(5, 1, 1, 2)
    exact = np.array(
        [truth.bound(logits_of(model, x), y) for x, y in zip(images, masks, strict=True)]
    )
    guide, mask, copied = point(model), torch.tensor(masks).view(5, 1, 2), 60
    for cases in (slice(0, 3), slice(3, 5)):
        batch = {
            "image": images[cases].repeat(copied, 1, 1, 1),
            "mask": mask[cases].repeat(copied, 1, 1),
            "num_cases": 5,
        }
        with torch.no_grad():
            found = [own(model, guide, batch) for _ in range(40)]
        assert_mean(found, 5 * exact[cases].mean())


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_the_sum_over_all_paths(form: Any) -> None:
    model, batch = diffusion(2, 4, form), copies((1,))
    truth, guide = Classes(model.noising.kept, 2), point(model)
    found = []
    for _ in range(40):
        nll, kl = elbo_terms(model, guide, **batch)
        (gradient,) = torch.autograd.grad(
            -(total(nll) + total(kl)) / CASES, list(guide.parameters())
        )
        found.append(gradient.numpy())
    exact = diffusion(2, 4, form).double()
    net, logits = exact.network.net, logits_of(exact, batch["image"][0])
    expected = []
    for parameter in net.parameters():
        for place in range(parameter.numel()):
            ends = []
            for shift in (1e-4, -2e-4):
                parameter.data.view(-1)[place] += shift
                ends.append(truth.bound(logits, (1,)))
            parameter.data.view(-1)[place] += 1e-4
            expected.append((ends[0] - ends[1]) / 2e-4)
    assert np.abs(expected).max() > 0.05
    # Entries of steps that have no part differ by rounding alone: scale their tolerance away.
    used = np.abs(expected) > 1e-6
    assert np.abs(np.array(found)[:, ~used]).max(initial=0) < 1e-6
    assert_mean(np.array(found)[:, used], np.array(expected)[used])


# --- numbers


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("target", "variance"), [("x", "learnt"), ("v", "learnt"), ("x", "least"), ("x", "most")]
)
def test_the_bound_of_numbers_is_its_integral(form: Any, target: Any, variance: Any) -> None:
    outputs = 2 if variance == "learnt" else 1
    net = TableNet(1, outputs, 4, 0.5)
    model = GaussianDiffusion(
        net, NAMES[:2], 4, target=target, variance=variance, form=form, hardening=0.8
    )
    model.log_sharpness.data.fill_(0.3)
    batch = copies((1,))
    exact = normal_bound(model, float(batch["image"][0]))
    assert_mean(samples(own, model, batch, 40), exact)
    if form == "slow":  # the stock one takes no step at random
        assert_mean(samples(stock(TraceMeanField_ELBO), model, batch), exact)
