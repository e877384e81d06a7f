"""Simulation-based calibration against linear regression, whose posterior has a closed form.

A right inference has p < 1e-6 of all quantities together in one run of a million. With 100
simulations of 15 draws the faults below had p < 1e-7 in each of 300 runs; here are 40 of 11, of one
seed.
"""

from functools import partial
from typing import Any

import arviz_plots
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from scipy import stats
from test_conjugate import NOISE, PRIOR_SCALE, LinearRegression, design, mean_model
from torch import Tensor, nn

from ppl_med import storage
from ppl_med.inference import (
    NUTS,
    BernoulliDropout,
    Ensemble,
    MeanFieldNormal,
    PointEstimate,
    sample,
)
from ppl_med.inference.guides.kept_draws import KeptChains
from ppl_med.models import BayesianClassifier
from ppl_med.testing import simulation_based_calibration

FALSE_ALARM = 1e-6
DRAWS, SIMULATIONS = 11, 40


def posterior(batch: Any, noise: float, scale: float) -> tuple[Tensor, Tensor]:
    """Mean and precision of (weight, weight, bias) for a noise and a prior scale."""
    columns = torch.cat([batch["features"], torch.ones(len(batch["features"]), 1).double()], dim=1)
    precision = columns.T @ columns / noise**2 + torch.eye(3).double() / scale**2
    return torch.linalg.solve(precision, columns.T @ batch["target"] / noise**2), precision


def closed_form(
    model: Any,
    batches: Any,
    seed: int,
    kind: str = "exact",
    noise: float = NOISE,
    scale: float = PRIOR_SCALE,
    draws: int = DRAWS,
) -> dict[str, Tensor]:
    """Draws of the posterior, or of something else."""
    torch.manual_seed(seed)
    (batch,) = batches
    mean, precision = posterior(batch, noise, scale)
    standard = torch.randn(draws, 3, dtype=torch.float64)
    if kind == "prior":
        return {"weights": scale * standard}
    if kind == "mean_field":
        return {"weights": mean + standard * precision.diagonal().rsqrt()}
    return {"weights": mean + standard @ torch.linalg.cholesky(torch.linalg.inv(precision)).T}


def correlated() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return design("correlated")


def calibrated(inference: Any, quantities: Any = ("weights", "loc"), **options: Any) -> Any:
    settings: dict[str, Any] = {
        "batch": {"features": correlated()["features"]},
        "simulations": SIMULATIONS,
        "draws": DRAWS,
        "progress": False,
    }
    model = options.pop("model", None) or LinearRegression()
    return simulation_based_calibration(model, inference, quantities, **{**settings, **options})


def p_values(tree: Any) -> dict[str, float]:
    found = tree["verdict/adjusted_p_value"]
    return dict(zip(found["quantity"].values.tolist(), found.values.tolist(), strict=True))


@pytest.fixture(scope="module")
def exact() -> Any:
    return calibrated(closed_form)


def test_the_exact_posterior_passes(exact):
    """False alarm: one in a million for the p-values, and for each size as a normal deviate."""
    found = exact["verdict"].to_dataset()
    assert min(p_values(exact).values()) > FALSE_ALARM
    assert found["quantity"].values.tolist()[:3] == ["weights[0]", "weights[1]", "weights[2]"]
    assert found["quantity"].values.tolist()[-1] == "log_likelihood"
    linear = found.isel(quantity=slice(0, -1))  # normal posteriors
    assert (np.abs(linear["width_ratio"] - 1) < 5.5 * linear["width_ratio_error"]).all()
    assert (np.abs(linear["bias"]) < 5.5 * linear["bias_error"]).all()
    assert set(found["shape"].values[found["passes"] == 1]) <= {"no fault seen"}


def test_plot_ecdf_pit_takes_the_tree(exact, tmp_path):
    assert dict(exact["prior_sbc/weights"].sizes) == {
        "chain": 1, "draw": SIMULATIONS, "weights_dim_0": 3,
    }  # fmt: skip
    arviz_plots.plot_ecdf_pit(exact, var_names=["weights", "log_likelihood"])
    arviz_plots.plot_ecdf_pit(exact, var_names=["loc"], coverage=True)
    storage.save(exact, tmp_path / "sbc.nc")
    xr.testing.assert_identical(storage.load(tmp_path / "sbc.nc"), exact)


