"""Does the Probabilistic U-Net recover a law of masks that is known? Generators A and B.

The thresholds are those of the specification. A plain ELBO with a normal guide leans towards
frequent modes even at its optimum (a mode KL of about 0.05); the importance-weighted bound does so
less, and is what the last third of the steps train.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from ppl_med.analysis import segmentation
from ppl_med.data import SCENE_FLIPS, Batches, FreshBatches, lesions, scenes
from ppl_med.inference import ConditionalNormal, ImportanceWeighted, cooldown, fit, predict, warm_up
from ppl_med.models import ProbabilisticUNet

SIZES: dict[str, Any] = {"channels": (16, 32, 48, 48), "num_convolutions": 2}
TINY: dict[str, Any] = {"channels": (8, 12), "num_convolutions": 1}
BATCH, SIZE = 32, 32
FAST: dict[str, Any] = {"schedule": "constant", "learning_rate": 3e-3}


def scene_model(sizes: dict[str, Any], seed: int) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    return program(SCENE_FLIPS.class_names, sizes)


def program(classes: Sequence[str], sizes: dict[str, Any]) -> tuple[Any, Any]:
    model = ProbabilisticUNet(1, classes, **sizes)
    guide = ConditionalNormal(model.posterior_net(), observation="mask")
    for part in (model, guide):
        part.to(memory_format=torch.channels_last)
    return model, guide


def train(pair: tuple[Any, Any], generate: Any, steps: int, seed: int, **settings: Any) -> Any:
    keep = ("image", "mask")
    batches = FreshBatches(generate, batch_size=BATCH, num_batches=50, seed=seed, keep=keep)
    chosen: dict[str, Any] = {"learning_rate": 1e-3, "schedule": cooldown(), "progress": False}
    return fit(*pair, batches, epochs=max(1, steps // 50), seed=seed, **(chosen | settings))


def regions(arrays: dict[str, Any]) -> xr.DataArray:
    return xr.DataArray(
        arrays["unflipped_mask"], dims=("case", "row", "col"), coords={"case": arrays["id"]}
    )


def test_a_mean_over_pixels_with_beta_10_collapses_and_is_flagged() -> None:
    """The most copied mistake: it is a KL weight of 10 times the number of pixels."""
    with pytest.warns(UserWarning, match="posterior collapse: the latent 'z'"):
        train(scene_model(TINY, 0), scenes, 200, 0, kl_weight=10.0 * SIZE**2, **FAST)


@pytest.mark.slow
def test_a_collapsed_model_predicts_one_mode() -> None:
    """Its energy distance is that of the likeliest mode alone, .3906."""
    pair = scene_model(SIZES, 0)
    with pytest.warns(UserWarning, match="posterior collapse"):
        history = train(pair, scenes, 500, 0, kl_weight=10.0 * SIZE**2)
    assert history["kl"].values[-20:].mean() < 0.01
    arrays = scenes(100, seed=10**6)
    test = Batches({name: arrays[name] for name in ("image", "id")}, batch_size=100)
    tree = predict(*pair, test, draws=16, progress=False)
    assert energy(tree, arrays) > 0.35


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_all_modes_of_the_scenes_are_found_at_their_frequencies(seed: int) -> None:
    pair = scene_model(SIZES, seed)
    objective = ImportanceWeighted(8, elbo_steps=2200)
    # So many pixels outweigh the KL: its weight keeps out of z what the mask does not need.
    settings: dict[str, Any] = {"precision": "bfloat16", "schedule": cooldown(0.3)}
    settings["kl_weight"] = warm_up(0.5, start=4.0)
    history = train(pair, scenes, 3200, seed, objective=objective, **settings)
    arrays = scenes(200, seed=10**6)
    test = Batches({name: arrays[name] for name in ("image", "id")}, batch_size=100)
    tree = predict(*pair, test, draws=160, progress=False)
    switches = dict(zip(SCENE_FLIPS.classes, SCENE_FLIPS.new_classes, strict=True))
    found: Any = segmentation.flips(tree, regions(arrays), switches, SCENE_FLIPS.probabilities)
    assert 3.17 <= -history["bound"].values[-100:].mean() <= 19  # the entropy of the modes, or more
    assert 3.17 <= history["kl"].values[-100:].mean() <= 14
    assert int(found["modes_found"]) == 32
    assert float(found["kl_empirical_true"]) <= 0.12
    assert float(found["total_variation"]) <= 0.18
    assert abs(found["flip_mean"].values - SCENE_FLIPS.probabilities).max() <= 0.06
    assert found["consistency_mean"].values.min() >= 0.96
    off_diagonal = found["correlation"].values[~np.eye(5, dtype=bool)]
    assert abs(off_diagonal).max() <= 0.20
    assert energy(tree, arrays) <= 0.075


def energy(tree: Any, arrays: dict[str, Any]) -> float:
    """GED^2 of 16 samples against the exact law of the 32 modes."""
    masks = np.stack([SCENE_FLIPS.mode_masks(mask) for mask in arrays["unflipped_mask"]])
    modes = xr.DataArray(
        masks, dims=("case", "grader", "row", "col"), coords={"case": arrays["id"]}
    )
    weights = SCENE_FLIPS.mode_probabilities()
    probs = tree["posterior/probs"].isel(draw=slice(16))
    found: Any = segmentation.ged(probs, modes, grader_weights=weights)
    return float(found["biased_mean"])


@pytest.mark.slow
def test_presence_of_a_lesion_is_calibrated_given_the_image() -> None:
    """Codes between "none" and "some" decode to specks; half the least lesion is none."""
    torch.manual_seed(0)
    sizes = {"channels": (8, 16, 32, 32), "num_convolutions": 2, "prior_components": 4}
    pair = program(("background", "lesion"), sizes)
    settings: dict[str, Any] = {"precision": "bfloat16", "schedule": cooldown(0.6)}
    train(pair, partial(lesions, num_graders=None), 5000, 0, **settings)
    arrays = lesions(1000, num_graders=4, seed=10**6)
    test = Batches({name: arrays[name] for name in ("image", "id")}, batch_size=100)
    tree = predict(*pair, test, draws=64, progress=False)
    truth = xr.DataArray(arrays["presence_probability"], dims="case", coords={"case": arrays["id"]})
    area = (arrays["mask"] > 0).sum((-2, -1))
    least = int(area[area > 0].min()) // 2
    found: Any = segmentation.presence_reliability(tree, truth, min_pixels=least)
    assert 0.85 <= float(found["slope"]) <= 1.15
    assert float(found["ece"]) <= 0.03
