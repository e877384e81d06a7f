"""Hippocampus volumes in mm³, each with an interval that says how sure the network is.

Trains a 3D U-Net with random weights on MR volumes of the Medical Segmentation Decathlon and
measures anterior and posterior part in every posterior draw. A draw is one function of the volume,
so that neighbouring voxels err together; the interval over draws is as wide as that makes it.

Taken voxel by voxel, as if every voxel drew weights of its own, the same draws give intervals that
are far too narrow, since the errors of thousands of voxels seem to cancel. That is what sampling
voxels from mean probabilities gives, and the local reparameterization trick left on at prediction;
so prediction here always draws weights, whatever estimator trained them.

No posterior is promised to cover: where it does not, the intervals are widened by cases that were
not trained on (conformal prediction): half of val, or all of it for --split test.

Needs --data with hippocampus/ in it. Writes to the output folder

    checkpoint.pt, history.nc, posterior-<split>.zarr
    table.md, table.nc   coverage and width of the intervals, Dice
    report.html          slices, draws, uncertainty maps, volumes against the truth
"""

import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
import xarray as xr
from dense_uncertainty.variants import dropout
from monai.networks.nets.unet import UNet
from scipy.stats import binom

from ppl_med import storage
from ppl_med.analysis import conformal, segmentation
from ppl_med.analysis.statistics import binning
from ppl_med.data import Batches, load_hippocampus
from ppl_med.data.readers import hippocampus
from ppl_med.inference import Ensemble, MeanFieldNormal, PointEstimate, fit, predict
from ppl_med.models import BayesianSegmenter
from ppl_med.plots import segmentation as figures
from ppl_med.plots.report import Section, paragraph, picture, table, write_report
from ppl_med.storage import check_same, open_run

LEVEL = 0.9
SIZE = (40, 56, 32)  # voxels; holds every outlined voxel of the set and can be halved thrice
SHOWN = 4  # cases in the pictures
KINDS = (
    "Coherent: one weight draw for all voxels. Voxelwise: the same draws, as if every voxel had "
    "weights of its own. Conformal: coherent, widened by cases that were not trained on."
)
HEAD = (
    "cases", "structure", "interval", "n", "covered %", "95 % interval %", "width, mm³",
    "width / volume %", "Dice",
)  # fmt: skip


@dataclass
class Options:
    """Segment the hippocampus in 3D and measure its parts, with intervals."""

    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder that holds hippocampus/; by default what PPL_MED_DATA names."""
    guide: Literal["dropout", "ensemble", "mean_field", "frequentist"] = "dropout"
    """Distribution over the weights; an ensemble is one of nets with dropout."""
    split: Literal["val", "test"] = "val"
    """Cases to report on. Choose settings on val; use test once, at the end."""
    out: Path = Path("runs/hippocampus")
    """Folder for the results; an earlier run in it is moved aside."""
    seed: int = 0
    """Seed of start values, training and draws."""
    device: str | None = None
    """Where to train, such as cpu or cuda; a GPU where there is one."""
    steps: int = 600
    """Training steps."""
    batch_size: int = 2
    """Volumes per training step."""
    rate: float = 3e-3
    """Learning rate of Adam; falls to 0 along a cosine."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the layers in training; bfloat16 is faster on GPUs and on CPUs that have it."""
    dropout: float = 0.1
    """Probability that the guide dropout drops a channel of a wide layer."""
    channels: tuple[int, ...] = (16, 32, 64, 128)
    """Channels of the U-Net by scale."""
    members: int = 4
    """Nets of the ensemble, each trained for all steps."""
    draws: int = 32
    """Posterior draws; of an ensemble, divided among its members."""
    window: tuple[int, int, int] | None = None
    """Predict by overlapping patches of this size, for volumes that do not fit into memory."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume an interrupted run in the output folder."""

    def shrink(self) -> None:
        """Make everything small."""
        self.steps, self.draws, self.channels, self.members = 3, 4, (4, 8), 2


def build(options: Options) -> tuple[BayesianSegmenter, Any]:
    """Model and guide."""
    torch.manual_seed(options.seed)
    net = UNet(
        spatial_dims=3, in_channels=1, out_channels=len(hippocampus.CLASS_NAMES),
        channels=options.channels, strides=(2,) * (len(options.channels) - 1), num_res_units=1,
    )  # fmt: skip
    model = BayesianSegmenter(net, hippocampus.CLASS_NAMES, spatial_dims=3)
    if options.guide == "dropout":
        return model, dropout(model, options.dropout)
    if options.guide == "ensemble":
        parts = partial(dropout, rate=options.dropout)
        return model, Ensemble(model, parts, options.members, seed=options.seed)
    if options.guide == "mean_field":
        return model, MeanFieldNormal(model, init_scale=0.05, estimator="shared")
    return model, PointEstimate(model)


