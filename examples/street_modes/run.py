"""The study from end to end."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from ambiguous_masks.pages import ged_section, tables, training_section
from ambiguous_masks.programs import build
from ambiguous_masks.training import (
    LATENT_PLANE,
    Run,
    cell,
    decode_plane,
    ged_of_subsets,
    over_cases,
    run,
    sampled_masks,
    whole_epochs,
)

from ppl_med import storage
from ppl_med.analysis import segmentation
from ppl_med.data import (
    CAMVID_FLIPS,
    SCENE_FLIPS,
    Batches,
    ClassFlips,
    FreshBatches,
    load_camvid,
    mirror_with_mask,
    scenes,
    standardization,
)
from ppl_med.plots import segmentation as figures
from ppl_med.plots.report import Section, paragraph, picture, write_report
from ppl_med.storage import check_same, open_run
from street_modes.options import Options

SAMPLES = (1, 4, 8, 16)
SHOWN = 4  # cases in the pictures
EPOCH = 100  # batches that count as an epoch of synthetic scenes
CAMVID_SIZE = (96, 128)
PUBLISHED = {
    "dropout_unet": (1.02, 0.48, 0.39, 0.34),
    "ensemble": (0.74, 0.45, 0.40, 0.38),
    "m_heads": (0.77, 0.39, 0.33, 0.29),
    "image_to_image_vae": (0.91, 0.40, 0.32, 0.27),
    "prob_unet": (0.87, 0.33, 0.245, 0.20),
}
SOURCE = "Kohl et al., NeurIPS 2018, Fig. 4b (Cityscapes)"
COLUMNS = {
    "kl_empirical_true": "KL(sampled‖true)", "kl_true_empirical": "KL(true‖sampled)",
    "total_variation": "total variation", "modes_found": "modes found", "undecided": "undecided",
    "consistency": "consistency", "accuracy": "class accuracy",
}  # fmt: skip


class Streets:
    """Batches to train on, the images to compare on, and their 32 masks."""

    flips: ClassFlips
    train: Any

    def __init__(self, options: Options) -> None:
        self.size = options.size or ((32, 32) if options.scenes else CAMVID_SIZE)
        arrays = self._scenes(options) if options.scenes else self._camvid(options)
        self.images, self.ids = arrays["image"], arrays["id"].tolist()
        ids = {"case": self.ids}
        whole = xr.DataArray(arrays["unflipped_mask"], ids, ("case", "row", "col"))
        masks = np.stack([self.flips.mode_masks(one) for one in whole.values])
        self.regions = whole
        self.modes = xr.DataArray(masks, ids, ("case", "grader", "row", "col"))
        self.classes = [*self.flips.classes, *self.flips.new_classes]
        names = self.flips.class_names
        pairs = zip(self.flips.classes, self.flips.new_classes, strict=True)
        self.switches = {names[old]: names[new] for old, new in pairs}

    def _scenes(self, options: Options) -> dict[str, Any]:
        if self.size[0] != self.size[1]:
            raise ValueError(f"--size of synthetic scenes must be square, got {self.size}")
        self.flips = SCENE_FLIPS
        generate = partial(scenes, size=self.size[0])
        number = options.steps if options.smoke else min(EPOCH, options.steps)
        self.train = FreshBatches(
            generate, batch_size=options.batch_size, num_batches=number, seed=options.seed,
            keep=("image", "mask"),
        )  # fmt: skip
        # Seeds of the training scenes come from a hash; a small one is none of theirs.
        number = 12 if options.smoke else options.cases
        arrays = generate(number, seed=1 if options.split == "val" else 2)
        self.test = Batches({name: arrays[name] for name in ("image", "mask", "id")}, batch_size=50)
        return arrays

    def _camvid(self, options: Options) -> dict[str, Any]:
        self.flips = CAMVID_FLIPS
        splits = load_camvid(options.data, size=self.size)
        if options.split not in splits:
            raise FileNotFoundError(f"--split {options.split}: the folder has {sorted(splits)}")
        if options.smoke:
            splits = {s: {n: v[:12] for n, v in part.items()} for s, part in splits.items()}
        loc, scale = standardization(splits["train"]["image"])
        settings: dict[str, Any] = {"loc": loc, "scale": scale, "batch_size": options.batch_size}
        keep = {s: {n: part[n] for n in ("image", "mask", "id")} for s, part in splits.items()}
        self.train = Batches(
            keep["train"], shuffle=True, drop_last=True, seed=options.seed,
            transform=[mirror_with_mask, self.flips], **settings,
        )  # fmt: skip
        self.test = Batches(keep[options.split], transform=self.flips, **settings)
        arrays = splits[options.split]
        return arrays | {"unflipped_mask": arrays["mask"]}

    @property
    def shown(self) -> list[Any]:
        """Ids of the cases in the pictures: evenly spaced, not chosen."""
        return [self.ids[k] for k in np.linspace(0, len(self.ids) - 1, SHOWN).astype(int)]


def frequencies(streets: Streets, tree: xr.DataTree) -> xr.Dataset:
    """Which classes every sample flipped, and how often, against the truth."""
    rates = streets.flips.probabilities
    return segmentation.flips(tree, streets.regions, streets.switches, rates)


def score(streets: Streets, tree: xr.DataTree, flips: xr.Dataset) -> xr.Dataset:
    """Every figure of the table; ``ged`` and ``floor`` by number of samples."""
    law = streets.flips.mode_probabilities()
    energy = segmentation.ged(
        sampled_masks(tree), streets.modes, classes=streets.classes, empty=float("nan"),
        grader_weights=law,
    )  # fmt: skip
    ged = ged_of_subsets(energy, [n for n in SAMPLES if n <= energy.attrs["num_samples"]])
    floor = energy["grader_grader"] / ged["num_samples"]
    by_case = over_cases(xr.Dataset({"ged": ged, "floor": floor, "unbiased": energy["unbiased"]}))
    kept = [n for n in COLUMNS if n in flips and flips[n].ndim == 0]
    kept += [n for name in kept for n in (f"{name}_se", f"{name}_perfect") if n in flips]
    kept += ["flip_mean", "flip_se", "rate"]
    found = by_case.merge(flips[kept])
    for name in ("consistency", "accuracy"):
        found[name] = flips[f"{name}_mean"].mean("switch")
    return found.drop_attrs()


def rows(result: xr.Dataset) -> tuple[list[str], list[list[str]]]:
    """Head and cells of the table."""
    counts = result["num_samples"].values.tolist()
    switches = [str(name) for name in result["switch"].values]
    head = ["model", *(f"GED² of {n}" for n in counts), "unbiased", *COLUMNS.values()]
    head += [f"flips of {name}" for name in switches]
    lines = []
    for model in result["model"].values:
        part = result.sel(model=model)
        line = [str(model), *(cell(part.sel(num_samples=n), "ged") for n in counts)]
        line += [cell(part, name) for name in ("unbiased", *COLUMNS)]
        rates = part[["flip_mean", "flip_se"]].rename(flip_mean="flip", flip_se="flip_se")
        lines.append(line + [cell(rates.sel(switch=name), "flip") for name in switches])
    floor = [f"{value:.3f}" for value in result["floor"].max("model").values]
    truth = [f"{value:.3f}" for value in result["rate"].isel(model=0).values]
    number = result.min("model")  # a perfect sampler's figures are not 0 either
    chance = [cell(number, f"{n}_perfect") for n in ("kl_empirical_true", "total_variation")]
    perfect = ["0", chance[0], "", chance[1], "", "0", "1", "1"]
    return head, [*lines, ["a perfect model", *floor, *perfect, *truth]]


def show(
    options: Options,
    folder: Path,
    streets: Streets,
    result: xr.Dataset,
    runs: dict[str, Run],
    flips: dict[str, xr.Dataset],
) -> None:
    """Write the report; its provenance is that of the first model."""
    first = next(iter(runs.values()))
    start = result.sizes["num_samples"] + 2
    stop = start + len(COLUMNS)
    cuts = [slice(1, start), slice(start, stop), slice(stop, None)]
    sections = [
        Section(
            "table",
            "Against the truth",
            paragraph("Frequencies and rates should equal the last line; ± one standard error.")
            + tables(*rows(result), cuts),
        ),
        Section(
            "modes",
            "The 32 modes",
            paragraph("Coloured bars should end where the grey ones do, and rates on their line.")
            + picture(figures.mode_bars(flips, flips), "Frequencies of modes and flip rates."),
        ),
        ged_section(result, PUBLISHED, SOURCE),
    ]
    for name, one in runs.items():
        sections += pictures(streets, name, one)
    write_report(
        folder / "report.html",
        title="Street scenes: 32 right answers, each with its probability",
        smoke=options.smoke,
        tree=first.tree,
        sections=sections,
        notes=(
            f"{'Synthetic scenes' if options.scenes else 'CamVid'}, split {options.split}, "
            f"{len(streets.ids)} images of {streets.size[0]} × {streets.size[1]} pixels, "
            f"{options.steps} steps of {options.batch_size} images.",
            f"Published figures are of {SOURCE}, read off to 0.01: images of 256 × 512 pixels, 19 "
            "classes, 240 thousand steps. Only the flips are the same.",
        ),
    )


def pictures(streets: Streets, name: str, one: Run) -> list[Section]:
    """Parts of the report about one model."""
    anchor = name.replace("_", "-")
    drawn = figures.samples(one.tree, streets.images, streets.shown, num_samples=6)
    found = [
        Section(
            f"samples-{anchor}",
            f"{name}: samples",
            paragraph("A class and what it flips to have a strong and a pale tone of one colour.")
            + picture(drawn, f"Images, one annotation and samples of {name}.", wide=True),
        )
    ]
    if name in LATENT_PLANE:
        image = next(iter(streets.test.subset([0])))["image"][0]
        plane = figures.latent_plane(decode_plane(one.model, image), streets.flips.class_names)
        text = paragraph("Each flip should cut the plane in two, along a border of its own.")
        body = text + picture(plane, "Masks over two latent dimensions.")
        found.append(Section(f"latent-{anchor}", f"{name}: the latent code", body))
    return [*found, training_section(name, one)]


def main(options: Options) -> None:
    """Run the study, print and save its table, write the report."""
    folder = open_run(options.out, resume=options.resume)
    if options.smoke:
        options.shrink()
    check_same(options, folder, free=("data", "split", "model"))
    streets = Streets(options)
    whole_epochs(options, streets.train)
    runs, flips, found = {}, {}, []
    for name in options.model:
        classes, channels = list(streets.flips.class_names), streets.images.shape[1]
        program = build(name, options, channels, classes, streets.size)
        own = folder / name
        runs[name] = run(name, program, options, own, streets.train, streets.test, options.split)
        flips[name] = frequencies(streets, runs[name].tree)
        scores = score(streets, runs[name].tree, flips[name])
        found.append(scores.expand_dims(model=[name]))
        result = xr.concat(found, "model", join="outer")
        storage.save(result, folder / "table.nc")
        storage.write_text(folder / "table.md", storage.markdown_table(*rows(result)) + "\n")
    print(storage.markdown_table(*rows(result)))
    show(options, folder, streets, result, runs, flips)
    print(f"Wrote {folder / 'table.md'} and {folder / 'report.html'}")
