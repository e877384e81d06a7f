"""The figures of the study as tables."""

from typing import Any

import numpy as np

from chest_boxes.study import CHEST_CLASSES, MAIN, NOISE, SETTINGS
from ppl_med.axes import EDGES
from ppl_med.storage import markdown_table


def tables(found: dict[str, Any]) -> str:
    """All tables, each with its title."""
    parts = {
        "Coverage of 90 % intervals, %": _coverage(found),
        "Noise of the edges, standard deviation in pixels": _noise(found),
        "p(exists) by the probability that a reader marks the opacity": _existence(found),
        "Variances, mean over opacities": _variances(found),
        "Detection": _ranking(found),
        "Pairs of nodules, shares in %": _pairs(found),
    }
    if "priors" in found:
        parts["Prior of the class bias"] = _priors(found)
    seconds = ", ".join(f"{one}: {np.mean(s):.0f}" for one, s in found["seconds"].items())
    text = "\n\n".join(f"{title}\n\n{body}" for title, body in parts.items())
    return f"{text}\n\nSeconds of training per ensemble: {seconds}"


def _coverage(found: dict[str, Any]) -> str:
    lines = []
    rows = {f"{one} films" if one in SETTINGS else one: v for one, v in found["coverage"].items()}
    rows[f"{MAIN} films, unseen anatomy"] = found["coverage_unseen"]
    for name, one in rows.items():
        for kind in CHEST_CLASSES:
            own = one[kind]
            cells = [f"{100 * c:.1f} ± {100 * e:.1f}" for c, e in
                     zip(own["coverage"], own["coverage_se"], strict=True)]  # fmt: skip
            lines.append([name, kind, *cells, f"{np.mean(own['width']):.1f}", str(own["number"])])
    return markdown_table(["trained on", "class", *EDGES, "width, px", "matched"], lines)


def _noise(found: dict[str, Any]) -> str:
    lines = []
    for k, kind in enumerate(CHEST_CLASSES):
        lines.append(["generator", kind, *(f"{sd:.2f}" for sd in NOISE[k]), ""])
        first = found["noise"][MAIN]
        lines.append(["between readers", kind, *_cells(first["spread"][k], first["spread_se"][k]),
                      ""])  # fmt: skip
        for name, one in found["noise"].items():
            off = [100 * (r - 1) for r in one["over_truth"][k]]
            lines.append([f"predicted, {name} films", kind,
                          *_cells(one["predicted"][k], one["predicted_se"][k]),
                          " ".join(f"{o:+.0f}" for o in off)])  # fmt: skip
    return markdown_table(["", "class", *EDGES, "off the generator by, %"], lines)


def _cells(values: list[float], errors: list[float]) -> list[str]:
    return [f"{v:.2f} ± {e:.2f}" for v, e in zip(values, errors, strict=True)]


def _existence(found: dict[str, Any]) -> str:
    rows = found["existence"]
    lines = []
    for place, (p, _, _, number) in enumerate(rows[MAIN]):
        cells = [f"{one[place][1]:.2f} ± {one[place][2]:.2f}" for one in rows.values()]
        lines.append([f"{p:.2f}", *cells, str(number)])
    return markdown_table(["marked by", *(f"{one} films" for one in rows), "opacities"], lines)


def _variances(found: dict[str, Any]) -> str:
    lines = []
    for name, one in found["variances"].items():
        cells = []
        for key, digits in (("edge_epistemic", 3), ("edge_aleatoric", 3), ("score_epistemic", 4),
                            ("score_aleatoric", 4), ("p_exists", 3)):  # fmt: skip
            value, error, *seeds = one[key]
            text = f"{value:.{digits}f} ± {error:.{digits}f}"
            if seeds:
                text += " (" + ", ".join(f"{s:.{digits}f}" for s in seeds[0]) + ")"
            cells.append(text)
        lines.append([name, *cells])
    head = ["films", "edge epistemic, px²", "edge aleatoric, px²", "score epistemic",
            "score aleatoric", "p(exists)"]  # fmt: skip
    return markdown_table(head, lines)


def _ranking(found: dict[str, Any]) -> str:
    lines = []
    for name, one in found["ranking"].items():
        cells = [f"{np.mean(v):.3f} ({', '.join(f'{s:.3f}' for s in v)})" for v in one.values()]
        score = found["coverage"][name]["all"]
        cells.append(f"{score['interval_score']:.2f} ± {score['interval_score_se']:.2f}")
        lines.append([f"{name} films" if name in SETTINGS else name, *cells])
    head = ["trained on", "AP50", "LRP", "ECE of p(exists)", "Brier", "interval score, px"]
    return markdown_table(head, lines)


def _pairs(found: dict[str, Any]) -> str:
    lines = [
        [f"{one['distance']:g}", f"{one['iou']:.2f}",
         *(f"{100 * one[key]:.0f}" for key in ("apart", "nets", "two", "one", "none", "more")),
         str(one["films"])]
        for one in found["pairs"]
    ]  # fmt: skip
    head = ["distance, px", "true IoU", "IoU below 0.5", "nets that find two", "found as two",
            "as one", "not", "as more", "films"]  # fmt: skip
    return markdown_table(head, lines)


def _priors(found: dict[str, Any]) -> str:
    lines = []
    for name, one in found["priors"].items():
        share = 100 * np.array(one["share"])
        cells = [f"{share.mean():.0f} ({share.min():.0f} to {share.max():.0f})"]
        for key, digits in (("elbo", 1), ("nll", 2), ("test", 2), ("objects", 3), ("map", 3)):
            values = [run[key] for run in one["trained"]]
            cells.append(
                f"{np.mean(values):.{digits}f} ({', '.join(f'{v:.{digits}f}' for v in values)})"
            )
        lines.append([name, *cells])
    head = ["prior of the bias", "anchors with p > 0.05 before, %", "ELBO", "training NLL",
            "held-out NLL", "objects a film", "AP50"]  # fmt: skip
    return markdown_table(head, lines)
