"""The table and the report."""

from pathlib import Path

import numpy as np
import xarray as xr
from scipy.stats import binom

from hippocampus.options import Options
from hippocampus.programs import SIZE
from hippocampus.volumes import LEVEL, coverage
from ppl_med.analysis import segmentation
from ppl_med.plots import segmentation as figures
from ppl_med.plots.report import Section, paragraph, picture, table, write_report

SHOWN = 4  # cases in the pictures
KINDS = (
    "Coherent: one weight draw for all voxels. Voxelwise: the same draws, as if every voxel had "
    "weights of its own. Conformal: coherent, widened by cases that were not trained on. Constant: "
    "quantiles of the training volumes, the image is not looked at. Regression: of the outlined on "
    "the predicted volume, over cases that were not trained on."
)
HEAD = (
    "cases", "structure", "interval", "n", "covered %", "95 % interval %", "width, mm³",
    "width / volume %", "interval score, mm³", "Dice",
)  # fmt: skip


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
            f"{float(one['score']):.0f} ± {float(one['score_se']):.0f}",
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
        smoke=options.smoke,
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
