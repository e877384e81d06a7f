"""Time analyses of class probabilities against single-figure libraries, and the memory they take.

Ours: scores with the ECE (of the mixture and of every draw), the reliability of the mixture alone,
LAC calibration and sets with their tests of shift, entropies and variances with Monte Carlo errors.
Peers: torchmetrics' calibration error, MAPIE's LAC, scipy's entropy. Ratios are our time over
theirs:

    per number   given mean probabilities; over 20, for we read 20 draws
    same task    given the draws: of the mean over draws, and of every draw where ours are
    sums         ours over one pass of numpy's sum over the draws
    stored       as same task, both from a Zarr store of all draws, read by Zarr alone for the peer

The first three in memory, over windows drawn in a new order each round: lower quartile, median,
upper quartile. Read ratios, never seconds, which are CPU time. Memory: growth of the peak resident
size over all analyses of the store, beside the size of the tree.

    python tests/benchmarks/analyses.py --cases 1000000 --out analyses.md
"""

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
import zarr
from mapie.classification import SplitConformalClassifier
from measure import Clock, check_out, interleave, machine, peak, quartiles, write_table
from scipy import stats
from sklearn.base import BaseEstimator, ClassifierMixin
from torchmetrics.functional.classification import multiclass_calibration_error

from ppl_med.analysis import conformal, scoring, uncertainty
from ppl_med.inference.prediction.zarr_layout import dask_chunks
from ppl_med.storage.seals import chunk_codecs

DRAWS, CLASSES, BINS, ALPHA, CHUNK = 20, 10, 15, 0.1, 512
IN_MEMORY = 100_000
Tasks = dict[str, Callable[[], Any]]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=1_000_000, help="cases (default 10^6)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the probabilities")
    parser.add_argument("--windows", type=int, default=7, help="of each in memory (default 7)")
    parser.add_argument("--without-numba", action="store_true", help="numpy alone")
    parser.add_argument("--smoke", action="store_true", help="2000 cases, two windows")
    parser.add_argument("--out", type=Path, help="also write the table, as .json or .md")
    arguments = parser.parse_args()
    if arguments.cases < 100:
        parser.error(f"--cases must be at least 100, got {arguments.cases}")
    check_out(parser, arguments.out)
    return arguments


def write(path: Path, num_cases: int, seed: int) -> np.ndarray:
    """Store a tree, part by part.

    Args:
        path: Of the store.
        num_cases: Cases.
        seed: Of the probabilities and labels.

    Returns:
        Labels (case).
    """
    rng = np.random.default_rng(seed)
    labels = []
    for start in range(0, num_cases, 16 * CHUNK):
        case = np.arange(start, min(start + 16 * CHUNK, num_cases))
        logits = rng.normal(0, 1.5, (1, 1, case.size, CLASSES))
        logits = logits + rng.normal(size=(1, DRAWS, case.size, CLASSES))
        probs = np.exp(logits)
        probs /= probs.sum(-1, keepdims=True)
        mean = probs[0].mean(0)
        label = (mean.cumsum(1)[:, :-1] < rng.random((case.size, 1))).sum(1)
        dims = ("chain", "draw", "case", "class")
        groups = {
            "posterior": xr.Dataset({"probs": (dims, probs)}, {"case": case}),
            "observed_data": xr.Dataset({"label": ("case", label)}, {"case": case}),
        }
        for group, data in groups.items():
            options: dict[str, Any] = {"append_dim": "case"}
            if start == 0:
                sizes = {"probs": (1, DRAWS, CHUNK, CLASSES), "label": (CHUNK,), "case": (CHUNK,)}
                codecs = chunk_codecs(data.variables)  # as `predict` stores them
                options = {"encoding": {n: codecs[n] | {"chunks": sizes[str(n)]} for n in codecs}}
            data.to_zarr(path, group=group, mode="a", consolidated=False, **options)
        labels.append(label)
    return np.concatenate(labels)


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose inputs are its probabilities."""

    def __init__(self) -> None:
        self.classes_ = np.arange(CLASSES)

    def fit(self, x: np.ndarray, y: np.ndarray) -> "Given":
        """Learn nothing."""
        return self

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """Return the inputs."""
        return x

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return the most probable class."""
        return x.argmax(1)


