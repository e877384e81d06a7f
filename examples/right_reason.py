"""Right for the right reason: does a net look at the disease, or at a tag in the corner?

Planted: a tag is drawn into malaria cells and chest X-rays, nine times in ten where the class is 1
and once in ten where it is 0. Four nets are trained: on data whose tags are independent of the
class, on the confounded data, on these under a constraint on the attribution (the corner holds no
evidence), and on these with an adversary that must not find the tag in the features. Of each:

    how much relevance lies on the tag, by seven attribution methods, and whether it tells the net
    from the unconfounded one (AUROC over cases)
    balanced accuracy on test cases as collected, and on the same with tags exchanged
    what the tag does to the probability of class 1 in cases of class 0 (swap test)

Real: COVID-19 X-rays of several publications against X-rays without findings of the NIH. A net that
tells them apart is asked what the outer frame of the image, which shows no lung, does to it.

Settings were chosen on the validation part (--part val). Writes to the output folder, for every
data set, checkpoints, posteriors, relevance.png and maps-<net>.png, and for all of them

    table.md, table.nc       accuracies, effects of the tag, relevance on it by method
    source.nc, clusters.nc   of the two sources: effects of frames, clusters of attribution maps
    report.html              all of it, with pictures
"""

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
import xarray as xr
from confounded.planted import METHODS, NETS, Planted
from confounded.source import FRAME, SIDE, Source

from ppl_med import storage
from ppl_med.data.synthetic.confounders import Kind
from ppl_med.plots import confounding as figures
from ppl_med.plots import spray as spray_figures
from ppl_med.plots.attribution_maps import attribution
from ppl_med.plots.report import Section, paragraph, picture, table, write_report
from ppl_med.plots.training_curves import elbo
from ppl_med.storage import check_same, open_run

HEAD = ("data", "net", "accuracy as collected %", "accuracy, tags exchanged %",
        "less the unconfounded", "effect of the tag", "dCor² with the tag, chance, p")  # fmt: skip
SHOWN = 3  # cases in a picture
DOTS = 100  # an inch, of pictures in files


@dataclass
class Options:
    """Train nets that may and nets that must not use a tag, and ask what they look at."""

    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder that holds malaria, pneumoniamnist and cxr_nih; by default what PPL_MED_DATA names."""
    planted: tuple[Literal["malaria", "pneumoniamnist"], ...] = ("pneumoniamnist", "malaria")
    """Data sets to plant a tag in."""
    source: bool = True
    """Also study the two sources of cxr_nih."""
    part: Literal["val", "test"] = "test"
    """Where the nets are compared. Choose settings on val; use test once, at the end."""
    kind: Kind = "tag"
    """What is planted."""
    probability: tuple[float, float] = (0.1, 0.9)
    """Probability of the tag in class 0 and in class 1."""
    cases: int = 6000
    """Maximum number of training cases, and of cases to compare on."""
    explained: int = 60
    """Cases whose attributions are computed."""
    epochs: int = 40
    """Passes over the training cases; twice as many, in batches twice as large, with adversary."""
    constraint: float = 300.0
    """Weight of the attribution constraint, nats times intensity squared."""
    adversary: float = 4.0
    """Weight of the adversary's factor, nats per case."""
    draws: int = 40
    """Posterior draws; intervals of 95 % need at least 39."""
    healthy: int = 306
    """Maximum number of X-rays of the NIH without findings."""
    folds: int = 4
    """Folds of the study of two sources, by patient."""
    source_epochs: int = 15
    """Passes over the X-rays of both sources."""
    seed: int = 0
    """Seed of tags, start values, data order and draws."""
    out: Path = Path("runs/right_reason")
    """Folder for the results; an earlier study in it is moved aside."""
    device: str | None = None
    """Where to train, such as cpu or cuda; a GPU where there is one."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume in the output folder; finished nets are kept."""

    def shrink(self) -> None:
        """Make the run one of seconds."""
        self.cases, self.explained, self.epochs, self.draws = 128, 24, 1, 2
        self.healthy, self.folds, self.source_epochs = 30, 2, 1
        self.planted = self.planted[:1]


# --- tables


def between(part: xr.Dataset, name: str, digits: int = 1, factor: float = 100) -> str:
    """A figure and its interval."""
    value, low, high = (factor * float(part[f"{name}{end}"]) for end in ("", "_lower", "_upper"))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def effect(part: xr.Dataset) -> str:
    """A swap's effect with its interval over draws and its standard error over cases."""
    words = between(part, "expected_effect", 3, 1)
    return f"{words} ± {float(part['expected_effect_se']):.3f}"


