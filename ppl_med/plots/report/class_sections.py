"""Sections of a tree of classes, or of several findings, per case: scores, calls, cases."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ppl_med.analysis import findings, scoring, uncertainty
from ppl_med.analysis.statistics.draw_ranks import RANKS, attained
from ppl_med.analysis.statistics.weight_draws import num_functions, one_of_each
from ppl_med.analysis.tree import find_group, open_classes
from ppl_med.axes import SAMPLES
from ppl_med.plots.ranking_curves import precision_recall, roc
from ppl_med.plots.report.class_calls import call_tables
from ppl_med.plots.report.images import CaseImages
from ppl_med.plots.report.page import Section, data_table, paragraph, part, picture
from ppl_med.plots.report.viewer import Panel, show_panels

RESAMPLES = 500
_PICTURES = 6
_CURVES = 6
_PANELS = 12
_RELIABLE = 4
_INTERVAL = (0.05, 0.95)
_RATES = ("sensitivity", "specificity", "ppv", "npv")
_AREAS = tuple(
    name + end for name in ("AUROC", "average precision") for end in ("", " lower", " upper")
)
_RANKED = ("auroc", "average_precision")


def class_scores(tree: xr.DataTree, group: str | None) -> xr.Dataset:
    """Return the scores of a classifier: `scoring.score`, AUROC and average precision."""
    scores = scoring.score(tree)
    ranked = scoring.discrimination(tree, group=group, resamples=RESAMPLES)
    for name in _RANKED:
        if np.isfinite(ranked[name]):
            for suffix in ("", "_se", "_lower", "_upper", "_per_draw"):
                scores[f"{name}{suffix}"] = ranked[f"{name}{suffix}"]
    return scores


def ranking(tree: xr.DataTree, group: str | None) -> str:
    """Return ROC and precision-recall curves, and both areas class by class."""
    options = {"group": group, "resamples": RESAMPLES}
    curves = scoring.roc(tree, **options)  # type: ignore[arg-type]
    precise = scoring.precision_recall(tree, **options)  # type: ignore[arg-type]
    areas = ", ".join(f"{n} {float(a):.3f}" for n, a in zip(
        curves["class"].values, curves["auroc"].values, strict=True) if np.isfinite(a))  # fmt: skip
    few = {"class": slice(_PANELS)}
    body = picture(roc(curves.isel(few)), f"ROC curves. AUROC: {areas}.")
    prevalence = ", ".join(f"{n} {float(p):.3f}" for n, p in zip(
        precise["class"].values, precise["prevalence"].values, strict=True))  # fmt: skip
    alt = f"Curves of precision over recall. Chance is the prevalence: {prevalence}."
    body += picture(precision_recall(precise.isel(few)), alt)
    ranked = scoring.discrimination(tree, **options)  # type: ignore[arg-type]
    return body + call_tables(ranked, None)


def calls(tree: xr.DataTree, group: str | None, threshold: float = 0.5) -> str:
    """Return sensitivity, specificity and predictive values per class, and the confusion matrix."""
    point = scoring.operating_point(tree, threshold, group=group)
    body = call_tables(None, point)
    names = [str(name) for name in point["class"].values]
    table = scoring.confusion(tree)["confusion"].sum("case").values
    rows = [[name, *map(int, row)] for name, row in zip(names, table, strict=True)]
    body += part("heading", "What each class was taken for")
    head = ("true class", *(f"called {name}" for name in names))
    return body + data_table("Confusion matrix", head, rows)


def case_table(tree: xr.DataTree, sets: xr.Dataset | None = None) -> str:
    """Return a table of the least certain cases, with their sets; its file has all of them."""
    source = open_classes(tree)
    probs, names = source.read(), source.names
    label = source.case_labels().values if has_labels(tree) else None
    split = uncertainty.entropy(probs, mcse=False)
    mean = probs.mean(SAMPLES).transpose("case", "class").values
    apart = one_of_each(probs)
    ends = apart.quantile(_INTERVAL, SAMPLES, method=RANKS).transpose("quantile", "case", "class")
    order = np.argsort(-split["predictive_entropy"].values, kind="stable")
    num_draws = num_functions(probs)
    level = f"{100 * attained(_INTERVAL[1] - _INTERVAL[0], num_draws):.0f} %"
    ids = probs["case"].values if "case" in probs.coords else np.arange(len(mean))
    rows = []
    for index in order:
        best = int(mean[index].argmax())
        low, high = ends.values[:, index, best]
        known = label is not None and label[index] >= 0
        rows.append([
            str(ids[index]), names[best], float(mean[index, best]), float(low), float(high),
            names[label[index]] if known else None,  # type: ignore[index]
            float(split["predictive_entropy"].values[index]),
            float(split["mutual_information"].values[index]),
            *([] if sets is None else [_set_of(sets, int(index))]), *map(float, mean[index]),
        ])  # fmt: skip
    head = (
        "case",
        "most probable",
        "probability",
        "probability lower",
        "probability upper",
        "true",
        "entropy [nats]",
        "of which between draws [nats]",
        *([] if sets is None else ["prediction set"]),
        *(f"p({name})" for name in names),
    )
    shown = [one for one in head[: -len(names)] if one != "true" or label is not None]
    note = (
        f"Behind the probability of the class stands its credible interval of {level}, over draws."
    )
    return paragraph(note) + data_table("Predictions per case", head, rows, most=12, shown=shown)


def _set_of(sets: xr.Dataset, index: int) -> str:
    member = sets["prediction_set"].isel(case=index)
    return " or ".join(str(name) for name in member["class"].values[member.values])


def gallery(ids: NDArray, order: Sequence[int], captions: Sequence[str], images: CaseImages) -> str:
    """Return the pictures of the first cases of an order, of volumes the slice in the middle."""
    panels = [
        Panel(f"{ids[index]}: {caption}", images.slice(index)[None])
        for index, caption in list(zip(order, captions, strict=False))[:_PICTURES]
    ]
    return show_panels("gallery", "least certain cases", panels)


def finding_sections(
    tree: xr.DataTree, images: CaseImages | None, group: str | None
) -> list[Section]:
    """Return the sections of a tree of several findings per case."""
    names = [str(name) for name in find_group(tree, "posterior")["finding"].values]
    sections = []
    if has_labels(tree):
        sections.append(Section("findings", "Every finding", _finding_scores(tree, names, group)))
    body = _finding_cases(tree, names, images)
    return [*sections, Section("cases-table", "Cases to look at", body)]


def finding_reliability(tree: xr.DataTree) -> dict[str, xr.Dataset] | None:
    """Return the reliability of the findings that occur most often, by name."""
    if not has_labels(tree):
        return None
    observed = open_classes(tree).labels().transpose("case", "finding")
    often = np.argsort(-(observed == 1).sum("case").values, kind="stable")[:_RELIABLE]
    chosen = [
        str(observed["finding"].values[index])
        for index in often
        if (observed.values[:, index] >= 0).any()
    ]
    return {name: scoring.reliability(findings.select(tree, name)) for name in chosen} or None


def _finding_scores(tree: xr.DataTree, names: list[str], group: str | None) -> str:
    rows: list[list[object]] = []
    curves: dict[str, xr.Dataset] = {}
    options = {"group": group, "resamples": RESAMPLES}
    for name in names:
        one = findings.select(tree, name)
        try:
            score = scoring.score(one)
            ranked = scoring.discrimination(one, **options)  # type: ignore[arg-type]
            point = scoring.operating_point(one, group=group).isel({"class": -1})
            curve = scoring.roc(one, **options).isel({"class": -1}, drop=True)  # type: ignore[arg-type]
        except ValueError as error:  # of this finding nothing is known: the others still count
            rows.append([name, *[None] * 15, str(error)])
            continue
        if np.isfinite(curve["auroc"]):
            curves[name] = curve
        areas = [
            float(ranked[f"{area}{end}"]) for area in _RANKED for end in ("", "_lower", "_upper")
        ]
        rows.append([name, *areas, *_rates(point)[:6], float(point["prevalence"]),
                     float(score["brier"]), float(score["ece"]), ""])  # fmt: skip
    head = ("finding", *_AREAS, *_rate_head()[:6], "prevalence", "Brier", "ECE", "note")
    body = paragraph(
        "Each finding is scored by itself; it is called where its probability is at least 0.5, and "
        "chance is an AUROC of 0.5 and an average precision of the prevalence."
    )
    if curves:
        joined = xr.concat(list(curves.values()), "class", join="override")
        joined = joined.assign_coords({"class": list(curves)})
        joined = joined.isel({"class": slice(_CURVES)})
        # Of two classes the figure draws one alone, but two findings are no two classes.
        parts = [[0], [1]] if joined.sizes["class"] == 2 else [list(range(joined.sizes["class"]))]
        for part_of in parts:
            drawn = joined.isel({"class": part_of})
            text = ", ".join(
                f"{name} {float(area):.3f}"
                for name, area in zip(drawn["class"].values, drawn["auroc"].values, strict=True)
            )
            body += picture(roc(drawn), f"ROC curves of findings. AUROC: {text}.")
    return body + data_table("Scores of each finding", head, rows, most=30)


def _finding_cases(tree: xr.DataTree, names: list[str], images: CaseImages | None) -> str:
    source = open_classes(tree)
    present = source.read().isel({"class": -1})
    mean = present.mean(SAMPLES).transpose("case", "finding").values
    ends = (
        one_of_each(present)
        .quantile(_INTERVAL, SAMPLES, method=RANKS)
        .transpose("quantile", "case", "finding")
    )
    entropy = uncertainty.entropy(tree, mcse=False)["predictive_entropy"].sum("finding").values
    order = np.argsort(-entropy, kind="stable")
    ids = present["case"].values if "case" in present.coords else np.arange(len(mean))
    observed = source.labels().transpose("case", "finding").values if has_labels(tree) else None
    body = ""
    if images is not None:
        captions = [
            ", ".join(f"{names[k]} {row[k]:.2f}" for k in np.argsort(-row)[:2])
            for row in mean[order[:_PICTURES]]
        ]
        body += gallery(ids, order.tolist(), captions, images)
    rows = []
    for index in order:
        for k, name in enumerate(names):
            seen = None if observed is None or observed[index, k] < 0 else int(observed[index, k])
            low, high = ends.values[:, index, k]
            rows.append(
                [str(ids[index]), name, float(mean[index, k]), float(low), float(high), seen]
            )
    head = ("case", "finding", "probability", "probability lower", "probability upper", "observed")
    return body + data_table("Findings per case", head, rows, most=3 * len(names))


def _rates(point: xr.Dataset) -> list[float]:
    return [float(point[f"{rate}{end}"]) for rate in _RATES for end in ("", "_lower", "_upper")]


def _rate_head() -> list[str]:
    names = {"ppv": "PPV", "npv": "NPV"}
    return [f"{names.get(rate, rate)}{end}" for rate in _RATES for end in ("", " lower", " upper")]


def has_labels(tree: xr.DataTree) -> bool:
    """Whether any entry of a tree of classes was observed."""
    label = open_classes(tree).observation()
    return label is not None and bool((label >= 0).any())
