"""What draws of the weights cost and give when each sees the images mirrored in its own way.

Lung nodules of LIDC (the central 64 pixels; the majority of four readers) and the mean-field
U-Net of the tables, trained under the symmetries of the square. At the same number of passes:
draws of the weights on images as they are, against `predict(mirror=True)`, where draw s carries
mirroring s. Held-out cases are of the validation part, from ``PPL_MED_DATA``; means and standard
errors of paired differences are over patients.

    python tests/benchmarks/mirroring.py --seeds 0 1 2 --out mirroring.md
"""

import argparse
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
import xarray as xr
from measure import check_out, machine, tune_allocator, write_table
from numpy.typing import NDArray
from problems import NETS, Segmenter

from ppl_med.analysis import segmentation
from ppl_med.data import Batches, flips_and_turns_with_mask, load_lidc
from ppl_med.inference import MeanFieldNormal, fit, predict

PASSES = {4: 0.6, 8: 0.75, 16: 0.8}  # and the level of intervals, which takes so many draws
FIGURES = ("dice", "nll", "brier", "covered", "sd")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=15, help="of training (default 15)")
    parser.add_argument("--cases", type=int, default=400, help="held-out cases (default 400)")
    parser.add_argument("--rate", type=float, default=6e-3, help="learning rate (default 6e-3)")
    parser.add_argument("--smoke", action="store_true", help="one epoch of a few cases")
    parser.add_argument("--out", type=Path, help="also write the table, as .json or .md")
    arguments = parser.parse_args()
    if not os.environ.get("PPL_MED_DATA"):
        parser.error("PPL_MED_DATA must name the folder that holds lidc/")
    check_out(parser, arguments.out)
    return arguments


