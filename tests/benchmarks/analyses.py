"""Time analyses of a stored tree against single-figure libraries, and the memory they take.

Ours: scores with the ECE (mixture and every draw), LAC calibration and sets, entropy and variance
split with Monte Carlo errors, from a Zarr store of all draws; each reads the store once. Peers:
torchmetrics' calibration error and MAPIE's LAC on the mean probabilities, given in memory. The
ratio is our time over the peer's; so it holds reading, and 20 times the numbers. Read ratios, never
seconds. Memory: growth of the peak resident size over all analyses, beside the size of the tree.

    python tests/benchmarks/analyses.py --cases 1000000 --out analyses.md
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from mapie.classification import SplitConformalClassifier
from measure import check_out, machine, peak, write_table
from sklearn.base import BaseEstimator, ClassifierMixin
from torchmetrics.functional.classification import multiclass_calibration_error

from ppl_med.analysis import conformal, scoring, uncertainty

DRAWS, CLASSES, BINS, ALPHA, CHUNK = 20, 10, 15, 0.1, 512


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=1_000_000, help="cases (default 10^6)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the probabilities")
    parser.add_argument("--smoke", action="store_true", help="2000 cases")
    parser.add_argument("--out", type=Path, help="also write the table, as .json or .md")
    arguments = parser.parse_args()
    if arguments.cases < 100:
        parser.error(f"--cases must be at least 100, got {arguments.cases}")
    check_out(parser, arguments.out)
    return arguments


def write(path: Path, num_cases: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Store a tree, part by part.

    Args:
        path: Of the store.
        num_cases: Cases.
        seed: Of the probabilities and labels.

    Returns:
        Mean probabilities (case, class) and labels (case).
    """
    rng = np.random.default_rng(seed)
    means, labels = [], []
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
                options = {"encoding": {n: {"chunks": sizes[str(n)]} for n in data.variables}}
            data.to_zarr(path, group=group, mode="a", consolidated=False, **options)
        means.append(mean)
        labels.append(label)
    return np.concatenate(means), np.concatenate(labels)


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


def timed(run: Callable[[], Any]) -> dict[str, Any]:
    """CPU seconds and growth of the peak in MiB of a run, with what it returned."""
    before = peak()
    start = time.process_time()
    value = run()
    seconds = time.process_time() - start
    return {"seconds": seconds, "peak": peak() - before, "value": value}


def measure(num_cases: int, seed: int) -> dict[str, Any]:
    """The rows of the table, each with a check that both sides agree."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.zarr"
        mean, label = write(path, num_cases, seed)
        tree = xr.open_datatree(path, engine="zarr", consolidated=False, chunks={})
        half = num_cases // 2
        first, second = (tree.isel(case=s) for s in (slice(half), slice(half, None)))

        def lac() -> xr.Dataset:
            return conformal.predict_sets(conformal.calibrate(first, ALPHA), second)

        ours = {
            "ECE": timed(lambda: scoring.score(tree, bins=BINS)),
            "LAC": timed(lac),
            "entropy": timed(lambda: uncertainty.entropy(tree)),
            "variance": timed(lambda: uncertainty.summary(tree)),
        }

    def mapie() -> np.ndarray:
        model = SplitConformalClassifier(
            Given(), confidence_level=1 - ALPHA, conformity_score="lac", prefit=True
        )
        model.conformalize(mean[:half], label[:half])
        return np.asarray(model.predict_set(mean[half:])[1])[..., 0]

    tensors = torch.from_numpy(mean), torch.from_numpy(label)
    peers = {
        "ECE": timed(lambda: multiclass_calibration_error(*tensors, CLASSES, n_bins=BINS)),
        "LAC": timed(mapie),
    }
    gap = abs(float(ours["ECE"]["value"]["ece"]) - float(peers["ECE"]["value"]))
    same = (ours["LAC"]["value"]["prediction_set"].values == peers["LAC"]["value"]).mean()
    agreement = {"ECE": f"difference {gap:.1e}", "LAC": f"{same:.4%} of entries"}
    numbers = num_cases * DRAWS * CLASSES
    rows = []
    for name, row in ours.items():
        peer = peers[name]["seconds"] if name in peers else None
        rows.append(
            {
                "analysis": name,
                "ratio": row["seconds"] / peer if peer else None,
                "ratio_per_number": row["seconds"] / peer / DRAWS if peer else None,
                "million_per_second": numbers / row["seconds"] / 1e6,
                "agreement": agreement.get(name, ""),
            }
        )
    peak = sum(row["peak"] for row in ours.values())
    return {"rows": rows, "tree": numbers * 8 / 2**20, "peak": peak}


def report(header: str, result: dict[str, Any]) -> str:
    """The table as Markdown."""
    lines = [
        header, "",
        "| analysis | time / peer's | the same per number | 10^6 numbers a second | agreement |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in result["rows"]:
        ratios = [f"{row[k]:.2f}" if row[k] else "" for k in ("ratio", "ratio_per_number")]
        lines.append(
            f"| {row['analysis']} | {ratios[0]} | {ratios[1]} | {row['million_per_second']:.1f} "
            f"| {row['agreement']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    settings = parse()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    num_cases = 2000 if settings.smoke else settings.cases
    measure(2000, settings.seed + 1)  # imports and first calls
    result = measure(num_cases, settings.seed)
    header = (
        f"{num_cases} cases, {DRAWS} draws, {CLASSES} classes: {result['tree']:.0f} MiB, analysed "
        f"in {result['peak']:.0f} MiB; peers "
        f"torchmetrics (ECE) and MAPIE (LAC); {machine(torch.device('cpu'), 1)}."
    )
    text = report(header, result)
    print(text)
    write_table(settings.out, {"header": header, **result}, text)


if __name__ == "__main__":
    main()
