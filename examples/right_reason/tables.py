"""Figures as lines of tables, and in words."""

import numpy as np
import xarray as xr
from confounded.planted import METHODS, NETS

HEAD = ("data", "net", "accuracy as collected %", "accuracy, tags exchanged %",
        "less the unconfounded", "effect of the tag", "dCor² with the tag, chance, p")  # fmt: skip


def between(part: xr.Dataset, name: str, digits: int = 1, factor: float = 100) -> str:
    """A figure and its interval."""
    value, low, high = (factor * float(part[f"{name}{end}"]) for end in ("", "_lower", "_upper"))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def effect(part: xr.Dataset) -> str:
    """A swap's effect with its interval over draws and its standard error over cases."""
    words = between(part, "expected_effect", 3, 1)
    return f"{words} ± {float(part['expected_effect_se']):.3f}"


def net_rows(result: xr.Dataset) -> list[list[str]]:
    """Accuracies, effects and dependence of every net."""
    lines = []
    for net in NETS:
        part = result.sel(net=net).isel(data=0)
        told = [float(part[f"{n}"]) for n in (
            "expected_distance_correlation", "distance_correlation_chance",
            "distance_correlation_p_value",
        )]  # fmt: skip
        lines.append([
            str(result["data"].item()), net.replace("_", "-"), between(part, "accuracy_as_given"),
            between(part, "accuracy_swapped"), between(part, "gap_swapped"), effect(part),
            f"{told[0]:.3f}, {told[1]:.3f}, {told[2]:.3f}",
        ])  # fmt: skip
    return lines


def mass_rows(result: xr.Dataset) -> list[list[str]]:
    """Relevance on the tag by method, in percent, and the AUROC against the unconfounded net."""
    lines = []
    for net in NETS:
        cells = []
        for method in METHODS:
            part = result.sel({"net": net, "method": method}).isel(data=0)
            told = float(part["auroc_of_mean"])
            error = float(part["auroc_of_mean_se"])
            text = between(part, "expected_mass_share")
            cells.append(text if np.isnan(told) else f"{text}; {told:.2f} ± {error:.2f}")
        lines.append([str(result["data"].item()), net.replace("_", "-"), *cells])
    return lines


def source_rows(result: xr.Dataset) -> list[list[str]]:
    """What every exchange of frames does."""
    return [
        [
            str(name),
            effect(result.sel(swap=name)),
            f"{float(result['probability_positive'].sel(swap=name)):.2f}",
        ]
        for name in result["swap"].values
    ]


SOURCE_HEAD = ("exchange of frames", "change of P(COVID-19)", "draws above 0")


def source_words(result: xr.Dataset) -> str:
    """What else is known of the nets of two sources."""
    return (
        f"Tested out of fold: sensitivity {float(result['sensitivity']):.3f}, specificity "
        f"{float(result['specificity']):.3f}. Of the NIH's pneumonia cases "
        f"{float(result['pneumonia_called_covid']):.1%} are called COVID-19. Relevance on the "
        f"frame in COVID-19 cases {between(result, 'mass_on_frame')} % on "
        f"{float(result['frame_area']):.0%} of the image."
    )


MASS_HEAD = ("data", "net", *(name.replace("_", " ") for name in METHODS))
KEY = (
    "Intervals of 95 %: of accuracies by a bootstrap over cases, of effects and relevance over "
    "posterior draws; ± is a standard error over cases. In percent: balanced accuracy, and the "
    "share of the positive relevance for class 1 that lies on the region of the tag, in cases of "
    "class 1 that all have it; after the semicolon the AUROC that this share tells the net from "
    "the unconfounded one, 0.5 where it does not; it compares ranks, so read it with the shares. "
    "The effect is the change of the probability of class 1 when cases of class 0 get the tag. "
    "dCor² is the squared distance correlation of prediction and tag within class 0."
)
