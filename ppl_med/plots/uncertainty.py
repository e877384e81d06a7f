"""Every case on one map: aleatoric uncertainty across, epistemic uncertainty up."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ppl_med.analysis.posterior import Posterior, observed, probabilities
from ppl_med.analysis.uncertainty import variance
from ppl_med.plots.theme import ALEATORIC, EPISTEMIC, INK, MUTED, clean, heading, new_figure

_WRONG = "#b3123d"


def uncertainty(tree: Posterior) -> Figure:
    """Draw aleatoric against epistemic variance, one mark per case, wrong predictions crossed.

    The variances are those of the class indicator, summed over classes; their sum is at most
    1 - 1 / K for K classes.

    Args:
        tree: The tree of ``predict``, or its ``probs`` (chain, draw, case, class).

    Returns:
        A scatter plot with a histogram along each axis.

    Raises:
        ValueError: The probabilities are malformed or per pixel.
    """
    probs = probabilities(tree)
    if probs.ndim != 4:
        raise ValueError(
            f"tree must hold one class per case; its probs have dimensions {probs.dims}"
        )
    parts = variance(probs, mcse=False).sum("class")
    aleatoric, epistemic = parts["aleatoric"].to_numpy(), parts["epistemic"].to_numpy()
    wrong, label = np.zeros(len(aleatoric), dtype=bool), "case"
    if isinstance(tree, xr.DataTree) and "observed_data" in tree.children:
        guess = probs.mean(("chain", "draw")).to_numpy().argmax(1)
        wrong = guess != observed(tree, probs).to_numpy()
        label = f"right ({int((~wrong).sum())})"
    figure = new_figure(6.4, 5.2)
    axes = figure.subplots(
        2, 2, width_ratios=[5, 1], height_ratios=[1, 4], gridspec_kw={"hspace": 0, "wspace": 0}
    )
    main = axes[1, 0]
    alpha = float(np.clip(20 / np.sqrt(len(aleatoric)), 0.35, 0.9))
    style = {"color": MUTED, "markersize": 5, "alpha": alpha, "markeredgewidth": 0}
    main.plot(aleatoric[~wrong], epistemic[~wrong], "o", label=label, **style)
    if wrong.any():
        style = {"color": _WRONG, "markersize": 7, "markeredgecolor": "white"}
        label = f"wrong ({int(wrong.sum())})"
        main.plot(
            aleatoric[wrong], epistemic[wrong], "X", markeredgewidth=0.6, label=label, **style
        )
    _margins(axes, aleatoric, epistemic)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False, labelcolor=INK)
    heading(figure, f"Uncertainty of {len(aleatoric)} cases")
    return figure


def _margins(
    axes: NDArray[np.object_], aleatoric: NDArray[np.float64], epistemic: NDArray[np.float64]
) -> None:
    (top, corner), (main, right) = axes
    corner.set_axis_off()
    main.set_xlabel("Aleatoric variance [probability²]: the image is ambiguous")
    main.set_ylabel("Epistemic variance [probability²]:\nthe model has seen too little")
    main.margins(0.04)
    top.hist(aleatoric, bins=30, range=main.get_xlim(), color=ALEATORIC)
    right.hist(epistemic, bins=30, range=main.get_ylim(), color=EPISTEMIC, orientation="horizontal")
    top.set(xlim=main.get_xlim(), ylabel="Cases\n[count]")
    right.set(ylim=main.get_ylim(), xlabel="Cases\n[count]")
    clean(main, grid="both")
    for ax in (top, right):
        clean(ax, grid=None)
        ax.locator_params(nbins=2)
    top.set_xticks([])
    right.set_yticks([])
