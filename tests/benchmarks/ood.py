"""Time out-of-distribution scores against those of pytorch-ood, and the memory they take.

Ours: every score of kept features and logits of four draws, learnt on one tree and scored on
another, with its spread over draws and p-values. Peers: the detector of the same score, one for
every draw, on the same numbers in memory, in single precision. The ratio is our time over theirs,
for learning and for scoring; read ratios, never seconds. Memory: the peak that tracemalloc sees
while a Zarr store of as many cases is scored, beside the size of the store.

    python tests/benchmarks/ood.py --cases 2000 20000 --out ood.md
"""

import argparse
import contextlib
import tempfile
import tracemalloc
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from measure import Clock, check_out, interleave, machine, quartiles, write_table
from pytorch_ood import detector as peers
from scipy.special import softmax

from ppl_med.analysis import ood
from ppl_med.analysis.ood import confidence, features

DRAWS, UNITS, CLASSES, K = 4, 256, 10, 20
MAIN = UNITS // 2
PEERS: dict[str, tuple[str, Callable[[np.ndarray, np.ndarray], Any]]] = {
    "mcp": ("logits", lambda w, b: peers.MaxSoftmax(None)),
    "expected_entropy": ("logits", lambda w, b: peers.Entropy(None)),
    "energy": ("logits", lambda w, b: peers.EnergyBased(None)),
    "max_logit": ("logits", lambda w, b: peers.MaxLogit(None)),
    "mahalanobis": ("features", lambda w, b: peers.Mahalanobis(None)),
    "relative_mahalanobis": ("features", lambda w, b: peers.RMD(None)),
    "knn": ("features", lambda w, b: peers.KNN(None, k=K, algorithm="brute")),
    "vim": ("features", lambda w, b: peers.ViM(None, MAIN, torch.tensor(w.T), torch.tensor(b))),
}
SETTINGS: dict[str, dict[str, Any]] = {"knn": {"k": K}, "vim": {"dimension": MAIN}}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", type=int, default=[2000, 20_000], help="scored cases")
    parser.add_argument("--train", type=int, default=2000, help="cases to learn from")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="seed of features and order")
    parser.add_argument("--smoke", action="store_true", help="one round of few cases")
    parser.add_argument("--out", type=Path, help="also write the table, as .json or .md")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or min(*arguments.cases, arguments.train) < 300:
        parser.error("--rounds must be at least 1, --cases and --train at least 300")
    check_out(parser, arguments.out)
    return arguments


def make(number: int, first: int, seed: int) -> tuple[xr.DataTree, list[tuple[np.ndarray, ...]]]:
    """Cases of ten normal classes, whose features every draw turns, and the last layers."""
    random = np.random.default_rng([seed, first])
    label = random.integers(CLASSES, size=number)
    base = random.normal(size=(number, UNITS)) * np.linspace(0.3, 2, UNITS)
    base[np.arange(number), label] += 3
    feature = np.empty((1, DRAWS, number, UNITS), np.float32)
    logit = np.empty((1, DRAWS, number, CLASSES), np.float32)
    layers: list[tuple[np.ndarray, ...]] = []
    for draw in range(DRAWS):
        own = np.random.default_rng(draw)
        turn = np.eye(UNITS) + 0.02 * own.normal(size=(UNITS, UNITS))
        weights = own.normal(size=(UNITS, CLASSES)).astype(np.float32) / 16
        bias = own.normal(size=CLASSES).astype(np.float32)
        feature[0, draw] = base @ turn
        logit[0, draw] = feature[0, draw] @ weights + bias
        layers.append((weights, bias))
    dims = ("chain", "draw", "case")
    outputs = {
        "probs": ((*dims, "class"), softmax(logit.astype(np.float64), -1)),
        "logit": ((*dims, "class"), logit),
        "feature:head": ((*dims, "unit"), feature),
    }
    case = {"case": np.arange(first, first + number)}
    groups = {
        "/posterior": xr.Dataset(outputs, case),
        "/observed_data": xr.Dataset({"label": ("case", label)}, case),
    }
    return xr.DataTree.from_dict(groups), layers


def array(tree: xr.DataTree, name: str) -> xr.DataArray:
    """A variable of a tree."""
    found = tree[name]
    assert isinstance(found, xr.DataArray)
    return found


