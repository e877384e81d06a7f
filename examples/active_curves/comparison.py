"""Runs of several rules and seeds as one Dataset, and differences that are paired over seeds."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from scipy.stats import t

from ppl_med.storage import markdown_table


def joined(runs: Mapping[tuple[str, int], xr.DataTree]) -> xr.Dataset:
    """Test figures, labels and counts of classes over (rule, seed, step).

    Args:
        runs: Trees of ``active_learn`` by rule and seed, of as many steps each.
    """
    parts = []
    for (rule, seed), tree in runs.items():
        test = tree["test"].to_dataset().drop_attrs()
        counts = tree["labelled"].to_dataset()["class_count"].drop_attrs()
        one = test.assign(class_count=counts)
        parts.append(one.expand_dims(rule=[rule], seed=[seed]))
    found = xr.combine_by_coords(parts, join="outer", combine_attrs="drop")
    assert isinstance(found, xr.Dataset)
    rules = list(dict.fromkeys(rule for rule, _ in runs))
    return found.sel(rule=rules)


def interval(values: xr.DataArray, level: float = 0.95) -> tuple[xr.DataArray, xr.DataArray]:
    """Mean over seeds and half the width of its t-interval; NaN for a single seed."""
    number = values.sizes["seed"]
    if number < 2:
        return values.mean("seed"), xr.full_like(values.isel(seed=0, drop=True), np.nan)
    half = t.ppf((1 + level) / 2, number - 1) * values.std("seed", ddof=1) / np.sqrt(number)
    return values.mean("seed"), half


def against(values: xr.DataArray, baseline: Mapping[str, str]) -> xr.DataArray:
    """Differences (rule, seed) from the baseline that each rule is held against, seed by seed."""
    rules = values["rule"].values.tolist()
    known = [baseline.get(rule, rule) for rule in rules]
    return values - values.sel(rule=known).assign_coords(rule=rules)


def shown(mean: xr.DataArray, half: xr.DataArray, digits: int) -> str:
    """Mean and interval: "0.81 ± 0.02"."""
    return f"{float(mean):.{digits}f} ± {float(half):.{digits}f}"


def table(columns: Mapping[str, tuple[xr.DataArray, int]], baseline: Mapping[str, str]) -> str:
    """Markdown: of every rule the mean over seeds with a 95 % t-interval, or the difference.

    Args:
        columns: Title -> values (rule, seed) and their digits. Those whose title begins with Δ are
            shown as differences from the rule's baseline.
        baseline: What each rule is held against.
    """
    first = next(iter(columns.values()))[0]
    rows = []
    for rule in first["rule"].values.tolist():
        row = [rule.replace("_", " ")]
        for title, (values, digits) in columns.items():
            if title.startswith("Δ") and baseline.get(rule, rule) == rule:
                row.append("")
                continue
            of_rule = against(values, baseline) if title.startswith("Δ") else values
            row.append(shown(*interval(of_rule.sel(rule=rule)), digits))
        rows.append(row)
    return markdown_table(["rule", *columns], rows)
