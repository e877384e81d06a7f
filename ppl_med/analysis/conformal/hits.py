"""Which sets and intervals hold the observation: bool, or 1, 0 and NaN where some have none."""

import numpy as np
import xarray as xr

from ppl_med.analysis.tree import CaseNumbers, Classes, case_coords, count_left_out, known


def where_known(values: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return values (case,) with NaN where a case has no observation; as given where all have."""
    return values if seen.all() else np.where(seen, values, np.nan)


def observed_cases(observed: xr.DataArray) -> np.ndarray | slice:
    """Return the positions of the cases with an observation, of labels or numbers (case).

    Raises:
        ValueError: Nothing was observed.
    """
    count_left_out(observed)
    seen = known(observed).values
    return slice(None) if seen.all() else np.flatnonzero(seen)


def of_label(table: xr.DataArray, label: xr.DataArray) -> xr.DataArray:
    """Return what a table (case, class) holds for the observed class (case); NaN for none."""
    values = table.transpose("case", "class").values
    chosen = np.take_along_axis(values, label.values.clip(0)[:, None], 1)[:, 0]
    found = where_known(chosen, known(label).values)
    return xr.DataArray(found, case_coords(table), ("case",))


def label_hits(classes: Classes, sets: xr.DataArray) -> np.ndarray | None:
    """Return which sets (case, class) hold the observed class; None without labels."""
    return None if classes.observation() is None else of_label(sets, classes.case_labels()).values


def interval_hits(numbers: CaseNumbers, bounds: np.ndarray) -> np.ndarray | None:
    """Return which intervals (case, bound) hold the observed number; None without observations."""
    observed = numbers.observed()
    if observed is None:
        return None
    inside = (bounds[:, 0] <= observed.values) & (observed.values <= bounds[:, 1])
    return where_known(inside, known(observed).values)
