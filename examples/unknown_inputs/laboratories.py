"""White blood cells of another laboratory: how much of what is lost does BatchNorm win back?

Small U-Nets with BatchNorm learn nucleus and cytoplasm on pictures of one laboratory, with five
kinds of posterior or fewer, and read pictures of others without being trained again:

    faint, dark, hard     the test pictures of the first laboratory, as if stained, lit, focused and
                          magnified elsewhere; chosen on the validation part
    second                those of the second laboratory, where --second-site says where they are

Each as they are ("source"), and with BatchNorm adapted to the pictures, labels unseen: statistics of
the batch, of the whole laboratory ("domain"), of both laboratories pooled (as many cases of the
source as of the other; a share drawn from a uniform prior; a share drawn from its posterior), and
scales and shifts by entropy (TENT), without brakes and with them, and by agreement of mirror images.

A lost Dice is that of the same pictures before they were made worse; of the second laboratory, that
of the first. "mean mask" is what stands where in the training masks, and sees no picture.

Writes to the output folder

    <guide>-<seed>/       checkpoint.pt, history.nc, posterior.nc, figures-<laboratory>.nc
    table.md, table.nc    Dice, share recovered, NLL and calibration
    dice.png, tent.png, shares.png, pictures.png
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import tyro
import xarray as xr
from laboratory_tables import table
from monai.networks.nets.unet import UNet
from other_laboratories import PLANTED, planted

from ppl_med import storage
from ppl_med.analysis import scoring
from ppl_med.data import Batches, flips_and_turns_with_mask, load_wbc_seg, standardization
from ppl_med.data.readers.wbc_seg import CLASS_NAMES
from ppl_med.inference import (
    BernoulliDropout,
    Ensemble,
    MeanFieldNormal,
    PointEstimate,
    fit,
    load,
    predict,
)
from ppl_med.models import BayesianSegmenter
from ppl_med.storage import check_same, open_run

Guide = Literal["point", "last_layer", "dropout", "ensemble"]
SIZE = (64, 64)
MEMBERS = 3


@dataclass
class Options:
    """Train U-Nets on cells of one laboratory and adapt them to others."""

    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder with wbc_seg/; by default what PPL_MED_DATA names."""
    second_site: Path | None = None
    """Folder with images/ and masks/ of the second laboratory, if there is one."""
    guide: tuple[Guide, ...] = get_args(Guide)
    """Which posteriors. The point estimate is the first member of the ensemble."""
    seed: tuple[int, ...] = (0, 1, 2)
    """Seeds of start values, data order and draws."""
    out: Path = Path("runs/laboratories")
    """Folder for the results; an earlier study in it is moved aside."""
    device: str | None = None
    """Where to run, such as cpu or cuda; a GPU where there is one."""
    epochs: int = 30
    """Epochs of training."""
    draws: int = 8
    """Posterior draws; of an ensemble and of a point estimate, those of the source share."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume in the output folder; finished runs are kept."""


class Study:
    """The pictures and the runs of one call."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.folder = open_run(options.out, resume=options.resume)
        check_same(options, self.folder, free=("data", "guide", "seed", "second_site"))
        self.splits = load_wbc_seg(
            options.data, size=SIZE, resize="scale", second_site=options.second_site
        )
        if options.smoke:
            self.splits = {name: some(cases, 16) for name, cases in self.splits.items()}
        self.loc, self.scale = standardization(self.splits["train"]["image"])

    def batches(self, cases: dict[str, Any], **settings: Any) -> Batches:
        """Batches of cases, standardised as the training pictures are."""
        settings = {"batch_size": 12, "loc": self.loc, "scale": self.scale} | settings
        return Batches(cases, **settings)

    def path(self, guide: str, seed: int) -> Path:
        """Folder of one run."""
        return self.folder / f"{guide}-{seed}"

    def build(self, guide: str, seed: int) -> tuple[Any, Any]:
        """Model and guide, before training."""
        torch.manual_seed(seed)
        net = UNet(
            spatial_dims=2, in_channels=3, out_channels=len(CLASS_NAMES), channels=(16, 32, 64),
            strides=(2, 2), num_res_units=1, norm="batch",
        )  # fmt: skip
        where = "last_layer" if guide == "last_layer" else None
        model = BayesianSegmenter(net, CLASS_NAMES, where=where)
        if guide == "last_layer":
            return model, MeanFieldNormal(model, init_scale=0.05, estimator="shared")
        if guide == "dropout":
            return model, BernoulliDropout(model, rate=0.05)
        return model, Ensemble(model, point, members=MEMBERS, seed=MEMBERS * seed)

    def trained(self, guide: str, seed: int) -> tuple[Any, Any]:
        """Model and guide, trained now or by an earlier call."""
        if guide == "point":
            return self.trained("ensemble", seed)[1].members[0]
        folder = self.path(guide, seed)
        folder.mkdir(exist_ok=True)
        model, program = self.build(guide, seed)
        if (folder / "history.nc").exists():
            load(folder / "checkpoint.pt", model, program)
            return model, program
        print(f"{guide}, seed {seed}")
        train = self.batches(
            self.splits["train"], batch_size=16, shuffle=True, drop_last=True, seed=seed,
            transform=flips_and_turns_with_mask,
        )  # fmt: skip
        history = fit(
            model, program, train, epochs=1 if self.options.smoke else self.options.epochs,
            learning_rate=3e-3, schedule="cosine", seed=MEMBERS * seed,
            device=self.options.device, checkpoint=folder / "checkpoint.pt",
            resume=self.options.resume,
        )  # fmt: skip
        storage.save(history, folder / "history.nc")
        return model, program


def point(model: Any) -> PointEstimate:
    """Maximum likelihood."""
    return PointEstimate(model, use_prior=False)


def some(cases: dict[str, Any], number: int) -> dict[str, Any]:
    """The first cases."""
    return {name: values[:number] for name, values in cases.items()}
