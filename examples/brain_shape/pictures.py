"""A picture of swapped subjects, and the effects of the swap."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from brain_shape.nets import Study
from ppl_med.plots import confounding

KINDS = {
    "image": "as it is",
    "own": "outline of\nits own kind",
    "other": "outline of\nthe other",
    "other_normalised": "the same,\nnormalised",
}
SHOWN = 3


def subjects(study: Study) -> Figure:
    """Subjects before and after the swap; of volumes the middle slice from left to right."""
    number = min(SHOWN, len(study.swaps["id"]))
    figure, axes = plt.subplots(
        number,
        len(KINDS),
        figsize=(5.6, 1.5 * number + 0.5),
        layout="constrained",
        squeeze=False,
    )
    for case, line in enumerate(axes):
        shown = [study.swaps[kind][case, 0] for kind in KINDS]
        if shown[0].ndim == 3:
            shown = [one[:, :, one.shape[2] // 2] for one in shown]
        top = float(np.quantile(shown[0][shown[0] != 0], 0.99))
        for ax, one in zip(line, shown, strict=True):
            ax.imshow(one, cmap="gray", origin="lower", vmin=0, vmax=top)
            ax.set_xticks([])
            ax.set_yticks([])
    for ax, title in zip(axes[0], KINDS.values(), strict=True):
        ax.set_title(title, fontsize=11)
    return figure


def effects(study: Study) -> Figure:
    """The mean effects of all nets."""
    return confounding.swap_effects(study.effects)
