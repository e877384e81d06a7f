"""Resampling of cases, or of whole groups of cases such as patients, with replacement.

Source: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8: resample
the highest level alone.
"""

from collections.abc import Iterator

import numpy as np

FEWEST = 5  # groups that an error over groups needs


def chosen_groups(num_groups: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the groups (group,) of every resample, drawn with replacement."""
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield rng.integers(0, num_groups, num_groups)


def group_weights(num_groups: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often every group (group,) stands in a resample; nothing of too few groups."""
    if num_groups < FEWEST:
        return
    for chosen in chosen_groups(num_groups, resamples, seed):
        yield np.bincount(chosen, minlength=num_groups).astype(np.float64)


def spread(drawn: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the standard error and the ends of the percentile interval.

    Args:
        drawn: Figures of the resamples (resample, ...); NaN where a resample has no such figure.
        level: Probability of the interval.

    Returns:
        Three arrays (...), NaN where fewer than two resamples have the figure.
    """
    drawn = np.asarray(drawn, np.float64)
    enough = (~np.isnan(drawn)).sum(0) > 1 if len(drawn) else np.zeros(drawn.shape[1:], bool)
    if not enough.any():
        return tuple(np.full(drawn.shape[1:], np.nan) for _ in range(3))  # type: ignore[return-value]
    filled = np.where(enough, drawn, 0.0)  # NumPy warns of a quantile of nothing but NaN
    tail = (1 - level) / 2
    low, high = np.nanquantile(filled, [tail, 1 - tail], axis=0)
    parts = np.nanstd(filled, axis=0, ddof=1), low, high
    return tuple(np.where(enough, part, np.nan) for part in parts)  # type: ignore[return-value]


def named_errors(name: str, drawn: np.ndarray, level: float) -> dict[str, np.ndarray]:
    """Return what `spread` gives as ``<name>_se``, ``<name>_lower`` and ``<name>_upper``."""
    ends = ("se", "lower", "upper")
    return {f"{name}_{end}": part for end, part in zip(ends, spread(drawn, level), strict=True)}
