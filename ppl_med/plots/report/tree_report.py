"""A report on any tree: what it holds decides what is shown.

    probs (case, class)            scores with intervals, ROC, calls, calibration, cases; with other
                                   labelled cases prediction sets
    probs (case, class, finding)   the same finding by finding
    probs (case, class, ...)       masks, their entropy, sizes with intervals, Dice or the distance
    or drawn masks                 to several graders; volumes with a slider
    edge_loc, edge_scale           objects with intervals on their edges, precision, calibration
    loc, scale, drawn numbers      predicted against observed numbers, or maps; coverage
    anything else                  what it holds, variable by variable

What an analysis cannot tell of a tree is said in its place, with the reason.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from ppl_med.analysis import scoring, segmentation
from ppl_med.analysis.tree import find_group
from ppl_med.plots.report import box_sections, class_sections, mask_sections, number_sections
from ppl_med.plots.report.images import CaseImages
from ppl_med.plots.report.kinds import kind_of
from ppl_med.plots.report.page import Section, data_table, paragraph, picture
from ppl_med.plots.report.set_sections import check_calibration, learn_sets
from ppl_med.plots.report.writer import check, write_report
from ppl_med.plots.segmentation import pixel_reliability as pixel_figure

_MOST_VARIABLES = 200


def report_tree(
    tree: xr.DataTree,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    images: Sequence[ArrayLike] | ArrayLike | None = None,
    history: xr.Dataset | None = None,
    group: str | None = None,
    calibration: xr.DataTree | None = None,
    alpha: float = 0.1,
    loc: ArrayLike = 0.0,
    scale: ArrayLike = 1.0,
    sections: Sequence[Section] = (),
    notes: Iterable[str] = (),
    smoke: bool = False,
) -> Path:
    """Compute and write the report on a tree; `write_report` shows what was computed before.

    Args:
        tree: As ``ppl_med.inference.predict`` returns it, of any model.
        path: The HTML file to write; its folder must exist.
        title: Plain text; by default the model and its guide.
        images: One per case of the tree in its order, each (channel, row, col) or (channel, depth,
            row, col), any intensity unit. Without them, masks and tables are shown.
        history: From ``fit``: training curves.
        group: Units of errors and intervals, such as "patient": a column of constant_data or a
            coordinate of the cases. By default patients where the tree knows them, else cases.
        calibration: For prediction sets of a tree of one class per case: the tree of labelled cases
            that neither training nor ``tree`` has.
        alpha: Share of prediction sets that may miss the true class, in (0, 1).
        loc: Mean per channel that was taken off ``images``.
        scale: Standard deviation per channel that they were divided by.
        sections: Further parts, put after those of the tree.
        notes: Paragraphs of plain text, shown first.
        smoke: Stamp the page as one of a trial run whose figures mean nothing.

    Returns:
        The path written, absolute.

    Raises:
        FileNotFoundError: The folder does not exist.
        TypeError, ValueError: ``tree`` is no tree, images do not fit it, ``group`` is unknown, or
            ``calibration`` or ``tree`` is not of one class per case.
        OSError: The file could not be written.
    """
    title = _title(tree) if title is None else title
    target = check(path, title, tree, notes)
    _check_images(tree, images)
    check_calibration(calibration, tree, alpha)
    shown = None if images is None else CaseImages(images, loc, scale)  # type: ignore[arg-type]
    kind = kind_of(tree)
    found = _Found(tree, shown, group)
    notes = list(notes)
    if calibration is not None:
        found.sets, told = learn_sets(tree, calibration, alpha)
        notes += told
    getattr(found, kind)()
    return write_report(
        target,
        title=title,
        tree=tree,
        history=history,
        images=shown.slices() if shown is not None and kind == "classes" else None,
        prediction_sets=found.sets,
        empty_sets=True,
        reliability=found.reliability,
        scores=found.scores,
        sections=[*found.sections, *sections],
        notes=notes,
        loc=loc,
        scale=scale,
        smoke=smoke,
    )


class _Found:
    """What the page will show of a tree."""

    def __init__(self, tree: xr.DataTree, images: CaseImages | None, group: str | None) -> None:
        self.tree, self.images, self.group = tree, images, group
        self.sections: list[Section] = []
        self.sets: xr.Dataset | None = None
        self.scores: xr.Dataset | None = None
        self.reliability: xr.Dataset | dict[str, xr.Dataset] | None = None

    def _add(self, anchor: str, title: str, how: str, make: Callable[[], str]) -> None:
        """Add a section, or why it cannot be made."""
        try:
            body = make()
        except (TypeError, ValueError) as error:
            body = paragraph(f"Not shown: {error}")
        self.sections.append(Section(anchor, title, paragraph(how) + body))

    def _scored(self, anchor: str, title: str, make: Callable[[], tuple[xr.Dataset, str]]) -> None:
        """Take scores, and add the section that tells more of them, or why there are none."""
        try:
            self.scores, body = make()
        except (TypeError, ValueError) as error:
            body = paragraph(f"Not shown: {error}")
        self.sections.append(Section(anchor, title, body))

    def classes(self) -> None:
        """One class per case."""
        tree, group = self.tree, self.group
        if class_sections.has_labels(tree):
            self.scores = class_sections.class_scores(tree, group)
            self.reliability = scoring.reliability(tree)
            self._add(
                "ranking",
                "Does it rank the classes?",
                _RANKING,
                lambda: class_sections.ranking(tree, group),
            )
            self._add(
                "calls", "Right and wrong calls", _CALLS, lambda: class_sections.calls(tree, group)
            )
        self._add(
            "cases-table", "Every case", _CASES, lambda: class_sections.case_table(tree, self.sets)
        )

    def findings(self) -> None:
        """Several findings per case."""
        self.reliability = class_sections.finding_reliability(self.tree)
        self.sections += class_sections.finding_sections(self.tree, self.images, self.group)

    def masks(self) -> None:
        """A class per pixel, or drawn masks."""
        tree, observed = self.tree, mask_sections.annotations(self.tree)
        probs = "probs" in find_group(tree, "posterior")
        self.sections.append(mask_sections.show_masks(tree, self.images))
        if observed is not None and observed.sizes.get("grader", 1) > 1:
            title = "Draws against graders"
            self._scored("graders", title, lambda: mask_sections.grader_scores(tree))
        elif observed is not None and probs:
            one, group = _one_grader(tree, observed), self.group
            title = "Overlap with the annotation"
            self._scored("overlap", title, lambda: mask_sections.overlap_scores(one, group))
        if observed is not None and probs:
            title = "Can the probability of a pixel be trusted?"
            self._add("pixels", title, _PIXELS, lambda: _pixels(tree))
        self._add("sizes", "Sizes with intervals", _SIZES, lambda: mask_sections.sizes(tree))

    def numbers(self) -> None:
        """A number per case."""
        tree, images = self.tree, self.images
        self._number_scores()
        self._add(
            "numbers",
            "Predicted numbers",
            _NUMBERS,
            lambda: number_sections.numbers_per_case(tree, images),
        )
        self._coverage()

    def maps(self) -> None:
        """A number per pixel."""
        self._number_scores()
        body = number_sections.number_maps(self.tree, self.images)
        sliders = 'type="range"' in body
        self.sections.append(Section("maps", "Predicted maps", body, sliders))
        self._coverage()

    def boxes(self) -> None:
        """A set of boxes per case."""
        found, group = box_sections.joined(self.tree), self.group
        images = self.images
        title = "Objects and their edges"
        self._add("boxes", title, _BOXES, lambda: box_sections.box_pictures(found, images))
        told, title = box_sections.told(found), "Every object"
        self._add("objects", title, _OBJECTS, lambda: told + box_sections.object_table(found))
        title = "Are objects and edges right?"
        self._add("box-scores", title, _BOX_SCORES, lambda: box_sections.box_scores(found, group))

    def other(self) -> None:
        """What no analysis of ours knows."""
        self.sections.append(Section("contents", "What the tree holds", _contents(self.tree)))

    def _number_scores(self) -> None:
        if find_group(self.tree, "observed_data"):
            title = "Scores of numbers"
            self._scored("errors", title, lambda: number_sections.number_scores(self.tree))

    def _coverage(self) -> None:
        if self.scores is not None:
            self._add(
                "coverage",
                "Can the intervals be trusted?",
                _COVERAGE,
                lambda: number_sections.calibration_pictures(self.tree),
            )


def _contents(tree: xr.DataTree) -> str:
    rows = []
    for node in tree.subtree:
        for name, array in node.to_dataset(inherit=False).data_vars.items():
            numeric = array.dtype.kind in "iufb" and array.size
            row = [f"{node.path}/{name}".lstrip("/"), ", ".join(map(str, array.dims)) or "scalar",
                   " x ".join(map(str, array.shape)), str(array.dtype)]  # fmt: skip
            figures: list[float | None] = [None] * 3
            if numeric and bool(array.notnull().any()):
                values = array.astype(np.float64)
                low, high = values.quantile([0.05, 0.95]).values
                figures = [float(values.mean()), float(low), float(high)]
            rows.append([*row, *figures])
    head = ("variable", "dims", "shape", "type", "mean", "5 %", "95 %")
    text = paragraph(
        "This tree holds no classes, masks or numbers of cases that a report could judge, so its "
        "variables are listed; use arviz for the parameters of your own program."
    )
    return text + data_table("Variables", head, rows[:_MOST_VARIABLES], most=60)


def _pixels(tree: xr.DataTree) -> str:
    found = segmentation.pixel_reliability(tree)
    error = float(found["ece"])
    alt = f"Share of graders against predicted probability of a pixel; mean distance {error:.4f}."
    return picture(pixel_figure(found), alt)


def _one_grader(tree: xr.DataTree, observed: xr.DataArray) -> xr.DataTree:
    """The tree with masks of one grader, who needs no axis."""
    if "grader" not in observed.dims:
        return tree
    groups = {node.path: node.to_dataset(inherit=False) for node in tree.subtree}
    groups = {path: one.isel(grader=0, drop=True) if "grader" in one.dims else one
              for path, one in groups.items()}  # fmt: skip
    return xr.DataTree.from_dict(groups)


def _title(tree: object) -> str:
    attrs = getattr(tree, "attrs", {})
    names = [str(attrs[key]) for key in ("model", "guide") if attrs.get(key)]
    return " with ".join(names) or "Posterior"


def _check_images(tree: xr.DataTree, images: Sequence[ArrayLike] | ArrayLike | None) -> None:
    if images is None:
        return
    number = len(images)  # type: ignore[arg-type]
    cases = {group.sizes["case"] for group in tree.subtree if "case" in group.sizes}
    if cases and number not in cases:
        raise ValueError(
            f"images holds {number} cases, the tree {max(cases)}; pass one image per case of the "
            "tree, in its order"
        )


_BOXES = (
    "Boxes stand at the mean of their edges, bands are the intervals, true boxes are dashed; the "
    "cases are those whose objects are least sure to be there."
)
_OBJECTS = "Edges in pixels with their intervals; the file has all objects."
_BOX_SCORES = (
    "p(exists) is the probability that there is an object; objects that nobody labelled look like "
    "over-confidence."
)
_RANKING = (
    "The area under the ROC curve is the chance that a case of the class gets a higher probability "
    "than one of the others, so that 0.5 says nothing and 1 is perfect; bands are of 95 %."
)
_CALLS = (
    "A case is called a case of a class where the mean probability over draws is at least the "
    "threshold; choose a threshold on other cases than these before it is used."
)
_CASES = "The least certain cases stand first; the file has all of them, with every probability."
_PIXELS = (
    "On the diagonal, pixels with a predicted probability of 30 % were marked by 30 % of graders."
)
_SIZES = (
    "The size of each structure is measured in every draw; an interval holds the stated share of "
    "what further draws would give, and a dot outside it is a grader who drew another size."
)
_NUMBERS = "Each line is the interval of one case, which should meet the dashed line of equality."
_COVERAGE = (
    "Intervals of 90 % should hold nine of ten observed numbers: below the dashed line they are "
    "too narrow."
)
