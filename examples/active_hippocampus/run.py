"""The study from end to end."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from active_curves.comparison import interval, joined, table
from active_curves.pictures import draw_curves
from monai.networks.nets import UNet
from scipy.ndimage import binary_erosion

from active_hippocampus.options import BASELINE, RULES, Options
from ppl_med import storage
from ppl_med.analysis import scoring
from ppl_med.analysis.aggregation import predicted_mask
from ppl_med.data import Batches, load_hippocampus
from ppl_med.data.readers.hippocampus import CLASS_NAMES
from ppl_med.inference import BernoulliDropout, active_learn, load, predict
from ppl_med.models import BayesianSegmenter
from ppl_med.storage import check_same, open_run
from ppl_med.weights import Normal

BATCH = 8
SIZE, APART = (48, 52, 32), 4  # voxels kept, which hold every outline; slices to the next


def slices(arrays: dict[str, Any], volumes: np.ndarray) -> dict[str, Any]:
    """Every fourth slice of some volumes."""
    image, mask = arrays["image"][volumes, 0], arrays["mask"][volumes]
    places = np.arange(APART // 2, image.shape[1], APART)
    names = arrays["id"][volumes]
    return {
        "image": image[:, places].reshape(-1, 1, *image.shape[2:]),
        "mask": mask[:, places].reshape(-1, *mask.shape[2:]),
        "volume": np.repeat(names, len(places)),
        "id": np.array([f"{name}-{place:02d}" for name in names for place in places]),
    }


def foreground_order(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All slices in a foreground-aware random order, by their outlines.

    Each is drawn anywhere with probability 2/3, else around a pixel of the organ or of its border:
    a part at random, and a slice in proportion to how many of its pixels are of it.
    """
    counts = []
    for part in range(1, len(CLASS_NAMES)):
        inside = mask == part
        border = np.array([one & ~binary_erosion(one) for one in inside])
        counts.append([inside.sum((1, 2)), border.sum((1, 2))])
    left, order = np.ones(len(mask), bool), []
    for kind in rng.random(len(mask)):
        weight = left.astype(float)
        if kind < 1 / 3:
            own = counts[rng.integers(len(counts))][int(kind < 1 / 6)] * left
            weight = own if own.any() else weight
        order.append(int(rng.choice(len(mask), p=weight / weight.sum())))
        left[order[-1]] = False
    return np.array(order)


def known_foreground(masks: dict[str, np.ndarray]) -> Callable[[xr.DataTree], xr.DataArray]:
    """A rule for ``acquire``: the order of `foreground_order` as a score."""

    def rule(tree: xr.DataTree) -> xr.DataArray:
        case = tree["posterior"]["case"]
        mask = np.stack([masks[name] for name in case.values.tolist()])
        order = foreground_order(mask, np.random.default_rng(int(tree.attrs["seed"])))
        return xr.DataArray(-np.argsort(order).astype(float), {"case": case}, ("case",))

    rule.__name__ = "known_foreground"
    return rule


def build(rate: float) -> tuple[BayesianSegmenter, BernoulliDropout]:
    """A small U-Net with instance norm, and dropout on its weights."""
    net = UNet(
        spatial_dims=2, in_channels=1, out_channels=len(CLASS_NAMES), channels=(16, 32, 64),
        strides=(2, 2), norm=("instance", {"affine": True}),
    )  # fmt: skip
    model = BayesianSegmenter(net, CLASS_NAMES, prior=Normal(scale=1.0))
    return model, BernoulliDropout(model, rate=rate)


def figures(tree: xr.DataTree) -> xr.Dataset:
    """Dice of volumes, calibration of pixels, and 90 % intervals of volumes.

    A volume is the sum of the probabilities of its pixels, once per draw; its interval is over
    draws. "excess" is how much too large the mean volume is, as a share of the outlined one.
    """
    mask, truth, probs = predicted_mask(tree), tree["observed_data/mask"], tree["posterior/probs"]
    name = tree["constant_data/volume"].values
    parts = []
    for part, title in enumerate(CLASS_NAMES[1:], start=1):
        maps = [(mask == part) & (truth == part), mask == part, truth == part]
        maps.append(probs.sel({"class": title}))
        area = xr.Dataset(dict(zip(("hit", "own", "true", "draws"), maps, strict=True)))
        sizes = area.sum(("row", "col")).groupby(xr.DataArray(name, dims="case", name="who")).sum()
        ends = sizes["draws"].quantile([0.05, 0.95], ("chain", "draw"))
        covered = (ends[0] <= sizes["true"]) & (sizes["true"] <= ends[1])
        one = xr.Dataset(
            {
                "dice": 2 * sizes["hit"] / (sizes["own"] + sizes["true"]),
                "excess": sizes["draws"].mean(("chain", "draw")) / sizes["true"] - 1,
                "coverage": covered.astype(float),
                "width": (ends[1] - ends[0]) / sizes["true"],
            }
        )
        parts.append(one.reset_coords(drop=True).mean("who"))
    found = xr.concat(parts, "part").assign_coords(part=list(CLASS_NAMES[1:]))
    scores = scoring.score(tree)
    whole = found.mean("part").assign(dice_per_part=found["dice"])
    return whole.assign(nll=scores["nll"], ece=scores["ece"]).reset_coords(drop=True).drop_attrs()


