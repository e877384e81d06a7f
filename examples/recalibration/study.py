"""Training and prediction of every run, and reading what earlier ones left."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from ppl_med import storage
from ppl_med.data import Batches, standardization
from ppl_med.inference import BernoulliDropout, MeanFieldNormal, PointEstimate, fit, load, predict
from ppl_med.models import BayesianClassifier
from ppl_med.networks import LeNet
from ppl_med.storage import check_same, open_run
from ppl_med.weights import Normal
from recalibration.options import Options
from recalibration.pictures import PICTURES

PARTS = ("recalibration", "conformal", "test")
MEMBERS = 5


class Study:
    """The data and the runs of one call."""

    def __init__(self, options: Options) -> None:
        if options.smoke:
            options.draws, options.replicates, options.seed = 2, 10, options.seed[:1]
        self.options = options
        self.folder = open_run(options.out, resume=options.resume)
        check_same(options, self.folder, free=("data", "guide", "seed", "alpha", "replicates"))
        self.pictures = PICTURES[options.pictures]
        splits = self.pictures.read(options.data)
        loc, scale = standardization(splits["train"]["image"])
        settings: dict[str, Any] = {"loc": loc, "scale": scale}
        self.training = Batches(
            splits["train"],
            batch_size=128,
            shuffle=True,
            transform=self.pictures.motion,
            **settings,
        )
        if options.smoke:
            self.training = self.training.first(256)
        val = Batches(splits["val"], batch_size=512, **settings)
        order = np.random.default_rng(0).permutation(val.num_cases)
        half = val.num_cases // 2
        self.parts = {
            "recalibration": val.subset(np.sort(order[:half])),
            "conformal": val.subset(np.sort(order[half:])),
            "test": Batches(splits["test"], batch_size=512, **settings),
        }
        self.images = splits["test"]["image"]
        self._trees: dict[tuple[str, int, str], xr.DataTree] = {}

    def build(self, guide: str, seed: int) -> tuple[Any, Any, dict[str, Any]]:
        """Model, guide and the recipe's settings of ``fit``."""
        torch.manual_seed(seed)
        class_names = self.pictures.class_names
        last = "last_layer" if guide == "last_layer" else None
        model = BayesianClassifier(
            LeNet(1, len(class_names), size=self.pictures.size),
            class_names,
            prior=Normal(scale=1.0 if last else 0.3),
            where=last,
            likelihood=self.options.likelihood,
        )
        settings: dict[str, Any] = {"epochs": 20, "schedule": "cosine", "learning_rate": 1e-3}
        if guide == "mean_field":
            start = PointEstimate(model, use_prior=False)
            load(self.path("frequentist", seed) / "checkpoint.pt", model, start)
            program: Any = MeanFieldNormal(model, init_scale=0.06, estimator="shared", start=start)
            settings["epochs"] = 8
        elif guide == "last_layer":
            program = MeanFieldNormal(model, init_scale=0.3, estimator="auto")
            settings["optimizer"] = decayed_features
        elif guide == "dropout":
            program = BernoulliDropout(model, rate=0.1)
            settings["optimizer"] = decayed
        else:
            program = PointEstimate(model, use_prior=False)
            settings["optimizer"] = decayed
        if self.options.smoke:
            settings["epochs"] = 1
        return model, program, settings

    def path(self, guide: str, seed: int) -> Path:
        """Folder of one run."""
        return self.folder / f"{guide}-{seed}"

    def run(self, guide: str, seed: int) -> None:
        """Train and predict every part, unless an earlier call did."""
        if guide == "ensemble":
            for member in members(seed):
                self.run("frequentist", member)
            return
        folder = self.path(guide, seed)
        if (folder / f"posterior-{PARTS[-1]}.nc").exists():
            return
        if guide == "mean_field":
            self.run("frequentist", seed)
        folder.mkdir(exist_ok=True)
        print(f"{guide}, seed {seed}")
        model, program, settings = self.build(guide, seed)
        options = self.options
        history = fit(
            model,
            program,
            self.training,
            device=options.device,
            seed=seed,
            checkpoint=folder / "checkpoint.pt",
            resume=options.resume,
            **settings,
        )
        storage.save(history, folder / "history.nc")
        draws = 1 if guide == "frequentist" else options.draws
        for part in PARTS:
            batches = self.parts[part]
            tree = predict(
                model, program, batches, draws=draws, seed=seed, device=options.device,
                progress=False,
            )  # fmt: skip
            storage.save(tree, folder / f"posterior-{part}.nc")

    def tree(self, guide: str, seed: int, part: str) -> xr.DataTree:
        """The posterior of a part, which ``run`` left."""
        key = (guide, seed, part)
        if key not in self._trees:
            self._trees[key] = self._joined(seed, part) if guide == "ensemble" else self._one(*key)
        return self._trees[key]

    def _one(self, guide: str, seed: int, part: str) -> xr.DataTree:
        tree = storage.load(self.path(guide, seed) / f"posterior-{part}.nc")
        assert isinstance(tree, xr.DataTree)
        return tree

    def _joined(self, seed: int, part: str) -> xr.DataTree:
        """Frequentist nets as chains of one tree."""
        trees = [self.tree("frequentist", member, part) for member in members(seed)]
        return storage.join_chains(trees, groups=("posterior",))


def members(seed: int) -> list[int]:
    """Seeds of an ensemble's nets; the first is the frequentist net's."""
    return [seed + 1000 * member for member in range(MEMBERS)]


def decayed(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW on all parameters."""
    return torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.01)


def decayed_features(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW whose decay spares the guide's vectors, which have a prior of their own."""
    kernels = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=3e-3)
