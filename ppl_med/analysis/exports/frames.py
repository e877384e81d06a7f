"""A tree as a table: one row per case, to be read in a spreadsheet.

    id, metadata     the case, and every column of constant_data or coordinate with one value a case
    classes          predicted, observed, probability_<class>, sd_<class> over draws
                     entropy of the mean over draws, mutual_information: its model part; nats
    numbers          mean, sd of the predictive distribution, sd_model over draws, lower, upper
                     of the draws, observed
    masks            entropy and mutual_information, means over pixels; size_<class> with _sd,
                     _lower, _upper over draws and _observed, dice_<class>; size_unit

A tree of several findings has these per finding, with ``_<finding>`` at the end; probabilities are
then those of "present", the last class.
"""

import os
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
import xarray as xr

from ppl_med import checks
from ppl_med.analysis import findings, uncertainty
from ppl_med.analysis.scoring.overlaps import overlap
from ppl_med.analysis.segmentation.measurement import sizes
from ppl_med.analysis.statistics import monte_carlo
from ppl_med.analysis.statistics.case_means import case_means
from ppl_med.analysis.statistics.draw_ranks import RANKS, attained
from ppl_med.analysis.statistics.total_variance import moments
from ppl_med.analysis.statistics.weight_draws import num_functions, one_of_each
from ppl_med.analysis.tree import (
    DRAWS,
    Classes,
    case_coords,
    find_distribution,
    find_group,
    has_probs,
    known,
    open_case_numbers,
    open_classes,
)
from ppl_med.axes import SAMPLES
from ppl_med.storage import write_text

Columns: TypeAlias = dict[str, np.ndarray]

_ML = 1000.0  # mm^3


def to_frame(
    tree: xr.DataTree, *, level: float = 0.95, volume: Literal["mm^3", "ml"] = "mm^3"
) -> pd.DataFrame:
    """Return one row per case of what was predicted and observed.

    Args:
        tree: The tree of `predict`, of classes, numbers, findings or masks, with observations or
            not.
        level: Probability of the intervals of numbers and sizes, in (0, 1).
        volume: Unit of the sizes of masks of volumes whose tree knows the spacing in mm.

    Returns:
        Table as the module says; ``attrs`` hold the units of its columns, the level and, where
        there are too few draws to reach it, the ``attained_level``. Cells that are not known are
        empty.

    Raises:
        TypeError, ValueError: ``tree`` holds no predictions of cases, or maps of numbers, which
            have no one figure per case.
    """
    checks.inside("level", level)
    checks.choice("volume", volume, ("mm^3", "ml"))
    if not isinstance(tree, xr.DataTree):
        raise TypeError(f"tree must be the DataTree of predict, not {type(tree).__name__}.")
    attrs: dict[str, Any] = {"level": level, "units": {}}
    if has_probs(tree):
        described = open_classes(tree).array
        if described.dims[4:] == ("finding",):
            columns = _of_findings(tree, described["finding"].values.tolist(), attrs)
        elif described.ndim > 4:
            columns = _of_masks(tree, level, volume, attrs)
        else:
            columns = _of_classes(tree, attrs)
    else:
        columns, described = _of_numbers(tree, level, attrs)
    frame = pd.DataFrame({**_metadata(tree, described, columns), **columns})
    frame.attrs = attrs
    return frame


def write_csv(table: xr.DataTree | pd.DataFrame, path: str | os.PathLike[str]) -> Path:
    """Write a table as CSV (UTF-8), replacing an earlier file only once the new one is complete.

    Args:
        table: A table, such as that of `to_frame`; of a tree `to_frame` is written.
        path: The file, ``*.csv``.

    Returns:
        The path written.

    Raises:
        ValueError: The path does not end in .csv, or the tree has no table.
        OSError: The file cannot be written.
    """
    target = checks.a_path("path", path)
    if target.suffix != ".csv":
        checks.reject("path", "a file that ends in .csv", target.name)
    frame = to_frame(table) if isinstance(table, xr.DataTree) else table
    write_text(target, frame.to_csv(index=False), "table")
    return target


def _metadata(tree: xr.DataTree, array: xr.DataArray, taken: Columns) -> Columns:
    size = array.sizes["case"]
    ids = array["case"].values if "case" in array.coords else np.arange(size)
    columns: Columns = {n: c.values for n, c in case_coords(array).items() if n != "case"}
    group = find_group(tree, "constant_data")
    columns |= {str(n): one.values for n, one in group.items() if one.dims == ("case",)}
    renamed = {f"{n}_of_case" if n in {"id", *taken} else n: v for n, v in columns.items()}
    return {"id": ids, **renamed}


