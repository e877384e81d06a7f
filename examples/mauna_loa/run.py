"""The study from end to end."""

import json
import time
from typing import Any

import numpy as np
import xarray as xr

from mauna_loa.figures import moments, picture, scores, table
from mauna_loa.options import Options
from mauna_loa.record import (
    FIRST_CHECKED,
    FIRST_HELD_OUT,
    INPUTS,
    LAST,
    between,
    monthly,
    naive,
    tree_of_normal,
)
from mauna_loa.study import (
    GRID,
    Recipe,
    chosen,
    coverage_by_origin,
    forecast,
    gaussian_process,
    plain,
    process_forecast,
    trained,
)
from ppl_med import storage
from ppl_med.storage import check_same, open_run


class Study:
    """The record and the forecasts of one call."""

    def __init__(self, options: Options) -> None:
        if options.smoke:
            options.steps, options.draws, options.starts = 3, 4, 1
            options.seed, options.origin = options.seed[:1], options.origin[:1]
        self.options = options
        self.folder = open_run(options.out, resume=options.resume)
        check_same(options, self.folder, free=("method", "seed", "time_alone", "device"))
        self.record = monthly()
        self.training = between(self.record, 0, FIRST_HELD_OUT)
        self.notes: dict[str, Any] = {}

    def _kept(self, name: str, make: Any) -> Any:
        """What a file holds, or what is made and written to it."""
        path = self.folder / name
        if not path.exists():
            result = make()
            if isinstance(result, xr.DataTree):
                storage.save(result, path)
            else:
                path.write_text(json.dumps(result, indent=1))
        if path.suffix == ".nc":
            return storage.load(path)
        return json.loads(path.read_text())

    def recipe(self, method: str, kind: str) -> Recipe:
        """The one that the last training years choose, kept with its rivals."""
        options = self.options
        split = (float(FIRST_CHECKED), float(FIRST_HELD_OUT))

        def choose() -> dict[str, Any]:
            grid = GRID[:2] if options.smoke else GRID
            best, found = chosen(
                method, kind, self.record, split, options.steps, options.draws, grid, options.device
            )
            rivals = [[one.noise, one.gain, value] for one, value in found.items()]
            return {"noise": best.noise, "gain": best.gain, "log_density": rivals}

        kept = self._kept(f"recipe-{method}-{kind}.json", choose)
        self.notes[f"{method}, {kind}"] = kept
        return Recipe(kept["noise"], kept["gain"])

    def net(self, method: str, kind: str, seed: int) -> xr.DataTree:
        """A net's forecast of the whole record; ``"plain"`` is dropout's net without masks."""
        options, own = self.options, "dropout" if method == "plain" else method

        def make() -> xr.DataTree:
            recipe = self.recipe(own, kind)
            checkpoint = self.folder / f"net-{own}-{kind}-{seed}.pt"
            pair = trained(
                own, kind, self.training, recipe, seed, options.steps, checkpoint, options.device
            )
            if method == "plain":
                pair = plain(*pair)
            return forecast(pair, kind, self.training, self.record, options.draws, options.device)

        return self._kept(f"posterior-{method}-{kind}-{seed}.nc", make)

    def of_normal(self, method: str, seed: int) -> xr.DataTree:
        """The forecast of the process or of a baseline."""
        options, months = self.options, self.record["month"].values

        def make() -> xr.DataTree:
            if method == "gp":
                process, loc = gaussian_process(self.training, options.starts, seed)
                mean, sd = process_forecast(process, loc, months)
                note = {
                    "kernel": str(process.kernel_),
                    "log marginal likelihood": process.log_marginal_likelihood_value_,
                }
            else:
                drift, note = method == "seasonal naive", {}
                mean, sd = naive(self.training, months, drift=drift)
            tree = tree_of_normal(mean, sd, self.record, options.draws, seed)
            tree.attrs.update(note)
            return tree

        tree = self._kept(f"posterior-{method.replace(' ', '_')}-{seed}.nc", make)
        if method == "gp":
            names = ("kernel", "log marginal likelihood")
            self.notes["gp"] = {name: tree.attrs[name] for name in names}
        return tree

    def held_out(self, tree: xr.DataTree) -> xr.DataTree:
        """The months that no method has seen."""
        months = self.record["month"].values
        later = np.flatnonzero((months >= FIRST_HELD_OUT) & (months < LAST))
        groups = {
            name: group.to_dataset().isel(case=later, missing_dims="ignore")
            for name, group in tree.children.items()
        }
        found = xr.DataTree.from_dict(groups)
        found.attrs.update(tree.attrs)
        return found


def main(options: Options) -> None:
    """Run the study, print and save its table, draw its picture."""
    started = time.perf_counter()
    study = Study(options)
    methods = [m for own in options.method for m in (["plain", own] if own == "dropout" else [own])]
    trees: dict[tuple[str, str], xr.DataTree] = {}
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for method in methods:
        alone = ("dropout" if method == "plain" else method) in options.time_alone
        for kind in INPUTS if alone else INPUTS[1:]:
            for seed in options.seed:
                tree = study.net(method, kind, seed)
                trees.setdefault((method, kind), tree)
                found.setdefault((method, kind), []).append(scores(study.held_out(tree)))
    for method in ("gp", "seasonal naive", "persistence"):
        tree = study.of_normal(method, options.seed[0])
        if method == "gp":
            trees[method, "-"] = tree
        found[method, "-"] = [scores(study.held_out(tree))]
    text = table(found)
    if options.origin:
        text += "\n\n" + coverage_by_origin(study.record, options.origin, 1, options.seed[0])
    (study.folder / "table.md").write_text(text + "\n", encoding="utf-8")
    (study.folder / "notes.json").write_text(json.dumps(study.notes, indent=1))
    picture(trees, study.record, FIRST_HELD_OUT).savefig(study.folder / "mauna_loa.png", dpi=75)
    print(text)
    ends = {f"{m}, {k}": moments(tree)[0][-12:].mean() for (m, k), tree in trees.items()}
    print("Mean of 2001, ppm:", ", ".join(f"{name} {value:.1f}" for name, value in ends.items()))
    print(f"{time.perf_counter() - started:.0f} s")
    print(f"Wrote {study.folder / 'table.md'} and {study.folder / 'mauna_loa.png'}")
