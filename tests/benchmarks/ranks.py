"""Wall time of training and predicting by the number of processes that share the work.

Starts itself under ``torchrun`` with each number of ranks: steps of `fit` (ResNet-18, mean-field,
the same global batch, dealt to the ranks) and `predict` into one Zarr store. Set-up is not counted:
the steps of a run of twice as many epochs less those of one, and cases likewise. More ranks than
free cores measure nothing.

    python tests/benchmarks/ranks.py --ranks 1 2 --out ranks.md
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import check_out, machine, quartiles, write_table
from problems import NETS, Problem, problem

from ppl_med.inference import MeanFieldNormal, fit, predict
from ppl_med.inference.process_group import barrier, rank

BATCH, BATCHES, DRAWS = 32, 4, 8


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--net", choices=sorted(NETS), default="resnet18")
    parser.add_argument("--rounds", type=int, default=5, help="windows (default 5)")
    parser.add_argument("--smoke", action="store_true", help="one window of LeNet")
    parser.add_argument("--out", type=Path, help="also write the table, as .json or .md")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if min(arguments.ranks) < 1 or arguments.ranks[0] != 1:
        parser.error(f"--ranks must begin with 1, got {arguments.ranks}")
    check_out(parser, arguments.out)
    return arguments


def batches_of(case: Problem, number: int) -> list[dict[str, Any]]:
    """Batches of the problem, each with ids of its own."""
    return [
        {**case.batch(), "id": [f"{index}-{row}" for row in range(len(case.image))]}
        for index in range(number)
    ]


def timed(run: Any) -> float:
    """Wall seconds from when all ranks begin until all are done."""
    barrier()
    start = time.perf_counter()
    run()
    barrier()
    return time.perf_counter() - start


def work(settings: argparse.Namespace) -> None:
    """What a rank does; rank 0 writes the seconds of each window down."""
    name = "lenet" if settings.smoke else settings.net
    case = problem(name, 8 if settings.smoke else BATCH, torch.device("cpu"))
    model = case.model()
    guide = MeanFieldNormal(model, estimator="shared")
    options: dict[str, Any] = {"device": "cpu", "progress": False}

    def train(epochs: int) -> None:
        fit(model, guide, batches_of(case, BATCHES), epochs=epochs, learning_rate=1e-5, **options)

    def sample(number: int, store: Path) -> None:
        predict(model, guide, batches_of(case, number), draws=DRAWS, store=store, **options)

    found: dict[str, list[float]] = {"fit": [], "predict": []}
    train(1)
    for window in range(settings.rounds):
        few, many = (settings.work / f"{window}-{number}.zarr" for number in (1, 2))
        short, long = timed(lambda: train(1)), timed(lambda: train(2))
        found["fit"].append(long - short)
        short = timed(lambda few=few: sample(2 * BATCHES, few))
        long = timed(lambda many=many: sample(4 * BATCHES, many))
        found["predict"].append((long - short) / 2)
    if rank() == 0:
        (settings.work / "found.json").write_text(json.dumps(found))


def measure(settings: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows: quartiles of the time of each number of ranks over that of one, window by window."""
    rows: list[dict[str, Any]] = []
    first: dict[str, list[float]] = {}
    rounds = 1 if settings.smoke else settings.rounds
    for ranks in settings.ranks:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            script = [__file__, "--ranks", "1", "--work", str(folder), "--rounds", str(rounds)]
            script += ["--net", settings.net, *(["--smoke"] if settings.smoke else [])]
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            done = subprocess.run(
                [*command, "--nproc-per-node", str(ranks), *script],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(f"{ranks} ranks failed:\n{done.stderr[-4000:]}")
            found = json.loads((folder / "found.json").read_text())
            for what, seconds in found.items():
                first.setdefault(what, seconds)
                ratios = np.array(seconds) / np.median(first[what])
                cases = BATCH * BATCHES / float(np.median(seconds))
                row = {"what": what, "ranks": ranks, "ratio": quartiles(ratios)}
                rows.append(row | {"cases_per_second": cases})
    return rows


def report(header: str, rows: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    lines = [header, "", "| what | ranks | time / one rank's [quartiles] | cases a second |"]
    lines.append("|---|---|---|---|")
    for row in rows:
        low, median, high = row["ratio"]
        lines.append(
            f"| {row['what']} | {row['ranks']} | {median:.2f} [{low:.2f}, {high:.2f}] "
            f"| {row['cases_per_second']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    settings = parse()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if settings.work is not None:
        work(settings)
        return
    rows = measure(settings)
    header = (
        f"{NETS[settings.net][0]}, global batch {BATCH}, {DRAWS} draws, one thread a rank; "
        f"{machine(torch.device('cpu'), 1)}."
    )
    text = report(header, rows)
    print(text)
    write_table(settings.out, {"header": header, "rows": rows}, text)


if __name__ == "__main__":
    main()
