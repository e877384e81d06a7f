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

Any other score or error is given as an array. Entries whose error is NaN are left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import xarray as xr

from ppl_med.analysis import uncertainty
from ppl_med.analysis.statistics import monte_carlo
from ppl_med.analysis.tree import (
    Block,
    Classes,
    Numbers,
    Posterior,
    check_cases,
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
CLASS_SCORES = (*ENTROPIES, *VARIANCES, "max_probability")
CLASS_ERRORS, NUMBER_ERRORS = ("zero_one", "brier"), ("absolute", "squared")


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
class ClassSource:
    """Probabilities and observed classes, not yet read.

    Args:
        classes: From the tree.
        ignore: Observed value, beside -1, that says that an entry was not annotated.
    """

    classes: Classes
    ignore: int | None

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of case and the further axes."""
        return self.classes.sizes

    @property
    def per_entry(self) -> int:
        """Numbers that one entry has."""
        return int(np.prod(self.classes.num_samples)) * len(self.classes.names)

    def score(self, name: str, block: Block) -> xr.DataArray:
        """Return a score by its name (case, ...)."""
        if name in ENTROPIES:
            return uncertainty.entropy(self.classes.array.isel(block), mcse=False)[name]
        if name in VARIANCES:
            parts = uncertainty.variance(self.classes.array.isel(block), mcse=False)
            return parts[name].sum("class")
        return 1 - monte_carlo.mean(self.classes.read(block)).max("class")

    def error(self, name: str, block: Block) -> xr.DataArray:
        """Return an error by its name (case, ...), NaN where there is no class."""
        if self.classes.observation() is None:
            raise ValueError(
                "tree has no observed label or mask in observed_data; call predict on batches that "
                "hold labels, or give error as an array."
            )
        label = self.classes.labels(block, ignore=self.ignore)
        mean = monte_carlo.mean(self.classes.read(block))
        if name == "zero_one":
            error = (mean.argmax("class") != label).astype(np.float64)
        else:
            classes = mean["class"].copy(data=np.arange(mean.sizes["class"]))
            error = ((mean - (label == classes)) ** 2).sum("class")
        return error.where(known(label))


@dataclass(frozen=True)
class NumberSource:
    """Predicted and observed numbers, not yet read."""

    numbers: Numbers

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of case and the further axes."""
        return self.numbers.sizes

    @property
    def per_entry(self) -> int:
        """Numbers that one entry has."""
        return self.numbers.num_draws

    def score(self, name: str, block: Block) -> xr.DataArray:
        """Return a variance by its name (case, ...)."""
        if self.numbers.posterior:
            group = self.numbers.parameters(block)
            return uncertainty.variance(group, mcse=False)[name]
        if name != "total":
            raise ValueError(
                f"score {name!r} needs loc and scale, or mean and variance, in the posterior "
                "group; this tree tells only 'total', the variance of the values drawn."
            )
        return self.numbers.read(block).variance

    def error(self, name: str, block: Block) -> xr.DataArray:
        """Return an error by its name (case, ...), NaN where nothing was observed."""
        read = self.numbers.read(block)
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

    tree: ClassSource | NumberSource | None
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
        return {"zero_one": "probability", "brier": "1", "absolute": "unit of the value"}.get(
            self.error, "unit of the value, squared"
        )

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
            case = np.nonzero(kept)[0]
            yield Entries(wanted, errors, case, number, cases.start, left_out)

    def blocks(self) -> Iterator[Block]:
        """Yield selections that fit the memory limit."""
        yield from split_blocks(self.sizes, self.tree.per_entry if self.tree is not None else 1)

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
        site: Of numbers, where there are several.

    Returns:
        Score (case, ...), float64.

    Raises:
        TypeError, ValueError: Unknown name, or what it needs is missing or malformed.
    """
    source = _tree(tree, site, None)
    return _whole(Source(source, _check("score", score, source), "", source.sizes), "score")


def errors(
    tree: Posterior, error: str, *, site: str | None = None, ignore: int | None = None
) -> xr.DataArray:
    """Return the error of the prediction, entry by entry.

    Args:
        tree: The tree of `predict` on cases with observations, lazy or not.
        error: Name, as the module says.
        site: Of numbers, where there are several.
        ignore: Observed value that says that a pixel has no class.

    Returns:
        Error (case, ...), float64, NaN where nothing was observed.

    Raises:
        TypeError, ValueError: Unknown name, or what it needs is missing or malformed.
    """
    source = _tree(tree, site, ignore)
    return _whole(Source(source, "", _check("error", error, source), source.sizes), "error")


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
        site: Of numbers, where there are several.
        ignore: Observed value that says that a pixel has no class.

    Raises:
        TypeError, ValueError: Unknown name; arrays that are not of the same entries.
    """
    arrays = [item for item in (score, error) if isinstance(item, xr.DataArray)]
    if tree is None and len(arrays) < 2:
        raise ValueError("tree is None, so score and error must both be arrays (case, ...).")
    source = None if len(arrays) == 2 else _tree(tree, site, ignore)
    if source is not None:
        if error is None:
            error = CLASS_ERRORS[0] if isinstance(source, ClassSource) else NUMBER_ERRORS[0]
        score, error = _check("score", score, source), _check("error", error, source)
    assert error is not None
    sizes = source.sizes if source is not None else _sizes(arrays[0])
    for name, item in (("score", score), ("error", error)):
        if isinstance(item, xr.DataArray) and {str(d): n for d, n in item.sizes.items()} != sizes:
            raise ValueError(
                f"{name} has dimensions {dict(item.sizes)} where {sizes} is wanted; scores and "
                "errors are of the same entries. For one a case, aggregate maps of both first "
                "(ppl_med.analysis.aggregation)."
            )
    ids = [*arrays, *([source.classes.array] if isinstance(source, ClassSource) else [])]
    if isinstance(source, NumberSource):
        ids.append(source.numbers.observed)
    for other in ids[1:]:
        check_cases(other, ids[0], "error")
    return Source(source, score, error, sizes)


def _tree(
    tree: Posterior | None, site: str | None, ignore: int | None
) -> ClassSource | NumberSource:
    if isinstance(tree, xr.DataArray) or (tree is not None and has_probs(tree)):
        return ClassSource(open_classes(tree), ignore)
    if not isinstance(tree, xr.DataTree):
        raise TypeError(f"tree must be the DataTree of predict, not {type(tree).__name__}.")
    return NumberSource(open_numbers(tree, site))


def _check(kind: str, chosen: Chosen, source: ClassSource | NumberSource) -> Chosen:
    if isinstance(chosen, xr.DataArray):
        return chosen
    classes = isinstance(source, ClassSource)
    known: tuple[str, ...]
    if kind == "score":
        known = CLASS_SCORES if classes else VARIANCES
    else:
        known = CLASS_ERRORS if classes else NUMBER_ERRORS
    if not isinstance(chosen, str) or chosen not in known:
        what = "classes" if classes else "numbers"
        raise ValueError(f"{kind} of {what} must be an array or one of {known}, not {chosen!r}.")
    return chosen


def _sizes(array: xr.DataArray) -> dict[str, int]:
    if "case" not in array.dims:
        raise ValueError(f"score and error need the dimension case; got {array.dims}.")
    return {str(dim): size for dim, size in array.transpose("case", ...).sizes.items()}


def _whole(source: Source, kind: str) -> xr.DataArray:
    whole = join_blocks((block, source.read(kind, block)) for block in source.blocks())
    return whole.rename(str(getattr(source, kind)))
