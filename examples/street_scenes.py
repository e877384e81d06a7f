"""Street scenes: four variants of one net, what each uncertainty says, in sun and in fog.

Trains a net on CamVid without and with noise on its logits that it learns, without and with dropout
over its weights (Kendall and Gal, NeurIPS 2017), with less and less data, and compares them on the
validation images and on corrupted ones. Writes to the output folder, for every run (variant,
fraction, seed), checkpoint.pt, history.nc, maps-<images>.nc (uncertainty of every pixel),
confusion.nc, figures.nc and posterior-shown.nc, and for all of them

    table.md, table.nc   IoU, accuracy, NLL, ECE, mean entropy and logit variance
    report.html          maps, precision and recall by uncertainty, training

The published nets got 67.1 (baseline), 67.4 (aleatoric), 67.2 (epistemic) and 67.5 (both) IoU on
the test split, and 57.2, 62.9 and 67.5 (both) with a quarter, half and all of the data. They are
DenseNets of 103 layers, 360 x 480 pixels, trained until they converged. What stands here by default
is a U-Net of 0.2 million weights at 72 x 96 pixels, a few minutes of training, and the validation
split, some of whose frames are of a drive that is also in training: figures are lower, and only
their order compares. ``--net tiramisu103 --size 180 240 --steps 30000 --batch-size 4``, on a GPU,
comes nearest.

Finished runs are kept with --resume, so the study can be stopped and spread over machines.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
import xarray as xr
from ambiguous_masks.pages import tables
from dense_uncertainty.corruption import Corruption, corrupt
from dense_uncertainty.pixels import (
    SCORES,
    by_uncertainty,
    pixel_maps,
    resampled,
    score,
)
from dense_uncertainty.variants import (
    Cell,
    StudyOptions,
    assemble,
    cells,
    draws_of,
    draws_weights,
    guide_of,
    learns_noise,
    rows_of,
    share,
    train,
)
from monai.networks.nets.unet import UNet as MonaiUNet
from torch import nn

from ppl_med import storage
from ppl_med.analysis import scoring
from ppl_med.data import Batches, load_camvid, load_wbc_seg, mirror_with_mask, standardization
from ppl_med.data.readers.camvid import CLASS_NAMES
from ppl_med.inference import functions, predict
from ppl_med.likelihoods import LogitNormal
from ppl_med.models import BayesianSegmenter
from ppl_med.networks import FCDenseNet, UNet, unet
from ppl_med.plots import segmentation as figures
from ppl_med.plots import selective as selective_figures
from ppl_med.plots.report import Section, paragraph, picture, write_report
from ppl_med.storage import check_same, open_run

BLOCK = 8  # images predicted at a time
SHOWN = 4  # images in the pictures
CELLS = "blood cells"
# Title, digits and factor of every figure of the table.
COLUMNS = {
    "iou": ("IoU %", 1, 100.0),
    "iou_se": ("s.e. over images", 1, 100.0),
    "gain": ("IoU less baseline's", 1, 100.0),
    "gain_se": ("s.e. of that", 1, 100.0),
    "accuracy": ("pixel accuracy %", 1, 100.0),
    "nll": ("NLL nats", 3, 1.0),
    "ece": ("ECE", 3, 1.0),
    "precision": ("precision % at half recall", 1, 100.0),
    "predictive_entropy": ("entropy nats", 3, 1.0),
    "expected_entropy": ("aleatoric entropy nats", 3, 1.0),
    "logit_variance": ("epistemic logit variance ×10⁻³", 2, 1e3),
}
PUBLISHED = (
    "Published (Kendall and Gal, NeurIPS 2017, tables 1 and 3; CamVid test split, 360 × 480 pixels,"
    " DenseNet of 103 layers): IoU 67.1 baseline, 67.4 aleatoric, 67.2 epistemic, 67.5 both. Both, "
    "by share of the data ¼, ½, 1: IoU 57.2, 62.9, 67.5; aleatoric entropy 0.106, 0.156, 0.111; "
    "epistemic logit variance 1.96, 1.66, 1.36 ×10⁻³. Tested on NYUv2 instead, ¼ and 1: 0.247 and "
    "0.264; 10.9 and 11.8 ×10⁻³."
)


@dataclass
class Options(StudyOptions):
    """Train four variants of a segmentation net on CamVid."""

    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder that holds camvid/; by default what PPL_MED_DATA names."""
    out: Path = Path("runs/street_scenes")
    """Folder for the results; an earlier study in it is moved aside."""
    split: Literal["val", "test"] = "val"
    """Images to compare on. Choose settings on val; use test once, at the end."""
    size: tuple[int, int] = (72, 96)
    """Rows and columns; the files have 180 240. Multiples of 8 for the U-Net."""
    net: Literal["residual", "plain", "tiramisu56", "tiramisu103"] = "residual"
    """A U-Net with residual units and instance normalisation (MONAI), one without, or a fully
    convolutional DenseNet of so many layers."""
    channels: tuple[int, ...] = (16, 32, 48, 64)
    """Channels of the U-Nets by scale, the finest first."""
    steps: int = 750
    """Training steps, the same for every fraction."""
    guide: Literal["dropout", "ensemble"] = "ensemble"
    """Distribution over weights, in the variants that have one."""
    draws: int = 4
    """Posterior draws; of an ensemble, divided among its members."""
    rate: float = 0.1
    """Rate of dropout; 0.2 in the papers."""
    noise_samples: int = 4
    """Samples of the noise on the logits in each pass of the net; more cost more."""
    corruption: tuple[Corruption, ...] = ("blur", "noise", "fog")
    """What the corrupted images have."""
    severity: int = 3
    """Severity of the corruption, 1 to 5."""
    cells: bool = False
    """Also try pictures of blood cells (wbc_seg/), which show no streets at all."""
    cases: int | None = None
    """Images to compare on, evenly spaced; all by default."""

    def shrink(self) -> None:
        """Make everything small, for --smoke."""
        self.channels, self.size = (4, 6), (24, 32)
        self.steps, self.batch_size, self.draws, self.members, self.cases = 3, 4, 4, 2, 6
        self.corruption = self.corruption[:1]


