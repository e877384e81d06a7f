"""Programs that users write, with stock guides, through fit, predict, functions, save and load."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.infer.autoguide.initialization import init_to_sample
from pyro.nn import PyroModule, PyroParam, PyroSample
from scipy import stats
from torch import Tensor, nn

from ppl_med.analysis import calibration, conformal, scoring
from ppl_med.axes import dims
from ppl_med.inference import MeanFieldNormal, fit, functions, load, predict, save
from ppl_med.models import BayesianClassifier
from ppl_med.networks import LeNet
from ppl_med.testing import check_guide, check_program

Batch = dict[str, Any]
Guide = Callable[..., Any]
CASES, HALF = 24, 12


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors are tiny here: a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(CASES, 1, 4, 4, generator=generator)
    y = 2 * image.mean((1, 2, 3)) + 0.5 * torch.randn(CASES, generator=generator) - 1
    return {"image": image, "y": y, "id": list(range(CASES))}


def halves(whole: Batch) -> list[Batch]:
    return [{k: v[:HALF] for k, v in whole.items()}, {k: v[HALF:] for k, v in whole.items()}]


# ------------------------------------------------------------------------------------ programs


def many_sites(image: Tensor, y: Tensor | None = None, *, num_cases: int | None = None) -> Tensor:
    """Supports of several kinds, and a plate that is not of cases."""
    feature = image.mean((2, 3)).squeeze(1)
    intercept = pyro.sample("intercept", dist.Normal(0.0, 2.0))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    share = pyro.sample("share", dist.Beta(2.0, 2.0))
    with pyro.plate("basis", 3):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    mean = intercept + share * (feature[:, None] ** torch.arange(1, 4) @ slope)
    pyro.deterministic("mean_slope", slope.mean())
    with pyro.plate("case", num_cases or len(image), subsample=image):
        pyro.sample("y", dist.Normal(mean, noise), obs=y)
    return mean


def with_factor(image: Tensor, y: Tensor | None = None, *, num_cases: int | None = None) -> Tensor:
    """A factor stands for one more observation of 3 with standard deviation 1."""
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    pyro.factor("belief", dist.Normal(level, 1.0).log_prob(torch.tensor(3.0)))
    mean = pyro.deterministic("mean", level.expand(len(image)))
    with pyro.plate("case", num_cases or len(image), subsample=image):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
    return mean


class Sampled(PyroModule):
    """A PyroModule whose layer has priors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = PyroModule[nn.Linear](16, 1)  # type: ignore[call-arg, arg-type]
        self.layer.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 16]).to_event(2))
        self.layer.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        self.noise: Any = PyroParam(torch.tensor(1.0), constraint=dist.constraints.positive)

    def forward(
        self, image: Tensor, y: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        mean = self.layer(image.flatten(1)).squeeze(-1)
        noise = self.noise
        with pyro.plate("case", num_cases or len(image), subsample=image):
            pyro.sample("y", dist.Normal(mean, noise), obs=y)
        return mean


def parametric() -> Callable[..., Any]:
    """A function with a registered network and parameters of Pyro's store."""
    torch.manual_seed(0)
    net = nn.Linear(16, 2)

    def model(image: Tensor, y: Tensor | None = None, *, num_cases: int | None = None) -> Tensor:
        layer = pyro.module("net", net)
        noise = pyro.param("noise", torch.tensor(1.0), constraint=dist.constraints.positive)
        mix = pyro.sample("mix", dist.Normal(0.0, torch.ones(2)).to_event(1), infer=dims("part"))
        mean = layer(image.flatten(1)) @ mix
        with pyro.plate("case", num_cases or len(image), subsample=image):
            pyro.sample("y", dist.Normal(mean, noise), obs=y)
        return mean

    return model


PROGRAMS: dict[str, Callable[[], Any]] = {
    "many_sites": lambda: many_sites,
    "with_factor": lambda: with_factor,
    "Sampled": Sampled,
    "parametric": parametric,
}
LATENTS = {
    "many_sites": {"intercept", "noise", "share", "slope"},
    "with_factor": {"level"},
    "Sampled": {"layer.weight", "layer.bias"},
    "parametric": {"mix"},
}
GUIDES: dict[str, Callable[[Any], Guide]] = {
    "MeanFieldNormal": lambda model: MeanFieldNormal(model, example=batch()),
    "AutoNormal": AutoNormal,
    "AutoDiagonalNormal": AutoDiagonalNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "AutoDelta": AutoDelta,
    "AutoLowRankMultivariateNormal": lambda model: AutoLowRankMultivariateNormal(model, rank=1),
}


def train(model: Any, guide: Any, batches: Any, **options: Any) -> xr.Dataset:
    return fit(model, guide, batches, progress=False, device="cpu", **options)


def draw(model: Any, guide: Any, batches: Any, **options: Any) -> xr.DataTree:
    return predict(model, guide, batches, progress=False, device="cpu", **options)


def pair(program: str, kind: str) -> tuple[Any, Any]:
    model = PROGRAMS[program]()
    return model, GUIDES[kind](model)


def assert_same(first: xr.DataTree, second: xr.DataTree) -> None:
    assert first.groups == second.groups
    for node in first.subtree:
        xr.testing.assert_equal(node.to_dataset(), second[node.path].to_dataset())


@pytest.mark.parametrize("kind", GUIDES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_program_and_guide_from_fit_to_load(program: str, kind: str, tmp_path: Path) -> None:
    model, guide = pair(program, kind)
    batches = halves(batch())
    check_program(model, batches[0])
    history = train(model, guide, batches, epochs=15, learning_rate=0.05)
    assert np.isfinite(history["elbo"]).all()
    assert float(history["elbo"][-6:].mean()) > float(history["elbo"][:6].mean())
    tree = draw(model, guide, batches, draws=3)
    assert_tree(tree, program)
    if kind == "AutoDelta":
        assert float(tree["posterior/loc"].std("draw").max()) < 1e-6
    else:
        assert float(tree["posterior/loc"].std("draw").min()) > 0
    assert_functions(tree, functions(model, guide, draws=3), batches)
    save(tmp_path / "trained.pt", model, guide)
    pyro.clear_param_store()
    other_model, other_guide = pair(program, kind)
    if kind != "MeanFieldNormal" or program == "parametric":  # parameters come with a first call
        other_guide(**{k: v for k, v in batches[0].items() if k != "id"})
    if program == "parametric":
        other_model(**{k: v for k, v in batches[0].items() if k != "id"})
    load(tmp_path / "trained.pt", other_model, other_guide)
    assert_same(tree, draw(other_model, other_guide, batches, draws=3))


def assert_tree(tree: xr.DataTree, program: str) -> None:
    whole = batch()
    posterior = tree["posterior"].to_dataset()
    assert LATENTS[program] <= set(posterior) and {"loc", "scale"} <= set(posterior)
    assert posterior["loc"].dims == ("chain", "draw", "case")
    assert posterior["case"].values.tolist() == whole["id"]
    np.testing.assert_array_equal(tree["observed_data/y"], whole["y"])
    expected = stats.norm.logpdf(whole["y"].numpy(), posterior["loc"], posterior["scale"])
    np.testing.assert_allclose(tree["log_likelihood/y"], expected, rtol=1e-9, atol=1e-9)
    assert np.isfinite(tree["posterior_predictive/y"]).all()
    if program == "many_sites":
        assert posterior["slope"].dims == ("chain", "draw", "basis")
        assert bool(((posterior["share"] > 0) & (posterior["share"] < 1)).all())
        assert bool((posterior["noise"] > 0).all())
        noise = posterior["noise"].broadcast_like(posterior["scale"])
        np.testing.assert_allclose(posterior["scale"], noise, rtol=1e-6)
    if program == "parametric":
        assert posterior["mix"].dims == ("chain", "draw", "part")


def assert_functions(tree: xr.DataTree, drawn: Any, batches: list[Batch]) -> None:
    for function in drawn:
        output = torch.cat([function(b["image"]) for b in batches]).detach()
        stored = tree["posterior/loc"].sel(chain=function.chain, draw=function.draw)
        np.testing.assert_allclose(output, stored, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["MeanFieldNormal", "AutoNormal"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_resumed_run_equals_the_whole_run(program: str, kind: str, tmp_path: Path) -> None:
    def run(path: Path, stop: int | None = None) -> tuple[xr.Dataset, xr.DataTree]:
        pyro.clear_param_store()
        torch.manual_seed(3)
        model, guide = pair(program, kind)
        steps = 0

        class Stopping(torch.optim.Adam):
            def step(self, closure: Any = None) -> Any:
                nonlocal steps
                steps += 1
                if steps == stop:
                    raise KeyboardInterrupt
                return super().step(closure)

        with pytest.raises(KeyboardInterrupt) if stop else contextlib.nullcontext():
            history = train(
                *(model, guide, halves(batch())),
                epochs=3,
                optimizer=lambda parameters: Stopping(parameters, lr=0.05),
                checkpoint=path,
                checkpoint_every=0.0,
                resume=True,
            )
            return history, draw(model, guide, halves(batch()), draws=2)
        return xr.Dataset(), xr.DataTree()

    run(tmp_path / "run.pt", stop=4)
    resumed, whole = run(tmp_path / "run.pt"), run(tmp_path / "whole.pt")
    xr.testing.assert_identical(resumed[0], whole[0])
    assert_same(resumed[1], whole[1])


# ------------------------------------------------------------------------------------ truth


def linear(image: Tensor, y: Tensor | None = None, *, num_cases: int | None = None) -> Tensor:
    """Linear in the weights, with known noise: the posterior is normal and known."""
    weight = pyro.sample("weight", dist.Normal(0.0, torch.ones(3)).to_event(1))
    mean = design(image) @ weight
    with pyro.plate("case", num_cases or len(image), subsample=image):
        pyro.sample("y", dist.Normal(mean, 0.5), obs=y)
    return mean


def design(image: Tensor) -> Tensor:
    """One, brightness of the upper and of the lower half, which are correlated; (case, 3)."""
    flat = image.flatten(1)
    upper, lower = flat[:, :8].mean(1), flat[:, 8:].mean(1)
    return torch.stack([torch.ones(len(image)), 3 * upper + lower, 3 * lower + upper], dim=1)


def exact() -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and covariance: (X'X/s^2 + I)^-1 X'y/s^2, and the inverse."""
    whole = batch()
    x, y = design(whole["image"]).double().numpy(), whole["y"].double().numpy()
    covariance = np.linalg.inv(x.T @ x / 0.25 + np.eye(3))
    return covariance @ x.T @ y / 0.25, covariance


@pytest.fixture(scope="module")
def fitted() -> Any:
    pyro.clear_param_store()
    guide = AutoMultivariateNormal(linear)
    train(linear, guide, [batch()], epochs=1000, learning_rate=0.02, schedule="cosine")
    return guide


def test_the_exact_posterior_is_recovered(fitted: Any) -> None:
    """Errors of the optimiser only, which dominate: the family holds the posterior."""
    mean, covariance = exact()
    posterior = fitted.get_posterior()
    sd = np.sqrt(np.diag(covariance))
    loc = posterior.mean.detach().double().numpy()
    assert (np.abs(loc - mean) < 0.1 * sd).all()
    found = posterior.covariance_matrix.detach().double().numpy()
    scaled = np.linalg.solve(np.linalg.cholesky(covariance), found)
    whitened = np.linalg.solve(np.linalg.cholesky(covariance), scaled.T)
    np.testing.assert_allclose(whitened, np.eye(3), atol=0.25)


def test_predictive_moments_follow_from_the_exact_posterior(fitted: Any) -> None:
    """Mean and variance of loc over draws: x'm and x'Vx, within draws and the optimiser's error."""
    mean, covariance = exact()
    draws = 400
    tree = draw(linear, fitted, [batch()], draws=draws)
    x = design(batch()["image"]).double().numpy()
    sd = np.sqrt(np.einsum("ci,ij,cj->c", x, covariance, x))
    loc = tree["posterior/loc"].isel(chain=0)
    limit = stats.norm.isf(1e-6 / 2 / CASES) / np.sqrt(draws)
    assert (np.abs(loc.mean("draw").values - x @ mean) < (0.1 * np.sqrt(3) + limit) * sd).all()
    np.testing.assert_allclose(loc.std("draw").values / sd, 1, atol=0.1 + limit)
    np.testing.assert_array_equal(tree["posterior/scale"], 0.5)


def test_a_factor_counts_in_the_posterior() -> None:
    """Conjugate: precision 1 + 1 + n, mean (3 + sum of y) / precision."""
    guide = AutoNormal(with_factor)
    train(with_factor, guide, [batch()], epochs=400, learning_rate=0.1, schedule="cosine")
    tree = draw(with_factor, guide, [batch()], draws=500)
    level = tree["posterior"].to_dataset()["level"].values.ravel()
    precision = 2 + CASES
    mean, sd = (3 + float(batch()["y"].sum())) / precision, precision**-0.5
    limit = stats.norm.isf(0.5e-6) / np.sqrt(500)
    assert abs(level.mean() - mean) < (0.1 + limit) * sd
    assert abs(level.std() / sd - 1) < 0.1 + limit


# ------------------------------------------------------------------------------------ zoo model


def test_stock_guide_over_a_classifier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = BayesianClassifier(LeNet(num_outputs=2, size=16), ["no", "yes"])
    label = torch.arange(CASES) % 2
    whole = {"image": torch.randn(CASES, 1, 16, 16) + label[:, None, None, None], "label": label}
    batches = halves(whole)
    guide = AutoNormal(model, init_loc_fn=init_to_sample, init_scale=0.01)
    with pytest.warns(UserWarning, match="nats per case, above 1000"):  # 24 cases, 53 000 weights
        history = train(model, guide, batches, epochs=10)
    assert float(history["elbo"][-4:].mean()) > float(history["elbo"][:4].mean())
    assert float(history["nll"][-4:].mean()) < float(history["nll"][:4].mean())
    check_guide(model, guide, batches[0])
    tree = draw(model, guide, batches, draws=2)
    assert tree["posterior/probs"].dims == ("chain", "draw", "case", "class")
    np.testing.assert_allclose(tree["posterior/probs"].sum("class"), 1, rtol=1e-12)
    assert tree["posterior/weight_norm"].sizes["layer"] == 10
    save(tmp_path / "trained.pt", model, guide)
    other = BayesianClassifier(LeNet(num_outputs=2, size=16), ["no", "yes"])
    other_guide = AutoNormal(other, init_loc_fn=init_to_sample, init_scale=0.01)
    other_guide(**batches[0])
    load(tmp_path / "trained.pt", other, other_guide)
    assert_same(tree, draw(other, other_guide, batches, draws=2))


# ------------------------------------------------------------------------------------ broadcasting


def line(column: bool, image: Tensor, y: Tensor | None = None, *, num_cases: Any = None) -> None:
    """y ~ N(3 mean(image), 1/2); a column where a vector is meant, as of a layer of one unit."""
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    mean = slope * image.mean((2, 3) if column else (1, 2, 3))
    with pyro.plate("case", num_cases or len(image), subsample=image):
        pyro.sample("y", dist.Normal(mean, 0.5), obs=y)


def local_line(image: Tensor, y: Tensor | None = None, *, num_cases: Any = None) -> None:
    """The latent of a case broadcasts, in the program and in a guide made from it."""
    with pyro.plate("case", num_cases or len(image), subsample=image):
        level = pyro.sample("level", dist.Normal(image.mean((2, 3)), 1.0))
        pyro.sample("y", dist.Normal(level[0], 0.5), obs=y)


def scored(model: Any, data: Batch, verb: str) -> Any:
    quiet: dict[str, Any] = {"progress": False}
    guide = AutoNormal(model)
    if verb == "check":
        return check_program(model, data)
    if verb == "fit":
        return fit(model, guide, [data], epochs=1, **quiet)
    if verb == "predict without y":
        data = {name: value for name, value in data.items() if name != "y"}
    return predict(model, None, [data], draws=1, **quiet)


@pytest.mark.parametrize("verb", ["fit", "check", "predict"])
@pytest.mark.parametrize(
    ("column", "wide"), [(False, True), (True, False)], ids=["column y", "column mean"]
)
def test_cases_are_not_scored_against_each_other(column: bool, wide: bool, verb: str) -> None:
    data = batch() | ({"y": batch()["y"][:, None]} if wide else {})
    error = AssertionError if verb == "check" else ValueError
    with pytest.raises(error, match=r"'y' has \(24,\) entries.*so that \(24, 24\)"):
        scored(functools.partial(line, column), data, verb)


@pytest.mark.parametrize("verb", ["fit", "check", "predict", "predict without y"])
def test_a_latent_that_broadcasts_is_refused(verb: str) -> None:
    error = AssertionError if verb == "check" else ValueError
    with pytest.raises(error, match=r"'level' has \(24,\) entries.*so that \(24, 24\)"):
        scored(local_line, batch(), verb)


def test_a_column_mean_is_refused_without_observations() -> None:
    with pytest.raises(ValueError, match=r"'y' has \(24,\) entries.*so that \(24, 24\)"):
        scored(functools.partial(line, True), batch(), "predict without y")


def test_validation_that_broadcasts_is_refused() -> None:
    model, data = functools.partial(line, False), batch()
    with pytest.raises(ValueError, match=r"'y' has \(24,\) entries.*its value shape \(24, 1\)"):
        fit(
            model,
            AutoNormal(model),
            [data],
            validation=[data | {"y": data["y"][:, None]}],
            progress=False,
        )


def test_columns_that_fit_each_other_keep_the_slope() -> None:
    model = functools.partial(line, False)
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(200, 1, 4, 4, generator=generator)
    y = 3 * image.mean((1, 2, 3)) + 0.1 * torch.randn(200, generator=generator)
    guide = AutoDelta(model)
    fit(model, guide, [{"image": image, "y": y}], epochs=200, learning_rate=0.1, progress=False)
    exact = float((image.mean((1, 2, 3)) @ y) / (image.mean((1, 2, 3)).square().sum() + 0.25 / 100))
    assert float(guide.median()["slope"]) == pytest.approx(exact, abs=1e-2)


# ----------------------------------------------------------------------- classes of one's own name


def graded(
    image: Tensor,
    site_id: Tensor,
    grade: Tensor | None = None,
    temperature: float = 1.0,
    *,
    num_cases: int | None = None,
) -> None:
    """grade ~ OrderedLogistic(slope * brightness + shift of the site)."""
    slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
    shift = pyro.sample("shift", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    score = (slope * image.mean((1, 2, 3)) + shift[site_id]) / temperature
    names = dims(classes=["low", "mid", "high"])
    with pyro.plate("case", num_cases or len(image), subsample=image):
        law = dist.OrderedLogistic(score, torch.tensor([-1.0, 1.0]))
        pyro.sample("grade", law, obs=grade, infer=names)


def graded_batch(cases: int = 60) -> Batch:
    generator = torch.Generator().manual_seed(5)
    image = torch.randn(cases, 1, 2, 2, generator=generator)
    score = 3 * image.mean((1, 2, 3)) + torch.randn(cases, generator=generator)
    return {
        "image": image,
        "site_id": torch.arange(cases) % 2,
        "grade": (score > -1).long() + (score > 1).long(),
        "id": [f"{k}" for k in range(cases)],
    }


def test_ordered_classes_of_ones_own_name_reach_every_analysis() -> None:
    data = graded_batch()
    check_program(graded, data)
    pyro.clear_param_store()
    guide = AutoNormal(poutine.block(graded, hide=["grade"]))
    fit(graded, guide, [data], epochs=60, learning_rate=0.05, progress=False)
    tree = predict(graded, guide, [data], draws=8, progress=False)
    probs = tree["posterior/probs"]
    assert probs.dims == ("chain", "draw", "case", "class")
    assert probs["class"].values.tolist() == ["low", "mid", "high"]
    assert probs.dtype == np.float64
    np.testing.assert_array_equal(tree["constant_data/site_id"], data["site_id"])
    np.testing.assert_array_equal(tree["observed_data/grade"], data["grade"])
    draws = tree["posterior"].to_dataset()
    score = draws["slope"] * xr.DataArray(data["image"].mean((1, 2, 3)).numpy(), dims="case")
    score = score + draws["shift"].values[:, :, data["site_id"].numpy()]
    first = 1 / (1 + np.exp(-(-1 - score)))
    np.testing.assert_allclose(probs.sel({"class": "low"}), first, atol=1e-6)
    expected = np.log(probs.isel({"class": xr.DataArray(data["grade"].numpy(), dims="case")}))
    np.testing.assert_allclose(tree["log_likelihood/grade"], expected, atol=1e-6)
    with xr.set_options(keep_attrs=True):
        named = tree.copy()
        for group in ("observed_data", "log_likelihood", "posterior_predictive"):
            named[group] = xr.DataTree(tree[group].to_dataset().rename(grade="label"))
    for analysis in (scoring.score, calibration.errors, scoring.confusion, scoring.elpd_heldout):
        xr.testing.assert_equal(analysis(tree), analysis(named))
    half = conformal.calibrate(tree.isel(case=slice(0, 30)), 0.2)
    sets = conformal.predict_sets(half, tree.isel(case=slice(30, 60)))
    assert int(sets["covered"].notnull().sum()) == 30


def test_an_argument_with_a_default_that_is_not_none_is_no_observation() -> None:
    check_program(graded, graded_batch(8) | {"temperature": torch.ones(8)})
