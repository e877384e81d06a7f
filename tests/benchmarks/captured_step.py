"""Time a training step eager, with a compiled net, captured in a CUDA graph, and of stock Pyro.

Rows are built and timed one after the other, so that the peak memory is each one's own; read the
clocks in the heading before comparing with another run. "in fit" is the whole of ``fit`` (with
``capture`` or ``compile_nets``): checks of the batch, schedule and history included. A captured row
needs a GPU and is left out without one; the others run on the CPU then, and say nothing about a
GPU.

    python tests/benchmarks/captured_step.py --nets lenet resnet18 --out captured.md
"""

import argparse
import gc
import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from measure import Clock, check_out, machine, write_table
from measure import tune_allocator as tune
from peers import failure
from problems import Problem, problem
from pyro.infer import TraceMeanField_ELBO
from variants import Variant, autonormal, inside_fit, mean_field

SIZES = {"lenet": 28, "resnet18": 28, "unet": 64}
BATCHES = (8, 32, 128)
WINDOW = 0.5  # seconds, at least
WARM = 8  # steps before the timing: a captured step is recorded after three
STOCK = "Pyro AutoNormal, TraceMeanField_ELBO"
EAGER = "ppl_med, eager"
ROWS: dict[str, Callable[[Problem], Variant]] = {
    STOCK: lambda p: autonormal(p, TraceMeanField_ELBO()),
    EAGER: lambda p: mean_field(p, "shared"),
    "ppl_med, eager, in fit": inside_fit,
    "ppl_med, compiled net, in fit": lambda p: inside_fit(p, compile_nets=True),
    "ppl_med, captured, in fit": lambda p: inside_fit(p, capture=True),
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", choices=sorted(SIZES), default=list(SIZES))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--windows", type=int, default=7, help="timed windows a row (default 7)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled net out")
    parser.add_argument("--smoke", action="store_true", help="one batch size, two short windows")
    parser.add_argument("--out", type=Path, help="also write the table, as .json or .md")
    arguments = parser.parse_args()
    if arguments.windows < 5:
        parser.error(f"--windows must be at least 5, got {arguments.windows}")
    there = torch.cuda.is_available()
    if arguments.device == "cuda" and not there:
        parser.error("--device cuda, but torch finds no GPU on this machine")
    arguments.device = arguments.device or ("cuda" if there else "cpu")
    check_out(parser, arguments.out)
    return arguments


def clocks(device: torch.device) -> str:
    """Clocks and driver of the GPU, as it says itself."""
    if device.type != "cuda":
        return "no GPU"
    fields = "clocks.sm,clocks.mem,power.limit,driver_version"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "clocks unknown: no nvidia-smi"
    return f"{fields}: {done.stdout.splitlines()[0]}"


def measured(case: Problem, build: Callable[[Problem], Variant], settings: Any) -> dict[str, Any]:
    """Images a second, seconds of the first steps and peak memory of one row.

    Args:
        case: Network and batch.
        build: What builds the row.
        settings: The command line.
    """
    device = torch.device(settings.device)
    gc.collect()
    on_gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    start, clock = time.perf_counter(), Clock(device, settings.threads)
    try:
        variant = build(case)
    except Exception as error:
        return {"note": failure(error)}
    with variant.around():
        for _ in range(2 if settings.smoke else WARM):
            variant.step()
        first = time.perf_counter() - start
        window = 0.01 if settings.smoke else WINDOW
        repeats = max(1, round(window / clock(variant.step, 1)))
        windows = 2 if settings.smoke else settings.windows
        seconds = np.array([clock(variant.step, repeats) for _ in range(windows)])
    peak = (torch.cuda.max_memory_allocated(device) - before) / 2**20 if on_gpu else None
    variant.close()
    median = float(np.median(seconds))
    spread = float(np.quantile(seconds, 0.75) - np.quantile(seconds, 0.25)) / median
    rate = len(case.image) / median
    return {"images": rate, "milliseconds": 1e3 * median, "spread": spread, "first": first,
            "peak": peak}  # fmt: skip


def table(title: str, rows: dict[str, dict[str, Any]]) -> str:
    """One network and batch size as a Markdown table."""
    lines = [
        f"### {title}",
        "",
        "| step | images/s | ms | spread | of eager | of stock Pyro | first steps, s | peak MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if "images" not in row:
            lines.append(f"| {name} | {row['note']} | | | | | | |")
            continue
        against = [
            f"{row['images'] / rows[other]['images']:.2f}" if "images" in rows[other] else ""
            for other in (EAGER, STOCK)
        ]
        peak = "" if row["peak"] is None else f"{row['peak']:.0f}"
        lines.append(
            f"| {name} | {row['images']:.0f} | {row['milliseconds']:.2f} | {row['spread']:.0%} "
            f"| {' | '.join(against)} | {row['first']:.1f} | {peak} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    settings = parse()
    tune()
    torch.set_num_threads(settings.threads)
    pyro.enable_validation(False)
    warnings.simplefilter("ignore")
    device = torch.device(settings.device)
    left = "" if device.type == "cuda" else (
        " There is no GPU here, or none was asked for: a step is captured on GPUs only, so that "
        "the captured row is left out, and no figure below is one of a GPU."
    )  # fmt: skip
    header = (
        f"{machine(device, settings.threads)}, Pyro {pyro.__version__}, CUDA {torch.version.cuda}; "
        f"{clocks(device)}. Medians of {2 if settings.smoke else settings.windows} windows; spread "
        f"is the distance of the quartiles.{left}"
    )
    print(header, flush=True)
    results: dict[str, Any] = {"header": header, "tables": []}
    texts = [header]
    for net in settings.nets:
        for size in (4,) if settings.smoke else settings.batch_sizes:
            case = problem(net, size, device, SIZES[net])
            rows = {
                name: measured(case, build, settings)
                for name, build in ROWS.items()
                if not ("captured" in name and device.type != "cuda")
                and not ("compiled" in name and settings.no_compile)
            }
            results["tables"].append({"net": net, "batch": size, "rows": rows})
            texts.append(table(f"{case.title}, batch {size}", rows))
            print("\n" + texts[-1], flush=True)
    write_table(settings.out, results, "\n\n".join(texts))


if __name__ == "__main__":
    main()