def test_ranks_and_places_belong_together(exact):
    ranks, pit = exact["ranks/rank"].values, exact["prior_sbc/log_likelihood"].values[0]
    assert ranks.min() >= 0 and ranks.max() <= DRAWS
    assert (np.floor(pit * (DRAWS + 1)) == ranks[:, -1]).all()


@pytest.mark.parametrize(
    ("options", "faulty", "shape"),
    [
        ({"noise": 4 * NOISE}, "log_likelihood", "draws too low"),
        ({"noise": NOISE / 4}, "weights", "∪"),
        ({"scale": PRIOR_SCALE / 10}, "weights", "∪"),
        ({"kind": "prior"}, "log_likelihood", "draws too low"),
    ],
)
def test_faults_are_found(options, faulty, shape):
    tree = calibrated(partial(closed_form, **options))
    found = p_values(tree)
    shapes = dict(zip(found, tree["verdict/shape"].values.tolist(), strict=True))
    wrong = [n for n, p in found.items() if n.startswith(faulty) and p < FALSE_ALARM]
    assert any(shape in shapes[name] for name in wrong), (found, shapes)
    if options == {"kind": "prior"}:  # parameters and predictions see nothing
        assert min(p for name, p in found.items() if name != "log_likelihood") > FALSE_ALARM
        assert (np.abs(tree["verdict/width_ratio"].values[:3] - 1) < 0.5).all()


def optimal_guide(model: Any, batches: Any, seed: int) -> MeanFieldNormal:
    """The mean-field normal of the largest ELBO, in closed form."""
    mean, precision = posterior(batches[0], NOISE, PRIOR_SCALE)
    guide = MeanFieldNormal(model)
    part: Any = guide.parts["weights"]
    scale = precision.diagonal().rsqrt()
    with torch.no_grad():
        part.loc.copy_(mean)
        part.raw_scale.copy_(scale + torch.log(-torch.expm1(-scale)))
    return guide


@pytest.mark.parametrize(
    ("inference", "simulations"),
    [(optimal_guide, SIMULATIONS), (partial(closed_form, kind="mean_field"), 160)],
)
def test_the_width_ratio_of_mean_field_is_that_of_the_closed_form(inference, simulations):
    """Its variances are 1 / precision_ii, the right ones (precision^-1)_ii; 5.5 standard errors."""
    tree = calibrated(inference, ["weights"], simulations=simulations)
    _, precision = posterior(correlated(), NOISE, PRIOR_SCALE)
    expected = (precision.diagonal() * torch.linalg.inv(precision).diagonal()).rsqrt().numpy()
    found = tree["verdict"].to_dataset().isel(quantity=slice(0, 3))
    assert expected.min() < 0.75, "the design is correlated enough to be seen"
    assert (np.abs(found["width_ratio"] - expected) < 5.5 * found["width_ratio_error"]).all()
    if simulations > SIMULATIONS:
        assert all(shape.startswith("∪") for shape in found["shape"].values[expected < 0.6])
    assert np.abs(found["bias"]).max() < 5.5 * found["bias_error"].max()


def test_results_do_not_depend_on_workers(tmp_path):
    """Nor on having been interrupted; more simulations continue the same ones."""
    options: dict[str, Any] = {"simulations": 12, "draws": 7}
    alone = calibrated(closed_form, **options)
    xr.testing.assert_identical(calibrated(closed_form, workers=2, **options), alone)
    path = tmp_path / "sbc.nc"
    calibrated(closed_form, checkpoint=path, **{**options, "simulations": 10})
    kept = calibrated(closed_form, checkpoint=path, **options)
    xr.testing.assert_identical(kept, alone)
    with pytest.raises(ValueError, match="another run: seed differ"):
        calibrated(closed_form, checkpoint=path, seed=5, **options)
    with pytest.raises(ValueError, match="without lambdas"):
        calibrated(lambda *given: closed_form(*given), workers=2, **options)


