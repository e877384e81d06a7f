"""Films, detectors, and what their posteriors say of each film."""

import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from ppl_med import storage
from ppl_med.analysis import detection
from ppl_med.data import CHEST_CLASSES, Batches, MoveWithBoxes, chest_films
from ppl_med.inference import PointEstimate, fit, load, predict
from ppl_med.likelihoods import Boxes
from ppl_med.models import BayesianDetector
from ppl_med.networks import SmallDetector

NOISE = ((1.6, 1.7, 1.8, 1.9), (2.1, 2.0, 1.9, 1.8))
"""Standard deviation of the readers' edges in pixels, by class and edge."""
READERS = 3
DISTANCES = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 20.0)
SETTINGS = {
    "50 x 3": (50, 3, 40, True),
    "200 x 3": (200, 3, 20, True),
    "800 x 3": (800, 3, 12, True),
    "800 x 1": (800, 1, 12, False),
}
"""Training films by readers of each: both numbers, epochs, and whether it is an ensemble."""
MAIN, FEW = "800 x 3", ("50 x 3", "200 x 3")
SEEDS_OF = {"train": 100, "val": 1001, "test": 2002}
COLUMNS = ("image", "box", "box_label", "num_boxes", "id")
SIZE = 128
"""Rows and columns of a film."""
ANCHORS = ((10.0, 14.0, 19.0, 26.0), (26.0, 34.0, 48.0, 80.0))


