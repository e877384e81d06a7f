"""Training a model and predicting with it, or picking up what an earlier call left."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro.poutine as poutine
import torch
import xarray as xr

from ambiguous_masks.options import ModelOptions
from ambiguous_masks.programs import Program
from ppl_med import storage
from ppl_med.analysis.statistics import case_means
from ppl_med.inference import cooldown, fit, predict

WEIGHT_DECAY = 1e-5
LATENT_PLANE = ("prob_unet", "image_to_image_vae")  # models with one code per case
GRID = np.linspace(-2, 2, 5)


def whole_epochs(options: ModelOptions, train: Any) -> None:
    """Turn the steps into those of the nearest number of epochs, at least one."""
    options.steps = max(1, round(options.steps / len(train))) * len(train)


class Run(NamedTuple):
    """A trained model and what it predicted."""

    model: Any  # None of copied masks, which have no history either
    tree: xr.DataTree
    history: xr.Dataset | None


def run(
    name: str,
    program: Program,
    options: ModelOptions,
    folder: Path,
    train: Any,
    test: Any,
    part: str,
    validation: Any = None,
) -> Run:
    """Train a model and predict the test cases; finished parts are read with --resume.

    Args:
        name: Which model.
        program: Model, guide and settings of ``fit``.
        options: Steps (whole epochs), draws, seed, device.
        folder: Of this model.
        train: Batches with one mask per image.
        test: Batches with every grader's mask.
        part: Name of the test cases, in the name of the file of their posterior.
        validation: Batches for a validation curve.
    """
    folder.mkdir(exist_ok=True)
    model, guide, settings = program
    # Dropout's penalty is its prior; the others' weights have none of their own.
    decay = 0.0 if name == "dropout_unet" else WEIGHT_DECAY
    print(f"{name}: {options.steps} steps")
    history = fit(
        model,
        guide,
        train,
        epochs=options.steps // len(train),
        optimizer=lambda weights: torch.optim.Adam(
            weights, options.rate, weight_decay=decay, fused=True
        ),
        schedule=cooldown(),
        precision=options.precision,
        device=options.device,
        seed=options.seed,
        checkpoint=folder / "checkpoint.pt",
        resume=options.resume,
        validation=validation,
        **settings,
    )
    storage.save(history, folder / "history.nc")
    tree = predict(
        model,
        guide,
        test,
        draws=1 if name == "ensemble" else options.draws,
        seed=options.seed,
        device=options.device,
        store=folder / f"posterior-{part}.zarr",
        resume=options.resume,
    )
    return Run(model, tree, history)


def sampled_masks(tree: xr.DataTree) -> xr.DataArray:
    """The most probable class of every pixel under each draw, (chain, draw, case, row, col)."""
    return tree["posterior/probs"].argmax("class").astype(np.int8).compute()


def decode_plane(model: Any, image: torch.Tensor) -> xr.DataArray:
    """Masks over the two latent dimensions that change them most, the others at the prior's mean.

    Args:
        model: A model with one code z per case.
        image: Of one case, dims (channel, row, col), as the model was given it.

    Returns:
        Class ids (second, first, row, col); ``first`` and ``second`` in standard deviations of
        the prior.
    """
    device = next(model.parameters()).device
    image = image.to(device)[None]
    with torch.no_grad():
        loc, scale = torch.zeros(model.latent_dim), torch.ones(model.latent_dim)
        if hasattr(model, "prior"):
            law = model.prior(image)
            loc, scale = law.mean[0].cpu(), law.stddev[0].cpu()

        def decode(codes: torch.Tensor) -> torch.Tensor:
            z = (loc + scale * codes).to(device)
            replayed = poutine.condition(model, data={"z": z})
            logits = replayed(image.expand(len(z), *image.shape[1:]))
            return logits.softmax(1).cpu()

        ends = 2 * torch.eye(model.latent_dim)
        change = (decode(ends) - decode(-ends)).abs().flatten(1).sum(1)
        first, second = change.argsort(descending=True)[:2].tolist()
        codes = torch.zeros(len(GRID), len(GRID), model.latent_dim)
        codes[..., first] = torch.tensor(GRID, dtype=torch.float32)
        codes[..., second] = torch.tensor(GRID, dtype=torch.float32)[:, None]
        masks = decode(codes.flatten(0, 1)).argmax(1)
    masks = masks.view(len(GRID), len(GRID), *masks.shape[1:]).numpy()
    axes = {"first": ("first", GRID, {"long_name": f"z{first + 1}"})}
    axes["second"] = ("second", GRID, {"long_name": f"z{second + 1}"})
    return xr.DataArray(masks, coords=axes, dims=("second", "first", "row", "col"))


def over_cases(scores: xr.Dataset, groups: np.ndarray | None = None) -> xr.Dataset:
    """Mean and standard error, ``<name>`` and ``<name>_se``, over cases or groups of them."""
    error = xr.Dataset({f"{n}_se": case_means.over_cases(scores[n], groups) for n in scores})
    return scores.mean("case").merge(error)


def ged_of_subsets(energy: xr.Dataset, num_samples: list[int]) -> xr.DataArray:
    """Biased GED² of n samples, the mean over all choices of n among those that were drawn.

    Args:
        energy: Of ``segmentation.ged`` with all samples.
        num_samples: Each n.

    Returns:
        Dims (case, num_samples).
    """
    n = xr.DataArray(num_samples, coords={"num_samples": num_samples}, dims="num_samples")
    # Of all pairs of n samples, one in n is a sample with itself, at distance 0.
    pairs = xr.where(n > 1, (1 - 1 / n) * energy["sample_sample_unbiased"], 0)
    return 2 * energy["sample_grader"] - pairs - energy["grader_grader"]


def cell(part: xr.Dataset, name: str) -> str:
    """A figure ± its standard error."""
    value = float(part[name]) if name in part else math.nan
    if not math.isfinite(value):
        return "∞" if math.isinf(value) else "–"
    if name == "modes_found":
        return f"{value:.0f}"
    error = float(part[f"{name}_se"]) if f"{name}_se" in part else math.nan
    return f"{value:.3f}" if math.isnan(error) else f"{value:.3f} ± {error:.3f}"
