"""The auxiliary loss of a discrete diffusion is what it says, and is declared."""

import itertools

import numpy as np
import pytest
import torch
from noised_masks import Classes, TableNet, point

from ppl_med.inference import elbo_terms, fit, predict
from ppl_med.models import CategoricalDiffusion
from ppl_med.testing import assert_mean

WEIGHT, STEPS, MASK = 0.3, 4, (1, 0)


def chain(weight: float) -> CategoricalDiffusion:
    return CategoricalDiffusion(TableNet(2, 2, STEPS), ("a", "b"), STEPS, guess_weight=weight)


def batch(number: int) -> dict[str, torch.Tensor]:
    mask = torch.tensor(MASK).expand(number, 1, -1)
    return {"image": torch.full((number, 1, 1, len(MASK)), 0.4), "mask": mask}


def expected(model: CategoricalDiffusion) -> float:
    """Mean over steps of E log p(mask | x_t), summed over all x_t of two pixels."""
    sums, net = Classes(model.noising.kept, 2), model.network.net
    found = 0.0
    for t in range(1, STEPS + 1):
        for state in itertools.product(range(2), repeat=len(MASK)):
            chance = np.prod([sums.step(t, 0)[k, s] for k, s in zip(MASK, state, strict=True)])
            signs = torch.tensor(2.0 * np.eye(2)[list(state)].T - 1, dtype=torch.float32)
            with torch.no_grad():
                logits = net(
                    features=batch(1)["image"],
                    noised=signs.view(1, 2, 1, -1),
                    step=torch.tensor([t / STEPS]),
                )[0, :, 0].T.numpy()
            weight = np.exp(logits) * sums.step(t, 0)[:, list(state)].T
            probs = weight / weight.sum(1, keepdims=True)
            found += chance * sum(np.log(probs[i, k]) for i, k in enumerate(MASK)) / STEPS
    return found


def test_it_adds_the_weighted_log_probability_of_the_mask() -> None:
    """Z-test at a false-alarm rate of 1e-6 over 400 runs of 50 cases."""
    torch.manual_seed(0)
    model = chain(WEIGHT)
    guide = point(model)
    model.train(), guide.train()
    added = []
    for _ in range(400):
        nll, _ = elbo_terms(model, guide, **batch(50), num_cases=50)
        added.append(-float(nll["guess"].detach()) / 50)
    assert_mean(np.array(added), WEIGHT * expected(model))


def test_the_bound_at_prediction_is_without_it() -> None:
    bounds = []
    for weight in (0.0, WEIGHT):
        tree = predict(model := chain(weight), point(model), [batch(6)], draws=2, progress=False)
        bounds.append(tree["evidence_bound/mask"].values)
        assert ("training_loss" in tree.attrs) == bool(weight)
    np.testing.assert_array_equal(bounds[0], bounds[1])


def test_a_run_with_another_weight_is_not_resumed(tmp_path) -> None:
    file = tmp_path / "run.pt"
    settings = {"epochs": 1, "checkpoint": file, "progress": False, "num_cases": 6}
    fit(model := chain(WEIGHT), point(model), [batch(6)], **settings)
    with pytest.raises(ValueError, match=r"guess_weight"):
        fit(model := chain(0.1), point(model), [batch(6)], resume=True, **settings)


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="guess_weight"):
        chain(-1.0)