class Study:
    """The images and the runs of one call."""

    def __init__(self, options: Options, folder: Path) -> None:
        self.options, self.folder = options, folder
        splits = load_camvid(options.data, size=options.size)
        if options.split not in splits:
            raise FileNotFoundError(f"--split {options.split}: the folder has {sorted(splits)}")
        self.train = {name: splits["train"][name] for name in ("image", "mask", "id")}
        if options.smoke:
            self.train = {name: values[:12] for name, values in self.train.items()}
        loc, scale = standardization(self.train["image"])
        self.settings: dict[str, Any] = {"loc": loc, "scale": scale}
        whole = splits[options.split]
        number = min(options.cases or len(whole["id"]), len(whole["id"]))
        kept = np.linspace(0, len(whole["id"]) - 1, number).round().astype(int)
        test = {name: whole[name][kept] for name in ("image", "mask", "id")}
        self.tests = {options.split: test}
        for kind in options.corruption:
            images = corrupt(test["image"], kind, options.severity)
            self.tests[f"{kind} {options.severity}"] = test | {"image": images}
        if options.cells:
            self.tests[CELLS] = self._cells(number)

    def _cells(self, number: int) -> dict[str, Any]:
        """Pictures of another world; their classes are none of these."""
        part = load_wbc_seg(self.options.data, size=self.options.size, resize="scale")["val"]
        cut = {name: part[name][:number] for name in ("image", "mask", "id")}
        return cut | {"mask": np.full_like(cut["mask"], -1)}

    @property
    def shown(self) -> list[Any]:
        """Ids of the images in the pictures: evenly spaced, not chosen."""
        ids = self.tests[self.options.split]["id"].tolist()
        return [ids[k] for k in np.linspace(0, len(ids) - 1, SHOWN).astype(int)]

    def build(self, cell: Cell) -> tuple[BayesianSegmenter, Any]:
        """Model and guide of a run."""
        torch.manual_seed(cell.seed)
        noisy = learns_noise(cell.variant)
        outputs = len(CLASS_NAMES) * (1 + noisy)
        options = self.options
        net: nn.Module
        if options.net in ("residual", "plain"):
            first = options.channels[0]
            body = UNet(3, options.channels, 2) if options.net == "plain" else residual(options)
            net = nn.Sequential(body, unet.convolution(2, first, outputs, 1))
        else:
            net = FCDenseNet.of_depth(int(options.net.removeprefix("tiramisu")), 3, outputs)
        law: Any = "categorical"
        if noisy:
            settings: Any = {"event": ("row", "col"), "site": "mask", "partial": True}
            law = LogitNormal(CLASS_NAMES, options.noise_samples, **settings)
        model = BayesianSegmenter(net, CLASS_NAMES, likelihood=law)
        return model, guide_of(model, cell.variant, options, cell.seed)

    def run(self, cell: Cell) -> xr.Dataset:
        """Train a run and give its figures (images), or read what an earlier call left."""
        folder = self.folder / cell.name
        if (folder / "figures.nc").exists():
            return read(folder / "figures.nc")
        print(f"{cell.variant}, {cell.fraction:.0%} of the images, seed {cell.seed}")
        model, guide = self.build(cell)
        batches = Batches(
            self.train, batch_size=self.options.batch_size, shuffle=True,
            transform=mirror_with_mask, **self.settings,
        )  # fmt: skip
        part = share(batches, cell.fraction, cell.seed)
        train(model, guide, part, self.options, cell, folder)
        parts, confusions = [], []
        for name, arrays in self.tests.items():
            maps = self.predict_maps(model, guide, cell, arrays)
            storage.save(maps, folder / f"maps-{name.replace(' ', '-')}.nc")
            confusion = maps["confusion"]
            confusions.append(confusion.expand_dims(images=[name]))
            parts.append(score(maps, confusion).expand_dims(images=[name]))
        confusion = xr.concat(confusions, "images", join="outer").to_dataset(name="confusion")
        storage.save(confusion, folder / "confusion.nc")
        storage.save(self.predict_shown(model, guide, cell), folder / "posterior-shown.nc")
        result = xr.concat(parts, "images")
        if not draws_weights(cell.variant):
            result["logit_variance"] = xr.full_like(result["logit_variance"], np.nan)
        storage.save(result, folder / "figures.nc")
        return result

    def predict_maps(
        self, model: Any, guide: Any, cell: Cell, arrays: dict[str, Any]
    ) -> xr.Dataset:
        """What the tables and figures need of every pixel, in bounded memory.

        Returns:
            ``predictive_entropy``, ``expected_entropy``, ``mutual_information`` nats;
            ``logit_variance``, over draws, mean over classes; ``confidence``; ``nll`` nats, NaN
            where nobody labelled; ``truth`` and ``prediction``, class ids; dims (case, row, col).
        """
        number = len(arrays["id"])
        draws = draws_of(cell.variant, self.options) if draws_weights(cell.variant) else 1
        batches = Batches(arrays, batch_size=BLOCK, **self.settings)
        settings = {"draws": draws, "seed": cell.seed}
        parts = []
        for start in range(0, number, BLOCK):
            block = batches.subset(np.arange(start, min(start + BLOCK, number)))
            tree = predict(
                model, guide, block, device=self.options.device, progress=False, **settings
            )
            image = next(iter(block))["image"].to(next(guide.parameters()).device)
            with torch.no_grad():
                outputs = [one(image)[:, : len(CLASS_NAMES)] for one in
                           functions(model, guide, **settings)]  # fmt: skip
            variance = torch.stack(outputs).double().var(0, correction=0).mean(1)
            parts.append(pixel_maps(tree, variance.cpu().numpy()))
        return xr.concat(parts, "case")

    def predict_shown(self, model: Any, guide: Any, cell: Cell) -> xr.DataTree:
        """Posterior of the images in the pictures."""
        arrays = self.tests[self.options.split]
        place = {one: index for index, one in enumerate(arrays["id"].tolist())}
        kept = sorted({place[one] for one in self.shown})
        batches = Batches(arrays, batch_size=BLOCK, **self.settings).subset(kept)
        return predict(
            model, guide, batches, draws=draws_of(cell.variant, self.options), seed=cell.seed,
            device=self.options.device,
        )  # fmt: skip

    def path(self, variant: Any, name: str) -> Path:
        """A file of the run with all the data and the first seed."""
        options = self.options
        return self.folder / Cell(variant, max(options.fraction), options.seed[0]).name / name


