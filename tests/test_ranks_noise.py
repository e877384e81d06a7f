"""Every rank draws noise of its own: the mean of the gradient stays, its variance falls.

Of a batch whose halves are equal, under one draw of the weights a rank, the variance of the
gradient on two ranks is half of that on one, if their draws are independent.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_runs import cases, classifier, in_double, rank, run_ranks, trained, whole
from scipy.stats import ks_2samp
from torch import nn

from ppl_med.data import Batches
from ppl_med.inference import MeanFieldNormal
from ppl_med.inference.training.ranks.together import noise_seed

STEPS = 200
RUNS, STEPS_AN_EPOCH = 60, 4


def gradients() -> torch.Tensor:
    """Of many steps that lead nowhere, dims (step, parameter)."""
    found: list[torch.Tensor] = []

    def still(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        def keep(*_: Any) -> None:
            found.append(torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None]))

        optimizer = torch.optim.SGD(parameters, lr=0.0)
        optimizer.register_step_pre_hook(keep)
        return optimizer

    own = cases(8)
    twice = {name: np.concatenate([values, values]) for name, values in own.items()}
    model = classifier(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
    trained(
        {"model": model, "guide": MeanFieldNormal(model, 0.3, estimator="shared").double()},
        batches=[*Batches(twice, batch_size=16, transform=in_double)] * STEPS,
        num_cases=16,
        epochs=1,
        optimizer=still,
    )
    return torch.stack(found)


def several(folder: Path) -> None:
    torch.save(gradients(), folder / f"{rank()}.pt")


def test_noise_of_ranks_is_independent(tmp_path: Path) -> None:
    """False alarms: 1e-4 of the means; the ratio of variances lies 4 sd inside its bounds."""
    assert run_ranks(2, several, tmp_path) == [0, 0]
    one, two = gradients(), torch.load(tmp_path / "0.pt")
    assert torch.equal(two, torch.load(tmp_path / "1.pt"))
    assert one.shape == two.shape == (STEPS, 260)
    error = (one.var(0) / STEPS + two.var(0) / STEPS).sqrt()
    assert float(((one.mean(0) - two.mean(0)) / error).abs().max()) < 5.2  # of 260, two-sided
    assert 0.38 < float(two.var(0).sum() / one.var(0).sum()) < 0.65


def ends(first_seed: int) -> torch.Tensor:
    """Of runs of many seeds in which every case has noise of its own, dims (run, figure).

    Figures: minus ELBO and KL of the last epoch, the norm of the locations and a projection of
    them, the mean of the scales. Such noise has one law however a batch is dealt.
    """
    found = []
    for seed in range(first_seed, first_seed + RUNS):
        model = classifier(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
        guide = MeanFieldNormal(model, 0.3, estimator="local").double()
        options = {"model": model, "guide": guide, "batches": whole(), "seed": seed}
        history = trained({**options, "optimizer": partial(torch.optim.SGD, lr=0.05)})["history"]
        part: Any = next(iter(guide.parts.values()))
        loc, scale = part.loc.detach(), part.scale.detach()
        projection = loc @ torch.linspace(-1, 1, len(loc)).to(loc)
        last = [history[name][-STEPS_AN_EPOCH:].double().mean() for name in ("elbo", "kl")]
        found.append(torch.stack([*last, loc.norm(), projection, scale.mean()]))
    return torch.stack(found)


def many(folder: Path) -> None:
    torch.save(ends(RUNS), folder / f"{rank()}.pt")


@pytest.mark.slow
def test_runs_of_many_seeds_end_as_those_of_one_process(tmp_path: Path) -> None:
    """False alarms: 1e-3 of all figures together. A rate 1.2 times as high turns it red."""
    assert run_ranks(2, many, tmp_path) == [0, 0]
    together, other = (torch.load(tmp_path / f"{one}.pt", weights_only=True) for one in (0, 1))
    torch.testing.assert_close(together, other)
    alone = ends(0)
    assert (alone.std(0) > 0).all()
    tests = [ks_2samp(*pair).pvalue for pair in zip(alone.T, together.T, strict=True)]
    assert min(tests) > 1e-3 / len(tests), tests


def test_no_two_places_share_a_seed() -> None:
    seeds = [
        noise_seed(seed, rank, *place)
        for seed in range(3)
        for rank in range(4)
        for epoch in range(5)
        for place in [(epoch,), *((epoch, batch) for batch in range(6))]
    ]
    assert len(set(seeds)) == len(seeds)