def net_rows(result: xr.Dataset) -> list[list[str]]:
    """Accuracies, effects and dependence of every net."""
    lines = []
    for net in NETS:
        part = result.sel(net=net).isel(data=0)
        told = [float(part[f"{n}"]) for n in (
            "expected_distance_correlation", "distance_correlation_chance",
            "distance_correlation_p_value",
        )]  # fmt: skip
        lines.append([
            str(result["data"].item()), net.replace("_", "-"), between(part, "accuracy_as_given"),
            between(part, "accuracy_swapped"), between(part, "gap_swapped"), effect(part),
            f"{told[0]:.3f}, {told[1]:.3f}, {told[2]:.3f}",
        ])  # fmt: skip
    return lines


def mass_rows(result: xr.Dataset) -> list[list[str]]:
    """Relevance on the tag by method, in percent, and the AUROC against the unconfounded net."""
    lines = []
    for net in NETS:
        cells = []
        for method in METHODS:
            part = result.sel({"net": net, "method": method}).isel(data=0)
            told = float(part["auroc_of_mean"])
            error = float(part["auroc_of_mean_se"])
            text = between(part, "expected_mass_share")
            cells.append(text if np.isnan(told) else f"{text}; {told:.2f} ± {error:.2f}")
        lines.append([str(result["data"].item()), net.replace("_", "-"), *cells])
    return lines


def source_rows(result: xr.Dataset) -> list[list[str]]:
    """What every exchange of frames does."""
    return [
        [
            str(name),
            effect(result.sel(swap=name)),
            f"{float(result['probability_positive'].sel(swap=name)):.2f}",
        ]
        for name in result["swap"].values
    ]


SOURCE_HEAD = ("exchange of frames", "change of P(COVID-19)", "draws above 0")


def source_words(result: xr.Dataset) -> str:
    """What else is known of the nets of two sources."""
    return (
        f"Tested out of fold: sensitivity {float(result['sensitivity']):.3f}, specificity "
        f"{float(result['specificity']):.3f}. Of the NIH's pneumonia cases "
        f"{float(result['pneumonia_called_covid']):.1%} are called COVID-19. Relevance on the "
        f"frame in COVID-19 cases {between(result, 'mass_on_frame')} % on "
        f"{float(result['frame_area']):.0%} of the image."
    )


MASS_HEAD = ("data", "net", *(name.replace("_", " ") for name in METHODS))
KEY = (
    "Intervals of 95 %: of accuracies by a bootstrap over cases, of effects and relevance over "
    "posterior draws; ± is a standard error over cases. In percent: balanced accuracy, and the "
    "share of the positive relevance for class 1 that lies on the region of the tag, in cases of "
    "class 1 that all have it; after the semicolon the AUROC that this share tells the net from "
    "the unconfounded one, 0.5 where it does not; it compares ranks, so read it with the shares. "
    "The effect is the change of the probability of class 1 when cases of class 0 get the tag. "
    "dCor² is the squared distance correlation of prediction and tag within class 0."
)


# --- the report


def planted_sections(study: Planted, result: xr.Dataset) -> list[Section]:
    """Bars, effects and pictures of one data set."""
    name, cases = study.name, study.tagged()
    area = study.region.mean()
    seen = []
    for net in ("confounded", "constrained"):
        maps = study.shown[net].isel(case=slice(SHOWN))
        mask = np.broadcast_to(study.region, (SHOWN, *study.region.shape))
        figure = attribution(cases["image"][:SHOWN], maps, mask)
        figure.savefig(study.folder / f"maps-{net}.png", dpi=DOTS)
        seen.append(
            paragraph(f"The {net} net, integrated gradients; the outline is the tag's region.")
            + picture(
                figure,
                f"Attributions of the {net} net on {name}.",
                wide=True,
            )
        )
    bars = figures.relevance_mass({net.replace("_", "-"): one for net, one in study.found.items()})
    bars.savefig(study.folder / "relevance.png", dpi=DOTS)
    return [
        Section(
            f"mass-{name}",
            f"{name}: relevance on the tag",
            paragraph(f"The tag's region is {area:.1%} of the image.")
            + picture(
                bars,
                "Relevance on the tag by method and net.",
                wide=True,
            )
            + table(MASS_HEAD, mass_rows(result)),
        ),
        Section(
            f"swap-{name}",
            f"{name}: what the tag does",
            paragraph("Cases of class 0 get the tag; a net that ignores it stays at 0.")
            + picture(
                figures.swap_effects(
                    {net.replace("_", "-"): one for net, one in study.effects.items()}
                ),
                "Change of the probability of class 1 by the tag, for every net.",
            ),
        ),
        Section(f"maps-{name}", f"{name}: where two nets look", "".join(seen)),
        Section(
            f"training-{name}",
            f"{name}: training of the confounded net",
            picture(elbo(study.histories["confounded"]), "ELBO, NLL and KL in nats per case."),
        ),
    ]