def residual(options: Options) -> nn.Module:
    """MONAI's U-Net of residual units, with as many outputs as it has channels at the top."""
    channels = options.channels
    strides = (2,) * (len(channels) - 1)
    return MonaiUNet(2, 3, channels[0], channels, strides, num_res_units=2)


def read(path: Path) -> xr.Dataset:
    """A Dataset that an earlier call left."""
    found = storage.load(path)
    assert isinstance(found, xr.Dataset)
    return found


def collect(study: Study) -> xr.Dataset:
    """Run everything that was asked for; the figures over variant, fraction, seed and images."""
    found = {}
    for cell in cells(study.options):
        found[cell] = study.run(cell)
        result = with_gains(study, found)
        storage.save(result, study.folder / "table.nc")
        text = storage.markdown_table(*rows_of(result, COLUMNS, "images"))
        storage.write_text(study.folder / "table.md", text + "\n")
    return result


def with_gains(study: Study, found: dict[Cell, xr.Dataset]) -> xr.Dataset:
    """Add the IoU less the baseline's of the same fraction and seed, on the same images."""
    parts = {}
    for cell, part in found.items():
        base = Cell("baseline", cell.fraction, cell.seed)
        gain = xr.full_like(part["iou"], np.nan).rename("gain")
        error = gain.copy()
        if base in found and cell != base:
            own, other = (
                read(study.folder / one.name / "confusion.nc")["confusion"] for one in (cell, base)
            )
            for name in part["images"].values:
                pair = [one.sel(images=name).dropna("case").values for one in (own, other)]
                if pair[0].sum():
                    mine, baseline = (scoring.mean_iou(counts.sum(0)) for counts in pair)
                    gain.loc[name] = mine - baseline
                    error.loc[name] = (resampled(pair[0]) - resampled(pair[1])).std(ddof=1)
        parts[cell] = part.assign(gain=gain, gain_se=error)
    return assemble(parts)


