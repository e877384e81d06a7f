"""Is it a label shift and nothing else: the same classes in other shares?

The shares q of the classes are those with which the labelled reference is most like the target, by
the squared maximum mean discrepancy with a Gaussian kernel

    D(q) = |sum_y q_y m_y - m|^2,   m_y the mean embedding of class y, m that of the target

(kernel mean matching). D at its least is compared with what it is where the hypothesis holds: both
samples are drawn anew from the reference, the second with shares q, and q is fitted to each such
pair again, so that the p-value allows for its estimation. Whole units (patients) are drawn, and
pairs of cases of one unit count nowhere.

Source: Zhang, Schoelkopf, Muandet and Wang, ICML 2013; Gretton et al., JMLR 13, 2012.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

from ppl_med import checks

_WIDTH = 0.5  # of the median distance: classes are smaller than the whole
_STEPS = 300  # of accelerated projected gradients, for up to some dozen classes
_TRIES = 100  # to draw a reference in which every class occurs


class LabelFit(NamedTuple):
    """The best label shift.

    Attributes:
        share: Shares of the classes (class,).
        discrepancy: D at its least, unbiased for its square.
        pvalue: That so large a discrepancy comes of a label shift alone.
    """

    share: np.ndarray
    discrepancy: float
    pvalue: float


@dataclass(frozen=True)
class Sample:
    """Points and whose they are.

    Args:
        points: (case, direction).
        units: Number of the unit of every case (case,), from 0 without a gap.
    """

    points: np.ndarray
    units: np.ndarray

    @property
    def num_units(self) -> int:
        """Number of units."""
        return int(self.units.max()) + 1


def fit_label_shift(
    reference: Sample,
    label: np.ndarray,
    target: Sample,
    num_classes: int,
    resamples: int,
    seed: int,
) -> LabelFit:
    """Fit shares and test the hypothesis.

    Args:
        reference: Labelled cases.
        label: Their classes (case,), each in 2 units at least.
        target: Cases of unknown class.
        num_classes: Number of classes.
        resamples: Pairs of samples drawn under the hypothesis.
        seed: Of these.
    """
    random = np.random.default_rng(seed)
    member = np.eye(num_classes)[label]  # (case, class)
    kernel = _kernel(np.concatenate([reference.points, target.points]))
    size = len(label)
    inner, across = kernel[:size, :size], kernel[:size, size:]
    blocks = _Blocks(inner, member, reference)
    own = _Blocks(kernel[size:, size:], np.ones((len(target.units), 1)), target)
    once, once_target = np.ones((1, blocks.num_units)), np.ones((1, own.num_units))
    gram = blocks.means(once)
    cross = (member.T @ across.sum(1) / member.sum(0) / across.shape[1])[None]
    share, least = _least(gram, cross, own.means(once_target)[:, 0, 0])
    weight = np.bincount(reference.units, (share[0] / member.mean(0))[label])
    chance = weight / weight.sum()
    all_cases = _Blocks(inner, np.ones((size, 1)), reference)
    times = np.stack([_draw_reference(blocks, random) for _ in range(resamples)])
    drawn = random.multinomial(own.num_units, chance, resamples).astype(np.float64)
    cross = blocks.across(times, drawn)
    null = _least(blocks.means(times), cross, all_cases.means(drawn)[:, 0, 0])[1]
    extreme = int((null >= least[0]).sum())
    return LabelFit(share[0], float(least[0]), (1 + extreme) / (1 + resamples))


class _Blocks:
    """Kernel sums over the cells, the cases of a class of a unit, which give any resample."""

    def __init__(self, kernel: np.ndarray, member: np.ndarray, sample: Sample) -> None:
        self.num_units, self.num_classes = sample.num_units, member.shape[1]
        cell = sample.units * self.num_classes + member.argmax(1)
        names, cell = np.unique(cell, return_inverse=True)
        self.unit, self.kind = names // self.num_classes, names % self.num_classes
        columns = np.eye(len(names))[cell]
        self.sums = (
            columns.T @ kernel @ columns
            if len(names) < len(cell)
            else kernel[np.ix_(np.argsort(cell), np.argsort(cell))]
        )
        self.count = np.zeros((self.num_units, self.num_classes))
        self.count[self.unit, self.kind] = np.bincount(cell)
        self.within = np.zeros((*self.count.shape, self.num_classes))
        one, other = np.nonzero(self.unit[:, None] == self.unit)
        self.within[self.unit[one], self.kind[one], self.kind[other]] = self.sums[one, other]
        self.by_class = np.eye(self.num_classes)[self.kind]  # (cell, class)

    def means(self, times: np.ndarray) -> np.ndarray:
        """Mean kernel between classes (resample, class, class) of pairs of different draws."""
        number, of_cell = times @ self.count, times[:, self.unit]
        result = np.empty((len(times), self.num_classes, self.num_classes))
        for k in range(self.num_classes):
            mine = self.kind == k
            summed = (of_cell[:, mine] @ self.sums[mine]) * of_cell
            result[:, k] = summed @ self.by_class - times @ self.within[:, k]
            pairs = number[:, k, None] * number
            result[:, k] /= pairs - times @ (self.count[:, k, None] * self.count)
        return result

    def across(self, times: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """Mean kernel of every class of one resample with all cases of another."""
        total = ((drawn[:, self.unit] @ self.sums) * times[:, self.unit]) @ self.by_class
        return total / (times @ self.count) / (drawn @ self.count).sum(1, keepdims=True)


def _draw_reference(blocks: _Blocks, random: np.random.Generator) -> np.ndarray:
    """How often every unit is drawn, such that every class is drawn from two times or more."""
    number = blocks.num_units
    for _ in range(_TRIES):
        times = np.bincount(random.integers(0, number, number), minlength=number)
        if ((times @ (blocks.count > 0)) >= 2).all():
            return times.astype(np.float64)
    rarest = int((blocks.count > 0).sum(0).min())
    checks.reject("held_out", "of more units (cases, patients) of every class", rarest)


def _kernel(points: np.ndarray) -> np.ndarray:
    square = cdist(points, points, "sqeuclidean")
    middle = float(np.median(square[np.triu_indices(len(points), 1)]))
    middle = middle if middle > 0 else float(square.mean()) or 1.0
    return np.exp(-square / (2 * _WIDTH**2 * middle))


def _least(gram: np.ndarray, cross: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares (resample, class) with the least q'Gq - 2q'c + o, and that value."""
    share = np.full(cross.shape, 1 / cross.shape[1])
    point, momentum = share, 1.0
    steepest = np.linalg.norm(gram, axis=(1, 2), ord=2)[:, None]
    for _ in range(_STEPS):
        slope = np.einsum("rkl,rl->rk", gram, point) - cross
        following = _to_simplex(point - slope / steepest)
        faster = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        point = following + (momentum - 1) / faster * (following - share)
        share, momentum = following, faster
    value = np.einsum("rk,rkl,rl->r", share, gram, share) - 2 * (share * cross).sum(1) + own
    return share, value


def _to_simplex(values: np.ndarray) -> np.ndarray:
    """Nearest points (resample, class) that are not negative and sum to 1."""
    ordered = -np.sort(-values, axis=1)
    excess = np.cumsum(ordered, 1) - 1
    number = np.arange(1, values.shape[1] + 1)
    last = (ordered - excess / number > 0).sum(1)
    level = excess[np.arange(len(values)), last - 1] / last
    return np.maximum(values - level[:, None], 0.0)
