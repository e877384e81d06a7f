"""Temperatures of sites: shared, shrunk where cases are few, and those of a plain fit elsewhere."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from labelled_trees import calibrated_labels, labelled_tree, tempered
from posterior_trees import array, random_probs
from pyro.infer.autoguide import AutoNormal

from ppl_med.analysis import calibration, scoring
from ppl_med.inference import fit, predict
from ppl_med.models.site_temperature import SiteTemperature
from ppl_med.testing import check_guide, check_program

SITES = ("north", "east", "south", "small", "new")
CASES = (400, 400, 400, 15, 0)
TEMPERATURES = np.array([1.5, 2.0, 2.5, 4.0, 1.0])


def site_batch(seed: int = 0) -> dict[str, Any]:
    """Log-probabilities too confident by a known temperature, labels from the calibrated ones."""
    probs = random_probs(chains=1, draws=1, cases=sum(CASES), seed=seed).values[0, 0]
    site = np.repeat(np.arange(5), CASES)
    label = calibrated_labels(probs, np.random.default_rng(seed))
    log_probs = np.log(tempered(probs, TEMPERATURES[site][:, None]))
    return {
        "image": torch.tensor(log_probs, dtype=torch.float32)[..., None, None],
        "site": torch.tensor(site),
        "label": torch.tensor(label),
        "id": [f"seed-{seed} case-{index}" for index in range(len(label))],
    }


def normalised(batch: dict[str, Any]) -> np.ndarray:
    """Probabilities (case, class)."""
    probs = np.exp(batch["image"].flatten(1).double().numpy())
    return probs / probs.sum(1, keepdims=True)


def prepared(batch: dict[str, Any]) -> tuple[SiteTemperature, AutoNormal]:
    """The program and its guide, whose parameters its first call makes."""
    model = SiteTemperature(SITES, ["a", "b", "c"])
    guide = AutoNormal(model)
    guide(**{name: batch[name] for name in ("image", "site", "label")})
    return model, guide


@pytest.fixture(scope="module")
def posterior() -> tuple[xr.DataTree, xr.DataTree]:
    """Trees of the cases learnt from, and of others."""
    batch = site_batch()
    model, guide = prepared(batch)
    fit(model, guide, [batch], epochs=400, learning_rate=0.04, schedule="cosine", progress=False)
    trees = [predict(model, guide, [b], draws=100, progress=False) for b in (batch, site_batch(1))]
    return trees[0], trees[1]


def test_the_programs_keep_their_contracts() -> None:
    batch = site_batch()
    model, guide = prepared(batch)
    check_program(model, batch)
    check_guide(model, guide, batch)


def test_temperatures_are_those_of_a_plain_fit_drawn_to_the_centre(
    posterior: tuple[xr.DataTree, xr.DataTree],
) -> None:
    """Given the law over sites, a site is a normal mean problem: precisions add."""
    found = array(posterior[0], "posterior/log_temperature")
    assert found["site"].values.tolist() == list(SITES)
    loc, scale = found.mean(("chain", "draw")).values, found.std(("chain", "draw")).values
    centre = float(array(posterior[0], "posterior/log_temperature_mean").mean())
    spread = array(posterior[0], "posterior/log_temperature_scale")
    precision = float((spread**-2.0).mean())
    batch = site_batch()
    probs = normalised(batch)
    for index in range(3):
        rows = batch["site"].numpy() == index
        plain = calibration.fit(labelled_tree(probs[rows], batch["label"].numpy()[rows]))
        estimate = np.log(float(plain["temperature"]))
        weight = (float(plain["temperature"]) / float(plain["temperature_se"])) ** 2
        exact = (weight * estimate + precision * centre) / (weight + precision)
        # Left: the optimiser's noise, and the skewness of the likelihood.
        assert abs(loc[index] - exact) < 0.5 * scale[index]
        assert 0.7 < scale[index] * (weight + precision) ** 0.5 < 1.4
    rows = batch["site"].numpy() == 3
    few = calibration.fit(labelled_tree(probs[rows], batch["label"].numpy()[rows]))
    assert centre < loc[3] < np.log(float(few["temperature"]))
    assert scale[:3].max() < scale[3] < scale[4]
    assert abs(loc[4] - centre) < 0.3 * scale[4]


def test_other_cases_are_calibrated(posterior: tuple[xr.DataTree, xr.DataTree]) -> None:
    tree = posterior[1]
    batch = site_batch(1)
    before = labelled_tree(normalised(batch), batch["label"].numpy())
    assert float(scoring.score(tree)["nll"]) < float(scoring.score(before)["nll"]) - 0.05
    errors = calibration.errors(tree, replicates=20)
    assert float(errors["ece"]) < float(calibration.errors(before, replicates=0)["ece"]) / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(([], ["a"]), "sites must"), ((["x"], ["a"], 0.0), "centre_scale must")],
)
def test_misuse_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SiteTemperature(*arguments)
