"""Sections of a tree of numbers: per case, or a map of them per case."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import norm

from ppl_med.analysis import calibration, uncertainty
from ppl_med.analysis.statistics import monte_carlo
from ppl_med.analysis.statistics.case_means import over_cases
from ppl_med.analysis.statistics.draw_ranks import RANKS, attained
from ppl_med.analysis.statistics.weight_draws import one_of_each
from ppl_med.analysis.tree import find_distribution, open_numbers
from ppl_med.analysis.tree.numbers import find_site
from ppl_med.axes import SAMPLES
from ppl_med.plots import number_calibration
from ppl_med.plots.number_intervals import predicted_numbers
from ppl_med.plots.report.class_sections import gallery
from ppl_med.plots.report.images import CaseImages
from ppl_med.plots.report.page import data_table, paragraph, part, picture
from ppl_med.plots.report.viewer import Panel, choose_slices, show_panels

_LEVEL = 0.9
_SHOWN = 4


def number_scores(tree: xr.DataTree) -> tuple[xr.Dataset, str]:
    """Return the errors of numbers and of their calibration, and the trivial baseline as HTML."""
    scores = calibration.number_errors(tree)
    found = open_numbers(tree)
    block = found.read()
    error = (block.mean - block.observed) ** 2
    inner = [dim for dim in error.dims if dim != "case"]
    scores["rmse"] = np.sqrt(error.mean())
    per_case = error.mean(inner)
    # The error of a root: that of the mean square over twice the root.
    scores["rmse_se"] = over_cases(per_case) / (2 * scores["rmse"])
    observed = block.observed
    baseline = float(np.sqrt(((observed - observed.mean()) ** 2).mean()))
    unit = str(found.observed.attrs.get("units", "unit of the number"))
    for name in ("rmse", "rmse_se", "crps", "crps_se"):
        scores[name].attrs["units"] = unit
    return scores, paragraph(
        f"The mean prediction is off by {float(scores['rmse']):.3g} (root mean square); the mean "
        f"of what was observed, which never sees an image, by {baseline:.3g}."
    )


def calibration_pictures(tree: xr.DataTree) -> str:
    """Return coverage of intervals and the histogram of probability integral transforms."""
    covered, transforms = calibration.coverage(tree), calibration.pit(tree)
    error = float(covered["interval_error"])
    body = picture(
        number_calibration.coverage(covered),
        f"Coverage of central intervals against their level; mean distance {error:.3f}.",
    )
    return body + picture(
        number_calibration.pit(transforms),
        "Histogram of probability integral transforms, which is flat where predictions are "
        "calibrated.",
    )


def numbers_per_case(tree: xr.DataTree, images: CaseImages | None) -> str:
    """Return predicted against observed numbers, and a table of cases."""
    name, observed, drawn = _site(tree)
    note = ""
    if drawn is None:
        source, (low, middle, high) = _of_moments(tree)
        level = _LEVEL
        note = paragraph(
            "The tree has no draws of the number: intervals are those of a normal distribution "
            "with its mean and its variance."
        )
    else:
        source = one_of_each(drawn).transpose(*SAMPLES, "case").astype(np.float64).load()
        tail = (1 - _LEVEL) / 2
        ends = source.quantile([tail, 0.5, 1 - tail], SAMPLES, method=RANKS)
        low, middle, high = ends.transpose("quantile", "case").values
        level = attained(_LEVEL, source.sizes["chain"] * source.sizes["draw"])
    truth = None if observed is None else observed.astype(np.float64).values
    unit = str((source if observed is None else observed).attrs.get("units", ""))
    alt = f"Predicted {name} of each case with {100 * level:.3g} % intervals"
    alt += " against what was observed." if truth is not None else ", sorted by median."
    body = note + picture(predicted_numbers(middle, low, high, truth, level=level, unit=unit), alt)
    spread = high - low
    order = np.argsort(-spread, kind="stable")
    ids = source["case"].values if "case" in source.coords else np.arange(len(spread))
    if images is not None:
        captions = [f"{middle[i]:.3g}, {low[i]:.3g} to {high[i]:.3g}" for i in order]
        body += part("heading", "The widest intervals")
        body += gallery(ids, order.tolist(), captions, images)
    rows = []
    for i in order:
        own = None if truth is None or np.isnan(truth[i]) else float(truth[i])
        rows.append([str(ids[i]), float(middle[i]), float(low[i]), float(high[i]), own])
    head = ("case", "median", "median lower", "median upper", "observed")
    return body + data_table("Predictions per case", head, rows, most=12)


def number_maps(tree: xr.DataTree, images: CaseImages | None) -> str:
    """Return maps of the predicted numbers and their two standard deviations, of some cases."""
    group = find_distribution(tree)
    _, observed, drawn = _site(tree)
    if group is None:
        if drawn is None:
            raise ValueError("tree holds neither a distribution of numbers nor draws of them")
        source = drawn
        centre = drawn.mean(SAMPLES).astype(np.float64)
        parts = {"sd over draws": monte_carlo.spread(drawn.astype(np.float64).load())}
    else:
        source = group["loc" if "loc" in group else "mean"]
        centre = source.mean(SAMPLES).astype(np.float64)
        split = uncertainty.variance(group, mcse=False)
        parts = {
            "noise, sd": split["aleatoric"] ** 0.5,
            "between draws, sd": split["epistemic"] ** 0.5,
        }
    space = [str(dim) for dim in source.dims if dim not in (*SAMPLES, "case")]
    per_case = np.sqrt(sum((np.asarray((part**2).mean(space)) for part in parts.values()), 0.0))
    order = np.argsort(-per_case, kind="stable")[:_SHOWN]
    ids = source["case"].values if "case" in source.coords else np.arange(len(per_case))
    unit = str(source.attrs.get("units", ""))
    shown = {name: one.isel(case=order).transpose("case", *space) for name, one in parts.items()}
    top = max(float(one.max()) for one in shown.values())
    body = paragraph(
        "The least certain cases come first; all standard deviations share one scale, and noise is "
        "what more training data would not remove."
    )
    for place, index in enumerate(order.tolist()):
        body += part("heading", f"Case {ids[index]}: sd {per_case[index]:.3g} {unit}".strip())
        maps = {"predicted": centre.isel(case=index).transpose(*space).values}
        if observed is not None and set(observed.dims) == {"case", *space}:
            maps = {"observed": observed.isel(case=index).transpose(*space).values, **maps}
        values = np.concatenate([one[np.isfinite(one)].ravel() for one in maps.values()])
        low, high = float(values.min()), float(values.max())
        panels, titles, chosen = [], [""], None
        if len(space) > 2:
            chosen = choose_slices(np.ones(source.sizes[space[0]], bool))
            titles = [f"Slice {one + 1} of {source.sizes[space[0]]}" for one in chosen]
        pick = slice(None) if chosen is None else chosen
        if images is not None:
            image = images.picture(index)
            panels.append(Panel("image", image[None] if chosen is None else image[pick]))
        for name, one in maps.items():
            one = one[None] if chosen is None else one[pick]
            panels.append(Panel(name, one.astype(np.float64), "viridis", high, low))
        for name, whole in shown.items():
            one = whole.values[place][None] if chosen is None else whole.values[place][pick]
            panels.append(Panel(name, one, "Oranges" if "noise" in name else "Blues", top))
        units = dict.fromkeys([*maps, *shown], unit)
        body += show_panels(f"map-{place}", f"case {ids[index]}", panels, titles, units=units)
    rows = [[str(ids[i]), float(per_case[i])] for i in np.argsort(-per_case, kind="stable")]
    return body + data_table("Uncertainty per case", ("case", f"sd {unit}".strip()), rows, most=8)


def _of_moments(tree: xr.DataTree) -> tuple[xr.DataArray, NDArray[np.float64]]:
    """Location (chain, draw, case), and lower end, middle and upper end (3, case)."""
    group = find_distribution(tree)
    if group is None:
        raise ValueError("tree holds neither a distribution of numbers nor draws of them")
    source = group["loc" if "loc" in group else "mean"].astype(np.float64)
    sd = uncertainty.variance(group, mcse=False)["total"].values ** 0.5
    middle = source.mean(SAMPLES).values
    reach = norm.ppf((1 + _LEVEL) / 2) * sd
    return source, np.stack([middle - reach, middle, middle + reach])


def _site(tree: xr.DataTree) -> tuple[str, xr.DataArray | None, xr.DataArray | None]:
    """As `find_site`; of a tree that has none, or several, neither observations nor draws."""
    try:
        return find_site(tree)
    except ValueError:
        return "number", None, None
