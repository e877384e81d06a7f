"""Boxes on chest films: do intervals, noise and both variances hold what they say?

On phantoms everything is known: where opacities are, with what probability a reader marks one, and
by how much readers' edges scatter. Ensembles of a small detector (RetinaNet-like, noise on every
edge) are trained on 50, 200 and 800 films of three readers each, and single nets on 800 films of
one reader. Asked is whether

    edges        lie in their 90 % intervals as often as that
    aleatoric    standard deviations are the generator's, and those that readers' boxes show
    p(exists)    is the probability that a reader marks an opacity
    epistemic    variances fall with films, and rise on anatomy that was not seen
    pairs        of nodules at a distance are split and joined as `detection.objects` says
    the bias     of the classes needs a prior of its own

A baseline that never sees the film is scored beside: every training set of boxes is a draw. With
--source cxr_lesions the ensemble is trained on with 29 real films, and shown on 5.

Writes to the output folder, for every net, member-<films>-<seed>-<number>.pt, the trees
posterior-<films>-<seed>-<part>.nc, and scores.json, tables.md and four pictures.
Finished nets are kept with --resume.
"""

import json
import time
from dataclasses import dataclass, field
from os import environ
from pathlib import Path
from typing import Literal

import tyro
from chest_boxes import priors, real_films
from chest_boxes.pictures import draw_pairs, draw_variances, show, tell
from chest_boxes.scores import collect
from chest_boxes.study import SETTINGS, Study
from chest_boxes.tables import tables

from ppl_med.storage import check_same, open_run, write_text


@dataclass
class Options:
    """Find opacities on chest films."""

    data: Path = field(default_factory=lambda: Path(environ.get("PPL_MED_DATA", "data")))
    """Folder that holds cxr_lesions; by default what PPL_MED_DATA names. Phantoms need none."""
    source: Literal["phantoms", "cxr_lesions"] = "phantoms"
    """The study, or real films."""
    split: Literal["val", "test"] = "val"
    """Phantoms to score. Choose settings on val; use test once, at the end."""
    seed: int = 0
    """First of the seeds of films, start values and order."""
    repeat: int = 3
    """Number of seeds; more can be added with --resume."""
    members: int = 3
    """Nets of an ensemble."""
    rate: float = 4e-3
    """Learning rate of Adam at the start; it falls along a cosine."""
    shift: float = 4.0
    """Largest shift of a training film, pixels."""
    films: int = 300
    """Films that are scored, and as many of unseen anatomy."""
    pairs: int = 40
    """Films with a pair of nodules at each distance."""
    device: str | None = None
    """Device; by default a GPU where there is one."""
    out: Path = Path("runs/chest_boxes")
    """Folder for the results; an earlier study in it is moved aside."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume in the output folder; finished nets are kept."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds."""
        return tuple(range(self.seed, self.seed + self.repeat))


def main(options: Options) -> None:
    """Train, join, score, draw."""
    started = time.perf_counter()
    folder = open_run(options.out, resume=options.resume)
    if options.smoke:
        options.repeat, options.members, options.films, options.pairs = 1, 2, 12, 4
    check_same(options, folder, free=("data", "source", "repeat"))
    study = Study(options, folder)
    if options.source == "cxr_lesions":
        tree, films = real_films.fine_tuned(study)
        print(real_films.describe(tree))
        case = str(tree["objects"]["case"].values[0])
        show(tree, films, case, least=0.3).savefig(folder / "real.png", dpi=60)
        print(f"{time.perf_counter() - started:.0f} s")
        print(f"Wrote {folder / 'real.png'}")
        return
    for seed in options.seeds:
        for setting in SETTINGS:
            study.posterior(setting, seed, "films")
    found = collect(study)
    write_text(folder / "tables.md", tables(found) + "\n")
    found["priors"] = priors.compare(study)
    write_text(folder / "scores.json", json.dumps(found, indent=1))
    text = tables(found)
    write_text(folder / "tables.md", text + "\n")
    print(text)
    print(tell(study))
    tree, case = study.shown()
    show(tree, study.films("films"), case).savefig(folder / "objects.png", dpi=60)
    draw_pairs(found["pairs"]).savefig(folder / "pairs.png", dpi=80)
    draw_variances(found["variances"]).savefig(folder / "variances.png", dpi=80)
    priors.draw(found["priors"]).savefig(folder / "prior.png", dpi=80)
    print(f"{time.perf_counter() - started:.0f} s")
    print(f"Wrote {folder / 'tables.md'} and {folder / 'objects.png'}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
