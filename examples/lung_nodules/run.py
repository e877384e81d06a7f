"""The study from end to end."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from ambiguous_masks import baselines
from ambiguous_masks.pages import ged_section, tables, training_section
from ambiguous_masks.programs import build
from ambiguous_masks.training import (
    LATENT_PLANE,
    Run,
    decode_plane,
    over_cases,
    run,
    sampled_masks,
    whole_epochs,
)

from lung_nodules.options import Options
from lung_nodules.tables import HALVES, missed, missed_rows, rows, score
from ppl_med import storage
from ppl_med.analysis import segmentation
from ppl_med.data import (
    Batches,
    RotateAndScale,
    flips_and_turns_with_mask,
    load_lidc,
    random_grader,
    standardization,
)
from ppl_med.data.readers.lidc import CLASS_NAMES
from ppl_med.plots import segmentation as figures
from ppl_med.plots.report import Section, paragraph, picture, write_report
from ppl_med.storage import check_same, open_run

SHOWN, VALIDATION = 5, 64  # cases in the pictures, and in the validation curve
PUBLISHED = {
    "dropout_unet": (1.17, 0.61, 0.52, 0.47),
    "ensemble": (0.69, 0.53, 0.50, 0.49),
    "m_heads": (0.88, 0.41, 0.39, 0.34),
    "image_to_image_vae": (1.03, 0.53, 0.45, 0.41),
    "prob_unet": (0.81, 0.38, 0.32, 0.28),
}
SOURCE = "Kohl et al., NeurIPS 2018, Fig. 4a"


class Nodules:
    """Batches to train on, and the cases to compare on."""

    def __init__(self, options: Options) -> None:
        splits = load_lidc(options.data, size=options.size, resize="average")
        loc, scale = standardization(splits["train"]["image"])
        if options.split not in splits:
            raise FileNotFoundError(f"--split {options.split}: the folder has {sorted(splits)}")
        compared = splits[options.split]
        splits[options.split] = {name: v[:: options.every] for name, v in compared.items()}
        settings: dict[str, Any] = {"loc": loc, "scale": scale, "batch_size": options.batch_size}
        motion = [random_grader, flips_and_turns_with_mask, RotateAndScale()]
        keep = {
            part: {name: arrays[name] for name in ("image", "mask", "id")}
            for part, arrays in splits.items()
        }
        self.arrays, self.observed = keep["train"], _observed(keep[options.split])
        self.train = Batches(
            keep["train"], shuffle=True, drop_last=True, transform=motion, **settings
        )
        self.test = Batches(keep[options.split], **settings)
        self.curve = Batches(keep["val"], transform=random_grader, **settings).first(VALIDATION)
        self.images = splits[options.split]["image"]
        self.patients = splits[options.split]["patient"]
        if options.smoke:
            self.train, self.test = self.train.first(16), self.test.first(12)
            self.curve, self.images = self.curve.first(4), self.images[:12]
            self.patients = self.patients[:12]
            self.observed = self.observed.isel(case=slice(12))

    @property
    def shown(self) -> list[Any]:
        """Ids of the cases in the pictures: evenly spaced, not chosen."""
        ids = self.test.ids
        return [ids[k] for k in np.linspace(0, len(ids) - 1, SHOWN).astype(int)]


def _observed(arrays: dict[str, np.ndarray]) -> xr.Dataset:
    """Graders' masks as the observed group of a tree."""
    mask = ("case", "grader", "row", "col"), arrays["mask"]
    return xr.Dataset({"mask": mask}, coords={"case": arrays["id"]})


