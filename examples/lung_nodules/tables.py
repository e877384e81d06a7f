"""Figures of the study of lung nodules by case, and the rows of its tables."""

from typing import Any

import numpy as np
import xarray as xr
from ambiguous_masks.training import cell, ged_of_subsets

from ppl_med.analysis import conformal, segmentation

SAMPLES = (1, 4, 8, 16)
MISSED, HALVES = (0.05, 0.1, 0.2), 40  # shares that may be missed; divisions of the patients
COLUMNS = {
    "unbiased": "unbiased", "hm_iou": "HM-IoU", "d_max": "D_max", "dice_max": "Dice_max",
    "diversity": "diversity", "ci": "CI as released", "ci_harmonic": "CI harmonic",
    "seconds": "s an image, all samples",
}  # fmt: skip


def score(masks: xr.DataArray, graders: xr.DataArray) -> xr.Dataset:
    """Every figure of the table by case; ``ged`` and ``floor`` also by number of samples."""
    given: dict[str, Any] = {"annotations": graders, "classes": [1]}
    energy = segmentation.ged(masks, **given)
    ged = ged_of_subsets(energy, [n for n in SAMPLES if n <= energy.attrs["num_samples"]])
    insight = segmentation.collective_insight(masks, **given)
    return xr.Dataset(
        {
            "ged": ged,
            "floor": energy["grader_grader_unbiased"]
            * (1 / ged["num_samples"] + 1 / energy["num_graders"]),
            "unbiased": energy["unbiased"],
            "hm_iou": segmentation.hungarian(masks, **given)["iou"],
            "d_max": segmentation.d_max(masks, **given)["d_max"],
            "dice_max": segmentation.dice_max(masks, **given)["dice_max"],
            "diversity": segmentation.diversity(masks, classes=[1])["biased"],
            "ci": insight["released"],
            "ci_harmonic": insight["harmonic"],
        }
    )


def missed(tree: xr.DataTree, patients: np.ndarray, seed: int, halves: int = HALVES) -> xr.Dataset:
    """What masks miss whose threshold other patients set, over divisions of the patients in halves.

    Args:
        tree: Of all cases, with every grader's mask.
        patients: Of every case.
        seed: Of the divisions.
        halves: Number of divisions.

    Returns:
        ``risk`` (alpha, division), mean share of the nodule that graders saw and the masks of half
        the patients left out; ``area`` (alpha, division), mean number of pixels of the masks.
    """
    mean = tree["posterior/probs"].mean(("chain", "draw")).load()
    truth = tree["observed_data"].to_dataset().load()
    probs = mean.expand_dims(chain=1, draw=1).to_dataset(name="probs")
    cases = xr.DataTree.from_dict({"/posterior": probs, "/observed_data": truth})
    names, random = np.unique(patients), np.random.default_rng(seed)
    shape = (len(MISSED), halves)
    risk, area = np.empty(shape), np.empty(shape)
    for division in range(halves):
        first = np.isin(patients, random.permutation(names)[: len(names) // 2])
        known, rest = (cases.isel(case=np.flatnonzero(part)) for part in (first, ~first))
        for index, alpha in enumerate(MISSED):
            threshold = conformal.calibrate_masks(known, alpha)
            masks = conformal.predict_masks(threshold, rest, shift_alarm=0)
            risk[index, division] = masks["risk_mean"]
            area[index, division] = masks["area"].mean()
    dims = ("alpha", "division")
    return xr.Dataset({"risk": (dims, risk), "area": (dims, area)}, {"alpha": list(MISSED)})


def missed_rows(found: dict[str, xr.Dataset]) -> tuple[list[str], list[list[str]]]:
    """Head and cells of the table of what was missed, percent."""
    head = ["model", *(f"missed at most {100 * alpha:g} %" for alpha in MISSED)]
    lines = []
    for model, part in found.items():
        mean, sd, area = part["risk"].mean("division"), part["risk"].std("division"), part["area"]
        figures = zip(100 * mean.values, 100 * sd.values, area.mean("division").values, strict=True)
        lines.append([model, *(f"{m:.1f} ± {s:.1f}, {a:.0f} pixels" for m, s, a in figures)])
    return head, lines


def rows(result: xr.Dataset) -> tuple[list[str], list[list[str]]]:
    """Head and cells of the table."""
    counts = result["num_samples"].values.tolist()
    head = ["model", *(f"GED² of {n}" for n in counts), *COLUMNS.values()]
    last = counts[-1]
    several = "seed" in result.dims
    if several:
        head.append(f"GED² of {last} by seed")
    lines = []
    for model in result["model"].values:
        part = result.sel(model=model)
        own = part["ged"].sel(num_samples=last) if several else None
        part = part.mean("seed") if several else part
        by_number = [cell(part.sel(num_samples=n), "ged") for n in counts]
        lines.append([str(model), *by_number, *(cell(part, name) for name in COLUMNS)])
        if own is not None:
            each = ", ".join(f"{value:.3f}" for value in own.values if np.isfinite(value))
            lines[-1].append(each)
    worst = result["floor"].max([dim for dim in result["floor"].dims if dim != "num_samples"])
    floor = [f"{value:.3f}" for value in worst.values]
    lines.append(["a perfect model", *floor, "0", *[""] * (len(COLUMNS) - 1 + several)])
    return head, lines
