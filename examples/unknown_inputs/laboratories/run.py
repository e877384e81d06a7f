"""The study from end to end."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from laboratories.options import Options
from laboratories.others import PLANTED, planted
from laboratories.pages import draw, table
from laboratories.readings import READINGS, measure, read, share_grid, tent_curve
from monai.networks.nets.unet import UNet

from ppl_med import storage
from ppl_med.data import Batches, flips_and_turns_with_mask, load_wbc_seg, standardization
from ppl_med.data.readers.wbc_seg import CLASS_NAMES
from ppl_med.inference import (
    BernoulliDropout,
    Ensemble,
    MeanFieldNormal,
    PointEstimate,
    fit,
    load,
)
from ppl_med.models import BayesianSegmenter
from ppl_med.storage import check_same, open_run

SIZE = (64, 64)
FREE = ("data", "guide", "seed", "second_site", "laboratory", "draws")  # may differ on resuming
MEMBERS = 3


class Study:
    """The pictures and the runs of one call."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.folder = open_run(options.out, resume=options.resume)
        check_same(
            options,
            self.folder,
            free=("data", "guide", "seed", "second_site", "laboratory", "draws"),
        )
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

    def cases(self, laboratory: str, split: str = "test") -> dict[str, Any]:
        """The pictures of a laboratory."""
        if laboratory == "second":
            return self.splits["second_site"]
        own = self.splits[split]
        return own if laboratory == "own" else planted(own, PLANTED[laboratory])

    def figures(self, guide: str, seed: int, laboratory: str) -> xr.Dataset:
        """What one guide makes of one laboratory, by every reading, measured now or earlier."""
        path = self.path(guide, seed) / f"figures-{laboratory}.nc"
        if path.exists():
            return storage.load(path)
        print(f"{guide}, seed {seed}, {laboratory}", flush=True)
        model, program = self.trained(guide, seed)
        path.parent.mkdir(exist_ok=True)
        cases = self.cases(laboratory)
        parts = {}
        for reading in READINGS:
            tree = read(reading, model, program, guide, cases, self.batches, self.options, seed)
            if tree is None:
                continue
            parts[reading] = measure(tree, cases["id"])
            if reading == "source" and laboratory == "own":
                storage.save(tree, path.with_name("posterior.nc"))
        found = xr.concat(parts.values(), xr.Variable("reading", list(parts)))
        storage.save(found, path)
        return found

    def mean_mask(self, laboratory: str) -> xr.Dataset:
        """Figures of what stands where in the training masks."""
        cases = self.cases(laboratory)
        truth = self.splits["train"]["mask"]
        shares = np.stack([(truth == index).mean(0) for index in range(len(CLASS_NAMES))])
        shares = (shares * len(truth) + 1) / (len(truth) + len(CLASS_NAMES))
        dims = ("chain", "draw", "case", "class", "row", "col")
        probs = np.broadcast_to(shares, (1, 1, len(cases["id"]), *shares.shape))
        coords = {"case": cases["id"], "class": list(CLASS_NAMES)}
        tree = xr.DataTree.from_dict({
            "posterior": xr.Dataset({"probs": (dims, probs)}, coords),
            "observed_data": xr.Dataset(
                {"mask": (("case", "row", "col"), cases["mask"])}, {"case": cases["id"]}
            ),
        })  # fmt: skip
        return measure(tree, cases["id"])


def point(model: Any) -> PointEstimate:
    """Maximum likelihood."""
    return PointEstimate(model, use_prior=False)


def some(cases: dict[str, Any], number: int) -> dict[str, Any]:
    """The first cases."""
    return {name: values[:number] for name, values in cases.items()}


def main(options: Options) -> None:
    """Train, adapt, measure, draw."""
    study = Study(options)
    names = [*options.laboratory, *(["second"] if options.second_site else [])]
    found: dict[tuple[str, str, int], xr.Dataset] = {}
    for seed in options.seed:
        for name, guide in itertools.product(names, options.guide):
            found[name, guide, seed] = study.figures(guide, seed, name)
    blind = {name: study.mean_mask(name) for name in names}
    text, result = table(found, blind)
    storage.save(result, study.folder / "table.nc")
    storage.write_text(study.folder / "table.md", text + "\n")
    worst = "dark" if "dark" in names else names[-1]
    curves = tent_curve(study, worst)
    shares = {name: share_grid(study, name) for name in names if name != "second"}
    draw(study.folder, result, curves, shares, options.smoke)
    print(text)
    print(f"Wrote {study.folder / 'table.md'}")
