"""The study from end to end."""

from collections.abc import Iterator
from pathlib import Path

import xarray as xr

from active_digits.digits import Digits, deal
from active_digits.figures import AREA, history, summary
from active_digits.methods import METHODS, Method
from active_digits.options import Options
from active_digits.pages import LABELS, calibration_table, curves, labels_table
from active_digits.runs import run, shown_posterior
from ppl_med import storage
from ppl_med.storage import check_same, open_run

FREE = ("data", "method", "repeated", "seed", "budget", "random_budget", "repeated_budget")
"""Options that a resumed study may have otherwise."""


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
