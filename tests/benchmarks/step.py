"""Time one training step: ours, by hand, stock Pyro, other packages.

All variants of a network live in one process and are stepped round-robin in an order drawn anew
each round. Every figure is a ratio to the deterministic step of the same round (lower quartile,
median, upper quartile) or to the hand-written mean-field step of the same round: compare ratios,
never seconds, and on a shared machine read differences below 0.05 as nothing.

    python tests/benchmarks/step.py --nets lenet unet --rounds 30 --out step.md
"""

import argparse
import gc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from measure import (
    ALLOCATOR,
    MIN_SECONDS,
    Clock,
    Counts,
    check_out,
    interleave,
    machine,
    quartiles,
    write_table,
)
from measure import tune_allocator as tune
from peers import PEERS, failure
from problems import NETS, Problem, problem
from variants import FLOOR, HAND, VARIANTS, Variant

BATCH = 32
DEFAULT_ROUNDS = {"lenet": 60, "unet": 20, "resnet18": 15, "alexnet": 9}
GROUP_BYTES = 3 * 2**30  # of variants that are alive together, besides the two references
Row = dict[str, Any]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", choices=sorted(NETS), default=list(NETS))
    parser.add_argument("--rounds", type=int, help=f"rounds a net (default {DEFAULT_ROUNDS})")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", nargs="+", help="only rows whose name contains one of these")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order of steps")
    parser.add_argument("--smoke", action="store_true", help="two rounds of four images")
    parser.add_argument("--out", type=Path, help="also write the tables, as .json or .md")
    arguments = parser.parse_args()
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {arguments.rounds}")
    check_out(parser, arguments.out)
    return arguments


def chosen(only: list[str] | None) -> dict[str, Any]:
    """Builders of the rows, references first."""
    rows = {**VARIANTS, **PEERS}
    return {
        name: build
        for name, build in rows.items()
        if name in (FLOOR, HAND) or only is None or any(part in name for part in only)
    }


def built(case: Problem, name: str, build: Any, row: Row) -> Variant | None:
    """Build a variant, run it twice and count; where that fails, the row says why."""
    torch.manual_seed(0)
    try:
        variant: Variant = build(case)
        with variant.around():
            variant.step()
            variant.step()
            if variant.backward is not None:
                with Counts() as counts:
                    variant.backward()
                row["kernels"], row["syncs"] = counts.kernels, counts.syncs
    except Exception as error:
        if name in VARIANTS and not isinstance(error, ImportError):
            raise
        row["note"] = failure(error)
        return None
    return variant


def release(variants: dict[str, Variant]) -> None:
    """Give gradients back, so that more variants fit in memory."""
    for variant in variants.values():
        for parameter in variant.parameters:
            parameter.grad = None


def measured(case: Problem, builders: dict[str, Any], settings: Any) -> dict[str, Row]:
    """Rows of one network.

    Args:
        case: The network and its batch.
        builders: What builds each row.
        settings: The command line.
    """
    rows: dict[str, Row] = {name: {} for name in builders}
    references: dict[str, Variant] = {}
    for name in (FLOOR, HAND):
        variant = built(case, name, builders[name], rows[name])
        if variant is None:
            raise RuntimeError(f"{name}: {rows[name]['note']}")
        references[name] = variant
    pending = [name for name in builders if name not in references]
    bytes_each = 8 * 4 * sum(p.numel() for p in case.net().parameters())
    per_group = max(1, int(GROUP_BYTES // bytes_each))
    for first in range(0, len(pending), per_group):
        group = dict(references)
        for name in pending[first : first + per_group]:
            variant = built(case, name, builders[name], rows[name])
            if variant is not None:
                group[name] = variant
            release(group)
        timed(group, rows, settings)
        for name, variant in group.items():
            if name not in references:
                variant.close()
        del group, variant
        gc.collect()
    return rows


def timed(group: dict[str, Variant], rows: dict[str, Row], settings: Any) -> None:
    """Fill in the ratios of some variants that are alive together."""
    clock = Clock(torch.device(settings.device), settings.threads)
    floor = clock(group[FLOOR].step, 3)
    repeats = 1 if settings.smoke else max(1, round(MIN_SECONDS / floor))
    seconds = interleave(
        {name: variant.step for name, variant in group.items()},
        {name: variant.around for name, variant in group.items()},
        rounds=settings.rounds,
        repeats=repeats,
        clock=clock,
        rng=np.random.default_rng(settings.seed),
    )
    release(group)
    for name, values in seconds.items():
        if "ratio" not in rows[name]:
            rows[name]["ratio"] = quartiles(values / seconds[FLOOR])
            rows[name]["ratio_to_hand"] = quartiles(values / seconds[HAND])
            rows[name]["milliseconds"] = 1e3 * float(np.median(values))


def table(title: str, rows: dict[str, Row]) -> str:
    """One network's rows as a Markdown table."""
    lines = [
        f"### {title}",
        "",
        "| step | ratio to deterministic [quartiles] | ratio to hand-written | kernels | syncs |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if "ratio" not in row:
            lines.append(f"| {name} | {row.get('note', 'not run')} | | | |")
            continue
        low, median, high = row["ratio"]
        hand_low, hand, hand_high = row["ratio_to_hand"]
        lines.append(
            f"| {name} | {median:.2f} [{low:.2f}, {high:.2f}] "
            f"| {hand:.2f} [{hand_low:.2f}, {hand_high:.2f}] "
            f"| {row.get('kernels', '')} | {row.get('syncs', '')} |"
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
    rounds = settings.rounds
    builders = chosen(settings.only)
    header = (
        f"Batch {4 if settings.smoke else BATCH}; {machine(device, settings.threads)}; allocator "
        f"set by {', '.join(ALLOCATOR)}. Kernels (aten calls but views) and host syncs are those "
        "of forward and backward. Validation of distributions is off in every row."
    )
    print(header, flush=True)
    results: dict[str, Any] = {"header": header, "nets": {}}
    texts = [header]
    for name in settings.nets:
        settings.rounds = rounds or (2 if settings.smoke else DEFAULT_ROUNDS[name])
        case = problem(name, 4 if settings.smoke else BATCH, device)
        rows = measured(case, builders, settings)
        results["nets"][name] = {"rounds": settings.rounds, "rows": rows}
        texts.append(table(f"{case.title}, {settings.rounds} rounds", rows))
        print("\n" + texts[-1], flush=True)
    write_table(settings.out, results, "\n\n".join(texts))


if __name__ == "__main__":
    main()
