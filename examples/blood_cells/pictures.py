"""What the posterior says of some cells, in words and as a picture."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from blood_cells.study import Study
from ppl_med.plots.detection import boxes


def guide_to_show(study: Study) -> str:
    """The mean-field posterior where it is among the guides."""
    guides = study.options.guide
    return "mean_field" if "mean_field" in guides else str(guides[0])


def tell(study: Study) -> str:
    """A sentence a class: its surest and its least sure cell of the first image that has both."""
    guide = guide_to_show(study)
    found = study.objects(guide, study.options.seed[0])["objects"].to_dataset()
    lines = [f"Of {guide}:"]
    for index, name in enumerate(found["class"].values):
        own = found["p_exists"].where((found["label"] == index) & (found["p_exists"] >= 0.05))
        if not own.notnull().any():
            continue
        away = np.abs(own - 0.5)
        for words, at in (
            ("surest", own.argmax(("case", "box"))),
            ("least sure", away.argmin(("case", "box"))),
        ):
            lines.append(f"{words} {name}: {sentence(found.isel(at))}")
    return "\n".join(lines)


def sentence(one: xr.Dataset) -> str:
    """As the founding slides put it, and the edges in pixels."""
    limits = ", ".join(
        f"{edge} {float(one['edge_mean'][at]):.0f} [{float(one['edge_lower'][at]):.0f}, "
        f"{float(one['edge_upper'][at]):.0f}]"
        for at, edge in enumerate(one["edge"].values)
    )
    return (
        f"p(box) = {float(one['p_exists']):.4f}, aleatoric = {float(one['score_aleatoric']):.5f}, "
        f"epistemic = {float(one['score_epistemic']):.5f}; {limits} ({one['case'].item()})"
    )


def draw_objects(study: Study) -> Figure:
    """A smear with its objects, edge bands and what is known of each."""
    tree = study.objects(guide_to_show(study), study.options.seed[0])
    group = tree["objects"]
    case = int(np.argmin(np.abs(group["num_objects"].values - 12)))
    image = np.asarray(study.held_out["image"])[case]
    return boxes(image, tree, group["case"].values[case], least=0.3)