def theirs(
    name: str, train: xr.DataTree, layers: list[tuple[np.ndarray, ...]]
) -> tuple[Callable[[], list[Any]], Callable[[list[Any], xr.DataTree], np.ndarray]]:
    """What fits the detectors of all draws, and what scores by them."""
    reads, build = PEERS[name]
    variable = "feature:head" if reads == "features" else "logit"

    def values(tree: xr.DataTree, draw: int) -> torch.Tensor:
        return torch.from_numpy(array(tree, f"posterior/{variable}").values[0, draw])

    label = torch.from_numpy(array(train, "observed_data/label").values)

    def fit() -> list[Any]:
        found = [build(*layer) for layer in layers]
        for draw, one in enumerate(found):
            if one.requires_fit:
                getattr(one, f"fit_{reads}")(values(train, draw), label)
        return found

    def score(fitted: list[Any], tree: xr.DataTree) -> np.ndarray:
        found = [
            getattr(one, f"predict_{reads}")(values(tree, draw)).numpy()
            for draw, one in enumerate(fitted)
        ]
        return np.mean(found, 0)

    return fit, score


def peak(tree: xr.DataTree, reference: xr.Dataset, folder: Path) -> float:
    """MiB held at once while a store is scored."""
    path = folder / f"{tree.sizes.get('case', len(tree['posterior']['case']))}.zarr"
    if not path.exists():
        tree.chunk(case=512).to_zarr(path, consolidated=False)
    stored = xr.open_datatree(path, engine="zarr", consolidated=False, chunks={})
    tracemalloc.start()
    ood.score(stored, reference)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most / 2**20


def measure(settings: argparse.Namespace, cases: list[int], rounds: int) -> list[dict[str, Any]]:
    """A row for every score."""
    clock, rng = Clock(torch.device("cpu"), 1), np.random.default_rng(settings.seed)
    train, layers = make(settings.train, 0, settings.seed)
    held_out, _ = make(300, 10**6, settings.seed)
    trees = [make(number, 10**7, settings.seed)[0] for number in cases]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in (*confidence.SCORES, *features.SCORES):
            learn = partial(
                ood.fit_reference, name, train, held_out=held_out, **SETTINGS.get(name, {})
            )
            reference = learn()
            row: dict[str, Any] = {"score": name, "peer": "", "agreement": None}
            runs: dict[str, Callable[[], Any]] = {"ours fit": learn}
            for number, tree in zip(cases, trees, strict=True):
                runs[f"ours {number}"] = partial(ood.score, tree, reference)
            if name in PEERS:
                fit, score = theirs(name, train, layers)
                fitted = fit()
                row["peer"] = type(fitted[0]).__name__
                found, expected = ood.score(trees[0], reference)["score"], score(fitted, trees[0])
                row["agreement"] = float(np.corrcoef(found, expected)[0, 1])
                if fitted[0].requires_fit:
                    runs["theirs fit"] = fit
                sized = zip(cases, trees, strict=True)
                runs |= {f"theirs {n}": partial(score, fitted, t) for n, t in sized}
            around = dict.fromkeys(runs, contextlib.nullcontext)
            seconds = interleave(runs, around, rounds=rounds, repeats=1, clock=clock, rng=rng)
            for part in ("fit", *map(str, cases)):
                mine, other = seconds[f"ours {part}"], seconds.get(f"theirs {part}")
                row[f"ratio_{part}"] = None if other is None else quartiles(mine / other)
                if part != "fit":
                    row[f"per_second_{part}"] = int(part) / float(np.median(mine))
            for number, tree in zip(cases, trees, strict=True):
                row[f"peak_{number}"] = peak(tree, reference, Path(folder))
            rows.append(row)
    return rows


def report(header: str, rows: list[dict[str, Any]], cases: list[int]) -> str:
    """The table as Markdown."""
    names = [f"time / peer's, {number} cases" for number in cases]
    peaks = [f"peak MiB, {number} cases" for number in cases]
    columns = ["score", "peer", "learning / peer's", *names, "cases a second", *peaks]
    lines = [header, "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        ratios = [row["ratio_fit"], *(row[f"ratio_{number}"] for number in cases)]
        cells = [row["score"], row["peer"], *("" if r is None else f"{r[1]:.2f}" for r in ratios)]
        cells.append(f"{row[f'per_second_{cases[-1]}']:.0f}")
        cells += [f"{row[f'peak_{number}']:.0f}" for number in cases]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    settings = parse()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    cases = [300, 600] if settings.smoke else settings.cases
    rows = measure(settings, cases, 1 if settings.smoke else settings.rounds)
    size = cases[-1] * DRAWS * (4 * UNITS + 12 * CLASSES) / 2**20
    header = (
        f"{settings.train} cases learnt, {DRAWS} draws, {UNITS} units, {CLASSES} classes; the "
        f"largest store has {size:.0f} MiB. Peer: pytorch-ood, one detector a draw. "
        f"{machine(torch.device('cpu'), 1)}."
    )
    text = report(header, rows, cases)
    print(text)
    write_table(settings.out, {"header": header, "cases": cases, "rows": rows}, text)


if __name__ == "__main__":
    main()
