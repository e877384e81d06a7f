"""The numbers of a report: scores with their uncertainty, prediction sets, provenance."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np
import xarray as xr

from ppl_med import __version__
from ppl_med.analysis.tree import class_names
from ppl_med.plots.report.page import download, part, table, written

_NAMES = {
    "accuracy": "Accuracy",
    "nll": "Negative log-likelihood",
    "brier": "Brier score",
    "ece": "Expected calibration error",
    "elpd_sum": "Expected log predictive density",
    "auroc": "AUROC",
    "average_precision": "Average precision",
    "dice_mean": "Dice, mean of classes",
    "iou_mean": "IoU, mean of classes",
    "crps": "Continuous ranked probability score",
    "rmse": "Root mean squared error",
    "ged": "Generalised energy distance, squared",
}
_HEADLINES = ("accuracy", "auroc", "dice_mean", "rmse", "crps", "ged", "nll", "brier", "ece")
_MEANINGS = {
    "accuracy": "share of {entries} whose most probable class is right; higher is better",
    "nll": "surprise at the true label; lower is better",
    "brier": "squared distance from the true label; lower is better",
    "ece": "mean distance between confidence and accuracy; lower is better",
    "elpd_sum": "log probability of new labels, summed over cases; higher is better",
    "auroc": "chance that a case of the class ranks above one of the others; 0.5 is chance",
    "average_precision": "area under precision over recall; chance is the prevalence",
    "dice_mean": "overlap of the predicted mask with the annotation; higher is better",
    "iou_mean": "overlap over union; higher is better",
    "crps": "distance between the predicted distribution and the number; lower is better",
    "rmse": "of the mean prediction; lower is better",
    "ged": "distance between the model's masks and the graders'; lower is better",
}
_COLUMNS = ("value", "se", "lower", "upper")
_UNITS = {"1": "no unit", "probability": "proportion"}
_HEAD = ("Value", "Standard error", "Single draws, 5 to 95 %", "Unit")
_SUFFIXES = ("_se", "_mcse", "_per_draw", "_lower", "_upper")


def score_cards(scores: xr.Dataset) -> list[tuple[str, str, str, str]]:
    """Return the headline scores: name, value, standard error over cases or "", and unit."""
    return [
        (
            _NAMES[name],
            _number(scores, name, "–"),
            _number(scores, f"{name}_se"),
            _unit(scores, name),
        )
        for name in _HEADLINES
        if name in scores and scores[name].ndim == 0
    ]


def score_table(scores: xr.Dataset) -> str:
    """Return every scalar score, and accuracy per class, as HTML tables.

    Args:
        scores: As ``ppl_med.analysis.scoring.score`` returns it: scalars ``<name>`` with
            ``<name>_se`` (standard error over cases) and ``<name>_per_draw`` (chain, draw),
            ``accuracy_per_class``.

    Returns:
        HTML.
    """
    names = [
        str(n) for n in scores.data_vars if not str(n).endswith(_SUFFIXES) and scores[n].ndim == 0
    ]
    entries = _entries(scores)
    bounds = any(f"{name}_lower" in scores for name in names)
    level = f"{100 * float(scores.attrs.get('level', 0.95)):g} % interval"
    head = ("Score", *_HEAD[:2], *((level,) if bounds else ()), *_HEAD[2:], "Meaning")
    rows = []
    for name in names:
        value, error, draws = _cells(scores, name)
        middle = (interval(scores, name),) if bounds else ()
        meaning = _MEANINGS.get(name, "").format(entries=entries)
        rows.append(
            (_NAMES.get(name, name), value, error, *middle, draws, _unit(scores, name), meaning)
        )
    per_class = "accuracy_per_class"
    classes = []
    if per_class in scores:
        for index, name in enumerate(class_names(scores[per_class])):
            one = scores.isel({"class": index})
            cells = _cells(one, per_class, otherwise=f"no {entries[:-1]}")
            classes.append((name, *cells, "proportion"))
    body = part("scores", head, rows, ("Class", *_HEAD), classes)
    return body + download("Scores", ("score", *_COLUMNS, "unit"), _raw(scores, names))


def interval(scores: xr.Dataset, name: str) -> str:
    """Write the interval of a scalar, a dash where there is none."""
    ends = [_number(scores, f"{name}_{end}") for end in ("lower", "upper")]
    return f"{ends[0]} to {ends[1]}" if all(ends) else "–"


def _raw(scores: xr.Dataset, names: list[str]) -> list[list[object]]:
    """Scalars and accuracy per class in full precision, for a file."""
    lines: list[list[object]] = []
    parts = [(name, scores, name) for name in names]
    if "accuracy_per_class" in scores:
        classes = class_names(scores["accuracy_per_class"])
        parts += [
            (f"accuracy of {one}", scores.isel({"class": index}), "accuracy_per_class")
            for index, one in enumerate(classes)
        ]
    for label, one, name in parts:
        found = [name, *(f"{name}_{suffix}" for suffix in _COLUMNS[1:])]
        cells = [float(one[key]) if key in one else None for key in found]
        lines.append([label, *cells, _unit(scores, name)])
    return lines


def _cells(scores: xr.Dataset, name: str, otherwise: str = "–") -> tuple[str, str, str]:
    return (
        _number(scores, name, otherwise),
        _number(scores, f"{name}_se", "–"),
        _draw_range(scores, name),
    )


def _entries(scores: xr.Dataset) -> str:
    """What one score is of: cases, or the pixels of maps."""
    return "pixels" if "nll" in scores and scores["nll"].attrs.get("per") == "pixel" else "cases"


def set_summary(sets: xr.Dataset) -> str:
    """Return coverage and the sizes of the prediction sets as HTML.

    Args:
        sets: As ``ppl_med.analysis.conformal.predict_sets`` returns it: ``prediction_set``
            (case, class) and, where labels were known, ``coverage`` with ``coverage_lower`` and
            ``coverage_upper``.

    Returns:
        HTML.
    """
    size = sets["prediction_set"].sum("class").to_numpy()
    text = ""
    if "coverage" in sets:
        text = (
            f"The true class is in the set for {100 * float(sets['coverage']):.1f} % of the cases"
        )
        if "alpha" in sets.attrs:
            text += f" (made for {100 * (1 - float(sets.attrs['alpha'])):.3g} %)"
        if "coverage_lower" in sets and "coverage_upper" in sets:
            low, high = float(sets["coverage_lower"]), float(sets["coverage_upper"])
            most = f"and {100 * high:.1f} %" if high < 1 else "and 100 %"
            text += (
                f"; between {100 * low:.1f} {most} was expected (99 % band for exchangeable cases)"
            )
        text += "."
    filled, empty = int(sets.attrs.get("filled", 0)), int((size == 0).sum())
    if filled:
        text += (
            f" In {filled} cases no class is likely enough for a set at this level; they hold the "
            "most probable class all the same, which can only raise the coverage. These are the "
            "cases the model can least decide."
        )
    if empty:
        text += (
            f" {empty} sets are empty: no class is likely enough at this level. That is no "
            "certainty; these are the cases the model can least decide."
        )
    bars = []
    for value, count in zip(*np.unique(size, return_counts=True), strict=True):
        name = {0: "no class", 1: "1 class"}.get(int(value), f"{int(value)} classes")
        share = count / len(size)
        bars.append((name, share, f"{count} cases, {100 * share:.0f} %"))
    return part("sets", text.strip(), bars)


def provenance(tree: xr.DataTree, history: xr.Dataset | None = None) -> str:
    """Return where the posterior came from as an HTML table.

    It has the date and the version of this report, how long was trained and on how much, the size
    of the tree, and every root attribute.

    Args:
        tree: The tree of the report.
        history: Of its training, where it is known.

    Returns:
        HTML.
    """
    sizes = _sizes(tree)
    rows = [("posterior draws", f"{sizes['draw']} in each of {sizes['chain']} chain(s)")]
    rows += [("cases", str(sizes["case"]))]
    rows += [("report written", f"{_now()} by ppl_med {__version__}")]
    rows += _training(history)
    for name, value in tree.attrs.items():
        parsed = _parsed(value)
        if isinstance(parsed, Mapping):
            rows += [(f"{_words(name)}: {key}", str(item)) for key, item in parsed.items()]
        else:
            rows.append((_words(name), str(value)))
    return table((), rows, kind="provenance")


def _training(history: xr.Dataset | None) -> list[tuple[str, str]]:
    """How long was trained, and on what, as far as the history says."""
    if history is None or not history.sizes.get("step"):
        return [("training", "not given: pass history=, which fit returned")]
    text = f"{history.sizes['step']} steps"
    if "epoch" in history.coords or "epoch" in history:
        text = f"{int(history['epoch'].max()) + 1} epochs, {text}"
    rows = [("training", text)]
    rows += [(f"training: {_words(name)}", str(value)) for name, value in history.attrs.items()]
    for name in ("best_epoch", "stopped_by"):
        if name in history:
            by_member = map(str, history[name].values.reshape(-1).tolist())
            rows.append((f"training: {_words(name)}", ", ".join(by_member)))
    return rows


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def lead(tree: xr.DataTree) -> str:
    """Return one line that says what was computed: model, guide, cases and draws."""
    sizes = _sizes(tree)
    parts = [f"{key} {tree.attrs[key]}" for key in ("model", "guide") if tree.attrs.get(key)]
    parts += [f"{sizes['case']} cases", f"{sizes['chain'] * sizes['draw']} posterior draws"]
    return " · ".join(parts)


def _sizes(tree: xr.DataTree) -> dict[str, int]:
    sizes = {"chain": 0, "draw": 0, "case": 0}
    for group in tree.subtree:
        sizes.update({str(dim): num for dim, num in group.sizes.items() if dim in sizes})
    return sizes


def _parsed(value: object) -> object:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _words(name: object) -> str:
    return str(name).replace("_", " ")


def _unit(scores: xr.Dataset, name: str) -> str:
    unit = str(scores[name].attrs.get("units", ""))
    if unit == "nats" and not name.endswith("_sum"):
        return f"nats per {scores[name].attrs.get('per', 'case')}"
    return _UNITS.get(unit, unit or "no unit")


def _finite(scores: xr.Dataset, name: str) -> bool:
    return name in scores and bool(np.isfinite(scores[name]).all())


def _number(scores: xr.Dataset, name: str, otherwise: str = "") -> str:
    return written(float(scores[name])) if _finite(scores, name) else otherwise


def _draw_range(scores: xr.Dataset, name: str) -> str:
    draws = f"{name}_per_draw"
    if draws not in scores or scores[draws].size < 2 or not _finite(scores, draws):
        return "–"
    low, high = np.quantile(scores[draws].to_numpy(), [0.05, 0.95])
    return f"{written(low)} to {written(high)}"
