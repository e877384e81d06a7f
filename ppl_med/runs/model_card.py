"""The model card of a run, in Markdown: what it is for, how well it does, what it does not know.

Every figure stands with an interval of 95 % and what it is taken over. Figures are of the tree that
is given, of cases that the run never saw, and of nothing else; what nobody has said or measured is
said to be missing.

Reference: Mitchell et al., "Model Cards for Model Reporting", FAT* 2019.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import t as student

from ppl_med.analysis import calibration, scoring, uncertainty
from ppl_med.analysis.statistics.case_means import ratio_error
from ppl_med.analysis.statistics.shares import share_interval
from ppl_med.analysis.tree import case_units, has_probs, open_classes
from ppl_med.runs.run_folder import Run
from ppl_med.storage import markdown_table

Figures = dict[str, tuple[float, float, float]]
_LEVEL = 0.95
_NORMAL = 1.959964  # standard errors in half such an interval
_UNSAID = "*Not stated; add `{}` to the section `card` of the run's description.*"
_SECTIONS = {
    "intended_use": "Intended use",
    "not_intended_for": "Not intended for",
    "data": "Data",
}


def model_card(
    run: Run, tree: xr.DataTree | None = None, figures: Sequence[Figures] | None = None
) -> str:
    """Write the card of a run.

    Args:
        run: The run; the section ``card`` of its description holds what no analysis can know.
        tree: The tree of ``predict`` on labelled cases that it never saw; None leaves figures out.
        figures: ``performance(tree)`` and ``calibrated(tree)``, where they are known.

    Returns:
        The card in Markdown.
    """
    merit, trust = (performance(tree), calibrated(tree)) if figures is None else figures
    card = run.config.get("card", {})
    parts = [f"# {title_of(run)}", _what_it_is(run)]
    for key, heading in _SECTIONS.items():
        parts.append(f"## {heading}\n\n{card.get(key) or _UNSAID.format(key)}")
    cases = run.provenance.get("training_cases")
    parts[-1] += f"\n\nTrained on {cases if cases is not None else 'an unknown number of'} cases"
    parts[-1] += "." if tree is None else f", measured on {_described(tree)}."
    parts[-1] += f"\n\nLicence of the data: {card.get('data_license') or 'not stated'}. "
    parts[-1] += f"Licence of the model: {card.get('license') or 'not stated'}."
    parts.append("## Performance\n\n" + _table(merit, "ppl-med predict"))
    parts.append("## Calibration\n\n" + _table(trust, "ppl-med predict"))
    parts.append("## What it does not know\n\n" + _unknown(run, tree))
    parts.append("## Provenance\n\n" + _provenance(run))
    if card.get("references"):
        parts.append("## References\n\n" + _bullets(_listed(card["references"])))
    return "\n\n".join(parts) + "\n"


def title_of(run: Run) -> str:
    """The card's title: that of the description, or model and classes."""
    stated = run.config.get("card", {}).get("title")
    return stated or f"{type(run.model).__name__}: {', '.join(run.classes) or 'numbers'}"


def performance(tree: xr.DataTree | None) -> Figures:
    """Figures of merit as (value, lower, upper), by name; nothing without labels."""
    if tree is None or not _is_scored(tree):
        return {}
    source = open_classes(tree)
    is_masks, (units, _) = source.array.ndim > 4, _units_of(tree)
    per, entries, found = "pixel" if is_masks else "case", scoring.entry_scores(tree), {}
    for name, label in {
        "correct": f"share of {per}s called right",
        "nll": f"negative log-likelihood, nats per {per}",
        "brier": "Brier score, 0 to 2",
    }.items():
        found[label] = _mean_over_units(entries[name], units, is_share=name == "correct")
    calls = scoring.operating_point(tree)
    for kind in ("sensitivity", "specificity"):
        for name in source.names if len(source.names) > 2 else source.names[1:]:
            one = calls.sel({"class": name})
            if np.isfinite(one[kind]):
                found[f"{kind} for {name}, at probability 0.5"] = _stated(one, kind)
    if is_masks:
        shapes = scoring.overlap(tree)
        for kind, text in {"dice": "Dice", "iou": "IoU"}.items():
            for name in map(str, shapes["class"].values):
                one = shapes.sel({"class": name})
                found[f"{text} of {name}, mean over cases"] = _stated(one, f"{kind}_per_class")
        return found
    ranks = scoring.discrimination(tree)
    for name, text in {"auroc": "AUROC", "average_precision": "average precision"}.items():
        if np.isfinite(ranks[name]):
            found[text] = _stated(ranks, name)
    return found