class Study:
    """The data and the runs of one call."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.folder = open_run(options.out, resume=options.resume)
        check_same(options, self.folder, free=("data", "rule", "seed"))
        splits = load_hippocampus(options.data, size=SIZE)
        self.train, held_out = splits["train"], splits[options.split]
        everyone = np.arange(len(held_out["id"]))[: 1 if options.smoke else None]
        self.everyone = Batches(slices(held_out, everyone), batch_size=48)
        self.measured = Batches(slices(held_out, everyone[: options.measured]), batch_size=48)

    def run(self, rule: str, seed: int) -> tuple[xr.DataTree, xr.Dataset]:
        """What was bought, and the figures of all held-out volumes at the end."""
        options, folder = self.options, self.folder / f"{rule}-{seed}"
        rng = np.random.default_rng(seed)
        chosen = rng.permutation(len(self.train["id"]))[: options.volumes]
        arrays = slices(self.train, chosen)
        masks = dict(zip(arrays["id"].tolist(), arrays["mask"], strict=True))
        first = foreground_order(arrays["mask"], rng)[: options.start]
        by, settings = RULES[rule]
        make = partial(build, options.rate)
        tree = active_learn(
            make, Batches(arrays, batch_size=BATCH), masks,
            acquisition=known_foreground(masks) if by == "known foreground" else by,
            acquisition_options=settings, start=arrays["id"][first].tolist(), size=options.size,
            budget=options.budget, test=self.measured, figures=figures, draws=options.draws,
            subsample=options.subsample, fit_options=self.fit_options, folder=folder,
            resume=True, seed=seed, device=options.device,
        )  # fmt: skip
        path = folder / "posterior-figures.nc"
        if not path.exists():
            torch.manual_seed(seed)
            model, guide = make()
            load(folder / f"step-{tree['test'].sizes['step'] - 1}.pt", model, guide)
            drawn = predict(
                model, guide, self.everyone, draws=4 * options.draws, seed=seed,
                device=options.device, progress=False,
            )  # fmt: skip
            storage.save(figures(drawn), path)
        end = storage.load(path)
        assert isinstance(end, xr.Dataset)
        return tree, end.expand_dims(rule=[rule], seed=[seed])

    def fit_options(self, number: int) -> dict[str, Any]:
        """As many steps whatever the number of labels."""
        epochs = max(1, round(self.options.steps / -(-number // BATCH)))
        rate = self.options.learning_rate
        return {"epochs": epochs, "learning_rate": rate, "schedule": "cosine"}


def main(options: Options) -> None:
    """Run what is missing; write table and picture."""
    study = Study(options)
    bought, ends = {}, []
    for rule in options.rule:
        for seed in options.seed:
            print(f"{rule}, seed {seed}")
            bought[rule, seed], end = study.run(rule, seed)
            ends.append(end)
    result = joined(bought)
    end = xr.combine_by_coords(ends).sel(rule=list(options.rule))
    pixels = result["class_count"].sel({"class": list(CLASS_NAMES[1:])}).sum("class")
    columns = {
        "organ pixels bought": (pixels.isel(step=-1), 0),
        "Dice, mean of steps": (result["dice"].mean("step"), 3),
        "Δ Dice, mean of steps": (result["dice"].mean("step"), 3),
        "Dice at the end": (end["dice"], 3),
        "Δ Dice at the end": (end["dice"], 3),
        "NLL": (end["nll"], 4),
        "Δ NLL": (end["nll"], 4),
        "ECE": (end["ece"], 4),
        "Δ ECE": (end["ece"], 4),
        "excess volume": (end["excess"], 3),
        "coverage": (end["coverage"], 2),
        "width": (end["width"], 2),
    }
    text = table(columns, BASELINE)
    storage.save(result, study.folder / "table.nc")
    storage.write_text(study.folder / "table.md", text + "\n")
    print(text)
    panels = {
        "Dice of volumes": result["dice"],
        "organ pixels bought": pixels,
        "ECE of pixels": result["ece"],
    }
    draw_curves(study.folder / "curves.png", result, panels, "Mean of seeds, 95 % interval")
    mean, _ = interval(end["dice"])
    print(f"Highest Dice at the end: {mean.idxmax().item()}, {float(mean.max()):.3f}")
    print(f"Wrote {study.folder / 'table.md'} and {study.folder / 'curves.png'}")
