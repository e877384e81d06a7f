"""Scores of the features of a layer, learnt from in-distribution cases, draw by draw.

Features differ from draw to draw, so each draw has a reference of its own, and the score of a case
is the mean over draws. Larger: more unlike training.

    mahalanobis            min_c (f - m_c)' S^-1 (f - m_c), S the covariance within classes
    relative_mahalanobis   the same less the distance from all classes together
    knn                    distance to the k-th nearest of the features, all of length 1
    residual               length of f - u outside the span of the main directions
    vim                    a * residual - logsumexp z, a the ratio of mean max z to mean residual

S^-1 is that of the directions in which features vary: eigenvalues below a share of the largest are
left out, so that distances do not change under an invertible linear map, nor by units that are
always 0. Such a unit says nothing, whatever a new case has in it.

Sources: Lee et al., NeurIPS 2018, arXiv:1807.03888; Ren et al., arXiv:2106.09022; Sun et al., ICML
2022, arXiv:2204.06507; Wang et al., CVPR 2022, arXiv:2203.10807.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logsumexp
from sklearn.neighbors import NearestNeighbors

Fitted = dict[str, np.ndarray]
"""What one draw has learnt, by name; arrays of any shape."""

CUT = 1e-9  # of the largest eigenvalue
RESOLUTION = 1e-7  # of float32: a unit that varies less than this share of it is constant
_BLOCK = 4096  # cases at a time


@dataclass(frozen=True)
class Learnt:
    """How a score learns from one draw, and how it scores.

    Args:
        fit: From features (case, unit), classes (case,), logits (case, class) or None, and
            settings, to what was learnt.
        score: From what was learnt, features and logits to scores (case,).
        needs: "label", "logit", or both, where it needs more than features.
        settings: Names and defaults; None where the default follows from the sizes.
    """

    fit: Callable[..., Fitted]
    score: Callable[[Mapping[str, np.ndarray], np.ndarray, np.ndarray | None], np.ndarray]
    needs: frozenset[str] = frozenset()
    settings: Mapping[str, Any] | None = None


def whitening(feature: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Matrix (unit, direction) under which features less their centres have the covariance 1.

    Columns of directions in which they do not vary are 0.

    Raises:
        ValueError: They vary in none, so that every distance would be 0.
    """
    centred = feature - centre
    scale = centred.std(0)
    constant = scale <= RESOLUTION * np.abs(feature).max(0)
    if constant.all():
        raise ValueError(
            f"the features of these {len(feature)} cases do not vary, or no class has two of them, "
            "and distances need a covariance; choose another layer, or pass more cases."
        )
    scale = np.where(constant, np.inf, scale)  # units of any scale are alike
    values, vectors = np.linalg.eigh((centred / scale).T @ (centred / scale) / len(centred))
    kept = values > max(values[-1], 0.0) * CUT
    inverse = np.where(kept, 1 / np.sqrt(np.where(kept, values, 1.0)), 0.0)
    return (vectors * inverse) / scale[:, None]


