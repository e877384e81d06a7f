"""What all draws say together: a mean, and an interval that holds a further draw.

Its ends lie at the ranks (1 - level) / 2 (n + 1) and (1 + level) / 2 (n + 1) of the n draws. Where
there are too few for that, they are the smallest and the largest draw, which hold a further one
with probability (n - 1) / (n + 1).
"""

import numpy as np
import xarray as xr

from ppl_med.analysis.statistics.draw_ranks import RANKS, attained
from ppl_med.analysis.statistics.weight_draws import one_of_each
from ppl_med.axes import SAMPLES


def over_draws(name: str, values: xr.DataArray, level: float) -> dict[str, xr.DataArray]:
    """``expected_<name>``, the mean over draws, and its ``_lower`` and ``_upper``.

    Draws that are copies of each other must be dropped before: `ppl_med.analysis.tree.drop_copies`.

    Fewer than 2 / (1 - level) - 1 draws do not reach the level: the ends have the attribute
    ``attained_level``. With one draw they are NaN. Draws of NaN do not count; where all of them are
    NaN, so is what they say together. Of draws that share their weights, the interval takes one.
    """
    expected, values = values.mean(SAMPLES), one_of_each(values)
    tails = ((1 - level) / 2, (1 + level) / 2)
    known = values.notnull().any(SAMPLES)
    filled = values.where(known, 0)  # NumPy warns of a quantile of nothing but NaN
    low, high = (filled.quantile(end, SAMPLES, method=RANKS).where(known) for end in tails)
    number = values.sizes["chain"] * values.sizes["draw"]
    several = number > 1
    reached = {"attained_level": attained(level, number)}
    ends = {"lower": low, "upper": high}
    return {f"expected_{name}": expected} | {
        f"expected_{name}_{end}": (bound if several else bound * np.nan)
        .drop_vars("quantile")
        .assign_attrs(reached)
        for end, bound in ends.items()
    }
