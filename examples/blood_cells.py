"""Blood cells: a posterior over sets of boxes, against the same detector without one.

Trains a small RetinaNet-like detector on smears (BCCD: red cells, white cells, platelets), its
weights as points, as normals, with dropout, and the points of all seeds as an ensemble, all with
the same steps. Draws are joined into objects, each with p(exists), class probabilities, an interval
on every edge, and both variances of score and edges. What is scored on the validation images:

    AP50, mAP       average precision
    LaECE           calibration of confidence and place, at thresholds learnt on the other half
    PDQ             quality of boxes as distributions, at those thresholds
    coverage        of the edges' 90 % intervals
    conformal       share of missed cells, and coverage of edges, each promised; learnt on one half

A baseline that never sees the image is scored beside: every training set of boxes is a draw.

Writes to the output folder, for every run, checkpoint-<guide>-<seed>.pt and
posterior-<guide>-<seed>.nc, and for all of them table.md, scores.json and objects.png. Finished
runs are kept with --resume.
"""

import time
from dataclasses import dataclass, field
from os import environ
from pathlib import Path

import tyro
from blood_cells.pictures import draw_objects, tell
from blood_cells.scores import collect, table
from blood_cells.study import ENSEMBLES, GUIDES, Study

from ppl_med.storage import check_same, open_run, write_text


@dataclass
class Options:
    """Find blood cells."""

    data: Path = field(default_factory=lambda: Path(environ.get("PPL_MED_DATA", "data")))
    """Folder that holds bccd; by default what PPL_MED_DATA names."""
    guide: tuple[str, ...] = (*GUIDES, *ENSEMBLES)
    """Which guides; an ensemble joins the nets, or the normals, of all seeds."""
    seed: tuple[int, ...] = (0, 1, 2)
    """Seeds of start values, order and draws."""
    epochs: int = 80
    """Passes over the 205 training images."""
    rate: float = 2e-3
    """Learning rate of Adam at the start; it falls along a cosine."""
    batch_size: int = 8
    """Images of a step."""
    draws: int = 16
    """Functions of a posterior."""
    size: tuple[int, int] = (180, 240)
    """Rows and columns to which the smears, 480 x 640, are reduced."""
    resamples: int = 200
    """Resamples of the images, for the intervals."""
    device: str | None = None
    """Device; by default a GPU where there is one."""
    out: Path = Path("runs/blood_cells")
    """Folder for the results; an earlier study in it is moved aside."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume in the output folder; finished runs are kept."""


def main(options: Options) -> None:
    """Train, join, score, draw."""
    started = time.perf_counter()
    folder = open_run(options.out, resume=options.resume)
    check_same(options, folder, free=("data", "guide", "seed", "device", "resamples"))
    if options.smoke:
        options.epochs, options.draws, options.size, options.resamples = 1, 2, (60, 80), 20
        options.seed = options.seed[:1]
    study = Study(options, folder)
    for seed in options.seed:
        for guide in options.guide:
            study.posterior(guide, seed)
    found = collect(study)
    text = table(found)
    write_text(folder / "table.md", text + "\n")
    print(text)
    print(tell(study))
    draw_objects(study).savefig(folder / "objects.png", dpi=80)
    print(f"{time.perf_counter() - started:.0f} s")
    print(f"Wrote {folder / 'table.md'} and {folder / 'objects.png'}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
