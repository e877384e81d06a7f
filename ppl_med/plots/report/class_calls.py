"""How well the cases of a class are found, as a table with intervals."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from ppl_med.plots.inputs import require_variables
from ppl_med.plots.report.page import data_table, paragraph

_SCORING = "ppl_med.analysis.scoring"
_RANKS = {"auroc_per_class": "AUROC", "average_precision_per_class": "Average precision"}
_CALLS = {
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "PPV",
    "npv": "NPV",
}


def call_tables(discrimination: xr.Dataset | None, operating_point: xr.Dataset | None) -> str:
    """Return AUROC and average precision, and what is called right at a threshold, as HTML.

    Args:
        discrimination: As ``ppl_med.analysis.scoring.discrimination`` returns it.
        operating_point: As ``ppl_med.analysis.scoring.operating_point`` returns it.

    Returns:
        HTML, a table each; classes are rows.
    """
    text = ""
    if discrimination is not None:
        function = f"{_SCORING}.discrimination"
        require_variables(discrimination, "discrimination", _RANKS, function)
        text += _table("Ranking of each class", discrimination, _RANKS)
    if operating_point is not None:
        function = f"{_SCORING}.operating_point"
        require_variables(operating_point, "operating_point", _CALLS, function)
        limits = np.unique(operating_point["threshold"].values)
        at = f"{limits[0]:.3g}" if len(limits) == 1 else "a threshold of its own"
        text += paragraph(
            f"A case is called one of a class where the probability of the class is at least {at}. "
            "PPV and NPV are those at the share of the class in these cases."
        )
        text += _table("Calls of each class", operating_point, _CALLS)
    return text


def _table(title: str, dataset: xr.Dataset, names: Mapping[str, str]) -> str:
    level = dataset.attrs.get("level")
    unit = {"case": "cases", "patient": "patients"}.get(str(dataset.attrs.get("unit")), "groups")
    note = "" if level is None else f", {100 * float(level):g} % interval over {unit}"
    ends = {"": "", " lower": "_lower", " upper": "_upper"}
    head = [f"{name}{note}{end}" for name in names.values() for end in ends]
    rows = []
    for index, name in enumerate(dataset["class"].values):
        one = dataset.isel({"class": index})
        found = [f"{figure}{end}" for figure in names for end in ends.values()]
        cells = [float(one[key]) if key in one else None for key in found]
        rows.append((str(name), *cells, float(one["prevalence"])))
    return data_table(title, ("Class", *head, "Share of the class"), rows, most=len(rows))
