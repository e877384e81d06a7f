"""A latent code a case: the label frequencies of readers who disagree, and what the guide says.

Truth: labels were set with known frequencies given the image, without noise of their own, so what
separates prediction and truth is Monte Carlo error (tested) and optimisation (a stated tolerance).
"""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyro.poutine as poutine
import pytest
import torch
import xarray as xr
from scipy import stats

from ppl_med.data import Batches
from ppl_med.inference import ConditionalNormal, fit, predict
from ppl_med.models import LatentClassifier
from ppl_med.networks import GaussianEncoder
from ppl_med.programs.sites import sample_sites
from ppl_med.testing import assert_mean, assert_uniform

FREQUENCIES = (0.3, 0.9)  # of "lesion", by image type
READINGS, DRAWS, HELD_OUT = 100, 200, 5
LATENT, WIDTH = 2, 4
TOLERANCE = 0.05  # the standard deviation of a frequency among 100 readings is 0.03 to 0.046


def images(kind: int, cases: int) -> torch.Tensor:
    """Dark or bright discs of a little noise."""
    generator = torch.Generator().manual_seed(kind)
    noise = 0.1 * torch.randn(cases, 1, 8, 8, generator=generator)
    return noise + (2.0 * kind - 1)


def readings() -> dict[str, Any]:
    label = [torch.arange(READINGS) < f * READINGS for f in FREQUENCIES]
    image = [images(kind, READINGS) for kind in range(2)]
    return {"image": torch.cat(image), "label": torch.cat(label).long()}


@pytest.fixture(scope="module")
def pair() -> tuple[LatentClassifier, ConditionalNormal]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LatentClassifier(1, ("normal", "lesion"), LATENT, WIDTH)
        guide = ConditionalNormal(GaussianEncoder(1, LATENT, WIDTH, num_classes=2))
    return model, guide


@pytest.fixture(scope="module")
def tree(pair: tuple[LatentClassifier, ConditionalNormal]) -> Iterator[xr.DataTree]:
    batches = Batches(readings(), batch_size=2 * READINGS)
    with warnings.catch_warnings():
        # One label a case leaves the frequencies to the head alone: z may explain nothing.
        warnings.filterwarnings("ignore", message="posterior collapse")
        history = fit(
            *pair, batches, epochs=100, learning_rate=0.03, schedule="cosine", progress=False
        )
    entropy = -np.mean([f * np.log(f) + (1 - f) * np.log(1 - f) for f in FREQUENCIES])
    assert -history["elbo"].values[-20:].mean() < entropy + 0.05
    held_out = [{"image": torch.cat([images(kind, HELD_OUT) for kind in range(2)])}]
    yield predict(*pair, held_out, draws=DRAWS, seed=3, progress=False)


@pytest.mark.parametrize("kind", [0, 1])
def test_draws_have_the_readers_frequencies(tree: xr.DataTree, kind: int) -> None:
    cases = slice(kind * HELD_OUT, (kind + 1) * HELD_OUT)
    probs_of: Any = tree["posterior/probs"]
    label_of: Any = tree["posterior_predictive/label"]
    probs = probs_of.isel({"case": cases, "class": 1}).values.ravel()
    label = label_of.isel(case=cases).values.ravel()
    assert abs(probs.mean() - FREQUENCIES[kind]) < TOLERANCE
    assert_mean(label - probs, 0.0)


def test_without_a_label_z_follows_the_models_prior(
    pair: tuple[LatentClassifier, ConditionalNormal], tree: xr.DataTree
) -> None:
    model, _ = pair
    image = torch.cat([images(kind, HELD_OUT) for kind in range(2)])
    with torch.no_grad():
        law: Any = model.prior(image)
    z = tree["posterior/z"].transpose("chain", "draw", "case", "latent").values[0]
    levels = stats.norm.cdf(z, law.base_dist.loc.numpy(), law.base_dist.scale.numpy())
    assert_uniform(levels.ravel())


def test_the_guide_is_silent_without_a_label(
    pair: tuple[LatentClassifier, ConditionalNormal],
) -> None:
    guide = pair[1]
    image = images(0, 4)
    assert sample_sites(poutine.trace(guide).get_trace(image)) == {}
    assert sample_sites(poutine.trace(guide).get_trace(image, None, num_cases=9)) == {}
    assert sample_sites(poutine.trace(guide).get_trace(image=image, label=None)) == {}


def test_with_a_label_the_guide_proposes_what_its_encoder_says(
    pair: tuple[LatentClassifier, ConditionalNormal],
) -> None:
    guide = pair[1]
    image, label = images(0, 4), torch.tensor([0, 1, 1, 0])
    with torch.no_grad():
        expected: Any = guide.encoder(image, label)
        by_name = poutine.trace(guide).get_trace(image=image, label=label)
        by_place = poutine.trace(guide).get_trace(image, label, num_cases=12)
    for trace in (by_name, by_place):
        assert set(sample_sites(trace)) == {"z"}
        fn: Any = trace.nodes["z"]["fn"]
        assert torch.equal(fn.base_dist.loc, expected.base_dist.loc)
        assert torch.equal(fn.base_dist.scale, expected.base_dist.scale)
    assert by_place.nodes["z"]["scale"] == 3
