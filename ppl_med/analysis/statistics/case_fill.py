"""What maps of smaller cases are filled up with, beside numbers that are NaN by a fault."""

import numpy as np


def finite_or_fill(values: np.ndarray) -> bool:
    """Whether numbers are finite, but for the fill behind smaller cases.

    The fill is NaN in all draws and leaves something of every case.

    Args:
        values: Dims (chain, draw, case, *space).
    """
    finite = np.isfinite(values)
    if finite.all():
        return True
    if values.ndim < 4 or np.isinf(values).any():
        return False
    inside = finite.any((0, 1))
    return bool((finite == inside).all() and inside.reshape(len(inside), -1).any(1).all())
