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

from ppl_med.analysis.tree import has_probs
from ppl_med.runs.card_figures import Figures, calibrated, performance, spread, units_of
from ppl_med.runs.run_folder import Run
from ppl_med.storage import markdown_table

_UNSAID = "*Not stated; add `{}` to the section `card` of the run's description.*"
_FORMAT = (
    "Weights are in `models/model.safetensors`, as plain numbers. There is no `models/model.pt`: "
    "what was learned is a distribution over networks, so tools of MONAI that copy a file into one "
    "network (`ckpt_export`, `trt_export`) do not serve it; its runner does "
    "(`python -m monai.bundle run`)."
)
_SECTIONS = {
    "intended_use": "Intended use",
    "not_intended_for": "Not intended for",
    "data": "Data",
}


def model_card(
    run: Run,
    tree: xr.DataTree | None = None,
    figures: Sequence[Figures] | None = None,
    *,
    preprocessing: str = "",
) -> str:
    """Write the card of a run.

    Args:
        run: The run; the section ``card`` of its description holds what no analysis can know.
        tree: The tree of ``predict`` on labelled cases that it never saw; None leaves figures out.
        figures: ``performance(tree, run)`` and ``calibrated(tree)``, where they are known.
        preprocessing: Of a bundle, how it brings images to its network.

    Returns:
        The card in Markdown.
    """
    merit, trust = (performance(tree, run), calibrated(tree)) if figures is None else figures
    card = run.config.get("card", {})
    parts = [f"# {title_of(run)}", _what_it_is(run)]
    for key, heading in _SECTIONS.items():
        parts.append(f"## {heading}\n\n{card.get(key) or _UNSAID.format(key)}")
    cases = run.provenance.get("training_cases")
    parts[-1] += f"\n\nTrained on {cases if cases is not None else 'an unknown number of'} cases"
    parts[-1] += "." if tree is None else f", measured on {_described(tree)}."
    parts[-1] += f"\n\nLicence of the data: {card.get('data_license') or 'not stated'}. "
    parts[-1] += f"Licence of the model: {card.get('license') or 'not stated'}."
    if preprocessing:
        parts.append(f"## Format\n\n{preprocessing}\n\n{_FORMAT}")
    parts.append("## Performance\n\n" + _table(merit, "ppl-med predict") + _baseline(tree, merit))
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


def _baseline(tree: xr.DataTree | None, merit: Figures) -> str:
    """What is said where numbers have no trivial prediction beside them."""
    if tree is None or has_probs(tree) or any("sees no image" in name for name in merit):
        return ""
    return "\n\nThe mean of the training values, the trivial prediction, is not known." * bool(
        merit
    )


def _unknown(run: Run, tree: xr.DataTree | None) -> str:
    parts = spread(tree)
    lines = [_table(parts, "")] if parts else []
    where = "the cases above" if tree is not None else "no case yet"
    statements = [
        f"It was measured on {where} only. Other scanners, stains, populations and diseases were "
        "not, and its predictions may be wrong there without a sign.",
        "It always answers with one of its classes, also for an image of something else."
        if run.classes
        else "It always answers with a number, also for an image of something else.",
        f"Its posterior is an approximation ({type(run.guide).__name__}): the epistemic variance "
        "is that of the approximation and tends to be too small.",
    ]
    if tree is not None and _units(tree)[1] == "case":
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


def _described(tree: xr.DataTree) -> str:
    cases = next(part.sizes["case"] for part in tree.children.values() if "case" in part.sizes)
    units, kind = _units(tree)
    if kind not in ("case", ""):
        return f"{cases} cases of {len(np.unique(units))} {kind}s"
    return f"{cases} cases"


def _units(tree: xr.DataTree) -> tuple[np.ndarray, str]:
    """As ``units_of``; of trees that no analysis opens, nothing."""
    try:
        return units_of(tree)
    except (TypeError, ValueError):
        return np.empty(0), ""


def _listed(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)]


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
