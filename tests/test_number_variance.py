"""The law of total variance for models of numbers, on trees whose variances are known."""

import numpy as np
import pytest
import torch
import xarray as xr

from ppl_med.analysis import uncertainty
from ppl_med.inference import PointEstimate, predict
from ppl_med.likelihoods import Gaussian, LaplaceNoise, Quantiles, StudentT
from ppl_med.models import BayesianRegressor
from ppl_med.testing import assert_mean

DIMS = ("chain", "draw", "case", "row")


def group(chains: int = 2, draws: int = 500, cases: int = 4) -> xr.Dataset:
    rng = np.random.default_rng(0)
    shape = (chains, draws, cases, 3)
    sd = np.array([0.0, 0.5, 1.0, 2.0])[:, None]
    loc = 3 + sd * rng.standard_normal(shape)
    scale = np.full(shape, [0.1, 0.2, 0.3])
    return xr.Dataset({"loc": (DIMS, loc), "scale": (DIMS, scale)})


def test_parts_add_up_and_are_what_was_planted() -> None:
    found = uncertainty.variance(group())
    assert found["aleatoric"].dims == ("case", "row")
    np.testing.assert_allclose(found["total"], found["aleatoric"] + found["epistemic"])
    np.testing.assert_allclose(found["aleatoric"], np.tile([0.01, 0.04, 0.09], (4, 1)))
    planted = np.array([0.0, 0.25, 1.0, 4.0])[:, None]
    error = np.abs(found["epistemic"] - planted)
    assert (error <= 6 * found["epistemic_mcse"] + 0.02 * planted).all()
    assert (found["epistemic"].values[0] == 0).all()


def test_a_mixture_of_draws_has_the_total_variance() -> None:
    """Values drawn through the draws: their variance is the total, by simulation."""
    data = group(chains=1, draws=400)
    found = uncertainty.variance(data, mcse=False)
    rng = np.random.default_rng(1)
    draw = rng.integers(400, size=200_000)
    loc, scale = data["loc"].values[0, draw, 1, 2], data["scale"].values[0, draw, 1, 2]
    values = loc + scale * rng.standard_normal(len(draw))
    squares = (values - data["loc"].values[0, :, 1, 2].mean()) ** 2
    assert_mean(squares, float(found["total"][1, 2]))


@pytest.mark.parametrize(
    ("likelihood", "factor"),
    [(Gaussian(), 1.0), (LaplaceNoise(), 2.0), (StudentT(df=6.0), 1.5)],
)
def test_the_aleatoric_part_is_the_variance_of_the_law(likelihood: object, factor: float) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    model = BayesianRegressor(net, likelihood)  # type: ignore[arg-type]
    images = [{"image": torch.randn(5, 1, 2, 2)}]
    tree = predict(model, PointEstimate(model), images, draws=2, progress=False)
    found = uncertainty.variance(tree)
    scale = tree["posterior/scale"].isel(chain=0, draw=0)
    np.testing.assert_allclose(found["aleatoric"], factor * scale**2, rtol=1e-6)
    assert (found["epistemic"] == 0).all()


def test_what_has_no_variance_is_refused() -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    model = BayesianRegressor(net, Quantiles((0.1, 0.9)))
    images = [{"image": torch.randn(5, 1, 2, 2)}]
    tree = predict(model, PointEstimate(model), images, draws=2, progress=False)
    with pytest.raises(ValueError, match="needs a classification model"):
        uncertainty.variance(tree)
    broken = group()
    broken["scale"][0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="scale holds NaN"):
        uncertainty.variance(broken)
    with pytest.raises(ValueError, match="needs at least two draws"):
        uncertainty.variance(group(1, 1))
    with pytest.raises(ValueError, match="holds no probs"):
        uncertainty.variance(group().drop_vars("scale"))
