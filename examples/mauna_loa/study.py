"""Nets and the Gaussian process of the study: how each is built, chosen and trained."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy import stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import (
    RBF,
    ConstantKernel,
    ExpSineSquared,
    RationalQuadratic,
    WhiteKernel,
)
from torch import nn

from mauna_loa.record import between, inputs
from ppl_med.analysis.scoring import elpd_heldout
from ppl_med.inference import (
    BernoulliDropout,
    Ensemble,
    MeanFieldNormal,
    PointEstimate,
    fit,
    predict,
)
from ppl_med.likelihoods import Gaussian
from ppl_med.models import BayesianRegressor
from ppl_med.storage import markdown_table
from ppl_med.weights import FanInNormal

WIDTH, MEMBERS = 64, 3


@dataclass(frozen=True)
class Recipe:
    """What the last training years choose.

    Attributes:
        noise: Start of the noise's standard deviation in units of the training values' own; tau is
            1 / (noise * their standard deviation)^2.
        gain: Of the prior over weights: its standard deviation is gain / sqrt(fan_in), and 1 / gain
            Gal's length scale.
    """

    noise: float
    gain: float


GRID = [Recipe(noise, gain) for noise in (0.1, 0.3) for gain in (1.0, 3.0)]


def build(method: str, num_inputs: int, recipe: Recipe, seed: int) -> tuple[Any, Any]:
    """Model and guide; the noise stays where the recipe puts it, but for the net that gives it."""
    torch.manual_seed(seed)
    own_noise = method == "heteroscedastic"
    net = nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(num_inputs, WIDTH), nn.ReLU()),
        *(nn.Linear(WIDTH, WIDTH), nn.ReLU()),
        nn.Linear(WIDTH, 2 if own_noise else 1),
    )
    likelihood = Gaussian(heteroscedastic=own_noise, init_scale=recipe.noise)
    model = BayesianRegressor(net, likelihood, FanInNormal(recipe.gain, bias_scale=recipe.gain))
    if method == "ensemble":
        return model, Ensemble(model, PointEstimate, MEMBERS, seed=10 * seed)
    if method == "point":
        return model, PointEstimate(model)
    if method == "mean_field":
        return model, MeanFieldNormal(model, estimator="auto")
    return model, BernoulliDropout(model, 0.1)


def trained(
    method: str,
    kind: str,
    training: xr.DataArray,
    recipe: Recipe,
    seed: int,
    steps: int,
    checkpoint: Path | None = None,
    device: str = "cpu",
) -> tuple[Any, Any]:
    """A net that has seen the training months, all of them in every step."""
    years = training["month"].values
    image = inputs(years, kind, years)
    model, guide = build(method, image.shape[1], recipe, seed)
    value = torch.tensor(training.values, dtype=torch.float32)
    rates: Any = 1e-2 if method == "heteroscedastic" else {"*log_scale": 0, "*": 1e-2}
    fit(
        model,
        guide,
        [{"image": image, "value": value}],
        epochs=steps,
        learning_rate=rates,
        schedule="cosine",
        seed=seed,
        device=device,
        checkpoint=checkpoint,
        resume=checkpoint is not None,
        progress=False,
    )
    return model, guide


def forecast(
    pair: tuple[Any, Any],
    kind: str,
    training: xr.DataArray,
    truth: xr.DataArray,
    draws: int,
    device: str = "cpu",
) -> xr.DataTree:
    """Draws of functions at the months of the truth."""
    image = inputs(truth["month"].values, kind, training["month"].values)
    value = torch.tensor(truth.values, dtype=torch.float32)
    batches = [{"image": image, "value": value}]
    each = draws // MEMBERS + 1 if isinstance(pair[1], Ensemble) else draws
    return predict(*pair, batches, draws=each, device=device, progress=False)


def chosen(
    method: str,
    kind: str,
    record: xr.DataArray,
    split: tuple[float, float],
    steps: int,
    draws: int,
    grid: list[Recipe],
    device: str = "cpu",
) -> tuple[Recipe, dict[Recipe, float]]:
    """The recipe with the highest log density of the last training years, and all of them.

    Nets see the months before ``split[0]``; those up to ``split[1]`` judge. An ensemble's recipe is
    that of one member; a net that gives its own noise has a prior to choose alone.
    """
    training, later = between(record, 0, split[0]), between(record, *split)
    own = "point" if method == "ensemble" else method
    if method == "heteroscedastic":
        grid = list({recipe.gain: recipe for recipe in grid}.values())
    found = {}
    for recipe in grid:
        pair = trained(own, kind, training, recipe, 0, steps, device=device)
        tree = forecast(pair, kind, training, later, draws, device)
        found[recipe] = float(elpd_heldout(tree, mcse=False)["elpd"].mean())
    return max(found, key=lambda recipe: found[recipe]), found


def plain(model: Any, guide: Any) -> tuple[Any, Any]:
    """Dropout as it is mostly used: the mean weights and no mask at prediction."""
    point = PointEstimate(model)
    with torch.no_grad():
        point.parts["weights"].value.copy_(guide.center())  # type: ignore[operator, union-attr]
    return model, point


def gaussian_process(training: xr.DataArray, starts: int, seed: int) -> Any:
    """The process of Rasmussen and Williams, section 5.4.3, at its best local optimum."""
    kernel = (
        ConstantKernel(66.0**2, (1e2, 1e6)) * RBF(67.0, (10.0, 1e3))
        + ConstantKernel(2.4**2, (1e-2, 1e3))
        * RBF(90.0, (5.0, 1e3))
        * ExpSineSquared(1.3, 1.0, (0.1, 10.0), "fixed")
        + ConstantKernel(0.66**2, (1e-3, 1e2)) * RationalQuadratic(1.2, 0.78)
        + ConstantKernel(0.18**2, (1e-4, 1e1)) * RBF(0.13, (0.02, 1.0))
        + WhiteKernel(0.19**2, (1e-4, 1.0))
    )
    process = GaussianProcessRegressor(
        kernel, n_restarts_optimizer=starts - 1, random_state=seed, alpha=0.0
    )
    loc = float(training.mean())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(training["month"].values[:, None], training.values - loc)
    return process, loc


def process_forecast(process: Any, loc: float, months: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of a measurement in ppm; the noise is part of the kernel."""
    mean, sd = process.predict(months[:, None], return_std=True)
    return mean + loc, sd


def coverage_by_origin(
    record: xr.DataArray, origins: tuple[int, ...], starts: int, seed: int
) -> str:
    """Markdown: the process of the months before each year, judged on the 20 years from it."""
    rows = []
    for origin in origins:
        process, loc = gaussian_process(record[record["month"] < origin], starts, seed)
        later = record[(record["month"] >= origin) & (record["month"] < origin + 20)]
        mean, sd = process_forecast(process, loc, later["month"].values)
        away = np.abs(later.values - mean)
        inside = float((away < stats.norm.ppf(0.95) * sd).mean())
        error = float(np.sqrt((away**2).mean()))
        rows.append([str(origin), f"{inside:.2f}", f"{error:.1f}"])
    return markdown_table(["trained before", "coverage of 90 % intervals", "RMSE ppm"], rows)
