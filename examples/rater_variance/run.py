"""The study from end to end."""

from itertools import product
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from ppl_med import storage
from ppl_med.data import Batches, flips_and_turns_with_mask
from ppl_med.inference import (
    Ensemble,
    Guides,
    MeanFieldNormal,
    Noising,
    PointEstimate,
    cooldown,
    fit,
    predict,
)
from ppl_med.models import CategoricalDiffusion
from ppl_med.networks import DenoisingUNet
from ppl_med.storage import check_same, open_run
from rater_variance.discs import CLASSES, add_noise, discs
from rater_variance.options import Guide, Options
from rater_variance.results import draw_parts, table
from rater_variance.scores import random_masks, score


def posterior(options: Options, folder: Path, guide: Guide, number: int, seed: int) -> xr.DataTree:
    """Masks under a posterior that learnt from so many images; read where they are there."""
    path = folder / f"posterior-{options.split}-{guide}-{number}-{seed}.nc"
    if path.exists():
        kept = storage.load(path)
        assert isinstance(kept, xr.DataTree)
        return kept
    print(f"{guide}, {number} images, seed {seed}", flush=True)
    train = Batches(
        _of_model(discs(number, seed, "train")),
        batch_size=min(options.batch_size, number),
        shuffle=True,
        seed=seed,
        transform=[flips_and_turns_with_mask, add_noise],
    )
    steps = options.steps * (number / 512) ** 0.25
    torch.manual_seed(seed)
    net = DenoisingUNet(1, 2, 2, channels=(8,), image_channels=(8,), patch=4)
    model = CategoricalDiffusion(net, CLASSES, num_steps=options.chain_steps, hardening=0.3)
    weights = _mean_field(model) if guide == "mean_field" else _ensemble(model, options, seed)
    fit(
        model,
        weights,
        train,
        epochs=max(1, round(steps / len(train))),
        learning_rate=options.learning_rate,
        schedule=cooldown(),
        average=0.97,
        device=options.device,
        seed=seed * options.members,
        checkpoint=folder / f"checkpoint-{guide}-{number}-{seed}.pt",
        resume=options.resume,
        progress=False,
    )
    return predict(
        model,
        weights,
        Batches(_of_model(discs(options.cases, seed, options.split)), batch_size=options.cases),
        draws=options.draws if guide == "mean_field" else 1,
        samples=options.samples,
        seed=seed,
        device=options.device,
        store=path,
        progress=False,
    )


def _of_model(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: arrays[name] for name in ("image", "mask", "id")}


def _mean_field(model: CategoricalDiffusion) -> Guides:
    return Guides(MeanFieldNormal(model, estimator="shared"), Noising(model.noising))


def _ensemble(model: CategoricalDiffusion, options: Options, seed: int) -> Ensemble:
    def member(own: CategoricalDiffusion) -> Guides:
        return Guides(PointEstimate(own, use_prior=False), Noising(own.noising))

    return Ensemble(model, member, options.members, seed=seed * options.members)


def main(options: Options) -> None:
    """Run the study, print and save the table, draw the parts."""
    folder = open_run(options.out, resume=options.resume)
    if options.smoke:
        options.shrink()
    check_same(options, folder, free=("guide", "images", "seed", "split"))
    found = []
    for seed, number in product(options.seed, options.images):
        images = discs(options.cases, seed, options.split)
        train = discs(number, seed, "train")
        runs = {name: posterior(options, folder, name, number, seed) for name in options.guide}
        scored = {name: score(tree, images, train) for name, tree in runs.items()}
        scored["random masks"] = random_masks(train, images)
        for name, one in scored.items():
            found.append(one.expand_dims(guide=[name], images=[number], seed=[seed]))
    scores = xr.combine_by_coords(found, join="outer")
    assert isinstance(scores, xr.Dataset)
    scores = scores.sel(guide=[*options.guide, "random masks"])
    storage.save(scores, folder / "scores.nc")
    text = table(scores)
    storage.write_text(folder / "table.md", text + "\n")
    draw_parts(scores, folder / "parts.png")
    print(text)
