"""Class weights and weighted sampling against closed forms and scikit-learn.

A class weight is a power of the likelihood: the MAP is that of a weighted logistic regression, and
the tree says that it is a loss. Weights of a sampler are divided out: the MAP is the plain one.
"""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

from ppl_med.inference import PointEstimate, elbo_terms, fit, predict
from ppl_med.inference.batches import as_loader
from ppl_med.likelihoods import Categorical, Gaussian, balanced_weights
from ppl_med.models import BayesianClassifier, BayesianRegressor
from ppl_med.programs.case_scale import CaseScale
from ppl_med.programs.elbo import total
from ppl_med.testing import assert_mean
from ppl_med.weights import Normal

CASES, FEATURES, CLASSES, SCALE = 60, 3, ("a", "b", "c"), 1.5


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(CASES, 1, 1, FEATURES)).astype("float32")
    label = rng.choice(3, CASES, p=[0.7, 0.2, 0.1])
    image[np.arange(CASES), 0, 0, label] += 1.0
    return {"image": image, "label": label}


class Cases(Dataset):
    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return CASES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: torch.as_tensor(values[index]) for name, values in self.columns.items()}


def sampler(label: np.ndarray) -> WeightedRandomSampler:
    """Every class as often as any other."""
    weights = 1 / np.bincount(label)[label]
    return WeightedRandomSampler(weights.tolist(), CASES)


def classifier(**options: Any) -> BayesianClassifier:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, 3, bias=False))
    return BayesianClassifier(
        net, CLASSES, Normal(SCALE), likelihood=Categorical(CLASSES, **options)
    )


def by_sklearn(class_weight: Any) -> np.ndarray:
    """The MAP under Normal(0, SCALE^2): C is the prior's variance."""
    data = arrays()
    oracle = LogisticRegression(
        C=SCALE**2, fit_intercept=False, class_weight=class_weight, tol=1e-8, max_iter=1000
    )
    return oracle.fit(data["image"].reshape(CASES, -1).astype(float), data["label"]).coef_


def pull(coefficients: np.ndarray, **options: Any) -> float:
    """How far one step of ``fit`` by plain gradients leads away, in nats per case and unit."""
    model: Any = classifier(**options)
    model.network.net[1].weight.data = torch.from_numpy(coefficients).float()
    guide = PointEstimate(model)
    whole = [{name: torch.from_numpy(values) for name, values in arrays().items()}]
    before = guide.center()
    settings: dict[str, Any] = {"progress": False, "device": "cpu"}
    fit(model, guide, whole, optimizer=lambda ps: torch.optim.SGD(ps, lr=1.0), **settings)
    tree = predict(model, guide, whole, draws=2, **settings)
    assert ("training_loss" in tree.attrs) == bool(options)
    return float((guide.center() - before).abs().max())


@pytest.mark.parametrize("kind", ["balanced", "named"])
def test_class_weights_give_the_map_of_a_weighted_regression(kind: str) -> None:
    label = arrays()["label"]
    ours: Any = {"balanced": balanced_weights(label, 3), "named": {"c": 5.0, "a": 0.5, "b": 1.0}}
    theirs: Any = {"balanced": "balanced", "named": {0: 0.5, 1: 1.0, 2: 5.0}}
    plain, weighted = by_sklearn(None), by_sklearn(theirs[kind])
    assert pull(weighted, class_weights=ours[kind]) < 1e-5 > pull(plain)
    assert pull(plain, class_weights=ours[kind]) > 0.01 < pull(weighted)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    label = torch.tensor([[0, 0, 0, 1], [-1, 2, 2, 0]])
    assert balanced_weights(label, 3) == pytest.approx([7 / 12, 7 / 3, 7 / 6])
    with pytest.raises(ValueError, match=r"counts \[4, 1, 2, 0\]"):
        balanced_weights(label, 4)
    with pytest.raises(ValueError, match="class_weights must be a number for each of"):
        classifier(class_weights={"a": 1.0})


def test_at_the_ridge_regression_a_weighted_sampler_pulls_nowhere() -> None:
    """The expected gradient at the closed form is zero (z-test), and is not where weights stay."""
    data = arrays()
    columns = data["image"].reshape(CASES, -1).astype(float)
    rng = np.random.default_rng(1)
    value = columns @ [1.0, -2.0, 0.5] + rng.normal(size=CASES)
    precision = columns.T @ columns + np.eye(FEATURES) / SCALE**2
    ridge = np.linalg.solve(precision, columns.T @ value)
    net = nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, 1, bias=False))
    net[1].weight.data = torch.from_numpy(ridge[None]).float()
    likelihood = Gaussian(heteroscedastic=False, init_scale=1.0, loc=0.0, scale=1.0)
    model: Any = BayesianRegressor(net, likelihood, prior=Normal(SCALE))
    guide = PointEstimate(model)
    loader = as_loader(
        DataLoader(
            Cases({"image": data["image"], "value": value.astype("f4")}),
            20,
            sampler=sampler(data["label"]),
        ),
        None,
    )
    slopes: dict[bool, list[np.ndarray]] = {True: [], False: []}
    torch.manual_seed(0)
    for epoch in range(40):
        for divided in slopes:
            found = []
            for batch, factor in loader.open(epoch, 0, 0):
                with CaseScale(factor if divided else 1.0):
                    nll, kl = elbo_terms(model, guide, **batch, num_cases=CASES)
                loss = total(nll) + total(kl)
                found.append(torch.autograd.grad(loss, [*guide.parameters()])[0].numpy())
            slopes[divided].append(np.mean(found, 0))
    for feature in range(FEATURES):
        assert_mean(np.array(slopes[True])[:, feature], 0.0)
    with pytest.raises(AssertionError):
        for feature in range(FEATURES):
            assert_mean(np.array(slopes[False])[:, feature], 0.0)
