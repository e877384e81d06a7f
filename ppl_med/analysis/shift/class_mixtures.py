"""Two accounts of a shift that is more than one of labels, by mixtures of normal distributions.

    added    the classes stay where they are, in any shares; one component joins them     (semantic)
    moved    the classes move: all by a common shift and linear map, each by its own offset
             from it, shrunk towards 0                                                   (covariate)

The classes are those of the labelled reference: a mean and a covariance each, drawn towards the
common one, and as wide as held-out cases of the reference need. Both accounts have few parameters
and are compared by the log density of cases that their fit has not seen.

Source: of the comparison, Smyth, Statistics and Computing 10, 2000 (cross-validated likelihood of
mixtures).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_FOLDS = 5
_STEPS = 30  # of expectation-maximization
_POOLED = 30.0  # cases for which the common covariance stands in that of a class
_NEW = 10.0  # likewise in that of the new component
_OFFSET = 20.0  # cases that hold a class at the common shift
_SHAPE = 50.0  # cases that hold the common covariance as it was
_RIDGE = 1e-3
_STARTS = (0.15, 0.4)  # share of the cases, those of least density, where the new component starts
_TINY = 1e-12


@dataclass(frozen=True)
class Mixture:
    """Normal components.

    Args:
        mean: (component, direction).
        covariance: (component, direction, direction).
        common: Covariance within classes (direction, direction).
    """

    mean: np.ndarray
    covariance: np.ndarray
    common: np.ndarray

    def log_density(self, points: np.ndarray) -> np.ndarray:
        """Log density (case, component) of points (case, direction)."""
        return _log_normal(points, self.mean, self.covariance)


class Fit(NamedTuple):
    """A fitted account.

    Attributes:
        log_density: Of points (case, direction), to (case,).
        share: Of the components of the reference (component,); of "added" they sum to 1 less the
            share of the new one.
        moves: By how much the components have moved (component, direction); 0 where they stay.
        added: Probability that a point (case, direction) is of the new component, to (case,).
    """

    log_density: Callable[[np.ndarray], np.ndarray]
    share: np.ndarray
    moves: np.ndarray
    added: Callable[[np.ndarray], np.ndarray]


def fit_classes(points: np.ndarray, label: np.ndarray, num_classes: int) -> Mixture:
    """Learn the classes of a labelled reference; every class occurs.

    Args:
        points: (case, direction).
        label: Class (case,).
        num_classes: Number of classes.
    """
    classes = _classes(points, label, num_classes)
    fold = np.empty(len(points), np.int64)
    for k in range(num_classes):  # so that of every class some cases are seen
        fold[label == k] = np.arange((label == k).sum()) % _FOLDS
    square = 0.0
    for number in range(_FOLDS):
        others = _classes(points[fold != number], label[fold != number], num_classes)
        for k in range(num_classes):
            own = points[(fold == number) & (label == k)]
            root = np.linalg.cholesky(others.covariance[k : k + 1])
            square += _squares(own, others.mean[k : k + 1], root).sum()
    wider = square / points.size
    return Mixture(classes.mean, wider * classes.covariance, classes.common)


def _classes(points: np.ndarray, label: np.ndarray, num_classes: int) -> Mixture:
    mean = np.stack([points[label == k].mean(0) for k in range(num_classes)])
    rest = points - mean[label]
    common = rest.T @ rest / len(rest) + _RIDGE * np.eye(points.shape[1])
    own = [rest[label == k] for k in range(num_classes)]
    covariance = np.stack([(one.T @ one + _POOLED * common) / (len(one) + _POOLED) for one in own])
    return Mixture(mean, covariance, common)


def fit_added(classes: Mixture, points: np.ndarray) -> Fit:
    """Fit "added": the components stay, one joins them."""
    share, new, centre, shape = _expect_added(classes, points)

    def joined(others: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [
                np.log(share + _TINY) + classes.log_density(others),
                np.log(new + _TINY) + _log_normal(others, centre[None], shape[None]),
            ],
            axis=1,
        )

    def added(others: np.ndarray) -> np.ndarray:
        logs = joined(others)
        return np.exp(logs[:, -1] - _log_sum(logs))

    stay = np.zeros_like(classes.mean)
    return Fit(lambda others: _log_sum(joined(others)), share, stay, added)


def _expect_added(
    classes: Mixture, points: np.ndarray
) -> tuple[np.ndarray, float, np.ndarray, np.ndarray]:
    """Shares of the components, share, centre and shape of the new one, by the better start."""
    inside = classes.log_density(points)
    order = np.argsort(_log_sum(inside))
    prior = 2 * _NEW * classes.common
    best: tuple[float, tuple[np.ndarray, float, np.ndarray, np.ndarray]] | None = None
    for start in _STARTS:
        weight = np.zeros(len(points))
        weight[order[: max(5, int(start * len(points)))]] = 1.0
        share, new = np.full(inside.shape[1], 0.8 / inside.shape[1]), 0.2
        reached = 0.0
        for _ in range(_STEPS):
            total = weight.sum() + _TINY
            centre = weight @ points / total
            rest = points - centre
            shape = ((rest * weight[:, None]).T @ rest + prior) / (total + _NEW)
            logs = np.concatenate(
                [
                    np.log(share + _TINY) + inside,
                    np.log(new + _TINY) + _log_normal(points, centre[None], shape[None]),
                ],
                axis=1,
            )
            sums = _log_sum(logs)
            chance = np.exp(logs - sums[:, None])
            share, new, weight = chance[:, :-1].mean(0), float(chance[:, -1].mean()), chance[:, -1]
            reached = float(sums.mean())
        if best is None or reached > best[0]:
            best = reached, (share, new, centre, shape)
    assert best is not None
    return best[1]


def fit_moved(classes: Mixture, points: np.ndarray) -> Fit:
    """Fit "moved": every component moves."""
    number = len(classes.mean)
    share = np.full(number, 1 / number)
    now = Mixture(
        classes.mean + points.mean(0) - classes.mean.mean(0), classes.covariance, classes.common
    )
    root = np.linalg.cholesky(classes.common)
    for _ in range(_STEPS):
        logs = np.log(share + _TINY) + now.log_density(points)
        chance = np.exp(logs - _log_sum(logs)[:, None])
        count = chance.sum(0)
        share = count / count.sum()
        apart = chance.T @ points - count[:, None] * classes.mean
        shift = apart.sum(0) / (count.sum() + 1)
        mean = classes.mean + shift
        mean += (apart - count[:, None] * shift) / (count[:, None] + _OFFSET)
        total = _SHAPE * classes.common
        for one, weight in zip(mean, chance.T, strict=True):
            total = total + ((points - one) * weight[:, None]).T @ (points - one)
        turn = np.linalg.cholesky(total / (_SHAPE + len(points))) @ np.linalg.inv(root)
        now = Mixture(mean, turn @ classes.covariance @ turn.T, classes.common)

    def log_density(others: np.ndarray) -> np.ndarray:
        return _log_sum(np.log(share + _TINY) + now.log_density(others))

    moves = now.mean - classes.mean
    return Fit(log_density, share, moves, lambda others: np.zeros(len(others)))


def held_out_density(
    fit: Callable[[Mixture, np.ndarray], Fit],
    classes: Mixture,
    points: np.ndarray,
    folds: np.ndarray,
) -> np.ndarray:
    """Log density (case,) of every case under a fit to the other folds.

    Args:
        fit: `fit_added` or `fit_moved`.
        classes: The reference.
        points: (case, direction).
        folds: Fold of every case (case,).
    """
    result = np.empty(len(points))
    for fold in np.unique(folds):
        inside = folds == fold
        result[inside] = fit(classes, points[~inside]).log_density(points[inside])
    return result


def _log_normal(points: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Log density (case, component) of means and covariances (component, ...)."""
    root = np.linalg.cholesky(covariance)
    constant = np.log(np.diagonal(root, axis1=1, axis2=2)).sum(1)
    constant = constant + 0.5 * points.shape[1] * np.log(2 * np.pi)
    return -0.5 * _squares(points, mean, root) - constant


def _squares(points: np.ndarray, mean: np.ndarray, root: np.ndarray) -> np.ndarray:
    """Squared distances (case, component), root the Cholesky factors of the covariances."""
    scaled = (points - mean[:, None]) @ np.linalg.inv(root).transpose(0, 2, 1)
    return (scaled**2).sum(-1).T


def _log_sum(logs: np.ndarray) -> np.ndarray:
    """Log of the sum over components of exponentials (case, component)."""
    highest = logs.max(1)
    return highest + np.log(np.exp(logs - highest[:, None]).sum(1))