def shuffled(masks: xr.DataArray, seed: int) -> xr.DataArray:
    """The draws in another order in every voxel: the same marginals, and no coherence.

    Args:
        masks: Class ids (chain, draw, case, depth, row, col).
        seed: Seed of the orders.
    """
    rng = np.random.default_rng(seed)
    flat = masks.astype(np.uint8).transpose("case", "chain", "draw", ...).compute()
    apart = np.stack([
        rng.permuted(one.reshape(-1, *one.shape[2:]), axis=0).reshape(one.shape)
        for one in flat.values
    ])  # fmt: skip
    return flat.copy(data=apart).transpose(*masks.dims)


def measure(tree: xr.DataTree, seed: int) -> dict[str, xr.Dataset]:
    """Volumes of both parts in every draw, coherent and voxel by voxel, mm³."""
    spacing = tree["constant_data/spacing"].rename(spacing_dim_0="axis")
    names = tree["posterior/probs"]["class"].values[1:]
    settings: dict[str, Any] = {"spacing": spacing, "level": LEVEL, "classes": [1, 2]}
    masks = tree["posterior_predictive/mask"]
    truth = tree["observed_data/mask"].expand_dims(grader=["truth"], axis=1)
    apart = shuffled(masks, seed)
    found = {
        "coherent": segmentation.sizes(masks, truth, **settings),
        "voxelwise": segmentation.sizes(apart, truth, **settings),
    }
    return {kind: sizes.assign_coords({"class": names}) for kind, sizes in found.items()}


def numbers_tree(sizes: xr.Dataset, structure: str) -> xr.DataTree:
    """Volumes of one structure as a tree of a regression, for ``conformal``."""
    part = sizes.sel({"class": structure}, drop=True)
    truth = part["grader_size"].isel(grader=0, drop=True)
    return xr.DataTree.from_dict({
        "posterior": xr.Dataset({"loc": part["size"]}),
        "posterior_predictive": xr.Dataset({"volume": part["size"]}),
        "observed_data": xr.Dataset({"volume": truth}),
    })  # fmt: skip


def widened(calibration: xr.Dataset, sizes: xr.Dataset, guide: str) -> xr.Dataset:
    """Conformal intervals of every structure, in units of the sd of its volume over draws.

    Args:
        calibration: Volumes of cases that were not trained on.
        sizes: Volumes of other cases.
        guide: Draws of "frequentist" differ by noise of voxels only, which is no unit.
    """
    method = "absolute" if guide == "frequentist" else "normalised"
    parts = []
    for structure in sizes["class"].values:
        learnt = conformal.calibrate_intervals(
            numbers_tree(calibration, structure), 1 - LEVEL, method=method, site="volume"
        )
        intervals = conformal.predict_intervals(learnt, numbers_tree(sizes, structure))
        part = sizes.sel({"class": [structure]}).copy()
        ends = intervals["interval"].expand_dims({"class": [structure]}, axis=1)
        part["lower"] = ends.sel(bound="lower", drop=True).clip(min=0).assign_attrs(units="mm^3")
        part["upper"] = ends.sel(bound="upper", drop=True).assign_attrs(units="mm^3")
        parts.append(part)
    return xr.concat(parts, "class", data_vars="minimal", coords="minimal", compat="override")


def coverage(sizes: xr.Dataset) -> xr.Dataset:
    """Share of cases whose true volume lies in the interval, and how wide it is, (class)."""
    truth = sizes["grader_size"].isel(grader=0, drop=True)
    inside = (truth >= sizes["lower"]) & (truth <= sizes["upper"])
    hits, number = inside.sum("case"), inside.sizes["case"]
    low, high = binning.clopper_pearson(hits.values, np.full(hits.shape, number))
    width = sizes["upper"] - sizes["lower"]
    return xr.Dataset(
        {
            "coverage": (hits / number).assign_attrs(units="probability"),
            "coverage_lower": ("class", low, {"units": "probability"}),
            "coverage_upper": ("class", high, {"units": "probability"}),
            "width": width.mean("case").assign_attrs(units="mm^3"),
            "relative_width": (width / truth).mean("case").assign_attrs(units="1"),
            "num_cases": number,
        }
    )


