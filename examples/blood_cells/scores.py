"""Figures of all guides, on halves of the validation images where something is learnt."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import xarray as xr

from blood_cells.options import ENSEMBLES
from blood_cells.study import POINTS, Study
from ppl_med import storage
from ppl_med.analysis import detection

REFERENCES = ("deterministic", "stopped_early")
HEAD = ("guide", "AP50", "mAP", "LaECE", "PDQ", "edges in 90 %", "ECE of p(exists)", "cells")
FIGURES = ("AP50", "mAP", "LaECE", "PDQ", "coverage", "coverage_se", "ece", "cells")
MISSED, OUTSIDE = 0.1, 0.1  # shares that the promises allow
MAPS = {"AP50": "map_50", "mAP": "map"}


def halves(tree: xr.DataTree) -> Iterator[tuple[xr.DataTree, xr.DataTree]]:
    """Images to learn on and the others, every second one, both ways round."""
    number = tree["objects"].sizes["case"]
    even, odd = (tree.isel(case=np.arange(first, number, 2)) for first in (0, 1))
    yield even, odd
    yield odd, even


def at_thresholds(tree: xr.DataTree) -> list[xr.DataTree]:
    """Both halves, with the objects left that thresholds learnt on the other half keep."""
    return [
        detection.apply_thresholds(detection.thresholds(known, otherwise=0.5), rest)
        for known, rest in halves(tree)
    ]


def bootstrapped(
    metric: str, trees: list[xr.DataTree], others: list[xr.DataTree], options: Any, **settings: Any
) -> tuple[Callable[[str], float], Callable[[str], tuple[float, float]]]:
    """Figures as means over halves, and differences with their standard errors."""
    found = [
        detection.bootstrap(metric, one, other, resamples=options.resamples, **settings)
        for one, other in zip(trees, others, strict=True)
    ]

    def value(name: str) -> float:
        return float(np.mean([one[name] for one in found]))

    def gap(name: str) -> tuple[float, float]:
        error = np.sqrt(np.sum([float(one[f"{name}_difference_se"]) ** 2 for one in found]))
        return value(f"{name}_difference"), float(error / len(found))

    return value, gap


def score(study: Study, guide: str, seed: int) -> dict[str, Any]:
    """All figures of a run, and their differences from the nets without draws of its seed."""
    tree = study.objects(guide, seed)
    found: dict[str, Any] = {"guide": guide, "seed": seed, "gaps": {}}
    for name in REFERENCES:
        figures, found["gaps"][name] = compared(study, tree, study.objects(name, seed))
        found |= figures
    edges = detection.edge_coverage(tree, threshold=0.3)
    found["coverage"] = float(edges["coverage"].mean())
    found["coverage_se"] = float(edges["coverage_se"].mean())
    curve = detection.existence(tree)
    found["ece"] = float(curve["ece"])
    found["cells"] = float(curve["expected_objects"])
    return found | {"promised": promised(tree)}


def promised(tree: xr.DataTree) -> dict[str, float]:
    """What promises learnt on one half come to on the other, as means over both ways round.

    Empty where the detector finds too few cells for any threshold to promise so much.
    """
    found: list[xr.Dataset] = []
    for known, rest in halves(tree):
        try:
            learnt = detection.calibrate_boxes(known, missed=MISSED, outside=OUTSIDE)
        except ValueError:
            return {}
        found.append(detection.predict_boxes(learnt, rest, shift_alarm=0))
    result = {name: float(np.mean([one[name] for one in found])) for name in ("recall", "coverage")}
    for name in ("recall", "coverage"):
        errors = [float(one[f"{name}_se"]) for one in found]
        result[f"{name}_se"] = float(np.hypot(*errors) / len(found))
    result["kept"] = float(np.mean([one["num_kept"].mean() for one in found]))
    result["width"] = float(np.mean([one["width"].mean() for one in found]))
    return result


def compared(
    study: Study, tree: xr.DataTree, other: xr.DataTree
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Figures of objects, and their differences from others, with standard errors over images."""
    options = study.options
    found: dict[str, float] = {}
    gaps: dict[str, tuple[float, float]] = {}
    value, gap = bootstrapped("average_precision", [tree], [other], options)
    for name, figure in MAPS.items():
        found[name], gaps[name] = value(figure), gap(figure)
    kept, kept_other = at_thresholds(tree), at_thresholds(other)
    value, gap = bootstrapped("calibration_errors", kept, kept_other, options)
    found["LaECE"], gaps["LaECE"] = value("laece"), gap("laece")
    settings = {"threshold": 0.0, "image_size": options.size}
    value, gap = bootstrapped("pdq", kept, kept_other, options, **settings)
    found["PDQ"], gaps["PDQ"] = value("pdq"), gap("pdq")
    return found, gaps


