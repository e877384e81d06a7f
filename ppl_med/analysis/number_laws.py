"""Whether the law that is asked for is the one whose variance the tree holds."""

import numpy as np

_RATIOS = {"normal": 1.0, "laplace": 2.0}
_TOLERANCE = 1e-3  # of the ratio of variance to squared scale, stored in float32


def check_law(law: str, ratio: np.ndarray | None) -> None:
    """Raise where a law contradicts the variance.

    Args:
        law: "normal" or "laplace".
        ratio: Variance over squared scale, or None where the tree holds no variance.

    Raises:
        ValueError: The ratio is not that of the law.
    """
    expected = _RATIOS[law]
    if ratio is not None and not (np.abs(ratio - expected) < _TOLERANCE * expected).all():
        raise ValueError(
            f"law={law!r} contradicts the variance of the tree: it is {ratio.flat[0]:.4g} times "
            f"the squared scale, not {expected:g}."
        )