def ours(tree: xr.DataTree) -> Tasks:
    """Our analyses of a tree."""
    half = tree["posterior"].sizes["case"] // 2
    first, second = (tree.isel(case=s) for s in (slice(half), slice(half, None)))
    return {
        "scores": lambda: scoring.score(tree, bins=BINS),
        "reliability": lambda: scoring.reliability(tree, BINS),
        "LAC": lambda: conformal.predict_sets(conformal.calibrate(first, ALPHA), second),
        "entropies": lambda: uncertainty.entropy(tree),
        "variances": lambda: uncertainty.summary(tree),
    }


def calibration_error(probs: np.ndarray, label: np.ndarray) -> float:
    """torchmetrics' figure of probabilities (case, class)."""
    tensors = torch.from_numpy(probs), torch.from_numpy(label)
    return float(multiclass_calibration_error(*tensors, CLASSES, n_bins=BINS))


def lac(probs: np.ndarray, label: np.ndarray) -> np.ndarray:
    """MAPIE's sets (case, class) of the second half of the cases."""
    half = len(label) // 2
    model = SplitConformalClassifier(
        Given(), confidence_level=1 - ALPHA, conformity_score="lac", prefit=True
    )
    model.conformalize(probs[:half], label[:half])
    return np.asarray(model.predict_set(probs[half:])[1])[..., 0]


def peers(mean: Callable[[], np.ndarray], label: np.ndarray) -> Tasks:
    """The single figures of the mean probabilities (case, class)."""
    return {
        "reliability": lambda: calibration_error(mean(), label),
        "LAC": lambda: lac(mean(), label),
        "entropies": lambda: stats.entropy(mean(), axis=-1),
    }


def peers_of_draws(draws: np.ndarray, label: np.ndarray) -> Tasks:
    """The figures of the mean over draws, and of every draw where ours are; draws (draw, ...)."""
    tasks = peers(lambda: draws.mean(0), label)
    one, entropy = tasks["reliability"], tasks["entropies"]
    tasks["scores"] = lambda: [one(), *(calibration_error(p, label) for p in draws)]
    tasks["entropies"] = lambda: [entropy(), *(stats.entropy(p, axis=-1) for p in draws)]
    return tasks


def in_memory(tree: xr.DataTree, windows: int, seed: int) -> dict[str, dict[str, Any]]:
    """Ratios by analysis and kind, over windows."""
    draws = tree["posterior"].to_dataset()["probs"].values[0]
    label = tree["observed_data"].to_dataset()["label"].values
    mean = draws.mean(0)
    given = peers(lambda: mean, label)
    given["scores"] = given["reliability"]
    runs = {("ours", name): run for name, run in ours(tree).items()}
    runs |= {("per_number", name): run for name, run in given.items()}
    runs |= {("same_task", name): run for name, run in peers_of_draws(draws, label).items()}
    runs["sums", ""] = lambda: draws.sum()
    for run in runs.values():
        run()
    named = {" ".join(key): run for key, run in runs.items()}
    seconds = interleave(
        named,
        dict.fromkeys(named, nullcontext),
        rounds=windows,
        repeats=1,
        clock=Clock(torch.device("cpu"), 1),
        rng=np.random.default_rng(seed),
    )
    found: dict[str, dict[str, Any]] = {}
    for name in ours(tree):
        own, row = seconds[f"ours {name}"], found.setdefault(name, {})
        row["sums"] = quartiles(own / seconds["sums "])
        for kind, share in (("per_number", DRAWS), ("same_task", 1)):
            peer = seconds.get(f"{kind} {name}")
            row[kind] = None if peer is None else quartiles(own / peer / share)
    return found


def timed(run: Callable[[], Any]) -> dict[str, Any]:
    """CPU and wall seconds and growth of the peak in MiB of a run, with what it returned."""
    before = peak()
    start, wall = time.process_time(), time.perf_counter()
    value = run()
    seconds, wall = time.process_time() - start, time.perf_counter() - wall
    return {"seconds": seconds, "wall": wall, "peak": peak() - before, "value": value}


