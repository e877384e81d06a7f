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

import tyro
import xarray as xr
from confounded.planted import Planted
from confounded.source import Source
from right_reason.pages import planted_sections, source_sections
from right_reason.tables import (
    HEAD,
    KEY,
    MASS_HEAD,
    SOURCE_HEAD,
    mass_rows,
    net_rows,
    source_rows,
    source_words,
)

from ppl_med import storage
from ppl_med.data.synthetic.confounders import Kind
from ppl_med.plots.report import Section, paragraph, table, write_report
from ppl_med.storage import check_same, open_run


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
        smoke=options.smoke,
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
