"""Raters who differ, weights that are not known: does a diffusion of masks tell the two apart?

Small images show a disc that raters outline narrowly or widely, with a probability that the image
tells. So the variance of the area between raters is known for every image. A categorical diffusion
learns from a fixed number of images, each annotated once by one rater; masks with the same weights
differ as raters do, and means over masks of different weights differ as far as the weights are not
known. With more images the second should fall, and the first stay where the truth is.

Needs no data. Writes to the output folder

    checkpoint-<guide>-<images>-<seed>.pt          trained networks
    posterior-<split>-<guide>-<images>-<seed>.nc   sampled masks of the images to compare on
    scores.nc, table.md                            both parts of the variance, errors, differences
    parts.png                                      the parts against the number of images
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
import xarray as xr
from rater_variance.discs import CLASSES, add_noise, discs
from rater_variance.results import draw_parts, table
from rater_variance.scores import random_masks, score

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

Guide = Literal["ensemble", "mean_field"]


@dataclass
class Options:
    """Split the variance of sampled masks, with few and with many training images."""

    guide: tuple[Guide, ...] = ("ensemble",)
    """Posteriors over the weights."""
    images: tuple[int, ...] = (32, 128, 512)
    """Numbers of training images; the smaller sets are part of the larger."""
    seed: tuple[int, ...] = (0, 1, 2, 3)
    """Seeds of images, masks, start values and draws."""
    split: Literal["val", "test"] = "val"
    """Images to compare on. Choose settings on val; use test once, at the end."""
    cases: int = 64
    """Images to compare on, others with each seed."""
    members: int = 3
    """Networks of the ensemble: each is one draw of the weights."""
    draws: int = 8
    """Draws of the weights of mean_field."""
    samples: int = 8
    """Masks with each draw of the weights."""
    steps: int = 200
    """Training steps with 512 images; with n, (n / 512)^(1/4) of them, as n are learnt by heart."""
    batch_size: int = 64
    """Images in a training step, or all of a smaller set."""
    learning_rate: float = 5e-3
    """Learning rate of Adam; it falls to 0 over the last third of the steps."""
    chain_steps: int = 6
    """Steps of the chain."""
    device: str = "cpu"
    """Device; so small nets gain nothing on a GPU."""
    out: Path = Path("runs/rater_variance")
    """Folder for the results; an earlier study in it is moved aside."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume in the output folder; finished runs are kept."""

    def shrink(self) -> None:
        """Make everything small, for --smoke."""
        self.images, self.seed, self.cases = (8, 16), (0, 1), 4
        self.members, self.draws, self.samples = 2, 2, 2
        self.steps, self.batch_size, self.chain_steps = 2, 8, 2


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


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
