"""How time and memory grow with cases, draws and voxels; slopes of 1 and 0 are promised.

Time: CPU seconds of `predict` (LeNet) by cases and by draws, and of analyses of a stored tree
(scores, entropies) by cases, by draws and by the voxels of a volume. The slope is that of log time
over log size, by least squares over the sizes from ``FIRST_SECONDS`` on, below which it is Python
and not numbers that takes the time. Memory: growth of the peak of a process that analyses a store,
by its cases.

    python tests/benchmarks/scaling.py --out scaling.md --figure scaling.png
    python tests/benchmarks/scaling.py --large      up to a million cases and 256^3 voxels
"""

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from measure import check_out, machine, peak, run_apart, tune_allocator, write_table
from numpy.typing import NDArray
from problems import problem

from ppl_med.analysis import scoring, uncertainty
from ppl_med.inference import MeanFieldNormal, predict

FIRST_SECONDS = 0.25
CLASSES = 10
SIZES = {
    "predict by cases": (64, 256, 1024, 4096),
    "predict by draws": (8, 32, 128, 512),
    "analyses by cases": (1_000, 10_000, 100_000),
    "analyses by draws": (8, 32, 128, 512),
    "entropies by voxels": (32**3, 64**3, 128**3),
}
LARGE = {"analyses by cases": (1_000_000,), "entropies by voxels": (256**3,)}
SMOKE = {
    "predict by cases": (8, 16),
    "predict by draws": (2, 4),
    "analyses by cases": (100, 200),
    "analyses by draws": (2, 4),
    "entropies by voxels": (4**3, 8**3),
}
MEMORY = (10_000, 100_000)
PREDICTED = 256  # cases, where draws grow
DRAWS, ANALYSED = 20, 40_000  # draws where cases grow, and cases where draws grow
VOLUME_DRAWS = 4


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="the least of so many (default 3)")
    parser.add_argument("--large", action="store_true", help="a million cases, 256^3 voxels: 5 GB")
    parser.add_argument("--seed", type=int, default=0, help="seed of the numbers")
    parser.add_argument("--smoke", action="store_true", help="a run of seconds")
    parser.add_argument("--out", type=Path, help="also write the table, as .json or .md")
    parser.add_argument("--figure", type=Path, help="also draw the curves, as .png")
    parser.add_argument("--analyse", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {arguments.rounds}")
    check_out(parser, arguments.out)
    return arguments


def write(path: Path, cases: int, draws: int, seed: int, size: tuple[int, ...] = ()) -> xr.DataTree:
    """Store probabilities of random logits part by part, float32 as `predict` does, and open them.

    Args:
        path: Of the store.
        cases: Cases.
        draws: Draws.
        seed: Of the numbers.
        size: Of a volume, for each of which there is a class.
    """
    rng = np.random.default_rng(seed)
    space = ("row", "col", "slice")[: len(size)]
    classes = 2 if size else CLASSES
    step = max(1, min(cases, 2**22 // (draws * classes)))
    for start in range(0, cases, step):
        case = np.arange(start, min(start + step, cases))
        probs = rng.gamma(1.0, size=(1, draws, case.size, classes, *size)).astype(np.float32)
        probs /= probs.sum(3, keepdims=True)
        label = rng.integers(0, classes, (case.size, *size))
        dims = ("chain", "draw", "case", "class", *space)
        groups = {
            "posterior": xr.Dataset({"probs": (dims, probs)}, {"case": case}),
            "observed_data": xr.Dataset({"label": (("case", *space), label)}, {"case": case}),
        }
        for group, data in groups.items():
            options: dict[str, Any] = {"append_dim": "case"} if start else {}
            data.to_zarr(path, group=group, mode="a", consolidated=False, **options)
    return xr.open_datatree(path, engine="zarr", consolidated=False, chunks={})


def analyse(tree: xr.DataTree) -> None:
    """Scores and entropies."""
    scoring.score(tree)
    uncertainty.entropy(tree)


def predicting(seed: int) -> Callable[[int, int], Callable[[], Any]]:
    """What predicts with LeNet, by cases and draws."""
    case = problem("lenet", 1, torch.device("cpu"))
    model = case.model()
    guide = MeanFieldNormal(model, estimator="shared")
    generator = torch.Generator().manual_seed(seed)

    def ready(cases: int, draws: int) -> Callable[[], Any]:
        image = torch.randn(cases, 1, 28, 28, generator=generator)
        label = torch.randint(0, 10, (cases,), generator=generator)
        pairs = zip(image.split(64), label.split(64), strict=True)
        batches = [{"image": one, "label": other} for one, other in pairs]
        return lambda: predict(model, guide, batches, draws=draws, progress=False, device="cpu")

    return ready


def tasks(settings: argparse.Namespace, folder: Path) -> Iterator[tuple[str, int, Any]]:
    """What is timed: its curve, its size, and a call."""
    sizes = SMOKE if settings.smoke else SIZES
    if settings.large:
        sizes = {name: (*every, *LARGE.get(name, ())) for name, every in sizes.items()}
    ready = predicting(settings.seed)
    for cases in sizes["predict by cases"]:
        yield "predict by cases", cases, ready(cases, sizes["predict by draws"][0])
    for draws in sizes["predict by draws"]:
        yield "predict by draws", draws, ready(PREDICTED if not settings.smoke else 8, draws)
    for cases in sizes["analyses by cases"]:
        tree = write(folder / f"cases-{cases}.zarr", cases, DRAWS, settings.seed)
        yield "analyses by cases", cases, lambda tree=tree: analyse(tree)
    for draws in sizes["analyses by draws"]:
        cases = 100 if settings.smoke else ANALYSED
        tree = write(folder / f"draws-{draws}.zarr", cases, draws, settings.seed)
        yield "analyses by draws", draws, lambda tree=tree: analyse(tree)
    for voxels in sizes["entropies by voxels"]:
        side = round(voxels ** (1 / 3))
        path = folder / f"voxels-{side}.zarr"
        tree = write(path, 1, VOLUME_DRAWS, settings.seed, (side, side, side))
        yield "entropies by voxels", voxels, lambda tree=tree: uncertainty.entropy(tree)


def slope(sizes: NDArray[np.float64], seconds: NDArray[np.float64]) -> float | None:
    """Slope of log time over log size where it is numbers that take the time; None of one."""
    long = seconds >= FIRST_SECONDS
    if long.sum() < 2:
        return None
    return float(np.polyfit(np.log(sizes[long]), np.log(seconds[long]), 1)[0])


def memory(settings: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Growth of the peak of a process that analyses a store, by cases."""
    rows = []
    for cases in SMOKE["analyses by cases"] if settings.smoke else MEMORY:
        path = folder / f"cases-{cases}.zarr"
        found = run_apart(__file__, "--analyse", str(path))
        rows.append({"cases": cases, "store": cases * DRAWS * CLASSES * 4 / 2**20, **found})
    return rows


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    """All curves, with slopes, and the memory."""
    curves: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        for curve, size, run in tasks(settings, Path(name)):
            seconds = []
            for _ in range(1 if settings.smoke else settings.rounds):
                start = time.process_time()
                run()
                seconds.append(time.process_time() - start)
            row = curves.setdefault(curve, {"sizes": [], "seconds": []})
            row["sizes"].append(size)
            row["seconds"].append(min(seconds))
        peaks = memory(settings, Path(name))
    for row in curves.values():
        row["slope"] = slope(np.array(row["sizes"], float), np.array(row["seconds"]))
    return {"curves": curves, "memory": peaks}


def report(header: str, result: dict[str, Any]) -> str:
    """The tables as Markdown."""
    lines = [header, "", "| what grows | sizes | time a unit / that of the largest | slope |"]
    lines.append("|---|---|---|---|")
    for name, row in result["curves"].items():
        each = np.array(row["seconds"]) / np.array(row["sizes"])
        ratios = " ".join(f"{value:.2f}" for value in each / each[-1])
        found = "" if row["slope"] is None else f"{row['slope']:.2f}"
        lines.append(f"| {name} | {' '.join(map(str, row['sizes']))} | {ratios} | {found} |")
    lines += ["", "| cases analysed | store, MiB | peak over start, MiB |", "|---|---|---|"]
    for row in result["memory"]:
        lines.append(f"| {row['cases']} | {row['store']:.0f} | {row['peak']:.0f} |")
    return "\n".join(lines)


def draw(path: Path, result: dict[str, Any]) -> None:
    """Draw the curves beside lines of slope 1."""
    import matplotlib.pyplot as plt

    curves = result["curves"]
    rows = -(-len(curves) // 2)
    figure, grid = plt.subplots(rows, 2, figsize=(6, 2.6 * rows), layout="constrained")
    for axis in grid.flat[len(curves) :]:
        axis.set_axis_off()
    for axis, (name, row) in zip(grid.flat, curves.items(), strict=False):
        sizes, seconds = np.array(row["sizes"], float), np.array(row["seconds"])
        axis.loglog(sizes, seconds[-1] * sizes / sizes[-1], color="0.7", label="slope 1")
        label = "measured" if row["slope"] is None else f"slope {row['slope']:.2f}"
        axis.loglog(sizes, seconds, "o-", label=label)
        axis.set_title(name)
        axis.set_xlabel(name.split(" by ")[1])
        axis.set_ylabel("CPU time, s")
        axis.minorticks_off()
        cubes = [f"{round(size ** (1 / 3))}³" for size in sizes]
        plain = [f"{size:,.0f}" for size in sizes]
        axis.set_xticks(sizes, cubes if "voxels" in name else plain, rotation=30)
        axis.legend(frameon=False)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Run and print."""
    settings = parse()
    tune_allocator()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if settings.analyse:
        analyse(write(settings.analyse.with_name("small.zarr"), 100, DRAWS, settings.seed))
        before = peak()
        tree = xr.open_datatree(settings.analyse, engine="zarr", consolidated=False, chunks={})
        analyse(tree)
        print(json.dumps({"peak": peak() - before}))
        return
    result = measure(settings)
    header = (
        f"CPU time of one thread, the least of {settings.rounds} rounds; predict: LeNet, "
        f"{SIZES['predict by draws'][0]} draws or {PREDICTED} cases; analyses: scores and "
        f"entropies of {CLASSES} classes, {DRAWS} draws or {ANALYSED} cases; volumes of 2 classes "
        f"and {VOLUME_DRAWS} draws; {machine(torch.device('cpu'), 1)}."
    )
    text = report(header, result)
    print(text)
    write_table(settings.out, {"header": header, **result}, text)
    if settings.figure is not None:
        draw(settings.figure, result)


if __name__ == "__main__":
    main()