def square_length(centred: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis distance (case) of centred features, by their whitening."""
    return ((centred @ matrix) ** 2).sum(-1)


def _class_means(feature: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """Mean features (class, unit); NaN for a class that does not occur."""
    sums = np.zeros((num_classes, feature.shape[1]))
    np.add.at(sums, label, feature)
    count = np.bincount(label, minlength=num_classes)[:, None]
    return np.where(count > 0, sums / np.maximum(count, 1), np.nan)


def fit_mahalanobis(
    feature: np.ndarray, label: np.ndarray, logit: np.ndarray | None, num_classes: int
) -> Fitted:
    """Class means and the common covariance within classes."""
    means = _class_means(feature, label, num_classes)
    return {"mean": means, "whitening": whitening(feature, means[label])}


def mahalanobis(
    learnt: Mapping[str, np.ndarray], feature: np.ndarray, logit: np.ndarray | None
) -> np.ndarray:
    """Squared distance from the nearest class mean."""
    means = learnt["mean"]
    known = means[~np.isnan(means).any(1)]
    white = (feature - known[0]) @ learnt["whitening"]  # once, not for every class
    centres = (known - known[0]) @ learnt["whitening"]
    return np.min([((white - centre) ** 2).sum(1) for centre in centres], axis=0)


def fit_relative(
    feature: np.ndarray, label: np.ndarray, logit: np.ndarray | None, num_classes: int
) -> Fitted:
    """As `fit_mahalanobis`, and mean and covariance of all classes together."""
    centre = feature.mean(0)
    found = fit_mahalanobis(feature, label, logit, num_classes)
    return {**found, "centre": centre, "whitening_of_all": whitening(feature, centre)}


def relative_mahalanobis(
    learnt: Mapping[str, np.ndarray], feature: np.ndarray, logit: np.ndarray | None
) -> np.ndarray:
    """Distance from the nearest class less that from all of them."""
    of_all = square_length(feature - learnt["centre"], learnt["whitening_of_all"])
    return mahalanobis(learnt, feature, logit) - of_all


def _normalised(feature: np.ndarray) -> np.ndarray:
    """Features of length 1; those of length 0 stay 0."""
    length = np.linalg.norm(feature, axis=1, keepdims=True)
    return feature / np.where(length > 0, length, 1.0)


def fit_knn(
    feature: np.ndarray,
    label: np.ndarray | None,
    logit: np.ndarray | None,
    num_classes: int,
    k: int | None = None,
) -> Fitted:
    """The features themselves. ``k`` is one in a hundred cases, at least 1 and at most 50."""
    chosen = min(50, max(1, len(feature) // 100)) if k is None else k
    if chosen > len(feature):
        raise ValueError(f"k must be at most the number of cases, {len(feature)}, got {chosen}.")
    bank = _normalised(feature).astype(np.float32)
    return {"bank": bank[np.lexsort(bank.T)], "k": np.array(chosen)}  # whatever their order was


def knn(
    learnt: Mapping[str, np.ndarray], feature: np.ndarray, logit: np.ndarray | None
) -> np.ndarray:
    """Distance to the k-th nearest."""
    k = int(learnt["k"])
    nearest = NearestNeighbors(n_neighbors=k, algorithm="brute")
    nearest.fit(learnt["bank"].astype(np.float64))
    runs = (_normalised(feature[at : at + _BLOCK]) for at in range(0, len(feature), _BLOCK))
    return np.concatenate([nearest.kneighbors(run)[0][:, -1] for run in runs])


def main_dimension(unit: int, cases: int) -> int:
    """Number of main directions: 1000, 512 or half the units, as published; below the cases."""
    number = 1000 if unit >= 2048 else 512 if unit >= 768 else unit // 2
    return max(1, min(number, unit - 1, cases - 1))


def fit_residual(
    feature: np.ndarray,
    label: np.ndarray | None,
    logit: np.ndarray | None,
    num_classes: int,
    dimension: int | None = None,
) -> Fitted:
    """Directions outside the main ones. The origin is the mean of the features."""
    return _subspace(feature, feature.mean(0), dimension)


def _subspace(feature: np.ndarray, origin: np.ndarray, dimension: int | None) -> Fitted:
    unit = feature.shape[1]
    number = main_dimension(unit, len(feature)) if dimension is None else dimension
    if not 0 < number < unit:
        raise ValueError(f"dimension must lie between 1 and {unit - 1}, got {number}.")
    centred = feature - origin
    _, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    return {"origin": origin, "outside": vectors[:, : unit - number]}


def residual(
    learnt: Mapping[str, np.ndarray], feature: np.ndarray, logit: np.ndarray | None
) -> np.ndarray:
    """Length of what lies outside the main directions."""
    return np.linalg.norm((feature - learnt["origin"]) @ learnt["outside"], axis=1)


def last_layer(feature: np.ndarray, logit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (class, unit) and biases (class) of the last layer, from its inputs and outputs.

    Raises:
        ValueError: The features are not the inputs of the last layer.
    """
    design = np.concatenate([feature, np.ones((len(feature), 1))], 1)
    solved, *_ = np.linalg.lstsq(design, logit, rcond=None)
    off = np.abs(design @ solved - logit).max()
    if len(feature) <= design.shape[1] or off > 1e-3 * max(1.0, np.abs(logit).max()):
        raise ValueError(
            f"logits are no linear function of these features (off by {off:.3g} over "
            f"{len(feature)} cases of {feature.shape[1]} units): this score needs the inputs of "
            "the last linear layer, and more cases than units."
        )
    return solved[:-1].T, solved[-1]


def fit_vim(
    feature: np.ndarray,
    label: np.ndarray | None,
    logit: np.ndarray,
    num_classes: int,
    dimension: int | None = None,
) -> Fitted:
    """As `fit_residual`, from where all logits are 0, and the scale of the virtual logit.

    Weights and biases of the last layer follow from its inputs and outputs: z = W f + b.

    Raises:
        ValueError: The features are not the inputs of the last layer.
    """
    weights, bias = last_layer(feature, logit)
    origin = -np.linalg.pinv(weights) @ bias
    found = _subspace(feature, origin, dimension)
    left = residual(found, feature, None).mean()
    if left <= RESOLUTION * np.abs(feature).max():
        rank = np.linalg.matrix_rank(feature - origin)
        raise ValueError(
            f"dimension must be below {rank}, the number of directions in which the features vary: "
            "the main directions hold all of them, and vim weighs what is left."
        )
    return {**found, "scale": np.array(logit.max(1).mean() / left)}


def vim(
    learnt: Mapping[str, np.ndarray], feature: np.ndarray, logit: np.ndarray | None
) -> np.ndarray:
    """Virtual logit less the log of the sum of the others."""
    assert logit is not None
    return float(learnt["scale"]) * residual(learnt, feature, None) - logsumexp(logit, axis=1)


SCORES: dict[str, Learnt] = {
    "mahalanobis": Learnt(fit_mahalanobis, mahalanobis, frozenset({"label"})),
    "relative_mahalanobis": Learnt(fit_relative, relative_mahalanobis, frozenset({"label"})),
    "knn": Learnt(fit_knn, knn, settings={"k": None}),
    "residual": Learnt(fit_residual, residual, settings={"dimension": None}),
    "vim": Learnt(fit_vim, vim, frozenset({"logit"}), {"dimension": None}),
}