def nodules(cases: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Training and held-out cases, with one mask each."""
    parts = load_lidc(os.environ["PPL_MED_DATA"], size=64, resize="crop")
    found = []
    for name in ("train", "val"):
        arrays = dict(parts[name])
        arrays["mask"] = (np.asarray(arrays["mask"]).mean(1) >= 0.5).astype(np.int64)
        arrays["image"] = (np.asarray(arrays["image"], np.float32) - 0.3) / 0.25
        keep = ("image", "mask", "id", "patient")
        rows = np.random.default_rng(0).permutation(len(arrays["id"]))[:cases]
        chosen = rows if name == "val" or cases < 50 else slice(None)
        found.append({key: arrays[key][chosen] for key in keep})
    return found[0], found[1]


def figures(tree: xr.DataTree, held_out: dict[str, Any], level: float) -> dict[str, NDArray]:
    """Figures of every case, dims (case,).

    Returns:
        ``dice`` of the mean's mask (NaN where both are empty); ``nll`` (nats) and ``brier`` a
        pixel, of the mean; ``covered``, whether the interval of the area holds the mask's; ``sd``
        of the area over draws, in pixels.
    """
    mask = held_out["mask"]
    probs = tree["posterior/probs"].sel({"class": "object"})
    mean: NDArray = np.asarray(probs.mean(("chain", "draw")))
    chosen = mean > 0.5
    both = np.asarray(chosen.sum((1, 2)) + mask.sum((1, 2)), float)
    true = np.where(mask == 1, mean, 1 - mean).astype(float)
    truth = xr.DataArray(
        mask[:, None], dims=("case", "grader", "row", "col"), coords={"case": held_out["id"]}
    )
    areas = segmentation.sizes(tree, truth, spacing="pixels", level=level)
    return {
        "dice": 2 * (chosen & (mask == 1)).sum((1, 2)) / np.where(both > 0, both, np.nan),
        "nll": -np.log(true.clip(1e-7)).mean((1, 2)),
        "brier": 2 * ((1 - true) ** 2).mean((1, 2)),
        "covered": areas["covered"].values[:, 0],
        "sd": areas["size"].std(("chain", "draw")).values[:, 0],
    }


def by_patient(values: NDArray, patients: NDArray) -> NDArray:
    """Means over the cases of each patient."""
    return np.array([np.nanmean(values[patients == one]) for one in np.unique(patients)])


def run(seed: int, settings: argparse.Namespace, data: Any) -> list[dict[str, Any]]:
    """Rows of one seed."""
    train, held_out = data
    torch.manual_seed(seed)
    model = Segmenter(NETS["unet"][1]())
    guide = MeanFieldNormal(model, init_scale=0.02)
    shown = {key: train[key] for key in ("image", "mask")}
    batches = Batches(shown, batch_size=32, shuffle=True, transform=flips_and_turns_with_mask)
    epochs = 1 if settings.smoke else settings.epochs
    options: dict[str, Any] = {"device": "cpu", "progress": False, "seed": seed}
    rates: dict[str, Any] = {"learning_rate": settings.rate, "schedule": "cosine"}
    fit(model, guide, batches, epochs=epochs, **rates, **options)
    rows = []
    test = Batches({key: held_out[key] for key in ("image", "mask", "id")}, batch_size=50)
    for draws, level in PASSES.items():
        for name, mirror in (("separate", False), ("mirrored", True)):
            start = time.process_time()
            tree = predict(model, guide, test, draws=draws, mirror=mirror, **options)
            seconds = time.process_time() - start
            found = figures(tree, held_out, level)
            means = {key: by_patient(value, held_out["patient"]) for key, value in found.items()}
            row = {"seed": seed, "passes": draws, "way": name, "seconds": seconds, "level": level}
            rows.append(row | {key: value.tolist() for key, value in means.items()})
            told = ", ".join(f"{key} {np.nanmean(value):.4f}" for key, value in means.items())
            print(f"seed {seed}, {draws} passes, {name}: {told}", file=sys.stderr, flush=True)
    return rows


def baseline(train: dict[str, Any], held_out: dict[str, Any]) -> dict[str, float]:
    """Figures of the share of training masks at every pixel, which never sees the image."""
    mean = np.broadcast_to(train["mask"].mean(0), held_out["mask"].shape)
    probs = xr.DataArray(
        np.stack([1 - mean, mean], 1)[None, None].repeat(4, 1),
        dims=("chain", "draw", "case", "class", "row", "col"),
        coords={"case": held_out["id"], "class": ["background", "object"]},
    )
    tree = xr.DataTree.from_dict({"posterior": xr.Dataset({"probs": probs})})
    found = figures(tree, held_out, 0.6)
    names = ("dice", "nll", "brier")
    return {n: float(np.nanmean(by_patient(found[n], held_out["patient"]))) for n in names}


def report(header: str, rows: list[dict[str, Any]], floor: dict[str, float]) -> str:
    """The table as Markdown: means over seeds and patients, paired differences with errors."""
    lines = [
        header,
        "",
        "| passes | Dice | NLL, millinats | Brier, 1e-3 | coverage (nominal) | sd of area, px "
        "| time |",
        "|---|---|---|---|---|---|---|",
        f"| none: mean of the training masks | {floor['dice']:.3f} | {1e3 * floor['nll']:.2f} "
        f"| {1e3 * floor['brier']:.2f} | | | |",
    ]
    units = {"dice": 1, "nll": 1e3, "brier": 1e3, "covered": 1, "sd": 1}
    digits = {"dice": 3, "nll": 2, "brier": 2, "covered": 3, "sd": 1}
    for passes, level in PASSES.items():
        own = {
            way: [row for row in rows if row["passes"] == passes and row["way"] == way]
            for way in ("separate", "mirrored")
        }
        pairs = list(zip(own["separate"], own["mirrored"], strict=True))
        ratios = [b["seconds"] / a["seconds"] for a, b in pairs]
        for way, found in own.items():
            cells = []
            for key in FIGURES:
                values = [np.nanmean(row[key]) for row in found]
                text = " ".join(f"{units[key] * v:.{digits[key]}f}" for v in values)
                cells.append(text + (f" ({level:g})" if key == "covered" else ""))
            time_ = "1" if way == "separate" else f"{np.median(ratios):.2f}"
            lines.append(f"| {passes} {way} | {' | '.join(cells)} | {time_} |")
        cells = []
        for key in FIGURES:
            difference = np.mean([np.subtract(b[key], a[key]) for a, b in pairs], axis=0)
            error = np.nanstd(difference, ddof=1) / np.sqrt(np.isfinite(difference).sum())
            value, spread = units[key] * np.nanmean(difference), units[key] * error
            cells.append(f"{value:+.{digits[key] + 1}f} ± {spread:.{digits[key] + 1}f}")
        lines.append(f"| {passes}, difference | {' | '.join(cells)} | |")
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    settings = parse()
    tune_allocator()
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    warnings.simplefilter("ignore")
    data = nodules(12 if settings.smoke else settings.cases)
    seeds = settings.seeds[:1] if settings.smoke else settings.seeds
    rows = [row for seed in seeds for row in run(seed, settings, data)]
    header = (
        f"Seeds {' '.join(map(str, seeds))}; {len(data[1]['id'])} held-out nodules of "
        f"{len(np.unique(data[1]['patient']))} patients; {settings.epochs} epochs; ± over patients "
        f"of the mean over seeds; {machine(torch.device('cpu'), 1)}."
    )
    text = report(header, rows, baseline(*data))
    print(text)
    write_table(settings.out, {"header": header, "rows": rows}, text)


if __name__ == "__main__":
    main()