def dice(tree: xr.DataTree) -> xr.DataArray:
    """Dice of the most probable class under all draws, mean over cases, (class)."""
    mean = tree["posterior/probs"].mean(("chain", "draw"))
    guess, truth = mean.argmax("class").compute(), tree["observed_data/mask"].compute()
    space = ("depth", "row", "col")
    found = []
    for index in (1, 2):
        both = ((guess == index) & (truth == index)).sum(space)
        total = (guess == index).sum(space) + (truth == index).sum(space)
        found.append((2 * both / total).mean("case"))
    return xr.concat(found, mean["class"][1:]).drop_attrs()


def draws_of(options: Options) -> int:
    """Draws of every member, or of the one net."""
    several = options.guide == "ensemble"
    return max(1, options.draws // options.members) if several else options.draws


def study(options: Options, trees: dict[str, xr.DataTree]) -> dict[str, dict[str, xr.Dataset]]:
    """Intervals by the name of their cases and by kind.

    Conformal intervals are learnt on val, and on half of it where the other half is to be judged.
    """
    found = {split: measure(tree, options.seed) for split, tree in trees.items()}
    val = found["val"]["coherent"]
    if options.split == "test":
        found["test"]["conformal"] = widened(val, found["test"]["coherent"], options.guide)
        return found
    half = {"case": slice(0, None, 2)}, {"case": slice(1, None, 2)}
    judged = {kind: sizes.isel(half[1]) for kind, sizes in found["val"].items()}
    judged["conformal"] = widened(val.isel(half[0]), judged["coherent"], options.guide)
    return found | {"half of val": judged}


def rows(result: xr.Dataset) -> list[list[str]]:
    """Cells of the table."""
    lines = []
    for place in result["place"].values:
        one = result.sel(place=place)
        percent = [f"{100 * float(one[n]):.0f}" for n in (
            "coverage", "coverage_lower", "coverage_upper", "relative_width",
        )]  # fmt: skip
        lines.append([
            str(one["cases"].item()), str(one["structure"].item()), str(one["kind"].item()),
            str(int(one["num_cases"])), percent[0], f"{percent[1]} to {percent[2]}",
            f"{float(one['width']):.0f}", percent[3],
            f"{float(one['dice']):.3f}".replace("nan", ""),
        ])  # fmt: skip
    return lines


def tabulate(
    found: dict[str, dict[str, xr.Dataset]], overlap: dict[str, xr.DataArray]
) -> xr.Dataset:
    """One row per structure and interval."""
    lines = []
    for cases, by_kind in found.items():
        own = overlap.get(cases, xr.full_like(overlap["val"], np.nan))  # of whole splits only
        for structure in by_kind["coherent"]["class"].values:
            for kind, sizes in by_kind.items():
                line = coverage(sizes).sel({"class": structure}, drop=True).drop_vars(
                    "bound", errors="ignore"
                )  # fmt: skip
                line["dice"] = own.sel({"class": structure}, drop=True)
                labels = {"cases": cases, "structure": str(structure), "kind": kind}
                lines.append(line.assign(labels))
    result = xr.concat(lines, "place")
    return result.assign_coords(place=np.arange(result.sizes["place"]))


def slices(tree: xr.DataTree, images: np.ndarray) -> tuple[xr.DataTree, np.ndarray]:
    """A few cases, evenly spaced and not chosen, each cut where its structures are largest."""
    chosen = np.linspace(0, tree["posterior"].sizes["case"] - 1, SHOWN).astype(int)
    mask = tree["observed_data/mask"].isel(case=chosen).compute()
    depth = (mask > 0).sum(("row", "col")).argmax("depth")
    at = xr.DataArray(depth.values, dims="case")
    probs = tree["posterior/probs"].isel(case=chosen).compute().isel(depth=at)
    flat = xr.DataTree.from_dict({
        "posterior": xr.Dataset({"probs": probs}),
        "observed_data": xr.Dataset({"mask": mask.isel(depth=at)}),
    })  # fmt: skip
    return flat, images[chosen, :, depth.values]


def pitfall(result: xr.Dataset, split: str) -> str:
    """What the table says about voxelwise intervals, in a sentence."""
    part = result.isel(place=(result["cases"] == split).values)
    by_kind = {k: part.isel(place=(part["kind"] == k).values) for k in ("coherent", "voxelwise")}
    width = {kind: float(one["width"].mean()) for kind, one in by_kind.items()}
    hit = {kind: 100 * float(one["coverage"].mean()) for kind, one in by_kind.items()}
    return (
        f"On {split}, {100 * LEVEL:g} % intervals of coherent draws hold "
        f"{hit['coherent']:.0f} % of the true volumes and are {width['coherent']:.0f} mm³ wide; of "
        f"the same draws taken voxel by voxel {hit['voxelwise']:.0f} %, at "
        f"{width['voxelwise']:.0f} mm³."
    )


def show(
    options: Options,
    folder: Path,
    tree: xr.DataTree,
    images: np.ndarray,
    history: xr.Dataset,
    found: dict[str, dict[str, xr.Dataset]],
    result: xr.Dataset,
) -> None:
    """Write the report."""
    flat, pictures = slices(tree, images)
    last = list(found)[-1]
    number = int(result["num_cases"].isel(place=-1))
    low, high = binom.interval(0.95, number, LEVEL)
    text = (
        f"{pitfall(result, options.split)} Of {number} intervals that cover with probability "
        f"{LEVEL:g}, {low:g} to {high:g} hold the truth in 95 of 100 studies "
        "(binomial distribution)."
    )
    body = "".join(
        picture(figures.size_intervals(found[last], str(structure)), f"Volumes of {structure}.")
        for structure in found[last]["coherent"]["class"].values
    )
    samples = figures.samples(flat, pictures, list(flat["posterior"]["case"].values), num_samples=4)
    maps = segmentation.maps(flat["posterior/probs"])
    uncertain = figures.uncertainty_maps(maps, pictures, list(maps["case"].values))
    sections = [
        Section("volumes", "Do the intervals hold the volumes?",
                paragraph(text) + table(HEAD, rows(result))),
        Section("intervals", f"Volumes of {last}",
                paragraph(f"Intervals that meet the line hold the truth, orange ones miss. {KINDS}")
                + body),
        Section("samples", "Slices and draws",
                paragraph("Each case cut where the hippocampus is largest; the back is up.")
                + picture(samples, "MR slices, the outline, four draws, mean and spread.",
                          wide=True)),
        Section("maps", "Where it is uncertain",
                paragraph("Borders are: whether a voxel there belongs is what draws disagree on.")
                + picture(uncertain, "Entropy per voxel and its two parts.")),
    ]  # fmt: skip
    write_report(
        folder / "report.html",
        title="How large is the hippocampus, and how sure is that?",
        tree=tree,
        history=history,
        sections=sections,
        notes=(
            f"Guide {options.guide}; {options.steps} steps of {options.batch_size} volumes of "
            f"{' × '.join(map(str, SIZE))} voxels; {options.draws} draws.",
            "The outline of one expert counts as the truth; its own error is part of what an "
            "interval must cover.",
        ),
    )


def main(options: Options) -> None:
    """Train, predict, measure, report."""
    folder = open_run(options.out, resume=options.resume)
    if options.smoke:
        options.shrink()
    check_same(options, folder, free=("data", "split"))
    splits = load_hippocampus(options.data, size=SIZE)
    if options.split not in splits:
        raise FileNotFoundError(f"--split {options.split}: the folder has {sorted(splits)}")
    model, guide = build(options)
    train = Batches(
        splits["train"], batch_size=options.batch_size, shuffle=True, drop_last=True,
        seed=options.seed,
    )  # fmt: skip
    if options.smoke:
        train = train.first(4)
    history = fit(
        model, guide, train, epochs=max(1, round(options.steps / len(train))),
        learning_rate=options.rate, schedule="cosine", precision=options.precision,
        device=options.device, seed=options.seed, checkpoint=folder / "checkpoint.pt",
        resume=options.resume,
    )  # fmt: skip
    storage.save(history, folder / "history.nc")
    trees = {
        split: predict(
            model, guide, Batches(splits[split], batch_size=5), draws=draws_of(options),
            seed=options.seed, device=options.device, window=options.window,
            store=folder / f"posterior-{split}.zarr", resume=options.resume,
        )
        for split in dict.fromkeys(("val", options.split))
    }  # fmt: skip
    found = study(options, trees)
    result = tabulate(found, {split: dice(tree) for split, tree in trees.items()})
    storage.save(result, folder / "table.nc")
    text = storage.markdown_table(list(HEAD), rows(result))
    storage.write_text(folder / "table.md", text + "\n")
    print(text)
    images = splits[options.split]["image"]
    show(options, folder, trees[options.split], images, history, found, result)
    print(f"Wrote {folder / 'table.md'} and {folder / 'report.html'}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
