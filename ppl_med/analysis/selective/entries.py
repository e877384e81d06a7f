"""Scores of uncertainty and errors of a tree, entry by entry: a case, or a pixel of a case.

Scores by name, of classes, from `ppl_med.analysis.uncertainty`:

    predictive_entropy, expected_entropy, mutual_information   nats
    variation_ratio                                            probability
    total, aleatoric, epistemic                                variance, summed over classes
    max_probability                                            1 - largest probability

and of numbers ``total``, ``aleatoric``, ``epistemic``, variances. Errors by name, of the mean of
the draws:

    zero_one    classes    the most probable class is not the observed one (first on a tie)
    brier       classes    sum over classes of (probability - indicator)^2
    absolute    numbers    |y - mean|
    squared     numbers    (y - mean)^2

Any other score or error is given as an array. Entries whose error is NaN are left out, which by
name is what was not observed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis import uncertainty
from ppl_med.analysis.statistics import monte_carlo
from ppl_med.analysis.statistics.total_variance import variance_figures
from ppl_med.analysis.tree import (
    Block,
    Classes,
    Numbers,
    Posterior,
    check_cases,
    count_left_out,
    has_probs,
    join_blocks,
    known,
    open_classes,
    open_numbers,
    split_blocks,
)

Chosen: TypeAlias = str | xr.DataArray
ENTROPIES = ("predictive_entropy", "expected_entropy", "mutual_information", "variation_ratio")
VARIANCES = ("total", "aleatoric", "epistemic")
UNITS = {
    "zero_one": "probability",
    "brier": "1",
    "absolute": "unit of the value",
    "squared": "unit of the value, squared",
}


class Entries(NamedTuple):
    """A block of entries, case after case, without those that are left out.

    Args:
        score: Uncertainty (entry).
        error: What the prediction got wrong (entry).
        case: Position of the case in the block (entry), rising.
        num_cases: Cases in the block.
        first: Position of the block's first case in the tree.
        num_left_out: Entries whose error is NaN.
    """

    score: np.ndarray
    error: np.ndarray
    case: np.ndarray
    num_cases: int
    first: int
    num_left_out: int


@dataclass(frozen=True)
class ClassFigures:
    """Scores and errors of classes.

    Args:
        opened: Probabilities and observed classes, not yet read.
        ignore: A value, beside -1, that says that an entry has no class.
    """

    opened: Classes
    ignore: int | None
    scores = (*ENTROPIES, *VARIANCES, "max_probability")
    errors = ("zero_one", "brier")
    what = "classes"

    @property
    def array(self) -> xr.DataArray:
        """Probabilities."""
        return self.opened.array

    def score(self, name: str, block: Block) -> xr.DataArray:
        """Return a score by its name (case, ...)."""
        probs = self.opened.read(block)  # parts may have copies of draws where the whole has none
        if name in ENTROPIES:
            found = _with_unit(uncertainty.entropy_figures(probs)[name])
        elif name in VARIANCES:
            found = _with_unit(uncertainty.probability_figures(probs)[name]).sum("class")
        else:
            found = 1 - monte_carlo.mean(probs).max("class")
        inside = self.opened.inside(block)
        return found if inside is None else found.where(inside)

    def error(self, name: str, block: Block) -> xr.DataArray:
        """Return an error by its name (case, ...), NaN where there is no class."""
        if self.opened.observation() is None:
            raise ValueError(
                "tree has no observed label or mask in observed_data; call predict on batches that "
                "hold labels, or give error as an array."
            )
        label = self.opened.labels(block, ignore=self.ignore)
        mean = monte_carlo.mean(self.opened.read(block))
        if name == "zero_one":
            error = (mean.argmax("class") != label).astype(np.float64)
        else:
            classes = mean["class"].copy(data=np.arange(mean.sizes["class"]))
            error = ((mean - (label == classes)) ** 2).sum("class")
        return error.where(known(label))


@dataclass(frozen=True)
class NumberFigures:
    """Scores and errors of numbers, not yet read."""

    opened: Numbers
    scores = VARIANCES
    errors = ("absolute", "squared")
    what = "numbers"

    @property
    def array(self) -> xr.DataArray:
        """Values drawn."""
        return self.opened.drawn

    def score(self, name: str, block: Block) -> xr.DataArray:
        """Return a variance by its name (case, ...)."""
        if self.opened.posterior:
            return _with_unit(variance_figures(self.opened.posterior, block)[0][name])
        if name != "total":
            raise ValueError(
                f"score {name!r} needs loc and scale, or mean and variance, in the posterior "
                "group; this tree tells only 'total', the variance of the values drawn."
            )
        return self.opened.read(block).variance

    def error(self, name: str, block: Block) -> xr.DataArray:
        """Return an error by its name (case, ...), NaN where nothing was observed."""
        read = self.opened.read(block)
        gap = abs(read.observed - read.mean)
        return gap if name == "absolute" else gap**2


@dataclass(frozen=True)
class Source:
    """Scores and errors, not yet read; see `open_source`.

    Args:
        tree: What names are read from; None where both are arrays.
        score: Name, or array (case, ...).
        error: Name, or array (case, ...).
        sizes: Sizes of case and the further axes.
    """

    tree: ClassFigures | NumberFigures | None
    score: Chosen
    error: Chosen
    sizes: dict[str, int]

    @property
    def num_entries(self) -> int:
        """Entries, those left out included."""
        return int(np.prod(list(self.sizes.values())))

    @property
    def unit(self) -> str:
        """Unit of the error."""
        if isinstance(self.error, xr.DataArray):
            return str(self.error.attrs.get("units", "unit of the error"))
        return UNITS[self.error]

    def entries(self) -> Iterator[Entries]:
        """Yield the entries, block by block, in the order of the cases.

        Raises:
            ValueError: A score is not finite where there is an error, or what the tree holds is
                malformed.
        """
        for block in self.blocks():
            score, error = (self.read(kind, block) for kind in ("score", "error"))
            cases = block["case"]
            number = cases.stop - cases.start
            flat = [array.values.reshape(number, -1) for array in (score, error)]
            kept = ~np.isnan(flat[1])
            wanted, errors = (values[kept] for values in flat)
            if not (np.isfinite(wanted).all() and np.isfinite(errors).all()):
                raise ValueError("score or error holds NaN or infinite values; find those cases.")
            left_out = int(kept.size - kept.sum())
            yield Entries(wanted, errors, np.nonzero(kept)[0], number, cases.start, left_out)

    def blocks(self) -> Iterator[Block]:
        """Yield selections that fit the memory limit."""
        per_entry = 1 if self.tree is None else self.tree.array.size // self.num_entries
        yield from split_blocks(self.sizes, per_entry)

    def read(self, kind: str, block: Block) -> xr.DataArray:
        """Return the score or the error of a block (case, ...), float64, in memory."""
        chosen: Chosen = getattr(self, kind)
        if isinstance(chosen, str):
            assert self.tree is not None
            array: xr.DataArray = getattr(self.tree, kind)(chosen, block)
        else:
            array = chosen.isel(block)
        return array.transpose(*self.sizes).astype(np.float64).load()


def scores(tree: Posterior, score: str, *, site: str | None = None) -> xr.DataArray:
    """Return a score of uncertainty, entry by entry.

    Args:
        tree: The tree of `predict`, lazy or not.
        score: Name, as the module says.
        site: Name of the observed numbers, where there are several.

    Returns:
        Score (case, ...), float64.

    Raises:
        TypeError, ValueError: Unknown name, or what it needs is missing or malformed.
    """
    return _whole(_open(tree, site, None), "score", score)


def errors(
    tree: Posterior, error: str, *, site: str | None = None, ignore: int | None = None
) -> xr.DataArray:
    """Return the error of the prediction, entry by entry.

    Args:
        tree: The tree of `predict` on cases with observations, lazy or not.
        error: Name, as the module says.
        site: Name of the observed numbers, where there are several.
        ignore: Observed value, beside -1, that says that an entry has no class.

    Returns:
        Error (case, ...), float64, NaN where nothing was observed; attributes count what was not.

    Raises:
        TypeError, ValueError: Unknown name, or what it needs is missing or malformed.
    """
    found = _whole(_open(tree, site, ignore), "error", error)
    return found.assign_attrs(count_left_out(found))


def open_source(
    tree: Posterior | None,
    score: Chosen,
    error: Chosen | None,
    site: str | None,
    ignore: int | None,
) -> Source:
    """Find scores and errors, without reading them.

    Args:
        tree: The tree of `predict`; None where both are arrays.
        score: Name, or array (case, ...).
        error: Name, or array (case, ...); None is zero_one for classes, absolute for numbers.
        site: Name of the observed numbers, where there are several.
        ignore: Observed value, beside -1, that says that an entry has no class.

    Raises:
        TypeError, ValueError: Unknown name; arrays that are not of the same entries.
    """
    arrays = [item for item in (score, error) if isinstance(item, xr.DataArray)]
    if tree is None and len(arrays) < 2:
        raise ValueError("tree is None, so score and error must both be arrays (case, ...).")
    source = None
    if len(arrays) < 2:
        source = _open(tree, site, ignore)
        error = source.errors[0] if error is None else error
        score, error = _check("score", score, source), _check("error", error, source)
    assert error is not None
    sizes = source.opened.sizes if source is not None else _sizes(arrays[0])
    for name, item in (("score", score), ("error", error)):
        if isinstance(item, xr.DataArray) and {str(d): n for d, n in item.sizes.items()} != sizes:
            raise ValueError(
                f"{name} has dimensions {dict(item.sizes)} where {sizes} is wanted; scores and "
                "errors are of the same entries. For one per case, aggregate maps of both first "
                "(ppl_med.analysis.aggregation)."
            )
    same = arrays if source is None else [*arrays, source.array]
    for other in same[1:]:
        check_cases(other, same[0], "error")
    return Source(source, score, error, sizes)


def _open(
    tree: Posterior | None, site: str | None, ignore: int | None
) -> ClassFigures | NumberFigures:
    if isinstance(tree, xr.DataArray) or (tree is not None and has_probs(tree)):
        return ClassFigures(open_classes(tree), ignore)
    if not isinstance(tree, xr.DataTree):
        raise TypeError(f"tree must be the DataTree of predict, not {type(tree).__name__}.")
    return NumberFigures(open_numbers(tree, site))


def _check(kind: str, chosen: Chosen, source: ClassFigures | NumberFigures) -> Chosen:
    if isinstance(chosen, xr.DataArray):
        return chosen
    known_names = source.scores if kind == "score" else source.errors
    return checks.choice(f"{kind} of {source.what}", chosen, known_names, "or give an array")


def _sizes(array: xr.DataArray) -> dict[str, int]:
    if "case" not in array.dims:
        raise ValueError(f"score and error need the dimension case; got {array.dims}.")
    return {str(dim): size for dim, size in array.transpose("case", ...).sizes.items()}


def _with_unit(figure: tuple[xr.DataArray, xr.DataArray, str]) -> xr.DataArray:
    value, _, unit = figure
    return value.assign_attrs(units=unit)


def _whole(figures: ClassFigures | NumberFigures, kind: str, name: str) -> xr.DataArray:
    _check(kind, name, figures)
    source = Source(figures, name, name, figures.opened.sizes)
    blocks = ((block, source.read(kind, block)) for block in source.blocks())
    return join_blocks(blocks).rename(name)
