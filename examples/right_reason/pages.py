"""Sections of the report."""

import numpy as np
import xarray as xr
from confounded.planted import Planted
from confounded.source import FRAME, SIDE, Source

from ppl_med.plots import confounding as figures
from ppl_med.plots import spray as spray_figures
from ppl_med.plots.attribution_maps import attribution
from ppl_med.plots.report import Section, paragraph, picture, table
from ppl_med.plots.training_curves import elbo
from right_reason.tables import MASS_HEAD, SOURCE_HEAD, mass_rows, source_rows, source_words

SHOWN = 3  # cases in a picture
DOTS = 100  # an inch, of pictures in files


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
            "sd": maps.std(("chain", "draw"), ddof=1),
            "mcse": maps.std(("chain", "draw"), ddof=1)
            / np.sqrt(maps.sizes["chain"] * maps.sizes["draw"]),
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
