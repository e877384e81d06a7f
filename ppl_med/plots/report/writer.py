"""One HTML file that shows what a posterior says, for a reader who would rather look than read."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from ppl_med.analysis.conformal import fill_empty_sets
from ppl_med.analysis.statistics import monte_carlo
from ppl_med.analysis.tree import open_classes
from ppl_med.checks import reject
from ppl_med.plots.attribution_maps import attribution as attribution_figure
from ppl_med.plots.calibration import expected_calibration_error
from ppl_med.plots.calibration import reliability as reliability_figure
from ppl_med.plots.case_cards import cases as cases_figure
from ppl_med.plots.inputs import require_variables
from ppl_med.plots.pictures import in_own_units
from ppl_med.plots.report.class_calls import call_tables
from ppl_med.plots.report.kinds import kind_of
from ppl_med.plots.report.page import Section, paragraph, picture, render
from ppl_med.plots.report.summary import lead, provenance, score_cards, score_table, set_summary
from ppl_med.plots.training_curves import elbo as elbo_figure
from ppl_med.plots.uncertainty_kinds import data_size as data_size_figure
from ppl_med.plots.uncertainty_kinds import uncertainty as uncertainty_figure
from ppl_med.storage.atomic import write_text

_SETS = "ppl_med.analysis.conformal.predict_sets"
_OWN = {
    "uncertainty": (
        "All cases",
        "Each mark is a case: far right means the image itself is ambiguous, far up means "
        "the model has not seen enough like it, and bottom left means both are small.",
    ),
    "cases": (
        "Cases to look at",
        "Left are the cases to look at first, right the ones the model finds easy; a long "
        "black bar means its draws disagree about that class, and the coloured bar splits "
        "the uncertainty into its two parts.",
    ),
    "sets": (
        "Prediction sets",
        "A prediction set is a short list of classes made to contain the true one at a "
        "chosen rate, so one class is a clear answer, and several mean that the model cannot "
        "decide.",
    ),
    "discrimination": (
        "Are the cases of a class found?",
        "An AUROC of 1 means that every case of the class gets a higher probability of it than any "
        "other case, 0.5 that the order is a guess; a model that never sees the image has the "
        "share of the class as its average precision.",
    ),
    "reliability": (
        "Can the confidence be trusted?",
        "Points on the dashed line mean that the stated confidence can be taken at its "
        "word; below it the model promises more than it keeps, and a long bar means too few "
        "cases to tell.",
    ),
    "attribution": (
        "Where the model looks",
        "Green regions speak for the class and purple ones against it; where the blue map "
        "is dark the draws disagree, so do not rely on that part of the explanation.",
    ),
    "data-size": (
        "Does more data reduce the uncertainty?",
        "Blue should fall as the training set grows, because more data teach the model; "
        "orange should level off, because it belongs to the images.",
    ),
    "training": (
        "Training",
        "All curves should have levelled off at the right end; a validation curve that "
        "rises again while the training curve falls means overfitting.",
    ),
    "scores": (
        "Scores",
        "The value is the score of the probabilities averaged over draws; the standard error shows "
        "how uncertain it is because only so many cases were tested, and the last range how much "
        "single draws differ.",
    ),
    "provenance": ("Provenance", "What is needed to compute this report again."),
}


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    tree: xr.DataTree,
    history: xr.Dataset | None = None,
    images: ArrayLike | None = None,
    prediction_sets: xr.Dataset | None = None,
    attribution: xr.Dataset | None = None,
    mask: ArrayLike | None = None,
    reliability: xr.Dataset | Mapping[str, xr.Dataset] | None = None,
    scores: xr.Dataset | None = None,
    discrimination: xr.Dataset | None = None,
    operating_point: xr.Dataset | None = None,
    data_size: xr.Dataset | None = None,
    sections: Sequence[Section] = (),
    notes: Iterable[str] = (),
    loc: ArrayLike = 0.0,
    scale: ArrayLike = 1.0,
    empty_sets: bool = False,
    smoke: bool = False,
) -> Path:
    """Write one self-contained HTML file; parts whose input is None are left out.

    The file opens anywhere: pictures are inside, nothing is fetched, no script runs. It is written
    under a temporary name and moved into place, so an earlier report survives any failure.

    Args:
        path: The file to write; its folder must exist.
        title: Plain text.
        tree: As ``ppl_med.inference.predict`` returns it; its attributes become the provenance.
        history: From ``fit``: training curves.
        images: (case, channel, row, col), 1 or 3 channels, any intensity unit, one per case of the
            tree and in its order: the least and most certain cases.
        prediction_sets: From ``conformal.predict_sets`` on this tree.
        attribution: From ``explain.attribution.attribute`` for some of the tree's cases, with their
            ids as coordinate ``case``. Needs ``images``.
        mask: True region (case, row, col) in the order of the tree, outlined on the attributions.
        reliability: From ``scoring.reliability``; a mapping from name to Dataset overlays several.
        scores: From ``scoring.score``.
        discrimination: From ``scoring.discrimination``: AUROC and average precision.
        operating_point: From ``scoring.operating_point``: sensitivity, specificity.
        data_size: Aleatoric and epistemic variance over ``fraction`` (and seed, method).
        sections: Further parts in HTML, put before the training curves; make their bodies with
            ``paragraph``, ``picture`` and ``table`` of ``ppl_med.plots.report``, which escape text.
        notes: Paragraphs of plain text, shown first.
        loc: Mean per channel that was taken off ``images``, as for ``Batches``; one number for all.
        scale: Standard deviation per channel that ``images`` were divided by. Images normalised per
            channel have their colours wrong without the two.
        empty_sets: Show prediction sets that are empty as they are. By default they hold the most
            probable class, and the page says how many did not before.
        smoke: Stamp the page as one of a trial run whose figures mean nothing.

    Returns:
        The path written, absolute.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: The inputs do not fit together.
        OSError: The file could not be written, for example because the disk is full.
    """
    target = check(path, title, tree, notes)
    _check_sections(sections)
    classifies = kind_of(tree) == "classes"
    if images is not None:
        images = in_own_units(images, loc, scale)
    if prediction_sets is not None and not empty_sets:
        require_variables(prediction_sets, "prediction_sets", ("prediction_set",), _SETS)
        prediction_sets = fill_empty_sets(prediction_sets, tree)
    before = {
        "uncertainty": _uncertainty(tree) if classifies else None,
        "cases": _cases(tree, images, prediction_sets) if classifies else None,
        "sets": _sets(prediction_sets),
        "discrimination": call_tables(discrimination, operating_point) or None,
        "reliability": _reliability(reliability),
        "attribution": _attribution(tree, images, attribution, mask),
        "data-size": _data_size(data_size),
    }
    after = {
        "training": _training(history),
        "scores": None if scores is None else score_table(scores),
        "provenance": provenance(tree, history),
    }
    text = render(
        [*_sections(before), *sections, *_sections(after)],
        title=title,
        lead=lead(tree),
        notes=list(notes),
        cards=[] if scores is None else score_cards(scores),
        masks=kind_of(tree) == "masks",
        smoke=smoke,
    )
    write_text(target, text, "report")
    return target


def check(
    path: str | os.PathLike[str], title: str, tree: xr.DataTree, notes: Iterable[str]
) -> Path:
    """Check what every report is given, and return where it will be written, absolute."""
    if not isinstance(tree, xr.DataTree):
        raise TypeError(f"tree must be the DataTree of predict, not {type(tree).__name__}")
    if not title.strip():
        reject("title", "a text that says what the report is about", title)
    if isinstance(notes, str):
        raise TypeError("notes must be a sequence of paragraphs, not one string; pass (text,)")
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} does not exist; make it first")
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder; name a file, e.g. {target / 'report.html'}")
    return target


def _check_sections(sections: Sequence[Section]) -> None:
    anchors = [section.anchor for section in sections]
    bad = [a for a in anchors if not re.fullmatch(r"[a-z][a-z0-9-]*", a) or anchors.count(a) > 1]
    taken = sorted(set(anchors) & _OWN.keys())
    if bad or taken:
        raise ValueError(
            f"sections has the anchors {bad or taken}; each must be a different word such as "
            f"'samples', and none of {sorted(_OWN)}"
        )


def _sections(bodies: Mapping[str, str | None]) -> list[Section]:
    """Sections of this report, each with its title and how to read it."""
    return [
        Section(anchor, _OWN[anchor][0], paragraph(_OWN[anchor][1]) + body)
        for anchor, body in bodies.items()
        if body is not None
    ]


def _uncertainty(tree: xr.DataTree) -> str:
    if monte_carlo.all_equal(open_classes(tree).read()):
        return paragraph(
            "Not shown: all draws of this tree are one network, which cannot tell what it does not "
            "know. That its epistemic variance is 0 is no sign of certainty. For the two parts "
            "report the tree before it was recalibrated, or a posterior of several draws."
        )
    alt = "Scatter plot of aleatoric against epistemic variance, one mark per case."
    return picture(uncertainty_figure(tree), alt)


def _cases(tree: xr.DataTree, images: ArrayLike | None, sets: xr.Dataset | None) -> str | None:
    if images is None:
        return None
    alt = (
        "Cards of the least certain cases (left) and the most certain (right): picture, true "
        "label, probability of each class with its credible interval, aleatoric and "
        "epistemic variance."
    )
    return picture(cases_figure(images, tree, sets), alt, wide=True)


def _sets(sets: xr.Dataset | None) -> str | None:
    if sets is None:
        return None
    require_variables(sets, "prediction_sets", ("prediction_set",), _SETS)
    return set_summary(sets)


def _reliability(datasets: xr.Dataset | Mapping[str, xr.Dataset] | None) -> str | None:
    if datasets is None:
        return None
    figure = reliability_figure(datasets)
    named = {"": datasets} if isinstance(datasets, xr.Dataset) else datasets
    errors = ", ".join(
        f"{f'{n}: ' if n else ''}{expected_calibration_error(d):.3f}" for n, d in named.items()
    )
    alt = f"Reliability diagram: accuracy against confidence. Expected calibration error {errors}."
    return picture(figure, alt)


def _attribution(
    tree: xr.DataTree, images: ArrayLike | None, maps: xr.Dataset | None, mask: ArrayLike | None
) -> str | None:
    if maps is None:
        return None
    if images is None:
        raise ValueError("attribution needs images: pass the pictures of the tree's cases as well")
    index = _positions(tree, maps)
    pictures = np.asarray(images)
    if len(index) and len(pictures) <= index.max():
        raise ValueError(f"images holds {len(pictures)} cases; pass one per case of the tree")
    region = None if mask is None else np.asarray(mask)[index]
    alt = (
        f"Attribution maps of {len(index)} cases: image, mean over draws, standard deviation over "
        "draws, probability that the attribution is positive."
    )
    return picture(attribution_figure(pictures[index], maps, region), alt, wide=True)


def _positions(tree: xr.DataTree, maps: xr.Dataset) -> NDArray[np.intp]:
    groups = [part.to_dataset() for part in tree.children.values() if "case" in part.sizes]
    ids = groups[0]["case"].to_numpy().tolist() if groups else []
    place = {case: position for position, case in enumerate(ids)}
    wanted = maps["case"].to_numpy().tolist()
    unknown = [case for case in wanted if case not in place]
    if unknown:
        raise ValueError(
            f"attribution has cases that the tree lacks (first: {unknown[0]!r}); "
            "give the tree's ids, attribute(..., case=ids)"
        )
    return np.array([place[case] for case in wanted], dtype=np.intp)


def _data_size(table: xr.Dataset | None) -> str | None:
    if table is None:
        return None
    alt = "Aleatoric and epistemic variance against the share of the training set, log axis."
    return picture(data_size_figure(table), alt)


def _training(history: xr.Dataset | None) -> str | None:
    if history is None:
        return None
    figure = elbo_figure(history)
    end = history.isel(step=-1)
    last = ", ".join(f"{n} {float(end[n].mean()):.3g}" for n in ("elbo", "nll", "kl"))
    who = ", mean of the members" if "chain" in history.dims else ""
    alt = f"Training curves in nats per case; at the last step{who}: {last}."
    return picture(figure, alt)
