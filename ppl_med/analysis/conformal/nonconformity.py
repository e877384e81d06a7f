"""Nonconformity scores of prediction sets for classes.

With p the probabilities of a case, p(1) >= p(2) >= ... sorted, r the rank of a class (1 first)
and u uniform on (0, 1), one per case,

    lac    1 - p(r)
    aps    p(1) + ... + p(r-1) + u p(r)
    raps   aps + penalty max(0, r - free_ranks)
    saps   u p(1) for r = 1, else p(1) + (r - 2 + u) penalty

Not randomised means u = 1: sets never empty, and larger. The same u serves calibration and
prediction of a case; it depends on its id and the seed only, so a set does not depend on which
other cases are predicted with it.

Sources: lac Sadinle, Lei and Wasserman, JASA 114, 2019; aps Romano, Sesia and Candes, NeurIPS
2020, arXiv:2006.02544; raps Angelopoulos et al., ICLR 2021, arXiv:2009.14193; saps Huang et al.,
ICML 2024, arXiv:2310.06430, equation 6.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.statistics import monte_carlo

METHODS = ("lac", "aps", "raps", "saps")
DRAWS = ("mixture", "mean_score")


@dataclass(frozen=True)
class Score:
    """A nonconformity score with its settings, which must not be chosen on the calibration cases.

    Args:
        method: "lac", "aps", "raps" or "saps".
        randomised: Use a uniform number per case (not lac): exact coverage, but sets may be
            empty. False takes u = 1 everywhere.
        penalty: Added per rank by raps (beyond ``free_ranks``) and saps, in probability.
        free_ranks: Ranks that raps does not penalise.
        draws: "mixture" scores the mean of the probabilities over draws; "mean_score" averages
            the scores of the single draws. Both are valid; they differ for all but lac.

    Raises:
        ValueError: A setting out of range.
    """

    method: str = "lac"
    randomised: bool = True
    penalty: float = 0.1
    free_ranks: int = 1
    draws: str = "mixture"

    def __post_init__(self) -> None:
        checks.choice("method", self.method, METHODS)
        checks.choice("draws", self.draws, DRAWS)
        checks.finite("penalty", self.penalty, 0)
        checks.whole("free_ranks", self.free_ranks, 0)

    @property
    def of_mixture(self) -> bool:
        """Whether the mixture of the draws is all that the score needs."""
        return self.method == "lac" or self.draws == "mixture"


def score_of(method: str | Score) -> Score:
    """Return a score by its method, or as given."""
    return method if isinstance(method, Score) else Score(method)


def case_scores(probs: xr.DataArray, score: Score, seed: int) -> xr.DataArray:
    """Return the nonconformity score of every class for every case.

    Args:
        probs: (chain, draw, case, class), with case ids.
        score: Which score.
        seed: Seed of the uniform numbers.

    Returns:
        (case, class); small where a class fits.
    """
    if score.method == "lac":
        return 1 - monte_carlo.mean(probs)
    uniform = np.ones(probs.sizes["case"])
    if score.randomised:
        uniform = uniforms(probs["case"].values, seed)
    if score.draws == "mixture":
        mixture = monte_carlo.mean(probs)
        return mixture.copy(data=class_scores(mixture.values, score, uniform))
    return monte_carlo.mean(probs.copy(data=class_scores(probs.values, score, uniform)))


def class_scores(probs: np.ndarray, score: Score, uniform: np.ndarray) -> np.ndarray:
    """Return the scores of probability vectors.

    Args:
        probs: (..., class); the most probable class is the first of those that tie.
        score: Which score.
        uniform: u (...), 1 where not randomised; broadcast against ``probs``.

    Returns:
        (..., class).
    """
    if score.method == "lac":
        return 1 - probs
    order = np.argsort(-probs, axis=-1, kind="stable")
    ordered = np.take_along_axis(probs, order, axis=-1)
    rank = np.arange(1, probs.shape[-1] + 1)
    u = np.asarray(uniform)[..., None]
    if score.method == "saps":
        first = ordered[..., :1]
        value = np.where(rank == 1, u * first, first + (rank - 2 + u) * score.penalty)
    else:
        ordered = ordered / ordered.sum(-1, keepdims=True)
        below = np.cumsum(ordered, axis=-1)
        below[..., -1] = 1  # or rounding would order the ties there
        value = below - (1 - u) * ordered
        if score.method == "raps":
            value = value + score.penalty * np.maximum(0, rank - score.free_ranks)
    result = np.empty_like(value)
    np.put_along_axis(result, order, value, axis=-1)
    return result


def uniforms(ids: np.ndarray, seed: int) -> np.ndarray:
    """Return one number in [0, 1) per case id, the same whenever id and seed are."""
    digests = (hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest() for name in ids)
    return np.array([int.from_bytes(digest) >> 11 for digest in digests]) / 2**53
