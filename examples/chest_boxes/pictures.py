"""Pictures of the study, and some opacities in words."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from chest_boxes.study import CHEST_CLASSES, FEW, MAIN, Study
from ppl_med.analysis.tree import overlaps
from ppl_med.plots import detection as plots


def show(tree: xr.DataTree, films: dict[str, Any], case: str, least: float = 0.2) -> Figure:
    """A film with its objects; readers' boxes are dashed."""
    image = films["image"][films["id"].tolist().index(case)]
    return plots.boxes(image, tree, case, least=least)


def tell(study: Study) -> str:
    """Three opacities: one that all readers mark, one that half of them do, and an unseen one."""
    seed, lines = study.options.seeds[0], []
    films = study.films("films")
    p = np.nan_to_num(films["mark_probability"], nan=-9.0)
    for wanted, part in ((0.98, "films"), (0.5, "films"), (0.98, "unseen")):
        case, place = np.unravel_index(int(np.abs(p - wanted).argmin()), p.shape)
        found = study.objects(MAIN, seed, part)["objects"].to_dataset().isel(case=case)
        true = films["true_box"][case, place]
        shared = np.nan_to_num(overlaps(true[None], found["edge_mean"].values))[0]
        kind = CHEST_CLASSES[films["true_label"][case, place]]
        lines.append(f"{kind} of {films['id'][case]}, {'usual' if part == 'films' else part} "
                     f"anatomy, marked by {p[case, place]:.2f} of readers:")  # fmt: skip
        if shared.max(initial=0) < 0.5:
            lines.append("  not found")
            continue
        one = found.isel(box=int(shared.argmax()))
        lines.append(
            f"  p(box) = {float(one['p_exists']):.4f}, aleatoric = "
            f"{float(one['score_aleatoric']):.5f}, epistemic = {float(one['score_epistemic']):.5f}"
        )
        for k, name in enumerate(one["edge"].values):
            lower, upper = float(one["edge_lower"][k]), float(one["edge_upper"][k])
            lines.append(
                f"  {name} in [{lower:.1f}, {upper:.1f}] px (true {true[k]:.1f}), sd aleatoric "
                f"{float(one['edge_aleatoric'][k]) ** 0.5:.2f}, epistemic "
                f"{float(one['edge_epistemic'][k]) ** 0.5:.2f}"
            )
    return "\n".join(lines)


def draw_pairs(rows: list[dict[str, float]]) -> Figure:
    """Shares of pairs that are found as two, as one and not, against their distance."""
    figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
    x = [one["distance"] for one in rows]
    for name, style in (("two", "o-"), ("one", "s-"), ("none", "^-"), ("more", "v-")):
        ax.plot(x, [100 * one[name] for one in rows], style, label=f"found as {name}")
    ax.plot(x, [100 * one["nets"] for one in rows], "k:", label="nets that find two")
    ax.plot(x, [100 * one["apart"] for one in rows], "k--", lw=1, label="true IoU below 0.5")
    ax.set_xlabel("distance of the two nodules [px]")
    ax.set_ylabel("pairs [%]")
    ax.set_ylim(-3, 103)
    ax.legend(fontsize=8)
    return figure


def draw_variances(found: dict[str, Any]) -> Figure:
    """Variances of edges and of existence by the number of films, and on unseen anatomy."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    rows = [f"{FEW[0]} films", f"{FEW[1]} films", f"{MAIN} films", f"{MAIN} unseen"]
    names = ["50", "200", "800", "800,\nunseen"]
    for ax, kind, unit in ((axes[0], "edge", "variance of an edge [px²]"),
                           (axes[1], "score", "variance of p(exists)")):  # fmt: skip
        for part, color in (("aleatoric", "tab:orange"), ("epistemic", "tab:blue")):
            values = [found[row][f"{kind}_{part}"] for row in rows]
            ax.errorbar(range(4), [v[0] for v in values], [1.96 * v[1] for v in values],
                        fmt="o-", color=color, label=part, capsize=3)  # fmt: skip
            for place, value in enumerate(values):
                ax.plot([place] * len(value[2]), value[2], ".", color=color, alpha=0.5, ms=5)
        ax.set_xticks(range(4), names)
        ax.set_xlabel("training films")
        ax.set_ylabel(unit)
        ax.set_ylim(0)
        ax.legend(fontsize=8)
    return figure
