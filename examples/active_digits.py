"""Which digits are worth a label? Acquisitions against random, by a Bayesian and a plain net.

The experiment of Gal, Islam and Ghahramani on the part of MNIST at hand: from 20 labels on, 10 a
step, a net is trained from scratch on all labels so far, and asks for those it can learn most from.
The same seed means the same first labels, first weights and pool for every acquisition.

    labels        labels for 10 % and 5 % test error, and the area under the curve of the budget
    calibration   what asking does to ECE, NLL and the coverage of 90 % predictive sets
    repeated      a pool in which each digit comes three times: BALD against BatchBALD

Nothing is tuned on the test part, and no run stops by it. Every run (pool, net, acquisition, seed)
has a folder and goes on with --resume where it was. Writes table.md, figures.nc, pictures, and
posterior.nc, the test part as the last net of the first run saw it.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import tyro
import xarray as xr
from active_digits.digits import Digits, deal
from active_digits.figures import AREA, history, summary
from active_digits.pages import LABELS, calibration_table, curves, labels_table
from active_digits.runs import METHODS, REPEATED, Method, run, shown_posterior

from ppl_med import storage
from ppl_med.storage import check_same, open_run

FREE = ("data", "method", "repeated", "seed", "budget", "random_budget", "repeated_budget")
"""Options that a resumed study may have otherwise."""


@dataclass
class Options:
    """Buy labels of digits by several acquisitions."""

    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder that holds mnist; by default what PPL_MED_DATA names."""
    method: tuple[str, ...] = tuple(METHODS)
    """Which nets and acquisitions, such as dropout-bald or point-random."""
    repeated: tuple[str, ...] = REPEATED
    """Which of them on repeated digits; --repeated with nothing behind leaves that part out."""
    seed: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of the first labels, the first weights, training and draws."""
    budget: int = 300
    """Labels to buy by an acquisition."""
    random_budget: int = 820
    """Labels to buy at random."""
    repeated_budget: int = 120
    """Labels to buy on repeated digits."""
    size: int = 10
    """Labels a step."""
    random_size: int = 100
    """Labels a step where they are random."""
    steps: int = 200
    """Steps of training, from scratch, at every purchase; 3 for 4 labels where that is more."""
    draws: int = 20
    """Posterior draws."""
    subsample: int = 1000
    """Digits of the pool that are scored at a step."""
    out: Path = Path("runs/active_digits")
    """Folder for the results; an earlier study in it is moved aside."""
    device: str | None = None
    """Where to train, such as cpu or cuda; a GPU where there is one."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume in the output folder; finished runs are kept."""


def parts(options: Options) -> Iterator[tuple[str, Method, int, int]]:
    """Pool, method, budget and seed of every run, in order."""
    for name in options.method:
        method = METHODS[name]
        budget = options.random_budget if method.rule == "random" else options.budget
        for seed in options.seed:
            yield "digits", method, budget, seed
    for seed in options.seed:
        for name in options.repeated:
            yield "repeated", METHODS[name], options.repeated_budget, seed


def main(options: Options) -> None:
    """Run the study, print and save its tables and pictures."""
    if options.smoke:
        options.method = tuple(n for n in options.method if n in ("dropout-bald", "dropout-random"))
        options.repeated, options.seed = options.repeated[1:2], options.seed[:1]
        options.budget = options.random_budget = options.repeated_budget = 40
        options.steps, options.draws = 3, 3
    folder = open_run(options.out, resume=options.resume)
    check_same(options, folder, free=FREE)
    pools: dict[str, Digits] = {}
    found: dict[str, dict[str, dict[int, xr.Dataset]]] = {"digits": {}, "repeated": {}}
    for pool, method, budget, seed in parts(options):
        if pool not in pools:
            pools[pool] = deal(options.data, repeated=pool == "repeated", smoke=options.smoke)
        place = folder / pool / method.name / f"seed-{seed}"
        place.mkdir(parents=True, exist_ok=True)
        tree = run(pools[pool], method, seed, place, options, budget)
        found[pool].setdefault(method.name, {})[seed] = history(tree, budget)
        print(f"{pool}, {method.name}, seed {seed}: {1 - tree['test/accuracy'][-1].item():.3f}")
    text = write(folder, found, options)
    first = next(iter(found["digits"]))
    shown_posterior(pools["digits"], METHODS[first], folder, options)
    print(text)
    print(f"Wrote {folder / 'table.md'}")


def write(
    folder: Path, found: dict[str, dict[str, dict[int, xr.Dataset]]], options: Options
) -> str:
    """Save figures, tables and pictures; return the tables."""
    text, nodes = [], {}
    for pool, methods in found.items():
        if not methods:
            continue
        most = min(AREA, options.budget if pool == "digits" else options.repeated_budget)
        summaries = {name: summary(runs, most) for name, runs in methods.items()}
        nodes |= {f"{pool}/{name}": one for name, one in summaries.items()}
        text += [
            f"## {pool}",
            labels_table(summaries, most),
            calibration_table(summaries),
        ]
        for figure, label in LABELS.items():
            factor = 1.0 if figure == "nll" else 100.0
            picture = curves(methods, figure, label, factor)
            picture.savefig(folder / f"{pool}-{figure}.png", dpi=110)
    storage.save(xr.DataTree.from_dict(nodes), folder / "figures.nc")
    storage.write_text(folder / "table.md", "\n\n".join(text) + "\n")
    return "\n\n".join(text)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
