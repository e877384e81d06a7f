"""Smooth calibration error: a kernel in place of bins, its width chosen by the error itself.

With r(t) the density of (y - p) / N put at p, and K_s the Gaussian kernel of width s reflected at
0 and 1,

    error(s) = integral over t in 0..1 of |K_s r|(t)        smooth error = the s with error(s) = s

The error falls as s grows, so there is one such s. Unlike a binned error it has no jumps, and it
is within a constant factor of the distance to the nearest calibrated predictor.

The kernel is that of heat flow between insulated walls, so a cosine transform applies it exactly
on a grid. An error below the width of a grid cell (1/1024) is given at that width.

Source: Błasiok and Nakkiran, ICLR 2024, arXiv:2309.12236, sections 2 and 3.
"""

import numpy as np
from scipy.fft import dct, idct
from scipy.optimize import brentq

_CELLS = 1024


def smooth_error(probability: np.ndarray, outcome: np.ndarray) -> tuple[float, float]:
    """Return the smooth calibration error and the width of its kernel.

    Args:
        probability: Predicted probability (case,), 0..1.
        outcome: 1 where it happened, else 0 (case,).

    Returns:
        Error and width, both probabilities; equal unless the error is below 1/1024.
    """
    waves = dct(_on_grid(probability, (outcome - probability) / probability.size))

    def error(width: float) -> float:
        damping = np.exp(-((np.pi * width * np.arange(_CELLS)) ** 2) / 2)
        return float(np.abs(idct(waves * damping)).sum())

    smallest = 1 / _CELLS
    if error(smallest) <= smallest:
        return error(smallest), smallest
    width = float(brentq(lambda s: error(s) - s, smallest, 1.0, xtol=1e-9))
    return error(width), width


def _on_grid(position: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Share each mass between the centres of the two nearest cells."""
    place = np.clip(position * _CELLS - 0.5, 0, _CELLS - 1)
    left = np.minimum(place.astype(np.int64), _CELLS - 2)
    share = place - left
    return np.bincount(left, mass * (1 - share), _CELLS) + np.bincount(
        left + 1, mass * share, _CELLS
    )
