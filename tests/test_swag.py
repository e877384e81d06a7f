"""SWAG: its moments are those of the recorded iterates, its draws have them."""

from typing import Any

import numpy as np
import pytest
import torch
from test_conjugate import LinearRegression, design

from ppl_med.inference import SWAG, EarlyStopping, Ensemble, fit, load, predict, save
from ppl_med.testing import assert_mean


def trained(epochs: int, **options: Any) -> tuple[Any, Any, np.ndarray]:
    """A guide and the point after every step, dims (step, weight)."""
    torch.manual_seed(0)
    data, model = design("correlated"), LinearRegression()
    guide = SWAG(model, **options)
    batches = [{name: value[part::3] for name, value in data.items()} for part in range(3)]
    part: Any = guide.parts["weights"]
    points: list[np.ndarray] = []
    follow = guide.follow_step

    def record(done: float) -> None:
        points.append(part.value.detach().numpy().copy())
        follow(done)

    guide.follow_step = record  # type: ignore[method-assign]
    fit(model, guide, batches, epochs=epochs, learning_rate=0.1, progress=False)
    return model, guide, np.stack(points)


@pytest.mark.parametrize(("iterates", "every"), [(30, 1), (10, 3), (100, 1)])
def test_the_moments_are_those_of_the_iterates(iterates: int, every: int) -> None:
    """Sixty steps, of which the last thirty count; never more iterates than steps."""
    _, guide, points = trained(20, start=0.5, iterates=iterates, rank=4)
    taken = points[30:][every - 1 :: every]
    q = guide.distribution()
    torch.testing.assert_close(q.loc, torch.as_tensor(taken.mean(0)))
    torch.testing.assert_close(guide.center(), q.loc)
    torch.testing.assert_close(2 * q.diagonal, torch.as_tensor(taken.var(0)))
    means = np.cumsum(taken, 0) / np.arange(1, len(taken) + 1)[:, None]
    columns = (taken - means)[-4:]
    found = 6 * q.factor @ q.factor.T
    torch.testing.assert_close(found, torch.as_tensor(columns.T @ columns))


def test_draws_have_the_moments_of_eq_1_and_its_density() -> None:
    _, guide, _ = trained(20, iterates=30, rank=4)
    q = guide.distribution()
    covariance = q.diagonal.diag() + q.factor @ q.factor.T
    draws = q.rsample(torch.Size([20000]))
    away = draws - q.loc
    assert_mean(away, torch.zeros(3))
    assert_mean(away[:, :, None] * away[:, None], covariance)
    dense = torch.distributions.MultivariateNormal(q.loc, covariance)
    torch.testing.assert_close(q.log_prob(draws[:5]), dense.log_prob(draws[:5]))


def test_a_longer_run_collects_anew() -> None:
    torch.manual_seed(0)
    data, model = design("correlated"), LinearRegression()
    guide = SWAG(model, iterates=10, rank=2)
    fit(model, guide, [data], epochs=20, learning_rate=0.1, progress=False)
    first = guide.center()
    fit(model, guide, [data], epochs=40, learning_rate=0.1, progress=False, seed=1)
    assert int(guide.parts["weights"].count) == 10  # type: ignore[arg-type]
    part: Any = guide.parts["weights"]
    assert (part.mean - part.value).norm() < (first - part.value).norm()


@pytest.mark.parametrize(
    "options",
    [{"stopping": EarlyStopping(patience=1, min_delta=100.0)}, {"keep": "best"}, {"epochs": 1}],
)
def test_a_training_that_left_no_spread_is_told(options: Any) -> None:
    """Stopped before the iterates count, the best epoch before them, a single step."""
    torch.manual_seed(0)
    data, model = design("correlated"), LinearRegression()
    guide = SWAG(model)
    worse = {**data, "target": -data["target"]}  # scored ever worse, the better the model
    settings = {"epochs": 20, "learning_rate": 0.1, "progress": False, "validation": [worse]}
    with pytest.warns(UserWarning, match="SWAG has . iterates .* posterior is a point"):
        fit(model, guide, [data], **{**settings, **options})


def test_members_of_an_ensemble_and_files(tmp_path: Any) -> None:
    data, model = design("correlated"), LinearRegression()
    guide = Ensemble(model, SWAG, members=2)
    fit(model, guide, [data], epochs=30, learning_rate=0.1, progress=False)
    tree = predict(model, guide, [data], draws=4, progress=False)
    assert tree["posterior/loc"].std("draw").min() > 0
    save(tmp_path / "swag.pt", model, guide)
    other = LinearRegression()
    again = Ensemble(other, SWAG, members=2)
    load(tmp_path / "swag.pt", other, again)
    same = predict(other, again, [data], draws=4, progress=False)
    np.testing.assert_array_equal(same["posterior/loc"], tree["posterior/loc"])


@pytest.mark.parametrize(
    "options", [{"start": 1.0}, {"start": -0.1}, {"iterates": 1}, {"rank": 1}, {"rank": 41}]
)
def test_settings_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        SWAG(LinearRegression(), **options)