def _of_classes(tree: xr.DataTree, attrs: dict[str, Any], end: str = "") -> Columns:
    source = open_classes(tree)
    names = np.array(source.names, dtype=str)
    mean, spread = source.mixture().values, uncertainty.variance(tree, mcse=False)["epistemic"]
    columns: Columns = {f"predicted{end}": names[mean.argmax(1)]}
    if source.observation() is not None:
        label = source.case_labels()
        text = np.append(names, "").astype(object)[label.values]
        text[~known(label).values] = None
        columns[f"observed{end}"] = text
    chosen = range(len(names)) if not end else [len(names) - 1]
    for index in chosen:
        own = f"_{names[index]}" if not end else end
        columns[f"probability{own}"] = mean[:, index]
        columns[f"sd{own}"] = _of_draws(source, spread.values[:, index] ** 0.5)
        attrs["units"] |= {f"probability{own}": "probability", f"sd{own}": "probability"}
    figures = uncertainty.entropy(tree, mcse=False)
    columns[f"entropy{end}"] = figures["predictive_entropy"].values
    columns[f"mutual_information{end}"] = _of_draws(source, figures["mutual_information"].values)
    attrs["units"] |= {f"{name}{end}": "nats" for name in ("entropy", "mutual_information")}
    return columns


def _of_findings(tree: xr.DataTree, names: list[str], attrs: dict[str, Any]) -> Columns:
    columns: Columns = {}
    for name in names:
        columns |= _of_classes(findings.select(tree, name), attrs, f"_{name}")
    return columns


def _of_masks(tree: xr.DataTree, level: float, volume: str, attrs: dict[str, Any]) -> Columns:
    source = open_classes(tree)
    figures = uncertainty.entropy(tree, mcse=False)
    columns: Columns = {}
    for name, one in (("entropy", "predictive_entropy"), ("mutual_information",) * 2):
        per_case = case_means(figures[one]).values
        columns[name] = per_case if name == "entropy" else _of_draws(source, per_case)
        attrs["units"][name] = "nats, mean over pixels"
    found = sizes(tree, level=level)
    unit = str(found["mean"].attrs["units"])
    factor, unit = (1 / _ML, "ml") if (unit, volume) == ("mm^3", "ml") else (1.0, unit)
    attrs["attained_level"] = found.attrs["attained_level"]
    columns["size_unit"] = np.full(len(found["case"]), unit)
    spread = monte_carlo.spread(found["size"]) if source.num_samples != (1, 1) else None
    truth = found["grader_size"].mean("grader") if "grader_size" in found else None
    dice = None
    label = source.observation()
    if label is not None and "grader" not in label.dims:
        dice = overlap(tree, resamples=0)["dice"]
    for name in found["class"].values.tolist():
        parts = {"": found["mean"], "_sd": spread, "_lower": found["lower"]}
        parts |= {"_upper": found["upper"], "_observed": truth}
        for end, part in parts.items():
            if part is not None:
                column = f"size_{name}{end}"
                columns[column] = part.sel({"class": name}).values * factor
                attrs["units"][column] = unit
        if dice is not None:
            columns[f"dice_{name}"] = dice.sel({"class": name}).values
    return columns


def _of_numbers(
    tree: xr.DataTree, level: float, attrs: dict[str, Any], end: str = ""
) -> tuple[Columns, xr.DataArray]:
    numbers = open_case_numbers(tree)
    drawn = numbers.read(DRAWS, "to_frame")
    count = drawn.sizes["chain"] * drawn.sizes["draw"]
    group = find_distribution(tree)
    columns: Columns = {f"mean{end}": drawn.mean(SAMPLES).values}
    if group is not None:
        parts = uncertainty.variance(tree, mcse=False)
        mean = moments(group)[0].mean(SAMPLES)
        columns[f"mean{end}"] = mean.values
        columns[f"sd{end}"] = parts["total"].values ** 0.5
        columns[f"sd_model{end}"] = parts["epistemic"].values ** 0.5
    else:
        columns[f"sd{end}"] = (
            monte_carlo.spread(drawn).values if count > 1 else np.full(len(drawn["case"]), np.nan)
        )
    tail = (1 - level) / 2
    for name, share in (("lower", tail), ("upper", 1 - tail)):
        columns[f"{name}{end}"] = one_of_each(drawn).quantile(share, SAMPLES, method=RANKS).values
    attrs["attained_level"] = attained(level, num_functions(drawn))
    observed = numbers.observed()
    if observed is not None:
        columns[f"observed{end}"] = observed.values
    return columns, drawn


def _of_draws(source: Classes, values: np.ndarray) -> np.ndarray:
    """A spread over draws; one network has none that is known."""
    return values if source.num_samples != (1, 1) else np.full(values.shape, np.nan)
