"""The report on the runs with all the data and the first seed."""

import xarray as xr
from ambiguous_masks.pages import tables
from dense_uncertainty.pixels import (
    SCORES,
    by_uncertainty,
)
from dense_uncertainty.variants import (
    draws_weights,
    rows_of,
)

from ppl_med import storage
from ppl_med.plots import segmentation as figures
from ppl_med.plots import selective as selective_figures
from ppl_med.plots.report import Section, paragraph, picture, write_report
from street_scenes.study import Study, read

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
        smoke=study.options.smoke,
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
