"""The report on the runs with all the data and the first seed."""

from typing import Any

import numpy as np
import xarray as xr
from ambiguous_masks.pages import tables
from dense_uncertainty.variants import (
    Cell,
    cells,
    draws_weights,
    learns_noise,
    rows_of,
)

from depth.scores import COLUMNS, noise_table
from depth.study import LAWS, NAMES, Study
from ppl_med import storage
from ppl_med.analysis import calibration, selective, uncertainty
from ppl_med.plots import number_calibration
from ppl_med.plots import selective as selective_figures
from ppl_med.plots.depth import depth_maps, noise_recovery
from ppl_med.plots.report import Section, paragraph, picture, write_report

PUBLISHED = (
    "Make3D, ¼ of the data: RMS 5.76, aleatoric 0.506, epistemic 7.73; ½: 4.62, 0.521, 4.38; all: "
    "3.87, 0.485, 2.78. Tested on NYUv2 instead: ¼: 0.388 and 15.0; all: 0.461 and 4.87 (Kendall "
    "and Gal, NeurIPS 2017, table 3). Those are real outdoor scenes, a DenseNet and other depths; "
    "what can be compared is the direction of every change."
)


def show(study: Study, result: xr.Dataset) -> None:
    """Write the report on the runs with all the data and the first seed."""
    options = study.options
    shown = [cell for cell in cells(options) if study.shown(cell)]
    trees = {cell.variant: study.trees(cell) for cell in shown}
    best = list(trees)[-1]
    head, lines = rows_of(result, COLUMNS, "images")
    sections = [
        Section(
            "table",
            "All figures",
            paragraph("Epistemic variance should fall with the data and rise on shifted scenes; "
                      "aleatoric variance should be that of the noise throughout.")
            + tables(head, lines, [slice(1, 9), slice(9, None)]),
        ),
        Section(
            "maps",
            f"{best}: depth, noise and epistemic uncertainty",
            paragraph("Learnt noise should look like the true one in every row; the epistemic sd "
                      "should be darkest in shifted scenes.")
            + picture(_examples(study, trees[best]), "Maps of three test scenes.", wide=True),
        ),
        *_noise_sections(study, trees),
    ]  # fmt: skip
    first = study.folder / Cell(best, max(options.fraction), options.seed[0]).name
    sizes = _sizes(result)
    write_report(
        study.folder / "report.html",
        title="Depth: what is noise, and what does the network not know?",
        smoke=study.options.smoke,
        tree=trees[best]["none"],
        history=storage.load(first / "history.nc"),
        data_size=sizes,
        sections=sections,
        notes=(
            f"{options.scenes} synthetic scenes of {options.size} × {options.size} pixels, "
            f"{options.steps} steps of {options.batch_size} at every fraction, {options.likelihood}"
            f" likelihood, {options.outliers:.0%} outliers in training.",
            PUBLISHED,
        ),
    )


def _examples(study: Study, trees: dict[str, xr.DataTree]) -> Any:
    """One scene like the training ones and, of the same layout, one of every shift."""
    joined = {
        group: xr.concat(
            [tree[group].to_dataset().isel(case=[0]) for tree in trees.values()],
            "case", data_vars="all",
        )
        for group in ("posterior", "observed_data")
    }  # fmt: skip
    tree = xr.DataTree.from_dict({f"/{name}": part for name, part in joined.items()})
    images = np.concatenate([study.tests[shift]["image"][:1] for shift in trees])
    truth = np.concatenate([study.tests[shift]["noise_sd"][:1] for shift in trees])
    return depth_maps(tree, images, noise_sd=truth)


def _noise_sections(study: Study, trees: dict[Any, dict[str, xr.DataTree]]) -> list[Section]:
    law = LAWS[study.options.likelihood]
    found = []
    noisy = [variant for variant in trees if learns_noise(variant)]
    if noisy:
        by_set = {}
        for shift, tree in trees[noisy[-1]].items():
            sd = np.sqrt(uncertainty.variance(tree, mcse=False)["aleatoric"].values)
            by_set[NAMES[shift]] = noise_table(sd, study.tests[shift]["noise_sd"])
        text = f"Of {noisy[-1]}: on the diagonal, the net knows how noisy its input is."
        figure = noise_recovery(by_set)
        body = paragraph(text) + picture(figure, "Learnt against true noise.")
        found.append(Section("noise", "The noise that was learnt", body))
    curves = {
        name: calibration.coverage(tree["none"], distribution=law) for name, tree in trees.items()
    }
    text = "On the diagonal, intervals hold as many depths as they say. Scenes like training."
    figure = number_calibration.coverage(curves)
    body = paragraph(text) + picture(figure, "Coverage of central intervals at every level.")
    found.append(Section("coverage", "Can the intervals be trusted?", body))
    best, tree = list(trees.items())[-1]
    known = ("total", "aleatoric", "epistemic") if draws_weights(best) else ("total",)
    curves = {
        name: selective.sparsification(tree["none"], name, "absolute", replicates=50)
        for name in known
    }
    text = (
        f"Error of {best} on the pixels that remain as the most uncertain are left out: a useful "
        "uncertainty falls towards the oracle, one that says nothing stays at random order."
    )
    figure = selective_figures.sparsification(curves)
    body = paragraph(text) + picture(figure, "Sparsification curves of the uncertainties.")
    found.append(Section("sparsification", "Which pixels to leave out?", body))
    return found


def _sizes(result: xr.Dataset) -> xr.Dataset | None:
    """Variances of the fullest variant by training size, one panel for every set of images."""
    known = [name for name in ("both", "epistemic") if name in result["variant"].values]
    if not known or result.sizes["fraction"] < 2:
        return None
    part = result.sel(variant=known[0], drop=True)[["aleatoric", "epistemic"]]
    part = part.rename(images="method").transpose("method", "fraction", "seed")
    for name in part:
        part[name].attrs["units"] = "m^2"
    return part
