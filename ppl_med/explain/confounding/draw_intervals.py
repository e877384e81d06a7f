"""What all draws say together: a mean, and an interval that holds a further draw.

Its ends lie at the ranks (1 - level) / 2 (n + 1) and (1 + level) / 2 (n + 1) of the n draws. Where
there are too few for that, they are the smallest and the largest draw, which hold a further one
with probability (n - 1) / (n + 1).
"""

import numpy as np
import xarray as xr

from ppl_med.analysis.draw_ranks import RANKS, attained


def check_level(level: float) -> None:
    """Raise unless a level is a share between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie between 0 and 1, such as 0.95")


def over_draws(name: str, values: xr.DataArray, level: float) -> dict[str, xr.DataArray]:
    """Mean over draws and the central interval, by the names that Datasets give them.

    Args:
        name: Of the figure.
        values: Dims (..., chain, draw).
        level: Probability of the interval; fewer than 2 / (1 - level) - 1 draws do not reach it.

    Returns:
        ``expected_<name>``, ``expected_<name>_lower`` and ``_upper``, without chain and draw, the
        ends with the attribute ``attained_level``. With one draw they are NaN.
    """
    draws = ("chain", "draw")
    tails = ((1 - level) / 2, (1 + level) / 2)
    low, high = (values.quantile(end, draws, method=RANKS) for end in tails)
    number = values.sizes["chain"] * values.sizes["draw"]
    several = number > 1
    reached = {"attained_level": attained(level, number)}
    ends = {"lower": low, "upper": high}
    return {f"expected_{name}": values.mean(draws)} | {
        f"expected_{name}_{end}": (bound if several else bound * np.nan)
        .drop_vars("quantile")
        .assign_attrs(reached)
        for end, bound in ends.items()
    }
