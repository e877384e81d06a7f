"""The data and the trained programs of one data set, and which of its cases are explained."""

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn.functional import interpolate

from counterfactuals.options import Name, Options
from ppl_med.data import (
    Batches,
    flips_and_turns,
    load_malaria,
    load_pneumoniamnist,
    standardization,
)
from ppl_med.data.readers import malaria, pneumoniamnist
from ppl_med.inference import (
    ConditionalNormal,
    Guides,
    MeanFieldNormal,
    Noising,
    PointEstimate,
    fit,
)
from ppl_med.models import BayesianClassifier, ConditionalVAE, ImageDiffusion
from ppl_med.networks import DenoisingUNet
from ppl_med.weights import Normal

CLASSES = {"malaria": malaria.CLASS_NAMES, "pneumonia": pneumoniamnist.CLASS_NAMES}
SIZES = {"malaria": 32, "pneumonia": 28}
# Cases of the part: some are explained, others tell what real images score.
LOOKED_AT, FEW = 600, 60


class Study:
    """The data and the trained programs of one data set."""

    def __init__(self, options: Options, name: Name) -> None:
        self.options, self.name = options, name
        self.folder = options.out / name
        self.folder.mkdir(exist_ok=True)
        splits = load(options, name)
        loc, scale = standardization(splits["train"]["image"])
        self.bounds = (float(-loc[0] / scale[0]), float((1 - loc[0]) / scale[0]))
        settings: dict[str, Any] = {"loc": loc, "scale": scale}
        self.splits, self.settings = splits, settings
        self.train = Batches(
            splits["train"],
            batch_size=64,
            shuffle=True,
            seed=options.seed,
            augment=flips_and_turns if name == "malaria" else None,
            **settings,
        )
        whole = Batches(splits[options.part], batch_size=300, **settings)
        order = np.random.default_rng(options.seed).permutation(whole.num_cases)
        self.part = whole.subset(np.sort(order[: FEW if options.smoke else LOOKED_AT]))
        if options.smoke:
            self.train = self.train.first(256)

    def classifier(self, net: torch.nn.Module, seed: int, rate: float) -> tuple[Any, Any]:
        """Train a Bayesian network."""
        torch.manual_seed(seed)
        model = BayesianClassifier(net, CLASSES[self.name], prior=Normal(scale=1.0))
        guide = MeanFieldNormal(model, init_scale=0.03, estimator="shared")
        self.fit(model, guide, f"net-{seed}", self.options.steps, seed, learning_rate=rate)
        return model, guide

    def vae(self, seed: int) -> tuple[Any, Any]:
        """Train a conditional VAE."""
        torch.manual_seed(seed)
        size = SIZES[self.name]
        latent_dim = self.options.latent_dim
        model = ConditionalVAE(1, CLASSES[self.name], (size, size), latent_dim, width=16)
        guide = ConditionalNormal(model.posterior_net())
        self.fit(model, guide, f"vae-{seed}", self.options.vae_steps, seed, learning_rate=2e-3)
        return model, guide

    def diffusion(self, seed: int) -> tuple[Any, Any]:
        """Train a diffusion of images."""
        torch.manual_seed(seed)
        net = DenoisingUNet(0, 1, 2, (32, 64), patch=2)
        model = ImageDiffusion(net, 1, num_steps=100)
        weights = PointEstimate(model, use_prior=False)
        guide = Guides(weights, Noising(model.noising, observation="image"))
        self.fit(model, guide, f"diffusion-{seed}", self.options.diffusion_steps, seed,
                 learning_rate=1e-3, average=0.99)  # fmt: skip
        return model, guide

    def references(self) -> tuple[Tensor, Tensor]:
        """Training images, not augmented, and their labels."""
        batches = Batches(self.splits["train"], batch_size=1000, **self.settings)
        chosen = batches.first(200 if self.options.smoke else batches.num_cases)
        parts = [(batch["image"], batch["label"]) for batch in chosen]
        image, label = (torch.cat(part) for part in zip(*parts, strict=True))
        return image, label

    def fit(
        self, model: Any, guide: Any, name: str, steps: int, seed: int, **settings: Any
    ) -> None:
        """Train a pair, or load what is finished."""
        print(f"{self.name}: training {name}")
        fit(
            model,
            guide,
            self.train,
            epochs=max(1, round(steps / len(self.train))),
            schedule="cosine",
            device=self.options.device,
            seed=seed,
            checkpoint=self.folder / f"{name}.pt",
            resume=self.options.resume,
            **settings,
        )

    def tensors(self, places: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor, list]:
        """Images, labels and ids of some cases."""
        batch = next(iter(self.part.subset(places, batch_size=len(places))))
        return batch["image"].to(device), batch["label"].to(device), batch["id"]


def load(options: Options, name: Name) -> dict[str, dict[str, Any]]:
    """Images, labels and ids of every split, at the size of the study."""
    if name == "pneumonia":
        return load_pneumoniamnist(options.data)
    splits = load_malaria(options.data, fraction=0.25, seed=options.seed)
    return {
        split: {"image": resized(part["image"], SIZES[name])}
        | {key: part[key] for key in ("label", "id")}
        for split, part in splits.items()
    }


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """Smaller images, uint8, (case, channel, size, size)."""
    values = torch.from_numpy(images).float()
    small = interpolate(values, (size, size), mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).byte().numpy()


def choose(study: Study, tree: xr.DataTree) -> tuple[np.ndarray, np.ndarray]:
    """Cases to explain, as many of each class, that the network gets right; and all others."""
    probs = tree["posterior/probs"].mean(("chain", "draw"))
    label = tree["observed_data/label"].values
    right = (probs.argmax("class").values == label) | study.options.smoke
    order = np.random.default_rng(study.options.seed).permutation(len(label))
    own = [order[right[order] & (label[order] == k)] for k in range(2)]
    count = min(study.options.cases, *map(len, own))
    chosen = np.stack([places[:count] for places in own], axis=1).ravel()
    return chosen, np.setdiff1d(order, chosen)
