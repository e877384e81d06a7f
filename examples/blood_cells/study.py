"""Data, detectors and their posteriors."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from blood_cells.options import ENSEMBLES
from ppl_med import storage
from ppl_med.analysis import detection
from ppl_med.data import Batches, MoveWithBoxes, load_voc_boxes
from ppl_med.inference import (
    BernoulliDropout,
    MeanFieldNormal,
    PointEstimate,
    VariationalOnlineNewton,
    fit,
    predict,
)
from ppl_med.models import BayesianDetector
from ppl_med.networks import SmallDetector
from ppl_med.weights import LearntNormal

CLASSES = ("RBC", "WBC", "Platelets")
FULL = 480  # rows of a smear
ANCHORS = ((27.0, 37.0, 53.0, 75.0, 107.0), (107.0, 150.0, 213.0, 213.0, 213.0))
"""Sides in pixels of the full picture, by level; cells have medians of 39, 105 and 190."""
POINTS = ("deterministic", "stopped_early")
SHARE = 0.625
"""Of the epochs after which a net is stopped early, and at which the mean field starts."""


class Study:
    """The smears, and what was made of them in a folder."""

    def __init__(self, options: Any, folder: Path) -> None:
        self.options, self.folder = options, folder
        splits = load_voc_boxes(
            options.data, size=options.size, classes=list(CLASSES), degenerate="drop"
        )
        train, self.held_out = splits["train"], splits["val"]
        if options.smoke:
            train, self.held_out = ({k: v[:24] for k, v in one.items()} for one in splits.values())
        pixels = train["image"] / 255.0
        standard = {"loc": pixels.mean((0, 2, 3)), "scale": pixels.std((0, 2, 3))}
        self.train = train
        self.make_training = partial(
            Batches, train, batch_size=options.batch_size, shuffle=True,
            transform=MoveWithBoxes(mirror=True, upend=True), **standard,
        )  # fmt: skip
        self.val = Batches(self.held_out, batch_size=29, **standard)

    def model(self, seed: int, prior: Any = None) -> BayesianDetector:
        """A detector at the start values of a seed."""
        torch.manual_seed(seed)
        scale = self.options.size[0] / FULL
        sizes = [[side * scale for side in level] for level in ANCHORS]
        return BayesianDetector(SmallDetector(3, len(CLASSES), sizes=sizes), CLASSES, prior)

    def trained(self, guide: str, seed: int) -> tuple[Any, Any, float]:
        """A trained pair and its seconds; all guides have the same number of epochs.

        The normals start at the point of a net that has had five eighths of the epochs, and learn
        their scales and those of their prior by natural-gradient steps in the rest: Adam would
        leave them where they started.
        """
        options, started = self.options, 0.0
        epochs, steps = options.epochs, {"learning_rate": options.rate, "schedule": "cosine"}
        first = max(1, round(SHARE * epochs))
        if guide == "stopped_early":
            return self._fit("start", seed, self.model(seed), PointEstimate, first, steps)
        if guide == "mean_field":
            _, point, started = self._fit(
                "start", seed, self.model(seed), PointEstimate, first, steps
            )
            model = self.model(seed, LearntNormal("weight"))
            kind = partial(MeanFieldNormal, init_scale=0.02, estimator="shared", start=point)
            rates = VariationalOnlineNewton(0.05, precision_rate=0.01)
            steps, epochs = {"optimizer": rates, "schedule": "cosine"}, max(1, epochs - first)
        else:
            model, kind = self.model(seed), PointEstimate
            if guide == "dropout":
                kind = partial(BernoulliDropout, rate=0.05)
        model, program, seconds = self._fit(guide, seed, model, kind, epochs, steps)
        return model, program, started + seconds

    def _fit(
        self, name: str, seed: int, model: Any, kind: Any, epochs: int, steps: dict[str, Any]
    ) -> tuple[Any, Any, float]:
        """A run, taken up where it was left; the seconds are those of this call."""
        program, started = kind(model), time.perf_counter()
        history = fit(
            model, program, self.make_training(seed=seed), epochs=epochs, seed=seed,
            device=self.options.device, resume=True,
            checkpoint=self.folder / f"checkpoint-{name}-{seed}.pt", **steps,
        )  # fmt: skip
        storage.save(history, self.folder / f"history-{name}-{seed}.nc")
        return model, program, time.perf_counter() - started

    def posterior(self, guide: str, seed: int) -> xr.DataTree:
        """Boxes of every draw on the validation images, from the folder where they are there."""
        if guide in ENSEMBLES:
            return storage.join_chains(
                [self.posterior(ENSEMBLES[guide], one) for one in self.options.seed]
            )
        path = self.folder / f"posterior-{guide}-{seed}.nc"
        if not path.exists():
            model, program, seconds = self.trained(guide, seed)
            draws = 1 if guide in POINTS else self.options.draws
            tree = predict(
                model, program, self.val, draws=draws, seed=seed, device=self.options.device
            )
            tree.attrs["training_seconds"] = seconds
            storage.save(tree, path)
        return storage.load(path)

    def objects(self, guide: str, seed: int) -> xr.DataTree:
        """Objects of a guide; "no image" is the baseline."""
        if guide == "no image":
            return self.without_image()
        return detection.objects(self.posterior(guide, seed))

    def without_image(self) -> xr.DataTree:
        """Every training set of boxes as a draw, the same for every image."""
        box, label = (np.asarray(self.train[name]) for name in ("box", "box_label"))
        probs = (label[..., None] == np.arange(len(CLASSES))).astype(float)
        probs[label < 0] = np.nan
        dims = ("chain", "draw", "case", "box")
        first = {
            "edge_loc": ((*dims, "edge"), box[None, :, None].astype(float)),
            "edge_scale": ((*dims, "edge"), np.ones_like(box[None, :, None], float)),
            "box_probs": ((*dims, "class"), probs[None, :, None]),
        }
        alone = xr.Dataset(first, {"class": list(CLASSES), "case": [0]})
        one = detection.objects(xr.DataTree.from_dict({"posterior": alone}))["objects"].to_dataset()
        truth = self.posterior(self.options.guide[0], self.options.seed[0])
        case = truth["observed_data"]["case"].values
        same = one.isel(case=np.zeros(len(case), int)).assign_coords(case=case)
        return xr.DataTree.from_dict(
            {"objects": same, "observed_data": truth["observed_data"].to_dataset()}
        )