def pictures(options: Options, nodules: Nodules, name: str, one: Run) -> list[Section]:
    """Parts of the report about one model."""
    if one.history is None:  # of a baseline there is nothing to look at but its figures
        return []
    # The nodule lies near the middle of its crop; its half, in pixels, is shown.
    side = nodules.images.shape[-1]
    middle = slice(side // 4, side - side // 4)
    close = one.tree.isel(row=middle, col=middle)
    sizes = segmentation.sizes(
        sampled_masks(one.tree), one.tree["observed_data/mask"].load(), classes=[1]
    ).assign_coords({"class": [CLASS_NAMES[1]]})
    place = [nodules.test.ids.index(case) for case in nodules.shown]
    maps = segmentation.maps(one.tree["posterior/probs"].isel(case=place).load())
    anchor = name.replace("_", "-")
    found = [
        Section(
            f"samples-{anchor}",
            f"{name}: graders and samples",
            paragraph(
                "Cases are evenly spaced over the list, not chosen; the middle half of the crop."
            )
            + picture(
                figures.samples(close, nodules.images[..., middle, middle], nodules.shown),
                f"Images, masks of four graders and of samples, mean and spread, of {name}.",
                wide=True,
            ),
        ),
        Section(
            f"areas-{anchor}",
            f"{name}: areas",
            paragraph("Grey bars should hold nearly all graders and be no longer than that needs.")
            + picture(figures.area_intervals(sizes), f"Credible intervals of areas of {name}."),
        ),
        Section(
            f"maps-{anchor}",
            f"{name}: where it is unsure",
            paragraph(
                "Orange is aleatoric: uncertainty within each draw. Blue is epistemic: "
                "disagreement between draws."
            )
            + picture(
                figures.uncertainty_maps(maps, nodules.images[place]),
                f"Maps of entropy of {name} and its two parts.",
            ),
        ),
    ]
    if name in LATENT_PLANE:
        body = latent_figures(nodules, one, sizes, place[len(place) // 2])
        found.append(Section(f"latent-{anchor}", f"{name}: the latent code", body))
    return [*found, training_section(name, one)]


def latent_figures(nodules: Nodules, one: Run, sizes: xr.Dataset, case: int) -> str:
    """Masks over the latent plane of one case, and the codes of its draws and of others'."""
    image = next(iter(nodules.test.subset([case])))["image"][0]
    plane = decode_plane(one.model, image)
    axes = [int(plane[name].attrs["long_name"][1:]) - 1 for name in ("first", "second")]
    area = sizes["size"].isel({"class": 0}).rename("area")
    drawn = figures.latent_draws(one.tree, area, nodules.shown[:4], latent=(axes[0], axes[1]))
    return (
        paragraph("Neighbouring codes should give similar masks, and empty ones a place of theirs.")
        + picture(
            figures.latent_plane(plane, CLASS_NAMES, nodules.images[case]),
            f"Masks over two latent dimensions, case {nodules.test.ids[case]}.",
        )
        + picture(drawn, "Latent codes of the draws of four cases, coloured by area.")
    )


def show(
    options: Options,
    folder: Path,
    nodules: Nodules,
    result: xr.Dataset,
    runs: dict[str, Run],
    left_out: dict[str, xr.Dataset],
) -> None:
    """Write the report; its provenance is that of the first model."""
    first = next((one for one in runs.values() if one.history is not None), None)
    first = first or next(iter(runs.values()))
    cut = result.sizes["num_samples"] + 2  # the columns of GED² and the others
    divisions = next(iter(left_out.values())).sizes["division"]
    sections = [
        Section(
            "table",
            "Against the graders",
            paragraph(
                "GED² by number of samples: lower is better, and no model can beat the last line "
                "on average, while copied masks cost nothing. HM-IoU, D_max and Dice_max: higher "
                "is better; ± one standard error over patients."
            )
            + tables(*rows(result), [slice(1, cut), slice(cut, None)]),
        ),
        ged_section(result.mean("seed") if "seed" in result.dims else result, PUBLISHED, SOURCE),
        Section(
            "missed",
            "Masks that miss no more than was asked",
            paragraph(
                "Conformal risk control: a threshold on the probability, set on half the patients, "
                "and the share of the nodule missed in the other half, in percent; mean ± standard "
                f"deviation over {divisions} divisions, and the mask's mean size. The mean should "
                "not exceed the head of its column, whatever the model; good ones need fewer "
                "pixels."
            )
            + tables(*missed_rows(left_out), [slice(1, None)]),
        ),
    ]
    for name, one in runs.items():
        sections += pictures(options, nodules, name, one)
    write_report(
        folder / "report.html",
        title="Lung nodules: do samples disagree as radiologists do?",
        smoke=options.smoke,
        tree=first.tree,
        sections=sections,
        notes=(
            f"Split {options.split}, {len(nodules.test.ids)} images, {options.size} × "
            f"{options.size} pixels, {options.steps} steps of {options.batch_size} images, "
            f"{'the official sizes' if options.official else f'channels {options.channels}'}.",
            f"Published figures are of {SOURCE}, read off to 0.01: 128 × 128 pixels, 240 thousand "
            "steps, other crops of LIDC and another split. Here are one or two slices of every "
            "nodule, so the figures can be compared in size, not in their last digits.",
        ),
    )


def train_or_copy(name: str, options: Options, folder: Path, nodules: Nodules) -> Run:
    """Train a model, or copy masks of training patients."""
    if name in baselines.NAMES:
        copied = baselines.copied_masks(
            name,
            nodules.arrays,
            nodules.images,
            nodules.observed,
            list(CLASS_NAMES),
            options.draws,
            options.seed,
        )
        return Run(None, copied, None)
    own = folder / (name if not options.repeat > 1 else f"{name}-seed{options.seed}")
    program = build(name, options, 1, list(CLASS_NAMES), (options.size, options.size))
    return run(
        name,
        program,
        options,
        own,
        train=nodules.train,
        test=nodules.test,
        part=options.split,
        validation=nodules.curve,
    )


def main(options: Options) -> None:
    """Run the study, print and save its table, write the report."""
    folder = open_run(options.out, resume=options.resume)
    if options.smoke:
        options.shrink()
    check_same(options, folder, free=("data", "split", "model"))
    nodules = Nodules(options)
    whole_epochs(options, nodules.train)
    runs: dict[str, Run] = {}
    found, left_out = [], {}
    for name in options.model:
        by_seed = []
        for seed in range(options.seed, options.seed + options.repeat):
            one = train_or_copy(name, replace(options, seed=seed), folder, nodules)
            runs.setdefault(name, one)
            graders = one.tree["observed_data/mask"].load()
            scores = score(sampled_masks(one.tree), graders)
            table = over_cases(scores, nodules.patients)
            if "wall_time_seconds" in one.tree.attrs:
                table["seconds"] = one.tree.attrs["wall_time_seconds"] / len(nodules.patients)
            by_seed.append(table.expand_dims(seed=[seed]))
        scores = xr.concat(by_seed, "seed")
        scores = scores if options.repeat > 1 else scores.isel(seed=0, drop=True)
        found.append(scores.expand_dims(model=[name]))
        tree = runs[name].tree
        result = xr.concat(found, "model", join="outer")
        storage.save(result, folder / "table.nc")
        storage.write_text(folder / "table.md", storage.markdown_table(*rows(result)) + "\n")
        left_out[name] = missed(
            tree, nodules.patients, options.seed, 2 if options.smoke else HALVES
        )
        storage.write_text(
            folder / "missed.md", storage.markdown_table(*missed_rows(left_out)) + "\n"
        )
    print(storage.markdown_table(*rows(result)))
    print(storage.markdown_table(*missed_rows(left_out)))
    show(options, folder, nodules, result, runs, left_out)
    print(f"Wrote {folder / 'table.md'} and {folder / 'report.html'}")
