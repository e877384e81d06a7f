"""The study from end to end."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from augmentations.options import Options
from torch import nn

from ppl_med import storage
from ppl_med.analysis import augmentation, scoring
from ppl_med.analysis.tree import average_augmentations
from ppl_med.data import Batches, flips_and_turns, load_malaria, standardization, symmetries
from ppl_med.data.readers.malaria import CLASS_NAMES
from ppl_med.inference import MeanFieldNormal, fit, predict_augmented
from ppl_med.models import BayesianClassifier
from ppl_med.plots.theme import new_panel
from ppl_med.weights import Normal

PARTS = ("model", "augmentation", "interaction")


def cells(options: Options, name: str, number: int) -> dict[str, Any]:
    """Some cells of a part, drawn at random, every second pixel."""
    arrays = load_malaria(options.data)[name]
    rows = np.random.default_rng(0).permutation(len(arrays["image"]))[:number]
    found = {key: np.asarray(arrays[key])[rows] for key in ("image", "label", "id")}
    return found | {"image": np.ascontiguousarray(found["image"][..., ::2, ::2])}


def network(channels: int, side: int) -> nn.Module:
    """Three convolutions and a linear layer."""
    return nn.Sequential(
        *(nn.Conv2d(channels, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(24 * (side // 8) ** 2, len(CLASS_NAMES))),
    )


def split(options: Options, *, turned: bool) -> dict[str, float]:
    """Train one net, and give the parts of its variance with their errors, and scores."""
    train, test = cells(options, "train", options.train), cells(options, "test", options.test)
    loc, scale = standardization(train["image"])
    same: dict[str, Any] = {"loc": loc, "scale": scale}
    augment = flips_and_turns if turned else None
    batches = Batches(
        train, batch_size=50, shuffle=True, seed=options.seed, augment=augment, **same
    )
    torch.manual_seed(options.seed)
    net = network(train["image"].shape[1], train["image"].shape[-1])
    model = BayesianClassifier(net, CLASS_NAMES, prior=Normal(0.3))
    guide = MeanFieldNormal(model, init_scale=0.02, estimator="shared")
    fit(
        model,
        guide,
        batches,
        epochs=options.epochs,
        learning_rate=3e-3,
        schedule="cosine",
        seed=options.seed,
        progress=False,
    )
    tree = predict_augmented(
        model,
        guide,
        Batches(test, batch_size=300, **same),
        symmetries(8),
        draws=options.draws,
        seed=options.seed,
        progress=False,
    )
    parts = augmentation.summary(tree)
    result = {str(name): float(value) for name, value in parts.items()}
    for name, one in (
        ("one", tree.isel(augmentation=0)),
        ("averaged", average_augmentations(tree)),
    ):
        scores = scoring.score(one)
        result |= {f"{name}_{key}": float(scores[key]) for key in ("accuracy", "nll")}
    return result


def picture(found: dict[str, dict[str, float]], path: Path) -> None:
    """Bars of the parts of both nets, with standard errors over draws and augmentations."""
    figure, axes = new_panel(6, 3.2)
    for index, (name, parts) in enumerate(found.items()):
        place = np.arange(len(PARTS)) + 0.38 * (index - 0.5)
        height = [parts[part] for part in PARTS]
        error = [parts[f"{part}_mcse"] for part in PARTS]
        axes.bar(place, height, 0.36, yerr=error, capsize=3, label=name)
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.set_xticks(range(len(PARTS)), PARTS)
    axes.set_ylabel("variance of a class probability")
    axes.legend(title="trained on", frameon=False)
    figure.savefig(path, dpi=150)


def main(options: Options) -> None:
    """Run both nets and write the table and the picture."""
    if options.smoke:
        options.train, options.test, options.epochs, options.draws = 200, 20, 1, 4
    options.out.mkdir(parents=True, exist_ok=True)
    found = {
        "cells as they are": split(options, turned=False),
        "flipped and turned cells": split(options, turned=True),
    }
    rows = [xr.Dataset(parts).expand_dims(trained_on=[name]) for name, parts in found.items()]
    table = xr.concat(rows, "trained_on")
    storage.save(table, options.out / "augmentations.nc")
    picture(found, options.out / "augmentations.png")
    for name, parts in found.items():
        print(f"{name}:")
        for part in (*PARTS, "total"):
            print(f"  {part:13s} {parts[part]:.5f} +- {parts[f'{part}_mcse']:.5f}")
        for one in ("one", "averaged"):
            print(f"  {one:9s} accuracy {parts[f'{one}_accuracy']:.3f}", end="")
            print(f"  NLL {parts[f'{one}_nll']:.3f}")
