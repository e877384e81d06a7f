"""``from_mcmc``: samples of NUTS and of dicts through predict, functions and ArviZ."""

from typing import Any

import arviz_stats
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from ppl_med.axes import dims
from ppl_med.data import Batches
from ppl_med.inference import from_mcmc, functions, predict
from ppl_med.inference.guides.kept_draws import KeptChains

NOISE, DRAWS = 0.5, 100


def model(image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None) -> Tensor:
    """A regression on brightness, whose posterior is known in closed form."""
    weight = pyro.sample("weight", dist.Normal(0.0, torch.ones(2)).to_event(1), infer=dims("term"))
    bright = image.mean((1, 2, 3))
    mean = weight[..., :1] + weight[..., 1:] * bright
    with pyro.plate("case", num_cases or len(image), subsample=image):
        pyro.sample("label", dist.Normal(mean, NOISE), obs=label)
    return mean


def cases(num: int = 40, seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    image = torch.randn(num, 1, 1, 1)
    label = 1.0 - 2.0 * image.flatten() + NOISE * torch.randn(num)
    return {"image": image, "label": label, "id": [f"c{case}" for case in range(num)]}


def exact(data: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the weights."""
    design = np.stack([np.ones(len(data["label"])), data["image"].numpy().ravel()], 1)
    covariance = np.linalg.inv(np.eye(2) + design.T @ design / NOISE**2)
    return covariance @ design.T @ data["label"].numpy() / NOISE**2, covariance


@pytest.fixture(scope="module")
def sampled() -> MCMC:
    data = cases()
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(model, max_tree_depth=4), DRAWS, 40, disable_progbar=True)
    mcmc.run(data["image"], data["label"])
    return mcmc


def test_nuts_of_an_own_program_is_a_tree_that_arviz_reads(sampled):
    data = cases()
    tree = from_mcmc(
        model, sampled, [data], coords={"term": ["level", "slope"]},
        log_likelihood_of="training", progress=False,
    )  # fmt: skip
    weight = tree["posterior"].dataset["weight"]
    assert weight.dims == ("chain", "draw", "term")
    assert np.array_equal(weight[0], sampled.get_samples()["weight"].numpy())
    assert weight["term"].values.tolist() == ["level", "slope"]
    mean, covariance = exact(data)
    error = np.sqrt(np.diag(covariance) / (DRAWS / 4))  # at least a quarter of the draws count
    assert (np.abs(weight.mean(("chain", "draw")) - mean) < 5 * error).all()
    density = dist.Normal(model_mean(weight.values, data), NOISE).log_prob(data["label"])
    assert np.allclose(tree["log_likelihood"].dataset["label"], density, atol=1e-5)
    assert tree["posterior_predictive"].dataset["label"].shape == (1, DRAWS, 40)
    assert not tree["sample_stats"].dataset["diverging"].any()
    assert list(arviz_stats.summary(tree, var_names=["weight"]).index) == [
        "weight[level]", "weight[slope]",
    ]  # fmt: skip


def model_mean(weight: np.ndarray, data: dict[str, Any]) -> Tensor:
    return torch.from_numpy(weight[..., :1] + weight[..., 1:] * data["image"].numpy().ravel())


def test_samples_in_a_dict_are_chains_of_functions_of_new_cases():
    samples = {
        "weight": torch.arange(12.0).reshape(
            6, 1, 2
        ),  # as Predictive gives them, with an axis more
        "label": torch.zeros(6, 40),  # what Predictive drew of the observation
    }
    new = cases(5, seed=1)
    tree = from_mcmc(model, samples, [new], chains=2, progress=False)
    weight = tree["posterior"].dataset["weight"].values
    assert np.array_equal(weight.ravel(), np.arange(12))
    loc = tree["posterior"].dataset["loc"].values
    assert np.allclose(loc, model_mean(weight, new), atol=1e-6)
    few = from_mcmc(model, samples, [new], chains=2, draws=2, progress=False)
    assert np.array_equal(few["posterior"].dataset["weight"].values, weight[:, [0, 2]])
    guide = KeptChains([{"weight": samples["weight"][:3, 0]}, {"weight": samples["weight"][3:, 0]}])
    outputs = [function(new["image"]) for function in functions(model, guide, draws=3)]
    assert np.allclose(torch.stack(outputs), loc.reshape(6, 5), atol=1e-6)
    with pytest.raises(ValueError, match=r"draws must be .* from 1 to 3, got 4; 3 were kept"):
        predict(model, guide, [new], draws=4, progress=False)


def test_names_of_batches_may_differ():
    data = cases()
    arrays = {"image": data["image"].numpy(), "number": data["label"].numpy()}
    samples = {"weight": torch.zeros(4, 2)}
    batches = Batches(arrays, batch_size=20)
    tree = from_mcmc(model, samples, batches, keys={"number": "label"}, progress=False)
    assert "log_likelihood" in tree.children


def test_wrong_samples_say_what_is_wrong():
    new = [cases(3)]
    fault = r"no samples of \['weight'\], latents of the model; its sites are \['w'\]"
    with pytest.raises(ValueError, match=fault):
        from_mcmc(model, {"w": torch.zeros(4, 2)}, new)
    with pytest.raises(ValueError, match=r"'weight' have shape \(3,\) per draw, .* \(2,\)"):
        from_mcmc(model, {"weight": torch.zeros(4, 3)}, new)
    with pytest.raises(ValueError, match="chains=3 divides"):
        from_mcmc(model, {"weight": torch.zeros(4, 2)}, new, chains=3)
    with pytest.raises(TypeError, match=r"pyro.infer.MCMC or a dict of samples by site, got list"):
        from_mcmc(model, [torch.zeros(4, 2)], new)
    for coords, fault in (
        ({"terms": ["a", "b"]}, r"coords names \['terms'\]; the axes of the tree are .*'term'"),
        ({"term": ["a"]}, "coords has 1 names for 'term', which has 2 entries"),
    ):
        with pytest.raises(ValueError, match=fault):
            from_mcmc(model, {"weight": torch.zeros(4, 2)}, new, coords=coords, progress=False)
