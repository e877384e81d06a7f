"""The study from end to end."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from digit_files import read_idx
from vae_scores.options import Options, Pair

from ppl_med import storage
from ppl_med.analysis import ood
from ppl_med.analysis.ood.found import as_found
from ppl_med.analysis.ood.generative import png_bits
from ppl_med.data import (
    Batches,
    RandomPixels,
    load_malaria,
    load_pneumoniamnist,
    standardization,
)
from ppl_med.explain import likelihood_regret
from ppl_med.inference import ConditionalNormal, Ensemble, fit, predict
from ppl_med.models import ImageVAE

Arrays = dict[str, Any]
SCORES = ("reconstruction", "reconstruction_mahalanobis", "likelihood", "input_complexity")
SIZE = (28, 28)


def digits(data: Path) -> dict[str, Arrays]:
    """MNIST, and letters."""
    train = _pictures(data / "mnist", "train")
    order = np.random.default_rng(0).permutation(len(train["image"]))
    parts = {"val": order[:500], "train": order[500:]}
    kept = {name: {key: train[key][rows] for key in train} for name, rows in parts.items()}
    letters = _pictures(data / "notmnist", "t10k")
    letters["id"] = np.array([f"letter-{row}" for row in range(len(letters["id"]))])
    return kept | {"test": _pictures(data / "mnist", "t10k"), "elsewhere": letters}


def films(data: Path) -> dict[str, Arrays]:
    """Chest X-rays of children, and blood cells, grey and of the same size."""
    splits, cells = load_pneumoniamnist(data), load_malaria(data)["test"]
    grey = torch.as_tensor(cells["image"]).float().mean(1, keepdim=True)
    small = torch.nn.functional.interpolate(grey, SIZE, mode="bilinear", antialias=True)
    other = {"image": small.round().to(torch.uint8).numpy(), "id": np.asarray(cells["id"])}
    return {**splits, "elsewhere": other}


def _pictures(folder: Path, part: str) -> Arrays:
    """Images and ids."""
    return {name: value for name, value in read_idx(folder, part).items() if name != "label"}


class Study:
    """One pair and seed: its batches and its models.

    Args:
        options: Of the call.
        pair: Name of the pair.
        seed: Of everything.
    """

    def __init__(self, options: Options, pair: Pair, seed: int) -> None:
        self.options, self.seed = options, seed
        parts = {"digits": digits, "films": films}[pair](options.data)
        train = parts["train"]["image"]
        self.loc, self.scale = standardization(train)
        most = 32 if options.smoke else options.cases
        limits = {"train": 64 if options.smoke else options.train}
        self.parts = {n: _some(one, limits.get(n, most)) for n, one in parts.items()}
        known = self.images("train")
        self.range = float(known.min()), float(known.max())

    def batches(self, part: str, **settings: Any) -> Batches:
        """Standardized images of a part."""
        arrays = {name: self.parts[part][name] for name in ("image", "id")}
        return Batches(arrays, batch_size=64, loc=self.loc, scale=self.scale, **settings)

    def images(self, part: str) -> torch.Tensor:
        """All of them."""
        return torch.cat([batch["image"] for batch in self.batches(part)])

    def trained(self, members: int, **settings: Any) -> tuple[ImageVAE, Any]:
        """An ensemble of VAEs, whose members have their own decoders, or one VAE."""
        torch.manual_seed(self.seed)
        model = ImageVAE(1, SIZE, latent_dim=16, width=16)
        guide = Ensemble(model, _guide, members=members) if members > 1 else _guide(model)
        batches = self.batches("train", shuffle=True, seed=self.seed, **settings)
        epochs = 1 if self.options.smoke else self.options.epochs
        device = self.options.device
        fit(model, guide, batches, epochs=epochs, seed=self.seed, device=device, progress=False)
        return model, guide

    def trees(self, model: ImageVAE, guide: Any) -> dict[str, xr.DataTree]:
        """Predictions of every part, of all members."""
        draws = 2 if self.options.smoke else self.options.draws
        found = {}
        for part in self.parts:
            arguments: dict[str, Any] = {"draws": draws, "device": self.options.device}
            arguments["log_likelihood_of"] = "training" if part == "train" else "held-out"
            found[part] = predict(model, guide, self.batches(part), progress=False, **arguments)
        return found

    def scores(self) -> dict[str, tuple[xr.Dataset, xr.Dataset]]:
        """Of every score, those of test cases and of cases from elsewhere."""
        model, guide = self.trained(self.options.members)
        trees = self.trees(model, guide)
        first = {part: tree.isel(chain=[0], missing_dims="ignore") for part, tree in trees.items()}
        found = {}
        for name in (*SCORES, "waic"):
            own = trees if name == "waic" else first
            reference = ood.fit_reference(name, own["train"], held_out=own["val"])
            found[name] = ood.score(own["test"], reference), ood.score(own["elsewhere"], reference)
        low, high = self.range
        blurred = self.trained(1, augment=RandomPixels(self.options.share, low, high))
        background = self.trees(*blurred)
        found["background_ratio"] = self.apart(
            lambda part: ood.background_ratio(first[part], background[part])
        )
        steps = 2 if self.options.smoke else self.options.steps
        own_model, own_guide = guide.members[0]
        device = own_model.log_scale.device
        found["likelihood_regret"] = self.apart(
            lambda part: likelihood_regret(
                own_model,
                own_guide,
                self.images(part).to(device),
                steps=steps,
                case=self.parts[part]["id"],
            )
        )
        found["grey levels (baseline)"] = self.apart(self.grey_levels)
        found["PNG length (baseline)"] = self.apart(self.plainness)
        return found

    def apart(self, score: Any) -> tuple[xr.Dataset, xr.Dataset]:
        """A score that is made part by part, with p-values."""
        held_out = score("val")
        return tuple(ood.with_pvalues(score(part), held_out) for part in ("test", "elsewhere"))  # type: ignore[return-value]

    def grey_levels(self, part: str) -> xr.Dataset:
        """Distance of mean and spread of the grey levels from those of training."""
        train, own = (_levels(self.images(one).numpy()) for one in ("train", part))
        centred = own - train.mean(0)
        square = (centred @ np.linalg.inv(np.cov(train.T)) * centred).sum(1)
        return _found(square, self.parts[part]["id"], "grey_levels")

    def plainness(self, part: str) -> xr.Dataset:
        """Minus the bits of the image as PNG."""
        bits = [png_bits(image) for image in self.parts[part]["image"]]
        return _found(-np.array(bits, float), self.parts[part]["id"], "plainness")


def _guide(model: ImageVAE) -> ConditionalNormal:
    return ConditionalNormal(model.posterior_net(), observation="image")


def _some(arrays: Arrays, number: int) -> Arrays:
    """At most so many cases, drawn at random."""
    rows = np.random.default_rng(1).permutation(len(arrays["id"]))[:number]
    return {name: arrays[name][np.sort(rows)] for name in ("image", "id")}


def _levels(image: np.ndarray) -> np.ndarray:
    flat = image.reshape(len(image), -1)
    return np.stack([flat.mean(1), flat.std(1)], 1)


def _found(values: np.ndarray, ids: np.ndarray, name: str) -> xr.Dataset:
    dims = ("chain", "draw", "case")
    per_draw = xr.DataArray(values[None, None], {"chain": [0], "draw": [0], "case": ids}, dims)
    return as_found(values, per_draw, score=name)


def main(options: Options) -> None:
    """Run every pair and seed, and print the table."""
    out = storage.open_run(options.out, resume=False)
    rows = []
    for pair in options.pair:
        for seed in options.seed:
            for name, (inside, outside) in Study(options, pair, seed).scores().items():
                figures = ood.evaluate(inside, outside, resamples=20 if options.smoke else 1000)
                row = {n: float(figures[n]) for n in ("auroc", "auroc_lower", "auroc_upper")}
                row["false_alarms_at_95"] = float(figures["false_alarms_at_95"])
                row["rejected_inside"] = float((inside["pvalue"] <= 0.05).mean())
                row["rejected_outside"] = float((outside["pvalue"] <= 0.05).mean())
                rows.append({"pair": pair, "score": name, "seed": seed, **row})
                print(f"{pair} {seed} {name}: AUROC {row['auroc']:.3f}", flush=True)
    table(rows, out)


def table(rows: list[dict[str, Any]], out: Path) -> None:
    """Write every run as CSV, and a line for every pair and score over seeds."""
    head = list(rows[0])
    lines = [",".join(head), *(",".join(str(row[name]) for name in head) for row in rows)]
    (out / "scores.csv").write_text("\n".join(lines) + "\n")
    cells = []
    for pair, name in dict.fromkeys((row["pair"], row["score"]) for row in rows):
        own = [row for row in rows if (row["pair"], row["score"]) == (pair, name)]
        auroc = " / ".join(
            f"{row['auroc']:.3f} [{row['auroc_lower']:.3f}, {row['auroc_upper']:.3f}]"
            for row in own
        )
        shares = [
            f"{100 * np.mean([row[share] for row in own]):.0f} %"
            for share in ("false_alarms_at_95", "rejected_inside", "rejected_outside")
        ]
        cells.append([pair, name, auroc, *shares])
    titles = ["trained on", "score", "AUROC [95 %], by seed", "false alarms at 95 % found"]
    titles += ["p ≤ 0.05, test", "p ≤ 0.05, elsewhere"]
    text = storage.markdown_table(titles, cells)
    (out / "scores.md").write_text(text + "\n")
    print(text)
