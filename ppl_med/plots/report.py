"""One HTML file that shows what a posterior says, for a reader who would rather look than read."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from ppl_med.plots.attribution import attribution as attribution_figure
from ppl_med.plots.calibration import expected_calibration_error
from ppl_med.plots.calibration import reliability as reliability_figure
from ppl_med.plots.cases import cases as cases_figure
from ppl_med.plots.checks import require_variables
from ppl_med.plots.curves import elbo as elbo_figure
from ppl_med.plots.data_size import data_size as data_size_figure
from ppl_med.plots.page import Section, page, paragraph, picture
from ppl_med.plots.summary import lead, provenance, score_cards, score_table, set_summary
from ppl_med.plots.uncertainty import uncertainty as uncertainty_figure
from ppl_med.storage.atomic import write_text

_WORDS = """<div class="words">
<p><span class="swatch aleatoric"></span><strong>Aleatoric</strong> uncertainty is in the image:
it would stay however much data the model had seen.</p>
<p><span class="swatch epistemic"></span><strong>Epistemic</strong> uncertainty is in the model:
its draws disagree because it has seen too little of this kind, and more data would lower it.</p>
<p>A <strong>draw</strong> is one network out of the posterior, one plausible reading of the
training data; all of them look at every case.</p>
</div>"""
_WORDS_OF_MASKS = """<div class="words">
<p>A <strong>draw</strong> is one whole segmentation that the model holds possible: its pixels
belong together. Where graders disagree, draws should disagree in the same way and as often.</p>
</div>"""
_HOW_TO_READ = {
    "uncertainty": (
        "Each mark is a case: far right means the image itself is ambiguous, far up means "
        "the model has not seen enough like it, and bottom left means both are small."
    ),
    "cases": (
        "Left are the cases to look at first, right the ones the model finds easy; a long "
        "black bar means its draws disagree about that class, and the coloured bar splits "
        "the doubt in two."
    ),
    "reliability": (
        "Points on the dashed line mean that the stated confidence can be taken at its "
        "word; below it the model promises more than it keeps, and a long bar means too few "
        "cases to tell."
    ),
    "sets": (
        "A prediction set is a short list of classes made to contain the true one at a "
        "chosen rate, so one class is a clear answer, several are an honest doubt, and an "
        "empty list means that no class is likely enough."
    ),
    "attribution": (
        "Green regions speak for the class and purple ones against it; where the blue map "
        "is dark the draws disagree, so do not lean on that part of the explanation."
    ),
    "data-size": (
        "Blue should fall as the training set grows, because more data teach the model; "
        "orange should level off, because it belongs to the images."
    ),
    "training": (
        "All curves should have levelled off at the right end; a validation curve that "
        "rises again while the training curve falls means overfitting."
    ),
    "scores": (
        "Value is the score of all draws averaged; the standard error says how far it may "
        "be off because only so many cases were tested, and the last range how much single "
        "draws differ."
    ),
    "provenance": "What is needed to compute this again.",
}
_FOOTER = (
    "Made with ppl_med. For research; not a medical device and not for decisions about patients."
)


def report(
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
    data_size: xr.Dataset | None = None,
    sections: Sequence[Section] = (),
    notes: Iterable[str] = (),
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
        data_size: Aleatoric and epistemic variance over ``fraction`` (and seed, method).
        sections: Further parts in HTML, put before the training curves; make their bodies with
            ``plots.page.paragraph``, ``picture`` and ``table``, which escape text.
        notes: Paragraphs of plain text, shown first.

    Returns:
        The path written, absolute.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: The inputs do not fit together.
        OSError: The file could not be written, e.g. no space left.
    """
    target = _check(path, title, tree, notes)
    _check_sections(sections)
    own = [
        _uncertainty(tree),
        _cases(tree, images, prediction_sets),
        _sets(prediction_sets),
        _reliability(reliability),
        _attribution(tree, images, attribution, mask),
        _data_size(data_size),
        *sections,
        _training(history),
        _section("scores", "Scores", None if scores is None else score_table(scores)),
        _section("provenance", "Provenance", provenance(tree)),
    ]
    opening = _notes(notes) + ("" if scores is None else score_cards(scores)) + _words(tree)
    parts = [section for section in own if section is not None]
    write_text(target, page(title, lead(tree), opening, parts, _FOOTER), "report")
    return target