def test_near_given_data():
    """Posterior SBC: 24 observed cases, from which every truth is drawn, and 24 simulated ones."""
    observed = correlated()
    options: dict[str, Any] = {"around": observed, "simulations": SIMULATIONS}
    good = calibrated(partial(closed_form, draws=SIMULATIONS), ["weights"], **options)
    assert min(p_values(good).values()) > FALSE_ALARM and "posterior_sbc" in good.children
    mean, precision = posterior(observed, NOISE, PRIOR_SCALE)
    truths = good["ranks/truth"].values[:, :3]
    centred = (truths - mean.numpy()) @ np.linalg.cholesky(precision.numpy())
    assert stats.kstest(centred.ravel(), "norm").pvalue > FALSE_ALARM
    wrong = partial(closed_form, draws=SIMULATIONS, noise=NOISE / 6)
    assert min(p_values(calibrated(wrong, ["weights"], **options)).values()) < FALSE_ALARM


# --- other programs


def levels(reading: Tensor, value: Tensor | None = None, *, num_cases: int | None = None) -> None:
    """A level per case around a common one: value_i ~ N(level_i, 1), level_i ~ N(mean, 1)."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()).double(), 1.0))
    pyro.deterministic("twice", 2 * mean)
    with pyro.plate("case", num_cases or len(reading), subsample=reading):
        level = pyro.sample("level", dist.Normal(mean, 1.0))
        pyro.sample("value", dist.Normal(level, 1.0), obs=value)


def exact_levels(model: Any, batches: Any, seed: int, blind: bool = False) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    value = batches[0]["value"]
    precision = 1 + len(value) / 2
    mean = value.sum() / 2 / precision + torch.randn(DRAWS, 1).double() * precision**-0.5
    shape = (DRAWS, len(value))
    given = mean.expand(shape) if blind else (mean + value) / 2
    noise = torch.randn(shape).double() * (1.0 if blind else 0.5**0.5)
    return {"mean": mean[:, 0], "level": given + noise}


def test_latents_of_cases_are_ranked_with_their_likelihood():
    options: dict[str, Any] = {"model": levels, "batch": {"reading": torch.zeros(5).double()}}
    good = calibrated(exact_levels, None, **options)
    names = good["verdict"]["quantity"].values.tolist()
    assert names == ["mean", "loc[0]", "loc[1]", "loc[2]", "loc[3]", "log_likelihood"]
    assert min(p_values(good).values()) > FALSE_ALARM
    blind = calibrated(partial(exact_levels, blind=True), ["mean", "twice"], **options)
    found = p_values(blind)
    assert found["log_likelihood"] < FALSE_ALARM < min(found["mean"], found["twice"])
    with pytest.raises(ValueError, match=r"no draws of \['level'\]"):
        calibrated(lambda *given: {"mean": torch.zeros(DRAWS)}, None, **options)


def test_members_are_ranked_as_what_they_are():
    """Point estimates have no width; two of them share the draws."""

    def members(model: Any, batches: Any, seed: int) -> Ensemble:
        ensemble = Ensemble(model, PointEstimate, members=2, seed=seed % 1000)
        mean, _ = posterior(batches[0], NOISE, PRIOR_SCALE)
        for _, guide in ensemble.members:
            with torch.no_grad():
                next(guide.parameters()).copy_(mean)
        return ensemble

    found = calibrated(members, ["weights"], draws=12)["verdict"].to_dataset()
    assert (found["width_ratio"] == 0).all() and (found["passes"] == 0).all()
    with pytest.raises(ValueError, match="pass a multiple"):
        calibrated(members, ["weights"], draws=11, simulations=10)


def test_kept_chains_are_thinned_evenly():
    def chains(model: Any, batches: Any, seed: int) -> KeptChains:
        weights = torch.arange(80).double().view(2, 40, 1).expand(2, 40, 3)
        return KeptChains([{"weights": one} for one in weights])

    tree = calibrated(chains, ["weights"], simulations=10, draws=5)
    assert tree["ranks/mean"].values[0, 0] == np.mean([0, 20, 40, 59, 79])
    with pytest.raises(ValueError, match="left 80 draws"):
        calibrated(chains, ["weights"], simulations=10, draws=81)


def test_functions_of_a_net_are_ranked_at_given_inputs():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    model = BayesianClassifier(net, ["a", "b", "c"])
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "model": model, "simulations": 10, "batch": {"image": torch.randn(6, 1, 2, 2).double()},
    }  # fmt: skip

    def untrained(model: Any, batches: Any, seed: int) -> MeanFieldNormal:
        assert batches[0]["label"].dtype == torch.int64
        return MeanFieldNormal(model)

    tree = calibrated(untrained, None, at={"image": torch.zeros(2, 1, 2, 2).double()}, **options)
    assert set(tree["prior_sbc"].data_vars) == {"probs", "log_likelihood"}
    assert dict(tree["prior_sbc/probs"].sizes)["probs_dim_0"] == 2
    ranked = calibrated(untrained, {"odds": lambda v: v["probs"][0, 1].logit()}, **options)
    assert ranked["verdict"]["quantity"].values.tolist() == ["odds", "log_likelihood"]
    with pytest.raises(ValueError, match="cannot be calibrated by simulation"):
        calibrated(lambda model, *_: BernoulliDropout(model), None, **options)


def test_what_has_no_prior_must_stay():
    class Learned(LinearRegression):
        def __init__(self) -> None:
            super().__init__()
            self.offset = nn.Parameter(torch.zeros(()).double())

    def learns(model: Any, batches: Any, seed: int) -> dict[str, Tensor]:
        with torch.no_grad():
            model.offset += 1
        return closed_form(model, batches, seed)

    with pytest.raises(ValueError, match="changed 'offset' of the model, which has no prior") as e:
        calibrated(learns, model=Learned())
    assert e.value.__notes__ == ["in simulation 0 of seed 0"]


def test_every_simulation_has_a_fresh_model_and_store():
    seen = []

    def inference(model: Any, batches: Any, seed: int) -> dict[str, Tensor]:
        assert not hasattr(model, "mark") and not list(pyro.get_param_store().keys())
        model.mark = True
        pyro.param("left", torch.ones(()))
        seen.append((seed, batches[0]["target"].sum().item()))
        return closed_form(model, batches, seed)

    model = LinearRegression()
    batch = {"features": correlated()["features"]}
    state = torch.get_rng_state()
    calibrated(inference, ["weights"], simulations=10, batch=batch, model=model)
    assert len(set(seen)) == 10 and not list(pyro.get_param_store().keys())
    assert torch.equal(torch.get_rng_state(), state)


def factored(data: Tensor, *, num_cases: int | None = None) -> None:
    mean_model(data, num_cases=num_cases)
    pyro.factor("pull", torch.zeros(()))


def test_what_generates_its_input_is_simulated_too():
    """The program's one argument is what it observes, as a VAE's image is."""
    options: dict[str, Any] = {"batch": {"data": torch.zeros(8).double()}, "model": mean_model}

    def exact(model: Any, batches: Any, seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        precision = 1 / 4 + 8 / 0.25
        mean = batches[0]["data"].sum() / 0.25 / precision
        return {"mean": mean + torch.randn(DRAWS).double() * precision**-0.5}

    assert min(p_values(calibrated(exact, ["mean"], **options)).values()) > FALSE_ALARM
    with pytest.raises(ValueError, match="has the factor 'pull'"):
        calibrated(exact, ["mean"], **{**options, "model": factored})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"simulations": 5}, "simulations must be"),
        ({"draws": 2}, "draws must be"),
        ({"level": 1.0}, "level must be"),
        ({"workers": 0}, "workers must be"),
        ({"checkpoint": "sbc.zarr"}, "ends in .nc"),
        ({"quantities": ["slope"]}, r"quantities names \['slope'\]"),
        ({"inference": lambda *given: 3}, "must return a guide"),
        ({"quantities": {"none": lambda v: v["loc"] * np.nan}}, "'none' is NaN"),
    ],
)
def test_bad_arguments_are_named(options, message):
    inference = options.pop("inference", closed_form)
    with pytest.raises((ValueError, TypeError), match=message):
        calibrated(inference, options.pop("quantities", ["weights"]), **options)


def sampled(model: Any, batches: Any, seed: int) -> KeptChains:
    return sample(model, batches, NUTS(), draws=44, warm_up=80, chains=1, seed=seed, progress=False)


@pytest.mark.slow
def test_nuts_passes():
    """A mean under a normal prior; every fourth draw, which are nearly independent there."""
    batch = {"data": torch.zeros(6).double()}
    tree = calibrated(sampled, ["mean"], model=mean_model, batch=batch, simulations=30)
    assert min(p_values(tree).values()) > FALSE_ALARM
    found = tree["verdict"].to_dataset().isel(quantity=0)
    assert abs(found["width_ratio"] - 1) < 5.5 * found["width_ratio_error"]
