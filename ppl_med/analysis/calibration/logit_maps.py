"""Maps of the logarithms of the probabilities: temperature, vector and matrix scaling.

With z = log p of a case (class), calibrated probabilities are softmax of

    temperature   z / T                  one number; the most probable class never changes
    vector        a * z + b              scale and intercept of each class (for two classes: Platt)
    matrix        W z + b                all of them (Dirichlet calibration)

fitted by the least mean NLL. All are linear in their parameters, so the NLL is convex: one solver,
Newton's method, runs to the minimum. Matrix scaling adds ``penalty`` times the squares of the
off-diagonal weights and of the intercepts (ODIR), without which it overfits.

Sources: Guo et al., ICML 2017, arXiv:1706.04599, sections 4.1 and 4.2; Kull et al., NeurIPS 2019,
arXiv:1910.12656 (matrix on log-probabilities, ODIR); Platt, 1999.
"""

from typing import TypeAlias

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_softmax

from ppl_med.analysis.calibration import newton

Parameters: TypeAlias = dict[str, np.ndarray]

_LIMIT = 1e4  # a temperature beyond this, or below its inverse, says that none is best


def learn_temperature(
    log_probs: np.ndarray, label: np.ndarray, num_cases: int, seen: np.ndarray | None = None
) -> Parameters:
    """Return the temperature of least NLL, and its standard error.

    Args:
        log_probs: Logarithms of probabilities (case, class); -inf where one is 0.
        label: Index of the observed class (case,).
        num_cases: Independent cases among the rows: equal blocks of rows, such as the pixels of
            a case, move together.
        seen: Which entries of all cases the rows are (case, ...); None is all of them.

    Returns:
        ``temperature`` and ``temperature_se`` (sandwich estimate, right also where no temperature
        makes the probabilities calibrated).

    Raises:
        ValueError: No temperature is best: the classes are always right, or worse than chance.
    """
    chosen = np.take_along_axis(log_probs, label[:, None], 1)[:, 0]
    if np.isneginf(chosen).any():
        raise ValueError(
            f"{int(np.isneginf(chosen).sum())} case(s) have probability exactly 0 of the observed "
            "class, which no temperature mends; predict in float64, or use method='histogram'."
        )
    finite = np.where(np.isneginf(log_probs), 0.0, log_probs)

    def gradients(log_beta: float) -> np.ndarray:
        probs = np.exp(log_softmax(np.exp(log_beta) * log_probs, axis=1))
        return (probs * finite).sum(1) - chosen

    low, high = -np.log(_LIMIT), np.log(_LIMIT)
    if gradients(high).mean() <= 0:
        raise ValueError(
            "Every calibration case is predicted right, or nearly: the NLL falls without end as "
            "the temperature goes to 0. Use more cases."
        )
    if gradients(low).mean() >= 0:
        raise ValueError(
            "The observed classes are no more probable than chance: the NLL falls without end "
            "as the temperature rises. Check labels and the order of classes, or use more cases."
        )
    root = float(brentq(lambda x: gradients(x).mean(), low, high, xtol=1e-14, rtol=1e-14))
    beta, gradient = np.exp(root), gradients(root)
    probs = np.exp(log_softmax(beta * log_probs, axis=1))
    curvature = ((probs * finite**2).sum(1) - (probs * finite).sum(1) ** 2).sum()
    every = gradient
    if seen is not None and not seen.all():
        every = np.zeros(seen.size)
        every[seen.ravel()] = gradient
    blocks = every.reshape(num_cases, -1).sum(1)
    error = np.sqrt((blocks**2).sum()) / curvature / beta**2
    return {"temperature": np.array(1 / beta), "temperature_se": np.array(error)}


def apply_temperature(parameters: Parameters, log_probs: np.ndarray) -> np.ndarray:
    """Return calibrated log-probabilities (case, class)."""
    return log_softmax(log_probs / parameters["temperature"], axis=1)


def learn_vector(log_probs: np.ndarray, label: np.ndarray, penalty: float = 0.0) -> Parameters:
    """Return ``scale`` and ``intercept`` (class) of least NLL; intercepts sum to 0.

    Raises:
        ValueError: A probability is 0, or no finite parameters are best.
    """
    _require_finite(log_probs)
    size = log_probs.shape[1]
    ridge = np.repeat([0.0, penalty], size)
    found = newton.minimise(_vector_design, log_probs, label, np.repeat([1.0, 0.0], size), ridge)
    return {"scale": found[:size], "intercept": found[size:] - found[size:].mean()}


def apply_vector(parameters: Parameters, log_probs: np.ndarray) -> np.ndarray:
    """Return calibrated log-probabilities (case, class)."""
    _require_finite(log_probs)
    return log_softmax(parameters["scale"] * log_probs + parameters["intercept"], axis=1)


def learn_matrix(log_probs: np.ndarray, label: np.ndarray, penalty: float = 0.0) -> Parameters:
    """Return ``weight`` (class, input_class) and ``intercept`` (class) of least penalised NLL.

    Raises:
        ValueError: A probability is 0, or no finite parameters are best.
    """
    _require_finite(log_probs)
    size = log_probs.shape[1]
    start = np.concatenate([np.eye(size), np.zeros((size, 1))], 1)
    ridge = penalty * (start == 0)
    found = newton.minimise(_matrix_design, log_probs, label, start.ravel(), ridge.ravel())
    table = found.reshape(size, size + 1)
    return {"weight": table[:, :-1], "intercept": table[:, -1] - table[:, -1].mean()}


def apply_matrix(parameters: Parameters, log_probs: np.ndarray) -> np.ndarray:
    """Return calibrated log-probabilities (case, class)."""
    _require_finite(log_probs)
    return log_softmax(log_probs @ parameters["weight"].T + parameters["intercept"], axis=1)


def _vector_design(log_probs: np.ndarray) -> np.ndarray:
    identity = np.eye(log_probs.shape[1])
    ones = np.broadcast_to(identity, (len(log_probs), *identity.shape))
    return np.concatenate([log_probs[:, :, None] * identity, ones], 2)


def _matrix_design(log_probs: np.ndarray) -> np.ndarray:
    inputs = np.concatenate([log_probs, np.ones((len(log_probs), 1))], 1)
    size = log_probs.shape[1]
    table = np.eye(size)[:, :, None] * inputs[:, None, None, :]
    return table.reshape(len(inputs), size, -1)


def _require_finite(log_probs: np.ndarray) -> None:
    count = int(np.isneginf(log_probs).any(1).sum())
    if count:
        raise ValueError(
            f"{count} case(s) have a class of probability exactly 0, whose logarithm cannot be "
            "scaled; predict in float64, or use method='temperature' or 'histogram'."
        )
