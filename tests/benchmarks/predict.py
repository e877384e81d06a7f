"""Time ``predict`` against as many deterministic passes, and the memory that streaming takes.

Speed: 32 draws on 256 images, labels given, against 32 passes of the same network over the same
batches, in one process and in turns. Everything of ``predict`` counts: drawing weights, softmax and
log-likelihood in float64, drawn labels, the result's arrays. Read ratios, never seconds.

Peers (``pip install -e ".[bench]"``) are timed beside it: as many draws of their networks, with
softmax and the probabilities in one array, the least that a user would write, without observations.

Memory: peak resident memory over the start, of a process that predicts to a Zarr store (and, for
comparison, to memory) with 1,000 and 10,000 cases; images are made batch by batch.

    python tests/benchmarks/predict.py --nets lenet resnet18 --rounds 7 --out predict.md
"""

import argparse
import contextlib
import json
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Clock, check_out, interleave, machine, peak, quartiles, run_apart, write_table
from measure import tune_allocator as tune
from peers import PEERS, failure
from problems import NETS, Problem, problem
from torch import Tensor, nn

from ppl_med.inference import BernoulliDropout, MeanFieldNormal, predict

BATCH_SIZES, IMAGES, DRAWS = (64, 256), 256, 32
STREAM_BATCH = 64
DEFAULT_ROUNDS = {"lenet": 30, "unet": 5, "resnet18": 5, "alexnet": 5}
TARGETS = {"lenet": 1.10, "unet": 1.10, "resnet18": 1.25}
STREAMED = (1_000, 10_000)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", choices=sorted(NETS), default=list(TARGETS))
    parser.add_argument("--rounds", type=int, help=f"rounds a net (default {DEFAULT_ROUNDS})")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=BATCH_SIZES)
    parser.add_argument("--images", type=int, default=IMAGES, help=f"images (default {IMAGES})")
    parser.add_argument("--draws", type=int, default=DRAWS, help=f"draws (default {DRAWS})")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order")
    parser.add_argument("--smoke", action="store_true", help="two rounds of a few images and draws")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory table out")
    parser.add_argument("--out", type=Path, help="also write the tables, as .json or .md")
    parser.add_argument("--stream", nargs=2, metavar=("CASES", "SINK"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {arguments.rounds}")
    for name in ("images", "draws"):
        if vars(arguments)[name] < 1:
            parser.error(f"--{name} must be at least 1, got {vars(arguments)[name]}")
    if arguments.smoke:
        arguments.images, arguments.draws, arguments.batch_sizes = 8, 3, [4]
    check_out(parser, arguments.out)
    return arguments


def split(case: Problem, size: int) -> list[dict[str, Any]]:
    """The problem's images as batches."""
    pairs = zip(case.image.split(size), case.target.split(size), strict=True)
    return [{"image": image, case.site: target} for image, target in pairs]


def throughput(name: str, size: int, settings: argparse.Namespace) -> dict[str, Any]:
    """Ratios of one network.

    Args:
        name: The network.
        size: Images a batch.
        settings: The command line.
    """
    device = torch.device(settings.device)
    draws = settings.draws
    case = problem(name, settings.images, device)
    batches = split(case, size)
    net = case.net().eval()
    models = {"mean-field": case.model(), "Bernoulli dropout": case.model()}
    guides = {
        "mean-field": MeanFieldNormal(models["mean-field"], estimator="shared"),
        "Bernoulli dropout": BernoulliDropout(models["Bernoulli dropout"]),
    }

    def passes() -> None:
        with torch.no_grad():
            for _ in range(draws):
                for batch in batches:
                    net(batch["image"])

    def run(kind: str) -> None:
        predict(models[kind], guides[kind], batches, draws=draws, device=device, progress=False)

    def peer(draw: Any) -> Tensor:
        with torch.no_grad():
            every = [[draw(batch["image"]).softmax(1) for batch in batches] for _ in range(draws)]
            return torch.stack([torch.cat(one) for one in every])

    runs: dict[str, Any] = {"passes": passes}
    runs |= {kind: lambda kind=kind: run(kind) for kind in guides}
    notes: dict[str, str] = {}
    for kind, build in PEERS.items():
        try:
            draw = build(case).draw
            peer(draw)
        except Exception as error:
            notes[kind] = failure(error)
        else:
            runs[kind] = lambda draw=draw: peer(draw)
    for warm in runs.values():
        warm()
    rounds = settings.rounds or (2 if settings.smoke else DEFAULT_ROUNDS[name])
    seconds = interleave(
        runs,
        dict.fromkeys(runs, contextlib.nullcontext),
        rounds=rounds,
        repeats=1,
        clock=Clock(device, settings.threads),
        rng=np.random.default_rng(settings.seed),
    )
    ratios = {k: quartiles(seconds[k] / seconds["passes"]) for k in runs if k != "passes"}
    return {
        "title": case.title,
        "batch": size,
        "rounds": rounds,
        "ratios": ratios,
        "notes": notes,
        "target": TARGETS.get(name),
        "seconds": float(np.median(seconds["passes"])),
    }


class Noise:
    """Batches of noise, made when they are asked for.

    Args:
        num_cases: Cases in all.
    """

    def __init__(self, num_cases: int) -> None:
        self.num_cases = num_cases

    def __len__(self) -> int:
        return -(-self.num_cases // STREAM_BATCH)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for start in range(0, self.num_cases, STREAM_BATCH):
            size = min(STREAM_BATCH, self.num_cases - start)
            yield {
                "image": torch.randn(size, 1, 28, 28, generator=generator),
                "label": torch.randint(0, 10, (size,), generator=generator),
            }


def stream(num_cases: int, sink: str, draws: int) -> None:
    """Predict once and print the growth of the peak in MiB; runs in a process of its own."""
    case = problem("lenet", 1, torch.device("cpu"))
    model: nn.Module = case.model()
    guide = MeanFieldNormal(model, estimator="shared")
    predict(model, guide, Noise(STREAM_BATCH), draws=2, progress=False, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        small, store = Path(folder) / "small.zarr", Path(folder) / "run.zarr"
        predict(
            model, guide, Noise(STREAM_BATCH), draws=2, store=small, progress=False, device="cpu"
        )
        start = peak()
        chosen = store if sink == "zarr" else None
        tree = predict(
            model, guide, Noise(num_cases), draws=draws, store=chosen, progress=False, device="cpu"
        )
        result = {"peak": peak() - start, "result": tree.nbytes / 2**20}
    print(json.dumps(result))


def memory(settings: argparse.Namespace) -> list[dict[str, Any]]:
    """Peaks of streaming and of memory results, each measured in a process of its own."""
    rows = []
    for sink in ("zarr", "memory"):
        for num_cases in (100,) if settings.smoke else STREAMED:
            smoke = ["--smoke"] if settings.smoke else []
            result = run_apart(__file__, "--stream", str(num_cases), sink, *smoke)
            rows.append({"sink": sink, "cases": num_cases, **result})
    return rows


def report(header: str, nets: dict[str, Any], peaks: list[dict[str, Any]]) -> str:
    """The tables as Markdown."""
    lines = [header, "", "| predict | guide | ratio [quartiles] | target |", "|---|---|---|---|"]
    for row in [row for rows in nets.values() for row in rows]:
        for guide, (low, median, high) in row["ratios"].items():
            target = f"<= {row['target']}" if row["target"] and guide == "mean-field" else ""
            lines.append(
                f"| {row['title']}, batches of {row['batch']}, {row['rounds']} rounds | {guide} "
                f"| {median:.3f} [{low:.3f}, {high:.3f}] | {target} |"
            )
        for peer, note in row["notes"].items():
            lines.append(f"| {row['title']}, batches of {row['batch']} | {peer} | {note} | |")
    if peaks:
        lines += ["", "| result in | cases | peak over start, MiB | size of result, MiB |"]
        lines += ["|---|---|---|---|"]
        for row in peaks:
            lines.append(
                f"| {row['sink']} | {row['cases']} | {row['peak']:.0f} | {row['result']:.0f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    settings = parse()
    tune()
    torch.set_num_threads(settings.threads)
    warnings.simplefilter("ignore")
    if settings.stream:
        stream(int(settings.stream[0]), settings.stream[1], 2 if settings.smoke else DRAWS)
        return
    draws, images = settings.draws, settings.images
    header = (
        f"predict, {draws} draws on {images} images, against {draws} deterministic passes; "
        f"{machine(torch.device(settings.device), settings.threads)}; large-allocation settings "
        "of malloc as in step.py."
    )
    nets = {
        name: [throughput(name, size, settings) for size in settings.batch_sizes]
        for name in settings.nets
    }
    peaks = [] if settings.no_memory else memory(settings)
    text = report(header, nets, peaks)
    print(text)
    write_table(settings.out, {"header": header, "nets": nets, "memory": peaks}, text)


if __name__ == "__main__":
    main()
