"""Newton's method for a multinomial logistic model that is linear in its parameters.

    logits of a case (class) = design (class, parameter) @ parameters
    minimise  mean NLL + sum of ridge * (parameters)^2

The NLL is convex. Directions that change no probability (a constant added to every logit) are
left where they start. Steps are halved until the NLL falls.

Source: Boyd and Vandenberghe, Convex Optimization, 2004, section 9.5.
"""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
from scipy.special import log_softmax

Design: TypeAlias = Callable[[np.ndarray], np.ndarray]

_FLAT = 1e-11  # curvature, relative to the largest at the start, taken for none
_BLOCK = 2_000_000  # numbers of the design held at a time
_STEPS = 100


def minimise(
    design: Design,
    inputs: np.ndarray,
    label: np.ndarray,
    start: np.ndarray,
    ridge: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Return the parameters of least mean NLL plus ridge.

    Args:
        design: From inputs (case, ...) to (case, class, parameter).
        inputs: What the design is made of (case, ...).
        label: Index of the observed class (case,).
        start: Where to begin (parameter,).
        ridge: Weight of the square of each parameter (parameter,), 0 or more.

    Returns:
        Parameters (parameter,).

    Raises:
        ValueError: The NLL has no finite minimum.
    """
    ridge = np.broadcast_to(ridge, start.shape)
    blocks = _blocks(design, inputs, start.size)
    point = start.astype(np.float64)
    value, gradient, curvature = _expand(blocks, label, point, ridge)
    smallest = _FLAT * np.linalg.eigvalsh(curvature).max()
    directions = _num_curved(curvature, smallest)
    for _ in range(_STEPS):
        step = -np.linalg.pinv(curvature, rcond=1e-13, hermitian=True) @ gradient
        trial = _shorten(lambda p: _value(blocks, label, p, ridge), point, step, value, gradient)
        if trial is None:
            break
        point = trial
        value, gradient, curvature = _expand(blocks, label, point, ridge)
    if _num_curved(curvature, smallest) < directions:
        raise ValueError(
            "No finite parameters are best: some class can be told from the rest without error, "
            "or never occurs among the calibration cases. Use more cases or "
            "method='temperature'."
        )
    return point


def _shorten(
    loss: Callable[[np.ndarray], float],
    point: np.ndarray,
    step: np.ndarray,
    value: float,
    gradient: np.ndarray,
) -> np.ndarray | None:
    """Where a step leads that lowers the loss; None if no lower value can be told from this one."""
    decrease = float(-gradient @ step)
    if decrease < 1e-20:
        return None
    length = 1.0
    while length > 1e-8:
        trial = point + length * step
        if loss(trial) <= value - 1e-4 * length * decrease:
            return trial
        length /= 2
    return None


def _num_curved(curvature: np.ndarray, smallest: float) -> int:
    """Directions that change the loss. One that stops doing so on the way leads to infinity."""
    return int((np.linalg.eigvalsh(curvature) > smallest).sum())


def _blocks(
    design: Design, inputs: np.ndarray, size: int
) -> Callable[[], Iterator[tuple[slice, np.ndarray]]]:
    classes = design(inputs[:1]).shape[1]
    step = max(1, _BLOCK // (classes * size))

    def blocks() -> Iterator[tuple[slice, np.ndarray]]:
        for first in range(0, len(inputs), step):
            part = slice(first, first + step)
            yield part, design(inputs[part])

    return blocks


def _value(blocks: Callable, label: np.ndarray, point: np.ndarray, ridge: np.ndarray) -> float:
    total = 0.0
    for part, table in blocks():
        log_probs = log_softmax(table @ point, axis=1)
        total -= np.take_along_axis(log_probs, label[part, None], 1).sum()
    return total / len(label) + float(ridge @ point**2)


def _expand(
    blocks: Callable, label: np.ndarray, point: np.ndarray, ridge: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Value, gradient (parameter,) and curvature (parameter, parameter)."""
    gradient, curvature = np.zeros(point.size), np.zeros((point.size, point.size))
    for part, table in blocks():
        probs = np.exp(log_softmax(table @ point, axis=1))
        mean = np.einsum("nk,nkj->nj", probs, table)
        seen = np.take_along_axis(table, label[part, None, None], 1)[:, 0]
        gradient += (mean - seen).sum(0)
        flat = (np.sqrt(probs)[..., None] * table).reshape(-1, point.size)
        curvature += flat.T @ flat - mean.T @ mean
    gradient = gradient / len(label) + 2 * ridge * point
    curvature = curvature / len(label) + 2 * np.diag(ridge)
    return _value(blocks, label, point, ridge), gradient, curvature
