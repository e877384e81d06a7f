"""Every rank draws noise of its own: the mean of the gradient stays, its variance falls.

Of a batch whose halves are equal, under one draw of the weights a rank, the variance of the
gradient on two ranks is half of that on one, if their draws are independent.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from rank_runs import cases, classifier, in_double, rank, run_ranks, trained
from torch import nn

from ppl_med.data import Batches
from ppl_med.inference import MeanFieldNormal
from ppl_med.inference.training.ranks.together import noise_seed

STEPS = 200


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


def test_no_two_places_share_a_seed() -> None:
    seeds = [
        noise_seed(seed, rank, *place)
        for seed in range(3)
        for rank in range(4)
        for epoch in range(5)
        for place in [(epoch,), *((epoch, batch) for batch in range(6))]
    ]
    assert len(set(seeds)) == len(seeds)