def collect(study: Study) -> list[dict[str, Any]]:
    """Scores of every guide and seed, written to scores.json."""
    path = study.folder / "scores.json"
    done = json.loads(path.read_text()) if path.exists() and study.options.resume else []
    known = {(one["guide"], one["seed"]): one for one in done}
    found = []
    for guide in (*study.options.guide, "no image"):
        once = guide in ENSEMBLES or guide == "no image"
        for seed in study.options.seed[:1] if once else study.options.seed:
            if (guide, seed) not in known:
                known[guide, seed] = score(study, guide, seed)
                storage.write_text(path, json.dumps([*known.values()], indent=1))
            found.append(known[guide, seed])
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Means over seeds, and paired differences with intervals over images and seeds."""
    by_guide: dict[str, list[dict[str, Any]]] = {}
    for one in found:
        by_guide.setdefault(one["guide"], []).append(one)
    rows = []
    for guide, own in by_guide.items():
        mean = {name: np.mean([one[name] for one in own]) for name in FIGURES}
        rows.append([
            guide,
            *(f"{mean[name]:.3f}{_range(own, name)}" for name in ("AP50", "mAP", "LaECE", "PDQ")),
            f"{mean['coverage']:.3f} ± {mean['coverage_se']:.3f}",
            f"{mean['ece']:.3f}",
            f"{mean['cells']:.1f}",
        ])  # fmt: skip
    text = storage.markdown_table(list(HEAD), rows)
    for reference in REFERENCES:
        gaps = [
            [guide, *(_interval(own, reference, name) for name in own[0]["gaps"][reference])]
            for guide, own in by_guide.items()
            if guide not in (*POINTS, "no image")
        ]
        head = [f"difference from {reference}", *found[0]["gaps"][reference]]
        text += "\n\n" + storage.markdown_table(head, gaps)
    return text + "\n\n" + promises(by_guide)


def promises(by_guide: dict[str, list[dict[str, Any]]]) -> str:
    """Means over the seeds of what was achieved, with its standard error over images."""
    rows = []
    for guide, own in by_guide.items():
        known = [one["promised"] for one in own if one["promised"]]
        if len(known) < len(own):
            rows.append([guide, "cannot be promised", "", "", ""])
            continue
        mean = {name: np.mean([one[name] for one in known]) for name in known[0]}
        rows.append([
            guide,
            *(f"{mean[name]:.3f} ± {mean[f'{name}_se']:.3f}" for name in ("recall", "coverage")),
            f"{mean['kept']:.1f}",
            f"{mean['width']:.1f}",
        ])  # fmt: skip
    head = [
        "promises", f"recall, {1 - MISSED:.2f} or more",
        f"found with all edges inside, {1 - MISSED - OUTSIDE:.2f} or more", "boxes kept an image",
        "width of a limit, px",
    ]  # fmt: skip
    return storage.markdown_table(head, rows)


def _range(own: list[dict[str, Any]], name: str) -> str:
    values = [one[name] for one in own]
    return f" [{min(values):.3f}, {max(values):.3f}]" if len(values) > 1 else ""


def _interval(own: list[dict[str, Any]], reference: str, name: str) -> str:
    """Mean over seeds; images are the same for all seeds, so their error does not shrink."""
    gaps = np.array([one["gaps"][reference][name] for one in own])
    of_images = gaps[:, 1].mean()
    of_seeds = gaps[:, 0].std(ddof=1) / np.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
    error = 1.96 * np.hypot(of_images, of_seeds)
    mean = gaps[:, 0].mean()
    return f"{mean:+.3f} [{mean - error:+.3f}, {mean + error:+.3f}]"
