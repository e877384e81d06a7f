"""The study from end to end."""

from itertools import product
from pathlib import Path

import numpy as np
import xarray as xr

from ppl_med import storage
from ppl_med.analysis import convergence
from ppl_med.storage import check_same, open_run
from truth.guides import GUIDES, LONGER, REFERENCE, functions_of, smaller, values_of
from truth.options import Options
from truth.pictures import heat_map
from truth.problems import PROBLEMS, Problem
from truth.scores import compare, features

FLOOR = "NUTS, half"
HEAD = ["problem", "guide", "mean error", "sd ratio", "sd error", "MMD²", "coverage", "truth", "s"]
SHORT = ("mean_error", "sd_ratio", "coverage")
SCORES = ("mean_error", "sd_ratio", "sd_error", "mmd", "coverage", "truth_coverage")


def main(options: Options) -> None:
    """Run the study, print and save the table, draw the heat map."""
    folder = open_run(options.out, resume=options.resume)
    check_same(options, folder, free=("data", "problem", "guide", "seed", "device"))
    problems = {name: PROBLEMS[name](options.data) for name in options.problem}
    first = options.seed[0]
    for name, problem in problems.items():
        report(name, run(options, folder, name, problem, "NUTS", first))
    for seed, guide in product(options.seed, options.guide):
        for name, problem in problems.items():
            run(options, folder, name, problem, guide, seed)
    found = []
    for name, problem in problems.items():
        reference = run(options, folder, name, problem, "NUTS", first)
        truth = features(reference["values"].values)
        half = reference.sizes["chain"] // 2
        parts = [
            features(reference["values"].values[rows]) for rows in (slice(half), slice(half, None))
        ]
        scored = [tagged(compare(*parts, problem.truth), FLOOR, options.seed[0], reference)]
        for guide in options.guide:
            for seed in options.seed:
                one = run(options, folder, name, problem, guide, seed)
                score = compare(features(one["values"].values), truth, problem.truth)
                scored.append(tagged(score, guide, seed, one))
        combined = xr.merge(scored, compat="no_conflicts", join="outer").expand_dims(problem=[name])
        found.append(combined.reindex(guide=[FLOOR, *options.guide]))
    scores = xr.concat(found, "problem")
    storage.save(scores, folder / "scores.nc")
    head = ["guide", *map(str, scores["problem"].values), "s"]
    text = storage.markdown_table(head, short_rows(scores))
    text += "\n\n" + storage.markdown_table(HEAD, rows_of(scores))
    storage.write_text(folder / "table.md", text + "\n")
    heat_map(scores.mean("seed"), folder / "heat_map.png")
    print(text + "\n" + verdict(scores))


def run(
    options: Options, folder: Path, name: str, problem: Problem, guide: str, seed: int
) -> xr.Dataset:
    """Functions of a guide at the test images, from the folder where they are there."""
    path = folder / f"posterior-{name}-{guide.replace(', ', '_').replace(' ', '_')}-{seed}.nc"
    if not path.exists():
        print(f"{name}: {guide}, seed {seed}", flush=True)
        inference = LONGER.get(name, REFERENCE) if guide == "NUTS" else GUIDES[guide]
        inference = smaller(inference) if options.smoke else inference
        tree, seconds = functions_of(inference, problem, seed, options.device)
        values = values_of(tree)
        dims = ["chain", "draw", "case", "class"][: values.ndim]
        result = xr.Dataset({"values": (dims, values)}, attrs={"seconds": seconds})
        if guide == "NUTS":
            result = result.assign(
                r_hat=convergence.r_hat(tree)["r_hat_max"],
                ess=convergence.effective_draws(tree)["ess_bulk_min"],
                diverging=tree["sample_stats"]["diverging"].mean(),
                n_steps=tree["sample_stats"]["n_steps"].mean(),
            )
        storage.save(result, path)
    return storage.load(path)


def tagged(score: xr.Dataset, guide: str, seed: int, one: xr.Dataset) -> xr.Dataset:
    """Scores with the guide and the seed as axes, and the seconds."""
    score = score.assign(seconds=float(one.attrs["seconds"]))
    return score.expand_dims(guide=[guide], seed=[seed])


def report(name: str, reference: xr.Dataset) -> None:
    """Say whether the reference can be relied on."""
    print(
        f"{name}: NUTS R-hat {float(reference['r_hat']):.3f}, smallest effective size "
        f"{float(reference['ess']):.0f}, {float(reference['diverging']):.1%} diverging, "
        f"{float(reference['n_steps']):.0f} gradients a draw, {reference.attrs['seconds']:.0f} s",
        flush=True,
    )


def short_rows(scores: xr.Dataset) -> list[list[str]]:
    """A row a guide: mean error, sd ratio and coverage of every problem, and mean seconds."""
    found, mean = [], scores.mean("seed")
    for guide in mean["guide"].values:
        one = mean.sel(guide=guide)
        cells = [
            " / ".join(
                f"{float(part[name]):.2f}" for name in ("mean_error", "sd_ratio", "coverage")
            )
            for part in (one.sel(problem=problem) for problem in mean["problem"].values)
        ]
        found.append([str(guide), *cells, f"{float(one['seconds'].mean()):.1f}"])
    return found


def rows_of(scores: xr.Dataset) -> list[list[str]]:
    """Rows of the table: means over seeds, with the range of the sd ratio."""
    found = []
    for problem in scores["problem"].values:
        for guide in scores["guide"].values:
            one = scores.sel(problem=problem, guide=guide)
            cells = [_cell(one[name].values) for name in SCORES]
            found.append([str(problem), str(guide), *cells, f"{float(one['seconds'].mean()):.1f}"])
    return found


def _cell(values: np.ndarray) -> str:
    """Mean over seeds, with the range where it is worth a word."""
    known = values[~np.isnan(values)]
    if not len(known):
        return ""
    spread = f" [{known.min():.2f}, {known.max():.2f}]" if np.ptp(known) >= 0.1 else ""
    return f"{known.mean():.2f}{spread}"


def verdict(scores: xr.Dataset) -> str:
    """Which guides are within 10 % of NUTS's predictive sd, of every problem."""
    lines = []
    ratio = scores["sd_ratio"].mean("seed")
    for problem in scores["problem"].values:
        one = ratio.sel(problem=problem)
        near = [str(g) for g in one["guide"].values if abs(float(one.sel(guide=g)) - 1) <= 0.1]
        named = ", ".join(guide for guide in near if guide != FLOOR) or "none"
        lines.append(f"{problem}: within 10 % of NUTS's sd are {named}")
    return "\n".join(lines)