def calibrated(tree: xr.DataTree | None) -> Figures:
    """Calibration errors as (value, lower, upper), by name; nothing without labels."""
    if tree is None or not _is_scored(tree):
        return {}
    if open_classes(tree).array.ndim > 4:
        score = scoring.score(tree)
        value, half = float(score["ece"]), _NORMAL * float(score["ece_se"])
        interval = max(value - half, 0.0), min(value + half, 1.0)
        return {"expected calibration error per pixel": (value, *interval)}
    errors = calibration.errors(tree)
    found = {
        "expected calibration error": _stated(errors, "ece"),
        "the same in bins of equal mass": _stated(errors, "ece_equal_mass"),
        "smooth calibration error": _stated(errors, "ece_smooth"),
    }
    return {name: (value, low, min(high, 1.0)) for name, (value, low, high) in found.items()}


def _mean_over_units(
    values: xr.DataArray, units: np.ndarray, *, is_share: bool
) -> tuple[float, float, float]:
    """Mean of entries, with an interval over cases, or over patients where the tree knows them."""
    inner = [dim for dim in values.dims if dim != "case"]
    sums, counts = (part.sum(inner).values for part in (values.fillna(0.0), values.notnull()))
    part, whole = (np.bincount(units, one.astype(np.float64)) for one in (sums, counts))
    if is_share:
        share, lower, upper = share_interval(part[:, None], whole[:, None], _LEVEL)
        return float(share[0]), float(lower[0]), float(upper[0])
    used = int((whole > 0).sum())
    value, error = float(part.sum() / whole.sum()), float(ratio_error(part, whole))
    half = float(student.ppf((1 + _LEVEL) / 2, used - 1)) * error if used > 1 else np.nan
    return value, max(value - half, 0.0), value + half


def _unknown(run: Run, tree: xr.DataTree | None) -> str:
    lines = []
    if tree is not None and has_probs(tree):
        parts = uncertainty.variance(tree, mcse=False)
        units, _ = _units_of(tree)
        text = {"aleatoric": "of the image itself", "epistemic": "for want of training data"}
        rows = {
            f"{name} variance of a class, {text[name]}": _mean_over_units(
                parts[name].mean("class"), units, is_share=False
            )
            for name in text
        }
        lines.append(_table(rows, ""))
    where = "the cases above" if tree is not None else "no case yet"
    statements = [
        f"It was measured on {where} only. Other scanners, stains, populations and diseases were "
        "not, and its probabilities may be wrong there without a sign.",
        "It always answers with one of its classes, also for an image of something else."
        if run.classes
        else "It always answers with a number, also for an image of something else.",
        f"Its posterior is an approximation ({type(run.guide).__name__}): the epistemic variance "
        "is that of the approximation and tends to be too small.",
    ]
    if tree is not None and has_probs(tree) and _units_of(tree)[1] == "case":
        statements.append(
            "The tested cases name no patients, so intervals are over cases, and too short where "
            "cases share one."
        )
    limits = run.config.get("card", {}).get("limitations")
    return "\n\n".join([*lines, _bullets([*statements, *_listed(limits)])])


def _what_it_is(run: Run) -> str:
    classes = f" Classes: {', '.join(run.classes)}." if run.classes else ""
    authors = run.config.get("card", {}).get("authors") or "not stated"
    authors = ", ".join(authors) if isinstance(authors, list) else authors
    return (
        f"A posterior over networks, `{type(run.model).__name__}` with `{type(run.guide).__name__}`"
        f", of [ppl_med](https://pypi.org/project/ppl-med).{classes} Authors: {authors}."
    )


def _provenance(run: Run) -> str:
    rows = [(f"`{name}`", str(value)) for name, value in run.provenance.items()]
    return markdown_table(("what", "value"), rows)


def _table(figures: Figures, missing: str) -> str:
    if not figures:
        return f"*Not measured: no labelled cases were predicted (`{missing}`).*"
    rows = [
        (name, f"{value:.3g}", _interval(lower, upper))
        for name, (value, lower, upper) in figures.items()
    ]
    return markdown_table(("figure", "value", "95 % interval"), rows)


def _interval(lower: float, upper: float) -> str:
    if not (np.isfinite(lower) and np.isfinite(upper)):
        return "none: too few cases"
    return f"{lower:.3g} to {upper:.3g}"


def _stated(data: xr.Dataset, name: str) -> tuple[float, float, float]:
    return float(data[name]), float(data[f"{name}_lower"]), float(data[f"{name}_upper"])


def _is_scored(tree: xr.DataTree) -> bool:
    if not has_probs(tree) or "observed_data" not in tree.children:
        return False
    source = open_classes(tree)
    return source.observation() is not None and "grader" not in source.array.dims


def _described(tree: xr.DataTree) -> str:
    cases = next(part.sizes["case"] for part in tree.children.values() if "case" in part.sizes)
    if has_probs(tree):
        units, kind = _units_of(tree)
        if kind != "case":
            return f"{cases} cases of {len(np.unique(units))} {kind}s"
    return f"{cases} cases"


def _units_of(tree: xr.DataTree) -> tuple[np.ndarray, str]:
    return case_units(tree, None, open_classes(tree).array)


def _listed(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)]


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