def _check(
    path: str | os.PathLike[str], title: str, tree: xr.DataTree, notes: Iterable[str]
) -> Path:
    if not isinstance(tree, xr.DataTree):
        raise TypeError(f"tree must be the DataTree of predict, not {type(tree).__name__}")
    if not title.strip():
        raise ValueError("title is empty; say what the report is about")
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
    taken = sorted(set(anchors) & _HOW_TO_READ.keys())
    if bad or taken:
        raise ValueError(
            f"sections has the anchors {bad or taken}; each must be a word such as 'samples' of "
            f"its own, and none of {sorted(_HOW_TO_READ)}"
        )


def _words(tree: xr.DataTree) -> str:
    probs = tree["posterior"].data_vars.get("probs") if "posterior" in tree.children else None
    return _WORDS_OF_MASKS if probs is not None and "row" in probs.dims else _WORDS


def _section(anchor: str, title: str, body: str | None) -> Section | None:
    if body is None:
        return None
    return Section(anchor, title, paragraph(_HOW_TO_READ[anchor]) + body)


def _notes(notes: Iterable[str]) -> str:
    text = "".join(paragraph(note) for note in notes)
    return f'<div class="notes">{text}</div>' if text else ""


def _classifies(tree: xr.DataTree) -> bool:
    if "posterior" not in tree.children or "probs" not in tree["posterior"].data_vars:
        return False
    return set(tree["posterior"]["probs"].dims) == {"chain", "draw", "case", "class"}


def _uncertainty(tree: xr.DataTree) -> Section | None:
    if not _classifies(tree):
        return None
    alt = "Scatter plot of aleatoric against epistemic variance, one mark per case."
    return _section("uncertainty", "All cases", picture(uncertainty_figure(tree), alt))


def _cases(tree: xr.DataTree, images: ArrayLike | None, sets: xr.Dataset | None) -> Section | None:
    if images is None or not _classifies(tree):
        return None
    alt = (
        "Cards of the least certain cases (left) and the most certain (right): picture, true "
        "label, probability of each class with its credible interval, aleatoric and "
        "epistemic variance."
    )
    body = picture(cases_figure(images, tree, sets), alt, wide=True)
    return _section("cases", "Cases to look at", body)


def _sets(sets: xr.Dataset | None) -> Section | None:
    if sets is None:
        return None
    source = "ppl_med.analysis.conformal.predict_sets"
    require_variables(sets, "prediction_sets", ("prediction_set",), source)
    return _section("sets", "Prediction sets", set_summary(sets))


def _reliability(datasets: xr.Dataset | Mapping[str, xr.Dataset] | None) -> Section | None:
    if datasets is None:
        return None
    figure = reliability_figure(datasets)
    named = {"": datasets} if isinstance(datasets, xr.Dataset) else datasets
    errors = ", ".join(
        f"{f'{n}: ' if n else ''}{expected_calibration_error(d):.3f}" for n, d in named.items()
    )
    alt = f"Reliability diagram: accuracy against confidence. Expected calibration error {errors}."
    return _section("reliability", "Can the confidence be trusted?", picture(figure, alt))


def _attribution(
    tree: xr.DataTree, images: ArrayLike | None, maps: xr.Dataset | None, mask: ArrayLike | None
) -> Section | None:
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
    figure = attribution_figure(pictures[index], maps, region)
    return _section("attribution", "Where the model looks", picture(figure, alt, wide=True))


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


def _data_size(table: xr.Dataset | None) -> Section | None:
    if table is None:
        return None
    alt = "Aleatoric and epistemic variance against the share of the training set, log axis."
    return _section("data-size", "More data, less doubt?", picture(data_size_figure(table), alt))


def _training(history: xr.Dataset | None) -> Section | None:
    if history is None:
        return None
    figure = elbo_figure(history)
    end = history.isel(step=-1)
    last = ", ".join(f"{n} {float(end[n].mean()):.3g}" for n in ("elbo", "nll", "kl"))
    who = ", mean of the members" if "chain" in history.dims else ""
    alt = f"Training curves in nats per case; at the last step{who}: {last}."
    return _section("training", "Training", picture(figure, alt))
