"""Nets of one source: trained where the outline goes with the label, or made not to see it."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn

from brain_shape.sources import Parts
from ppl_med import storage
from ppl_med.data import Batches
from ppl_med.explain.confounding import (
    common_shape,
    normalize_shape,
    outline_auroc,
    swap_effects,
    swap_shape,
    swap_test,
)
from ppl_med.inference import MeanFieldNormal, fit, functions, predict
from ppl_med.models import BayesianClassifier
from ppl_med.weights import Normal

NETS = ("leaky", "normalised")
CLASSES = ("healthy", "diseased")
LEVEL = 0.95


class Settings(Protocol):
    """What the study reads of the options of the call."""

    seed: tuple[int, ...]
    epochs: int
    rate: float
    draws: int
    permutations: int
    device: str | None
    resume: bool


class Study:
    """One source, its nets for every seed, and what they say of swapped subjects.

    Args:
        name: Of the source.
        parts: Its arrays.
        options: Of the call.
        folder: Where checkpoints and posteriors go.
    """

    def __init__(self, name: str, parts: Parts, options: Settings, folder: Path) -> None:
        self.name, self.parts, self.options, self.folder = name, parts, options, folder
        folder.mkdir(exist_ok=True)
        self.target = common_shape(parts["train"]["mask"])
        self.normal = {
            part: dict(zip(("image", "mask"), self.normalised(**parts[part]), strict=True))
            for part in ("train", "site", "honest")
        }
        image = parts["train"]["image"]
        self.loc, self.scale = float(image.mean()), float(image.std())
        self.swaps = self._swapped()

    def normalised(
        self, image: NDArray[Any], mask: NDArray[Any], **_: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Images and foregrounds with the one outline."""
        images, masks = normalize_shape(image, mask, self.target)
        return images.astype(np.float32), masks

    def _swapped(self) -> dict[str, NDArray[Any]]:
        """Healthy subjects of the first outline, with outlines of others of each kind."""
        cases = self.parts["honest"]
        rows = np.flatnonzero((cases["label"] == 0) & (cases["shape"] == 0))
        image, mask, ids = (cases[key][rows] for key in ("image", "mask", "id"))
        found: dict[str, NDArray[Any]] = {"rows": rows, "id": ids, "image": image}
        for kind, shape in (("own", 0), ("other", 1)):
            donors = np.flatnonzero(cases["shape"] == shape)
            images, masks, _ = swap_shape(
                image, mask, cases["mask"][donors],
                patient=ids, donor_patient=cases["id"][donors], seed=0,
            )  # fmt: skip
            found[kind] = images.astype(np.float32)
            found[f"{kind}_normalised"] = self.normalised(images, masks)[0]
        return found

    def arrays(self, net: str, part: str) -> dict[str, NDArray[Any]]:
        """What a net sees of a part."""
        cases = self.parts[part]
        image = self.normal[part]["image"] if net == "normalised" else cases["image"]
        return {"image": image, "label": cases["label"], "id": cases["id"]}

    def batches(self, arrays: dict[str, Any], **settings: Any) -> Batches:
        """Standardised batches."""
        return Batches(arrays, loc=self.loc, scale=self.scale, **{"batch_size": 50} | settings)

    def run(self) -> xr.Dataset:
        """Train, test and swap; one Dataset over nets."""
        right, effects = {}, {}
        for net in NETS:
            found, swapped = [], []
            for seed in self.options.seed:
                model, guide = self._trained(net, seed)
                given = net, seed, model, guide
                found.append([self._right(*given, on) for on in ("site", "honest")])
                swapped.append(self._swap(*given))
            right[net] = np.array(found)
            whole = xr.concat(swapped, "chain", data_vars="minimal", coords="minimal")
            effects[net] = swap_effects(whole["before"], whole["after"], level=LEVEL)
            each = effects[net]["mean_effect"]
            effects[net]["draws_sd"] = each.std(ddof=1)
            effects[net]["by_seed"] = ("seed", each.mean("draw").values)
            for name in ("effect", "mean_effect", "expected_effect"):
                effects[net][name].attrs["units"] = "probability"
        self.effects = effects
        kept = ["expected_effect", "by_seed", "draws_sd", "probability_positive"]
        kept += [f"expected_effect_{end}" for end in ("lower", "upper", "se")]
        nets = xr.DataArray(list(NETS), dims="net", name="net")
        result = xr.concat([effects[net][kept] for net in NETS], nets, combine_attrs="drop")
        correct = xr.DataArray(
            np.stack([right[net] for net in NETS]),
            dims=("net", "seed", "on", "case"),
            coords={"net": list(NETS), "seed": list(self.options.seed), "on": ["site", "honest"]},
        )
        mean = correct.mean("seed")
        result["accuracy"] = correct.mean("case")
        result["accuracy_se"] = _error(mean)
        result["gain"] = (mean - mean.sel(net="leaky")).mean("case")
        result["gain_se"] = _error(mean - mean.sel(net="leaky"))
        return result.assign_attrs(subjects=len(self.swaps["id"]), **self._baselines())

    def outlines(self) -> xr.Dataset:
        """How well a logistic regression tells the labels from the outline alone."""
        looks = {
            "training site": self.parts["train"]["mask"],
            "honest site": self.parts["honest"]["mask"],
            "training site, normalised": self.normal["train"]["mask"],
        }
        labels = {name: "honest" if name.startswith("honest") else "train" for name in looks}
        found = [
            outline_auroc(
                mask, self.parts[labels[name]]["label"], permutations=self.options.permutations
            ).drop_dims("case")
            for name, mask in looks.items()
        ]
        return xr.concat(found, xr.DataArray(list(looks), dims="where", name="where"))

    def _baselines(self) -> dict[str, float]:
        """Accuracy of the training site's commoner label, and of the best that there is."""
        commoner = np.bincount(self.parts["train"]["label"], minlength=2).argmax()
        found = {
            f"commoner_{on}": float((self.parts[on]["label"] == commoner).mean())
            for on in ("site", "honest")
        }
        best = self.parts["honest"].get("best")
        return found | ({} if best is None else {"best": float(best.mean())})

    def _trained(self, net: str, seed: int) -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(seed)
        arrays = self.arrays(net, "train")
        model = BayesianClassifier(_convolutions(arrays["image"].shape[2:]), CLASSES, Normal(0.3))
        guide = MeanFieldNormal(model, init_scale=0.02, estimator="auto")
        print(f"{self.name}: training the {net} net, seed {seed}", flush=True)
        fit(
            model,
            guide,
            self.batches(arrays, shuffle=True, seed=seed),
            epochs=self.options.epochs,
            learning_rate=self.options.rate,
            schedule="cosine",
            device=self.options.device,
            seed=seed,
            checkpoint=self.folder / f"{net}-{seed}.pt",
            resume=self.options.resume,
            progress=False,
        )
        return model, guide

    def _right(
        self, net: str, seed: int, model: nn.Module, guide: nn.Module, on: str
    ) -> NDArray[np.bool_]:
        """Which subjects of a part are called rightly, and their posterior as a file."""
        arrays = self.arrays(net, on)
        tree = predict(
            model,
            guide,
            self.batches(arrays, batch_size=200),
            draws=self.options.draws,
            seed=seed,
            device=self.options.device,
            progress=False,
        )
        storage.save(tree, self.folder / f"posterior-{net}-{seed}-{on}.nc")
        mixture = tree["posterior"]["probs"].mean(("chain", "draw"))
        return mixture.values.argmax(1) == arrays["label"]

    def _swap(self, net: str, seed: int, model: nn.Module, guide: nn.Module) -> xr.Dataset:
        """What outlines of the second kind do, beside those of the subjects' own kind."""
        ending = "_normalised" if net == "normalised" else ""
        device = next(guide.parameters()).device
        own, other = (
            self._standard(self.swaps[kind + ending]).to(device) for kind in ("own", "other")
        )
        draws = functions(model, guide, draws=self.options.draws, seed=seed)
        found = swap_test(draws, own, other, 1, case=self.swaps["id"].tolist(), level=LEVEL)
        return found[["before", "after"]].assign_coords(chain=[seed])

    def _standard(self, image: NDArray[Any]) -> Tensor:
        return torch.from_numpy((image - self.loc) / self.scale).float()


def _convolutions(size: tuple[int, ...], width: int = 8) -> nn.Sequential:
    """Two convolutions that halve the image and a linear layer that knows places.

    Slices are halved by means, volumes by strides, which costs an eighth.
    """
    if len(size) == 2:
        layers: list[nn.Module] = [
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        ]  # fmt: skip
    else:
        layers = [
            nn.Conv3d(1, width, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv3d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(),
        ]  # fmt: skip
    features = nn.Sequential(*layers, nn.Flatten())
    with torch.no_grad():
        number = features(torch.zeros(1, 1, *size)).shape[1]
    return nn.Sequential(*features, nn.Linear(number, len(CLASSES)))


def _error(values: xr.DataArray) -> xr.DataArray:
    """Standard error over subjects."""
    return values.std("case", ddof=1) / np.sqrt(values.sizes["case"])
