"""Time the attribution of many draws in one call against as many calls of one draw.

Three ways to explain the same posterior draws, in one process and in turns: ``single``, a call of
``attribute`` for each draw; ``loop``, one call that visits them one by one; ``stacked``, one call
with ``draws_at_once``. Checks of the functions count in all three. Read ratios to ``single``,
never seconds; 0.6 or less is the aim.

    python tests/benchmarks/attribution.py --nets unet resnet18 --cases 1 8 --out attribution.md
"""

import argparse
import contextlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import (
    Clock,
    check_out,
    interleave,
    machine,
    quartiles,
    tune_allocator,
    write_table,
)
from problems import problem
from torch import Tensor

from ppl_med.explain.attribution import attribute
from ppl_med.inference import MeanFieldNormal, functions

METHODS: dict[str, dict[str, Any]] = {
    "saliency": {},
    "integrated_gradients": {"steps": 8},
    "lrp": {},
}
WAYS = ("single", "loop", "stacked")
AIM = 0.6


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", default=["unet", "resnet18"])
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=list(METHODS))
    parser.add_argument("--cases", nargs="+", type=int, default=[1, 8], help="images a call")
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order")
    parser.add_argument("--smoke", action="store_true", help="one round of two draws")
    parser.add_argument("--out", type=Path, help="also write the table, as .json or .md")
    arguments = parser.parse_args()
    check_out(parser, arguments.out)
    return arguments


def ways(
    made: Sequence[Callable[[Tensor], Tensor]], image: Tensor, settings: dict[str, Any]
) -> dict[str, Callable[[], Any]]:
    """The three ways, by name."""

    def explain(draws: Sequence[Callable[[Tensor], Tensor]], **options: Any) -> Any:
        return attribute(draws, image, 1, **settings, **options)

    num = len(made)
    return {
        "single": lambda: [explain([function]) for function in made],
        "loop": lambda: explain(made, draws_at_once=1),
        "stacked": lambda: explain(made, draws_at_once=num, batch_size=256 * num),
    }


def compare(name: str, num_cases: int, settings: argparse.Namespace) -> list[dict[str, Any]]:
    """Ratios of one network, a row a method.

    Args:
        name: The network.
        num_cases: Images a call.
        settings: The command line.
    """
    device = torch.device(settings.device)
    case = problem(name, num_cases, device)
    model = case.model()
    guide = MeanFieldNormal(model)
    # Drawn once before the clock starts: every way explains weights that are there.
    made = list(functions(model, guide, draws=2 if settings.smoke else settings.draws))
    for function in made:
        function(case.image)
    region = None
    if case.site == "mask":
        region = torch.ones(case.target.shape, device=device)
    rows = []
    for method in settings.methods:
        options = {"method": method, "region": region, "tolerance": 1e9} | METHODS[method]
        seconds = interleave(
            ways(made, case.image, options),
            dict.fromkeys(WAYS, contextlib.nullcontext),
            rounds=1 if settings.smoke else settings.rounds,
            repeats=1,
            clock=Clock(device, settings.threads),
            rng=np.random.default_rng(settings.seed),
        )
        ratios = {way: quartiles(seconds[way] / seconds["single"]) for way in WAYS[1:]}
        rows.append({"net": case.title, "cases": num_cases, "method": method, **ratios})
    return rows


def table(rows: list[dict[str, Any]], where: str) -> str:
    """The rows as Markdown: median ratios with quartiles."""
    lines = [where, "", "| net | images | method | loop | stacked |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [
            "{1:.2f} ({0:.2f} to {2:.2f})".format(*row[way]) + (" ✓" if row[way][1] <= AIM else "")
            for way in WAYS[1:]
        ]
        lines.append(f"| {row['net']} | {row['cases']} | {row['method']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(settings: argparse.Namespace) -> None:
    """Time, print and write."""
    torch.set_num_threads(settings.threads)
    warnings.filterwarnings("ignore", category=UserWarning)
    where = machine(torch.device(settings.device), settings.threads)
    rows = [
        row
        for name in settings.nets
        for num in settings.cases
        for row in compare(name, num, settings)
    ]
    text = table(rows, where)
    print(text)
    write_table(settings.out, {"machine": where, "rows": rows}, text)


if __name__ == "__main__":
    tune_allocator()
    main(parse())