def source_sections(study: Source, result: xr.Dataset) -> list[Section]:
    """Effects, frames and clusters of the two sources."""
    image = study.cases["image"][study.explained]
    maps = study.maps.isel(case=slice(SHOWN))
    moments = xr.Dataset(
        {
            "mean": maps.mean(("chain", "draw")),
            "sd": maps.std(("chain", "draw")),
            "probability_positive": (maps > 0).mean(("chain", "draw")),
        }
    )
    mask = np.broadcast_to(study.frame, (SHOWN, *study.frame.shape))
    sheets = "".join(
        picture(
            spray_figures.contact_sheet(
                image,
                study.maps,
                study.clusters,
                int(group),
                num=11,
                label=study.sources.tolist(),
            ),
            f"Cluster {int(group)} of the attribution maps.",
            wide=True,
        )
        for group in study.clusters["group"].values
    )
    return [
        Section(
            "source",
            "Two sources: what the frame does",
            paragraph(
                f"The outer {FRAME} of {SIDE} pixels on each side are exchanged. Of the last two "
                "lines the odd look of any foreign frame is taken off: the same cases with a frame "
                "of the other source, less with one of their own."
            )
            + picture(figures.swap_effects(study.effects), "Effects of frames.", wide=True)
            + table(SOURCE_HEAD, source_rows(result))
            + paragraph(source_words(result)),
        ),
        Section(
            "source-maps",
            "Two sources: where the net looks",
            picture(
                attribution(image[:SHOWN], moments, mask),
                "Attributions of COVID-19 cases; the outline is the frame.",
                wide=True,
            ),
        ),
        Section(
            "source-clusters",
            "Two sources: clusters of attribution maps",
            paragraph("Groups of cases in which the net looks at the same places (SpRAy).")
            + picture(spray_figures.eigenvalues(study.clusters), "Eigenvalues of the graph.")
            + sheets,
        ),
    ]


def main(options: Options) -> None:
    """Run the studies, print and save the tables, write the report."""
    folder = open_run(options.out, resume=options.resume)
    if options.smoke:
        options.shrink()
    check_same(options, folder, free=("data", "planted", "source", "part"))
    if not (options.planted or options.source):
        raise ValueError("planted is empty and source is off; there is nothing to do")
    text, sections, trees = [], [], []
    with warnings.catch_warnings():
        # A coarse path misses a little of the total; shares of relevance need no more.
        warnings.filterwarnings("ignore", "integrated gradients: Σ attribution misses")
        found = []
        for name in options.planted:
            (folder / name).mkdir(exist_ok=True)
            study = Planted(name, options, folder / name)
            result = study.run()
            found.append(result)
            trees.append((study.tree, study.images_shown))
            sections += planted_sections(study, result)
            storage.save(xr.concat(found, "data"), folder / "table.nc")
            text += [
                storage.markdown_table(HEAD, net_rows(result)),
                storage.markdown_table(MASS_HEAD, mass_rows(result)),
            ]
            print("\n" + "\n\n".join(text[-2:]) + "\n")
        if found:
            text.append(KEY)
        if options.source:
            (folder / "cxr_nih").mkdir(exist_ok=True)
            source = Source(options, folder / "cxr_nih")
            result = source.run()
            storage.save(result, folder / "source.nc")
            storage.save(source.clusters, folder / "clusters.nc")
            sections += source_sections(source, result)
            trees.append((source.tree, None))
            text += [storage.markdown_table(SOURCE_HEAD, source_rows(result)), source_words(result)]
    storage.write_text(folder / "table.md", "\n\n".join(text) + "\n")
    nets = [line for one in found for line in net_rows(one)]
    first = Section("table", "Nets", table(HEAD, nets) + paragraph(KEY))
    tree, images = trees[0]
    write_report(
        folder / "report.html",
        title="Right for the right reason?",
        tree=tree,
        images=images,
        sections=[*([first] if found else []), *sections],
        notes=(
            f"Compared on the {options.part} part. A tag was planted on purpose, in class 0 with "
            f"probability {options.probability[0]:g} and in class 1 with "
            f"{options.probability[1]:g}; the two sources of cxr_nih are as they are.",
        ),
    )
    print("\n" + "\n\n".join(text))
    print(f"Wrote {folder / 'table.md'} and {folder / 'report.html'}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