class Study:
    """The films, and what was made of them in a folder."""

    def __init__(self, options: Any, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.films, self.objects = cache(self._films), cache(self._objects)

    def number(self, setting: str) -> int:
        """Training films of a setting."""
        return 24 if self.options.smoke else SETTINGS[setting][0]

    def _films(self, part: str, seed: int = 0) -> dict[str, Any]:
        """Films of a part: training films of a seed, held-out ones, unseen anatomy, or pairs."""
        few = self.options.smoke
        if part == "train":
            most = max(self.number(one) for one in SETTINGS)
            return chest_films(
                most,
                size=SIZE,
                num_graders=READERS,
                edge_noise=NOISE,
                seed=SEEDS_OF["train"] + seed,
            )
        own = SEEDS_OF[self.options.split]
        if part == "pairs":
            number = 4 if few else self.options.pairs
            found = [chest_films(number, size=SIZE, num_graders=READERS, edge_noise=NOISE, pairs=d,
                                 seed=own + 10 + k) for k, d in enumerate(DISTANCES)]  # fmt: skip
            films = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
            films["distance"] = np.repeat(DISTANCES, number)
            films["id"] = np.array([f"{d:g} px {one}" for d, one in
                                    zip(films["distance"], films["id"], strict=True)])  # fmt: skip
            return films
        anatomy: Any = "unseen" if part == "unseen" else "usual"
        number = 12 if few else self.options.films
        return chest_films(
            number, size=SIZE, num_graders=READERS, edge_noise=NOISE, anatomy=anatomy, seed=own
        )

    def standard(self, seed: int) -> dict[str, float]:
        """Mean and standard deviation of the pixels that a seed trains on."""
        image = self.films("train", seed)["image"][: self.number(FEW[1])]
        return {"loc": float(image.mean()), "scale": float(image.std())}

    def training(self, setting: str, seed: int, member: int = 0) -> Batches:
        """Batches of a setting."""
        number, readers = self.number(setting), SETTINGS[setting][1]
        films = {name: self.films("train", seed)[name][:number] for name in COLUMNS}
        if readers == 1:
            films |= {name: films[name][:, 0] for name in COLUMNS[1:4]}
        return Batches(
            films, batch_size=16, shuffle=True, seed=100 * seed + member,
            transform=MoveWithBoxes(shift=self.options.shift), **self.standard(seed),
        )  # fmt: skip

    def held_out(self, part: str, seed: int) -> Batches:
        """Batches of films that were not trained on."""
        films = {name: self.films(part)[name] for name in COLUMNS}
        return Batches(films, batch_size=50, **self.standard(seed))

    def detector(
        self, seed: int, classes: Any = CHEST_CLASSES, keep: Any = "boxes", **settings: Any
    ) -> Any:
        """A model; the readers' noise is normal, and so is the likelihood's."""
        torch.manual_seed(seed)
        net = SmallDetector(1, len(classes), sizes=ANCHORS, width=32)
        return BayesianDetector(net, Boxes(classes, noise="normal", keep=keep), **settings)

    def member(self, setting: str, seed: int, number: int) -> tuple[Any, Any, float]:
        """A trained net: its model and guide, and the seconds of its training."""
        path = self.checkpoint(setting, seed, number)
        model = self.detector(1000 * seed + number)
        guide = PointEstimate(model)
        noted = path.with_suffix(".seconds")
        if noted.exists():
            load(path, model, guide)
            return model, guide, float(noted.read_text())
        batches = self.training(setting, seed, number)
        started = time.perf_counter()
        epochs = 1 if self.options.smoke else SETTINGS[setting][2]
        fit(
            model, guide, batches, epochs=epochs, learning_rate=self.options.rate,
            schedule="cosine", seed=1000 * seed + number, checkpoint=path,
            resume=path.exists(), device=self.options.device, progress=False,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        storage.write_text(noted, f"{seconds:.1f}")
        return model, guide, seconds

    def checkpoint(self, setting: str, seed: int, number: int) -> Path:
        """File of a member."""
        return self.folder / f"member-{setting.replace(' ', '')}-{seed}-{number}.pt"

    def posterior(self, setting: str, seed: int, part: str) -> xr.DataTree:
        """Boxes of every member on the films of a part, from the folder where they are there."""
        path = self.folder / f"posterior-{setting.replace(' ', '')}-{seed}-{part}.nc"
        if not path.exists():
            trees, seconds = [], 0.0
            for number in range(self.options.members if SETTINGS[setting][3] else 1):
                model, guide, own = self.member(setting, seed, number)
                trees.append(self.predicted(model, guide, self.held_out(part, seed)))
                seconds += own
            tree = storage.join_chains(trees)
            tree.attrs["training_seconds"] = seconds
            storage.save(tree, path)
        return storage.load(path)  # type: ignore[return-value]

    def predicted(self, model: Any, guide: Any, batches: Any, **settings: Any) -> xr.DataTree:
        """What a trained program says of films."""
        settings = {"draws": 1, "device": self.options.device, "progress": False} | settings
        return predict(model, guide, batches, **settings)

    @staticmethod
    def one_reader(tree: xr.DataTree) -> xr.DataTree:
        """The tree with the boxes of the first reader alone."""
        return tree.isel(grader=0, missing_dims="ignore")

    def _objects(self, setting: str, seed: int, part: str = "films") -> xr.DataTree:
        """Objects; "one net" is the first of the largest ensemble, "no image" the baseline."""
        if setting == "no image":
            return self.without_image(seed, part)
        if setting == "one net":
            return detection.objects(self.posterior(MAIN, seed, part).isel(chain=[0]))
        return detection.objects(self.posterior(setting, seed, part))

    def shown(self) -> tuple[xr.DataTree, str]:
        """Objects of the first seed, and the first film of three opacities."""
        case = int((self.films("films")["num_true"] == 3).argmax())
        return self.objects(MAIN, self.options.seeds[0]), str(self.films("films")["id"][case])

    def without_image(self, seed: int, part: str) -> xr.DataTree:
        """Every training set of boxes as a draw, the same for every film."""
        films = self.films("train", seed)
        number = self.number(MAIN)
        box, label = films["box"][:number, 0], films["box_label"][:number, 0]
        probs = (label[..., None] == np.arange(len(CHEST_CLASSES))).astype(float)
        probs[label < 0] = np.nan
        dims = ("chain", "draw", "case", "box")
        place = box[None, :, None].astype(float)
        draws = {
            "edge_loc": ((*dims, "edge"), place),
            "edge_scale": ((*dims, "edge"), np.full_like(place, np.mean(NOISE))),
            "box_probs": ((*dims, "class"), probs[None, :, None]),
        }
        alone = xr.Dataset(draws, {"class": list(CHEST_CLASSES), "case": [0]})
        tree = xr.DataTree.from_dict({"posterior": alone})
        one = detection.objects(tree)["objects"].to_dataset()
        truth = self.posterior(MAIN, seed, part)["observed_data"].to_dataset()
        case = truth["case"].values
        same = one.isel(case=np.zeros(len(case), int)).assign_coords(case=case)
        return xr.DataTree.from_dict({"objects": same, "observed_data": truth})