def show(study: Study, result: xr.Dataset) -> None:
    """Write the report on the runs with all the data and the first seed."""
    options = study.options
    known = [name for name in result["variant"].values.tolist()
             if study.path(name, "figures.nc").exists()]  # fmt: skip
    best = known[-1]
    maps = read(study.path(best, f"maps-{options.split}.nc"))
    scores = SCORES if draws_weights(best) else SCORES[:1]
    curves = {name.replace("_", " "): by_uncertainty(maps, name, replicates=20) for name in scores}
    tree = storage.load(study.path(best, "posterior-shown.nc"))
    assert isinstance(tree, xr.DataTree)
    head, lines = rows_of(result, COLUMNS, "images")
    cut = [slice(1, 10), slice(10, None)]
    sections = [
        Section(
            "table",
            "All figures",
            paragraph("Standard errors resample images; neighbouring frames of a drive look alike, "
                      "so they are too small. Between seeds stands ±.")
            + tables(head, lines, cut),
        ),
        Section(
            "precision",
            "What is the uncertainty good for?",
            paragraph(f"Of {best}: as the most uncertain pixels are left out (right to left), what "
                      "remains should be right more often.")
            + picture(
                selective_figures.precision_recall(curves),
                "Precision against recall by every uncertainty.",
            ),
        ),
        *_pictures(study, best, tree),
    ]  # fmt: skip
    rows, cols = options.size
    write_report(
        study.folder / "report.html",
        title="Street scenes: four variants of one net",
        tree=tree,
        history=read(study.path(best, "history.nc")),
        sections=sections,
        notes=(
            f"CamVid, split {options.split}, {rows} × {cols} pixels, {options.net}, "
            f"{options.steps} steps of {options.batch_size} images at every fraction, "
            + (
                f"dropout at {options.rate:g}"
                if options.guide == "dropout"
                else f"{options.members} nets in an ensemble"
            )
            + f", {options.draws} draws.",
            PUBLISHED,
            "What differs here: the size of images and net, the length of training, and the split; "
            "frames of one drive are in training and in validation.",
            f"Where logits have noise, every draw averages {options.noise_samples} samples of it: "
            "mutual information holds their Monte Carlo error too, logit variance does not.",
        ),
    )


def _pictures(study: Study, best: str, tree: xr.DataTree) -> list[Section]:
    """Samples, and maps of the entropy, of images as they are and corrupted."""
    ids = study.tests[study.options.split]["id"].tolist()
    shown = tree["posterior"]["case"].values.tolist()
    place = [ids.index(one) for one in shown]
    images = study.tests[study.options.split]["image"][place]
    found = [
        Section(
            "samples",
            f"{best}: samples",
            paragraph("Annotation, samples, and where they differ.")
            + picture(figures.samples(tree, images, shown), "Samples of four images.", wide=True),
        )
    ]
    for name, arrays in study.tests.items():
        maps = read(study.path(best, f"maps-{name.replace(' ', '-')}.nc"))
        cases = maps["case"].values[place].tolist()
        drawn = figures.uncertainty_maps(maps, arrays["image"], cases)
        text = "Between the draws is what the net does not know; it should darken where images do."
        body = paragraph(text) + picture(drawn, f"Entropy of four images, {name}.", wide=True)
        anchor = f"maps-{name.replace(' ', '-')}"
        found.append(Section(anchor, f"{best}: uncertainty, {name}", body))
    return found


def main(options: Options) -> None:
    """Run the study, print and save its table, write the report."""
    folder = open_run(options.out, resume=options.resume)
    if options.smoke:
        options.shrink()
    check_same(options, folder, free=("data", "variant", "fraction", "seed"))
    study = Study(options, folder)
    result = collect(study)
    print(storage.markdown_table(*rows_of(result, COLUMNS, "images")))
    show(study, result)
    print(f"Wrote {folder / 'table.md'} and {folder / 'report.html'}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
