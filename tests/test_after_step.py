"""Parts of a model that follow training in what is no parameter: when, how, and in every copy."""

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from killed_runs import differences
from torch import Tensor, nn

from ppl_med.data import Batches
from ppl_med.explain import AttributionConstrained, RightReasons
from ppl_med.inference import Ensemble, MeanFieldNormal, PointEstimate, checkpoint, fit
from ppl_med.likelihoods import Categorical
from ppl_med.weights import RandomWeights

SIZE, CASES, BATCH = 4, 20, 8
STEPS = 2 * -(-CASES // BATCH)


class Follower(nn.Module):
    """Sums images and outputs of all steps; notes how it was run."""

    total: Tensor

    def __init__(self, network: RandomWeights) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("total", torch.zeros(2, dtype=torch.float64))
        self.seen: list[tuple[bool, bool]] = []

    def after_step(self, image: Tensor) -> None:
        output = self.network(image)
        self.total += torch.stack([image.double().sum(), output.double().sum()])
        self.seen.append((self.training, output.requires_grad))


class Followed(nn.Module):
    """A classifier with one."""

    def __init__(self) -> None:
        super().__init__()
        net = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 2))
        self.network = RandomWeights(net)
        self.follower = Follower(self.network)
        self.likelihood = Categorical(["a", "b"])

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        output = self.network(image)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            self.likelihood(output, label)
        return output


def arrays() -> dict[str, Any]:
    random = np.random.default_rng(0)
    image = random.normal(size=(CASES, 1, SIZE, SIZE)).astype(np.float32)
    return {"image": image, "label": np.arange(CASES) % 2}


def run(model: Any, guide: Any, **options: Any) -> Any:
    batches = Batches(arrays(), batch_size=BATCH, shuffle=True, transform=options.pop("stop", None))
    given: dict[str, Any] = {"epochs": 2, "progress": False, "device": "cpu"}
    return fit(model, guide, batches, **given | options)


def test_it_runs_after_every_step_in_evaluation_mode_on_all_its_cases() -> None:
    model = Followed()
    run(model, MeanFieldNormal(model))
    assert model.follower.seen == [(False, False)] * STEPS
    expected = 2 * float(arrays()["image"].sum(dtype=np.float64))
    assert float(model.follower.total[0]) == pytest.approx(expected, rel=1e-6)
    assert model.network.net.training is False  # as fit leaves it


def test_it_sees_the_weights_after_the_step() -> None:
    """With one batch an epoch the output is that of the value that the step left."""
    model = Followed()
    guide: Any = PointEstimate(model)
    image, total = torch.tensor(arrays()["image"]), 0.0

    def after(news: Any) -> None:
        nonlocal total
        with torch.no_grad(), pyro.condition(data={"weights": guide.parts["weights"].value}):
            total += float(model.network(image).double().sum())

    batches = Batches(arrays(), batch_size=CASES)
    fit(model, guide, batches, epochs=3, callbacks=[after], progress=False)
    assert float(model.follower.total[1]) == pytest.approx(total, rel=1e-5)


def test_a_plain_function_and_a_program_around_another_have_theirs() -> None:
    inner = Followed()

    def program(image: Tensor, label: Any = None, *, num_cases: int | None = None) -> Tensor:
        return inner(image, label, num_cases=num_cases)

    run(program, PointEstimate(inner))
    assert len(inner.follower.seen) == STEPS
    model = Followed()
    wrapped = AttributionConstrained(model, [RightReasons(0.1)])
    mask = np.zeros((CASES, SIZE, SIZE), bool)
    batches = [{n: torch.as_tensor(v) for n, v in {**arrays(), "irrelevant": mask}.items()}]
    fit(wrapped, PointEstimate(wrapped), batches, epochs=1, progress=False)
    assert len(model.follower.seen) == 1


def test_members_of_an_ensemble_have_their_own() -> None:
    model = Followed()
    ensemble = Ensemble(model, PointEstimate, members=2)
    run(model, ensemble)
    members: list[Any] = list(ensemble.models)
    assert not model.follower.seen and [len(m.follower.seen) for m in members] == [STEPS] * 2
    assert float(members[0].follower.total[1]) != float(members[1].follower.total[1])


class Stop:
    """A transform of batches that ends the run at the n-th of them."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self, batch: Any, generator: Any) -> Any:
        self.left -= 1
        if not self.left:
            raise InterruptedError
        return batch


def test_a_run_stopped_at_any_step_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def once(name: str, stop: int = 0) -> Any:
        torch.manual_seed(0)
        model = Followed()
        path = tmp_path / f"{name}.pt"
        run(model, MeanFieldNormal(model), checkpoint=path, resume=True, stop=Stop(stop))
        read = checkpoint.read(path)
        return {name: read[name] for name in ("states", "optimizers", "histories")}

    whole = once("whole")
    assert whole["states"][0]["model"][""]["follower.total"].any()
    for step in range(2, STEPS + 1):
        with pytest.raises(InterruptedError):
            once(f"at{step}", stop=step)
        assert differences(once(f"at{step}"), whole) == []


def test_steps_of_several_batches_are_refused() -> None:
    model = Followed()
    with pytest.raises(ValueError, match="accumulate must be 1, got 2: Followed follows"):
        run(model, PointEstimate(model), accumulate=2)
