"""Numbers in the user's unit: fitted as standardised ones are, predicted and scored in the unit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from posterior_trees import array
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ppl_med.analysis import calibration, findings, scoring
from ppl_med.data import Batches
from ppl_med.inference import (
    Ensemble,
    MeanFieldNormal,
    PointEstimate,
    fit,
    functions,
    load,
    predict,
    save,
)
from ppl_med.likelihoods import Gaussian, LaplaceNoise, Quantiles, StudentT
from ppl_med.models import BayesianRegressor, DenseRegressor

CASES, MEAN, DEVIATION = 64, 55.0, 16.0
KINDS: dict[str, Any] = {
    "gaussian": Gaussian,
    "gaussian-beta": lambda **given: Gaussian(beta=0.5, **given),
    "one-scale": lambda **given: Gaussian(heteroscedastic=False, **given),
    "laplace": LaplaceNoise,
    "student": StudentT,
    "quantiles": lambda **given: Quantiles((0.1, 0.5, 0.9), **given),
}


def images() -> Tensor:
    return torch.randn(CASES, 1, 2, 3, generator=torch.Generator().manual_seed(1))


def ages() -> tuple[Tensor, Tensor]:
    """Standardised numbers that the images tell, and the same in years, 20 to 90."""
    image = images().flatten(1)
    noise = torch.randn(CASES, generator=torch.Generator().manual_seed(2))
    number = image @ torch.linspace(-1, 1, 6) + 0.1 * noise
    number = (number - number.mean()) / number.std(correction=0)
    return number, MEAN + DEVIATION * number


def trained(likelihood: Any, value: Tensor, **options: Any) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, likelihood.num_outputs))
    model = BayesianRegressor(net, likelihood)
    guide = MeanFieldNormal(model, init_scale=0.02)
    arrays = {"image": images(), "value": value}
    options = {"epochs": 40, "learning_rate": 0.03, "progress": False, **options}
    history = fit(model, guide, Batches(arrays, batch_size=16, shuffle=True), **options)
    tree = predict(model, guide, [arrays], draws=8, progress=False)
    return model, guide, (history, tree)


@pytest.mark.parametrize("kind", KINDS)
def test_ages_are_fitted_as_standardised_numbers_are(kind: str) -> None:
    """RMSE the same up to the unit; the log-density lower by the log of the scale (Jacobian)."""
    number, age = ages()
    assert 10 < age.min() and age.max() < 100
    model, _, (history, tree) = trained(KINDS[kind](), age)
    assert float(model.likelihood.loc) == pytest.approx(MEAN, rel=1e-5)
    assert float(model.likelihood.scale) == pytest.approx(DEVIATION, rel=1e-5)
    _, _, (expected, plain) = trained(KINDS[kind](loc=0.0, scale=1.0), number)

    def rmse(tree: Any, truth: Tensor) -> float:
        drawn = array(tree, "posterior_predictive/value").mean(("chain", "draw")).values
        return float(np.sqrt(np.mean((drawn - truth.numpy()) ** 2)))

    assert rmse(tree, age) / DEVIATION == pytest.approx(rmse(plain, number), rel=1e-3)
    assert rmse(tree, age) < 0.7 * DEVIATION
    jacobian = array(tree, "log_likelihood/value") + np.log(DEVIATION)
    np.testing.assert_allclose(jacobian, array(plain, "log_likelihood/value"), atol=2e-3)
    if kind == "gaussian":
        loc, scale = (array(tree, f"posterior/{name}") for name in ("loc", "scale"))
        exact = stats.norm(loc, scale).logpdf(age.numpy())
        np.testing.assert_allclose(array(tree, "log_likelihood/value"), exact, rtol=1e-6)
        kl = history["kl"].values
        np.testing.assert_allclose(kl, expected["kl"], rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_explained_is_what_is_predicted(kind: str) -> None:
    _, age = ages()
    likelihood = KINDS[kind]()
    model, guide, (_, tree) = trained(likelihood, age, epochs=2)
    output = functions(model, guide, draws=8)[3](images()).detach()
    name = "quantile" if kind == "quantiles" else "loc"
    stored = array(tree, f"posterior/{name}").isel(chain=0, draw=3).values
    np.testing.assert_allclose(output if kind == "quantiles" else output[:, 0], stored, rtol=1e-5)
    if kind == "gaussian":
        scale = array(tree, "posterior/scale").isel(chain=0, draw=3)
        np.testing.assert_allclose((output[:, 1] / 2).exp(), scale, rtol=1e-5)


class Cases:
    """A data set for a loader of torch."""

    def __len__(self) -> int:
        return CASES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": images()[index], "value": ages()[1][index]}


@pytest.mark.parametrize("how", ["list", "loader", "ensemble"])
def test_the_unit_is_that_of_the_training_values(how: str) -> None:
    likelihood = Gaussian()
    model: Any = BayesianRegressor(nn.Sequential(nn.Flatten(), nn.Linear(6, 2)), likelihood)
    guide: Any = Ensemble(model, PointEstimate, 2) if how == "ensemble" else PointEstimate(model)
    image, age = images(), ages()[1]
    batches: Any = [
        {"image": image[rows], "value": age[rows]} for rows in (slice(0, 9), slice(9, None))
    ]
    if how == "loader":
        order = torch.Generator().manual_seed(3)
        batches = DataLoader(Cases(), batch_size=16, shuffle=True, generator=order)  # type: ignore[arg-type]
    fit(model, guide, batches, progress=False)
    members: list[Any] = [member for member, _ in guide.members] if how == "ensemble" else [model]
    for member in members:
        assert float(member.likelihood.loc) == pytest.approx(MEAN, rel=1e-5)
        assert float(member.likelihood.scale) == pytest.approx(DEVIATION, rel=1e-5)
    fit(model, guide, [{"image": image, "value": 0 * age}], progress=False, seed=1)
    assert float(members[0].likelihood.loc) == pytest.approx(MEAN, rel=1e-5)  # once and for all


def test_what_was_not_observed_does_not_count_and_a_constant_has_scale_one() -> None:
    depth = 1000 + 10 * torch.randn(8, 4, 4)
    depth[:, 0] = float("nan")
    model: Any = DenseRegressor(nn.Conv2d(1, 2, 1))
    arrays = {"image": torch.randn(8, 1, 4, 4), "depth": depth}
    fit(model, PointEstimate(model), [arrays], progress=False)
    seen = depth[:, 1:].double()
    assert float(model.likelihood.loc) == pytest.approx(float(seen.mean()), rel=1e-9)
    assert float(model.likelihood.scale) == pytest.approx(float(seen.std(correction=0)), rel=1e-6)
    constant: Any = DenseRegressor(nn.Conv2d(1, 2, 1))
    arrays["depth"] = torch.full((8, 4, 4), 7.0)
    fit(constant, PointEstimate(constant), [arrays], progress=False)
    assert (float(constant.likelihood.loc), float(constant.likelihood.scale)) == (7.0, 1.0)


class Stop(Exception):
    """Raised in the middle of a run."""


def test_checkpoints_keep_the_unit(tmp_path: Path) -> None:
    _, age = ages()
    model, guide, (_, tree) = trained(Gaussian(), age, epochs=1)
    save(tmp_path / "saved.pt", model, guide)
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    other: Any = BayesianRegressor(net, Gaussian())
    other_guide = MeanFieldNormal(other, init_scale=0.02)
    load(tmp_path / "saved.pt", other, other_guide)
    assert not other.likelihood.is_open
    arrays = {"image": images(), "value": age}
    again = predict(other, other_guide, [arrays], draws=8, progress=False)
    np.testing.assert_array_equal(
        array(again, "posterior_predictive/value"), array(tree, "posterior_predictive/value")
    )

    def stop(batch: Any, generator: Any) -> Any:
        stop.calls += 1  # type: ignore[attr-defined]
        if stop.calls == 6:  # type: ignore[attr-defined]
            raise Stop
        return batch

    def run(likelihood: Any, resume: bool = False, transform: Any = None) -> Any:
        torch.manual_seed(0)
        model = BayesianRegressor(nn.Sequential(nn.Flatten(), nn.Linear(6, 2)), likelihood)
        guide = PointEstimate(model)
        batches = Batches(arrays, batch_size=16, transform=transform)
        path = tmp_path / "run.pt"
        fit(model, guide, batches, epochs=3, checkpoint=path, resume=resume, progress=False)
        return predict(model, guide, [arrays], draws=1, progress=False)

    stop.calls = 0  # type: ignore[attr-defined]
    with pytest.raises(Stop):
        run(Gaussian(), transform=stop)
    with pytest.raises(ValueError, match=r"settings of the model|does not fit"):
        run(Gaussian(loc=50.0, scale=10.0), resume=True, transform=lambda batch, _: batch)
    resumed = run(Gaussian(), resume=True, transform=lambda batch, _: batch)
    (tmp_path / "run.pt").unlink()
    whole = run(Gaussian(), transform=lambda batch, _: batch)
    np.testing.assert_array_equal(array(resumed, "posterior/loc"), array(whole, "posterior/loc"))


@pytest.mark.parametrize("kind", KINDS)
def test_several_numbers_have_units_of_their_own(kind: str) -> None:
    """Age in years and volume in mm³: each as if it were the only one."""
    names = ("age", "volume")
    number, age = ages()
    value = torch.stack([age, 4000 - 900 * number], 1)
    likelihood = KINDS[kind](findings=names)
    model, guide, (_, tree) = trained(likelihood, value)
    np.testing.assert_allclose(model.likelihood.loc, [MEAN, 4000], rtol=1e-5)
    np.testing.assert_allclose(model.likelihood.scale, [DEVIATION, 900], rtol=1e-5)
    assert tree["observed_data/value"].dims == ("case", "finding")
    assert tree["log_likelihood/value"].dims == ("chain", "draw", "case")
    total: Any = 0
    for index, name in enumerate(names):
        one = findings.select(tree, name)
        drawn = array(one, "posterior_predictive/value").mean(("chain", "draw"))
        error = float(np.sqrt(np.mean((drawn.values - value[:, index].numpy()) ** 2)))
        assert error < 0.7 * float(value[:, index].std())
        assert ("log_likelihood" in one.children) == ("gaussian" in kind or kind == "one-scale")
        if "log_likelihood" in one.children:
            total = total + array(one, "log_likelihood/value")
        output = functions(model, guide, draws=8, finding=name)[3](images()).detach()
        stored = "quantile" if kind == "quantiles" else "loc"
        expected = array(one, f"posterior/{stored}").isel(chain=0, draw=3).values
        found = output if kind == "quantiles" else output[:, 0]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    if "log_likelihood" in one.children:
        np.testing.assert_allclose(total, array(tree, "log_likelihood/value"), rtol=1e-5)
    if kind == "gaussian":
        scores = findings.each(scoring.crps, tree, distribution="normal")
        assert scores["crps"].sizes["finding"] == 2
        coverage = findings.each(calibration.coverage, tree)
        assert coverage.sizes["finding"] == 2


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"scale": 0.0}, "scale must be a finite number above 0"),
        ({"loc": float("nan")}, "loc must be a finite number"),
        ({"loc": [1.0, 2.0]}, "loc must be one number"),
        ({"scale": [1.0], "findings": ("a", "b")}, "one for each of 2 findings"),
        ({"findings": ("a", "a")}, "findings must be one or more different names"),
        ({"event": ("row", "col"), "findings": ("a", "b")}, "event must be empty"),
    ],
)
def test_bad_units_are_refused(given: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Gaussian(**given)
