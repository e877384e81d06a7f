"""Does a net know what it has never seen? Every score, five guides, images from elsewhere.

Nets are trained on digits, on chest X-rays of children and of adults, on red cells, white cells and
MR volumes. Then they are shown letters, films of other hospitals, cells of other laboratories, and
their own test cases made worse. Every score of ``ppl_med.analysis.ood`` and ODIN is asked how
unlike each case is; the table says how often a case from elsewhere scores higher than one of the
test part (AUROC, 0.5 is chance), with errors over patients and seeds, and how well the same score
finds wrong predictions. Nothing is tuned on cases from elsewhere.

Two baselines: a net that was never trained, and grey levels and sharpness without any net.

Every run (source, guide, seed) gets a folder with its checkpoint, scores and figures. Finished runs
are not repeated with --resume, so the study can be stopped and spread over machines. Writes

    table.md, table-<source>.nc      figures with errors
    severity-<source>.nc, .png       accuracy, calibration, uncertainty as images get worse
    report.html                      pictures of what was and was not found
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
import xarray as xr
from unknown_inputs.figures import assemble, judge
from unknown_inputs.pages import write
from unknown_inputs.severity import curves, over_seeds
from unknown_inputs.study import BASELINES, GUIDES, Study

from ppl_med import storage
from ppl_med.storage import check_same, open_run

Name = Literal["digits", "children", "malaria", "films", "white_cells", "hippocampus"]
Guide = Literal["point", "mean_field", "last_layer", "dropout", "ensemble"]


@dataclass
class Options:
    """Score what nets have never seen."""

    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder that holds the data sets' own; by default what PPL_MED_DATA names."""
    source: tuple[Name, ...] = (
        "digits", "children", "malaria", "films", "white_cells", "hippocampus",
    )  # fmt: skip
    """What nets are trained on."""
    guide: tuple[Guide, ...] = GUIDES  # type: ignore[assignment]
    """Which methods to run. The mean-field net starts at the point estimate, trained if need be."""
    seed: tuple[int, ...] = (0, 1, 2)
    """Seeds of start values, data order and draws."""
    severity: tuple[Name, ...] = ("children", "malaria")
    """Sources, of classes, for which figures are also drawn as images get worse; --severity with
    nothing behind leaves them out."""
    second_site: Path | None = None
    """Folder with images/ and masks/ of the second laboratory of white cells, where it is there."""
    out: Path = Path("runs/unknown_inputs")
    """Folder for the results; an earlier study in it is moved aside."""
    device: str | None = None
    """Where to train, such as cpu or cuda; a GPU where there is one."""
    draws: int = 10
    """Posterior draws; a point estimate has one, an ensemble as many as members."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume in the output folder; finished runs are kept."""


def main(options: Options) -> None:
    """Run the study, print and save its tables, write the report."""
    if options.smoke:
        options.draws, options.seed = 2, options.seed[:1]
    folder = open_run(options.out, resume=options.resume)
    check_same(options, folder, free=("data", "source", "guide", "seed", "severity", "second_site"))
    studies = {name: Study(options, name, folder) for name in options.source}
    results: dict[str, xr.Dataset] = {}
    for name, study in studies.items():
        cells = {
            (guide, seed): judge(study, guide, seed)
            for seed in options.seed
            for guide in (*options.guide, *BASELINES)
        }
        results[name] = assemble(cells)
        storage.save(results[name], folder / f"table-{name}.nc")
    severities = {}
    for name in options.severity:
        if name in studies and studies[name].source.observation == "label":
            found = {
                (guide, seed): curves(studies[name], guide, seed)
                for seed in options.seed
                for guide in options.guide
            }
            severities[name] = over_seeds(found)
            storage.save(severities[name], folder / f"severity-{name}.nc")
    shown = "ensemble" if "ensemble" in options.guide else options.guide[0]
    text = write(folder, studies, results, severities, shown, options.seed[0], smoke=options.smoke)
    print(text)
    print(f"Wrote {folder / 'table.md'} and {folder / 'report.html'}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
