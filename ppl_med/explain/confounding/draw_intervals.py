"""What all draws say together: a mean, and an interval that holds a share of them."""

import numpy as np
import xarray as xr


def check_level(level: float) -> None:
    """Raise unless a level is a share between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie between 0 and 1, such as 0.95")


def over_draws(name: str, values: xr.DataArray, level: float) -> dict[str, xr.DataArray]:
    """Mean over draws and the central interval, by the names that Datasets give them.

    Args:
        name: Of the figure.
        values: Dims (..., chain, draw).
        level: Share of the draws inside.

    Returns:
        ``expected_<name>``, ``expected_<name>_lower`` and ``_upper``, without chain and draw. With
        one draw the ends are NaN.
    """
    draws = ("chain", "draw")
    low, high = (values.quantile(end, draws) for end in ((1 - level) / 2, (1 + level) / 2))
    several = values.sizes["chain"] * values.sizes["draw"] > 1
    ends = {"lower": low, "upper": high}
    return {f"expected_{name}": values.mean(draws)} | {
        f"expected_{name}_{end}": (bound if several else bound * np.nan).drop_vars("quantile")
        for end, bound in ends.items()
    }