def stored_means(path: Path) -> Callable[[], np.ndarray]:
    """Reads means over draws (case, class) by Zarr, part by part."""
    probs: Any = zarr.open_group(path, mode="r")["posterior/probs"]
    step = 16 * CHUNK

    def read() -> np.ndarray:
        starts = range(0, probs.shape[2], step)
        return np.concatenate([probs[0, :, start : start + step].mean(0) for start in starts])

    return read


def measure(num_cases: int, windows: int, seed: int) -> dict[str, Any]:
    """The rows of the table, each with a check that both sides agree."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.zarr"
        label = write(path, num_cases, seed)
        chunks = dask_chunks(path)
        tree = xr.open_datatree(path, engine="zarr", consolidated=False, chunks=chunks)
        own = {name: timed(run) for name, run in ours(tree).items()}
        other = {name: timed(run) for name, run in peers(stored_means(path), label).items()}
        part = tree.isel(case=slice(IN_MEMORY)).load()
    ratios = in_memory(part, windows, seed)
    gap = abs(float(own["reliability"]["value"]["ece"]) - other["reliability"]["value"])
    same = (own["LAC"]["value"]["prediction_set"].values == other["LAC"]["value"]).mean()
    entropy = own["entropies"]["value"]["predictive_entropy"].values
    apart = float(np.abs(entropy - other["entropies"]["value"]).max())
    agreement = {
        "reliability": f"difference {gap:.1e}",
        "LAC": f"{same:.4%} of entries",
        "entropies": f"difference {apart:.1e}",
    }
    numbers = num_cases * DRAWS * CLASSES
    rows = []
    for name, row in own.items():
        peer = other.get(name)
        rows.append(
            {
                "analysis": name,
                **ratios[name],
                "stored": row["seconds"] / peer["seconds"] if peer else None,
                "million_per_second": numbers / row["seconds"] / 1e6,
                "million_per_second_wall": numbers / row["wall"] / 1e6,
                "agreement": agreement.get(name, ""),
            }
        )
    return {
        "rows": rows,
        "tree": numbers * 8 / 2**20,
        "peak": sum(row["peak"] for row in own.values()),
        "in_memory": min(num_cases, IN_MEMORY),
    }


def _ratio(found: list[float] | float | None) -> str:
    if found is None:
        return ""
    return f"{found:.2f}" if isinstance(found, float) else " ".join(f"{x:.2f}" for x in found)


def report(header: str, result: dict[str, Any]) -> str:
    """The table as Markdown."""
    lines = [
        header, "",
        "| analysis | per number | same task | sums | stored | 10^6 numbers a second, CPU | wall "
        "| agreement |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in result["rows"]:
        ratios = [_ratio(row[kind]) for kind in ("per_number", "same_task", "sums", "stored")]
        speeds = [f"{row[f'million_per_second{kind}']:.0f}" for kind in ("", "_wall")]
        lines.append(f"| {' | '.join([row['analysis'], *ratios, *speeds, row['agreement']])} |")
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    settings = parse()
    if settings.without_numba:
        sys.modules["numba"] = None  # type: ignore[assignment]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    num_cases, windows = (2000, 2) if settings.smoke else (settings.cases, settings.windows)
    measure(2000, 1, settings.seed + 1)  # imports and first calls
    result = measure(num_cases, windows, settings.seed)
    header = (
        f"{num_cases} cases ({result['in_memory']} in memory), {DRAWS} draws, {CLASSES} classes: "
        f"{result['tree']:.0f} MiB, analysed in {result['peak']:.0f} MiB; peers torchmetrics "
        f"(scores, reliability), MAPIE (LAC) and scipy (entropies); {windows} windows; "
        f"{'numpy alone' if settings.without_numba else 'numba where it is installed'}; "
        f"{machine(torch.device('cpu'), 1)}."
    )
    text = report(header, result)
    print(text)
    write_table(settings.out, {"header": header, **result}, text)


if __name__ == "__main__":
    main()
