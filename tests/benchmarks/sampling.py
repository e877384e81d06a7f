"""Time many masks of a Probabilistic U-Net against one whole pass.

A pass runs the U-Net and the prior net, draws z and combines the two to logits. More masks of the
same image only draw z and combine again, since ``predict`` keeps what does not depend on z
(``ppl_med.weights.call_cache``). Timed is what ``predict`` runs, the model under ``caching``,
without the probabilities and labels that it writes. Read ratios, never seconds.

    python tests/benchmarks/sampling.py --rounds 9 --out sampling.md
"""

import argparse
import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from measure import Clock, check_out, interleave, machine, quartiles, write_table
from measure import tune_allocator as tune
from torch import Tensor

from ppl_med.models import ProbabilisticUNet
from ppl_med.weights.call_cache import caching

MASKS, TARGET = 100, 2.0
SMALL: dict[str, Any] = {"channels": (8, 12), "num_convolutions": 1}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=128, help="rows and columns (default 128)")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=(1, 8), help="images a pass")
    parser.add_argument("--classes", type=int, default=2, help="classes (default 2)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds (default 9)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, draws and order")
    parser.add_argument("--smoke", action="store_true", help="two rounds of a small net")
    parser.add_argument("--out", type=Path, help="also write the table, as .json or .md")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {arguments.rounds}")
    check_out(parser, arguments.out)
    return arguments


class Silent(torch.nn.Module):
    """In the likelihood's place: what it draws and stores is output."""

    def forward(self, logits: Tensor, mask: Tensor | None) -> None:
        """Do nothing."""


def measure(num_images: int, settings: argparse.Namespace) -> dict[str, Any]:
    """Ratios for one batch size.

    Args:
        num_images: Images a pass.
        settings: The command line.
    """
    device = torch.device(settings.device)
    names = [f"class {index}" for index in range(settings.classes)]
    model: Any = ProbabilisticUNet(1, names, **(SMALL if settings.smoke else {})).to(device).eval()
    size = 16 if settings.smoke else settings.size
    image = torch.randn(num_images, 1, size, size, device=device)
    model.likelihood = Silent()

    def masks(number: int) -> None:
        with torch.no_grad(), caching():
            for _ in range(number):
                model(image)

    runs = {"one": lambda: masks(1), "many": lambda: masks(MASKS)}
    for warm in runs.values():
        warm()
    seconds = interleave(
        runs,
        dict.fromkeys(runs, contextlib.nullcontext),
        rounds=2 if settings.smoke else settings.rounds,
        repeats=1,
        clock=Clock(device, settings.threads),
        rng=np.random.default_rng(settings.seed),
    )
    return {
        "images": num_images,
        "ratio": quartiles(seconds["many"] / seconds["one"]),
        "seconds": float(np.median(seconds["one"])),
    }


def report(header: str, rows: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    lines = [header, "", "| images a pass | ratio [quartiles] | target |", "|---|---|---|"]
    for row in rows:
        low, median, high = row["ratio"]
        lines.append(f"| {row['images']} | {median:.2f} [{low:.2f}, {high:.2f}] | <= {TARGET} |")
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    settings = parse()
    tune()
    torch.set_num_threads(settings.threads)
    pyro.set_rng_seed(settings.seed)
    header = (
        f"{MASKS} masks against one, Probabilistic U-Net of the official size, "
        f"{settings.size} x {settings.size} pixels, {settings.classes} classes; "
        f"{machine(torch.device(settings.device), settings.threads)}; large-allocation settings "
        "of malloc as in step.py."
    )
    rows = [measure(number, settings) for number in settings.batch_sizes]
    text = report(header, rows)
    print(text)
    write_table(settings.out, {"header": header, "rows": rows}, text)


if __name__ == "__main__":
    main()
