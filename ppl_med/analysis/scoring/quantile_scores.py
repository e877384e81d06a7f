"""Scores of predicted quantiles and central intervals of numbers, both read from the draws.

The prediction scored is the mixture: all draws of all chains. The quantile of a level is the draw
of rank level (n + 1) of the n draws, on a line between two, below which a further draw lies with
that probability; at most the smallest and the largest draw, beyond which few draws say nothing
(``attained``). With y the observation, in the
unit of y; lower is better, and the true distribution is best on average:

    quantile_score    (y - q) (level - 1[y < q]), q the quantile of that level
    interval_score    width + (2 / alpha) distance of y outside, alpha = 1 - level

Sources: Gneiting and Raftery, JASA 102, 2007, sections 6.1 and 6.2; Hyndman and Fan, The American
Statistician 50, 1996, definition 6 (ranks).
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from ppl_med.analysis.scoring.draw_scores import describe_numbers
from ppl_med.analysis.statistics.case_means import add_mean, case_means, over_cases
from ppl_med.analysis.statistics.draw_ranks import RANKS, attained, check_levels
from ppl_med.analysis.statistics.weight_draws import num_functions, one_of_each
from ppl_med.analysis.tree import Block, Numbers, count_left_out, join_blocks, open_numbers


def quantile_score(
    tree: xr.DataTree, site: str | None = None, *, levels: Sequence[float] = (0.05, 0.5, 0.95)
) -> xr.Dataset:
    """Pinball loss of the quantiles of the draws.

    Args:
        tree: The tree of `predict` on cases with observed numbers.
        site: Name of the observed site; None takes the only one.
        levels: Probabilities of the quantiles, in (0, 1).

    Returns:
        Dataset over level: ``quantile`` and ``quantile_score`` (level, case, ...), its mean
        ``quantile_score_mean`` (level) and ``_mean_se`` over cases; ``below`` (level), the share
        of observations at or below the quantile, and ``attained`` (level), what it should be: the
        level, where there are enough draws.

    Raises:
        TypeError, ValueError: As for `crps`; a level out of range.
    """
    numbers = open_numbers(tree, site)
    value = numbers.observations()
    counts = count_left_out(value)
    quantile = _quantiles(numbers, levels)
    gap = -(quantile - value)  # level first
    score = gap * (quantile["level"] - (gap < 0))
    result = xr.Dataset({"quantile": quantile, "quantile_score": score})
    add_mean(result, "quantile_score")
    result["below"] = case_means((gap <= 0).where(np.isfinite(gap))).mean("case")
    functions = num_functions(numbers.drawn)
    ends = np.array([1, functions]) / (functions + 1)
    result["attained"] = quantile["level"].clip(*ends).drop_attrs()
    return describe_numbers(result, numbers, ("below", "attained")).assign_attrs(counts)


def interval_score(
    tree: xr.DataTree, site: str | None = None, *, levels: Sequence[float] = (0.5, 0.9)
) -> xr.Dataset:
    """Score of central intervals: their width, plus a price for observations outside.

    Args:
        tree: The tree of `predict` on cases with observed numbers.
        site: Name of the observed site; None takes the only one.
        levels: Probabilities of the intervals, in (0, 1); alpha is 1 - level.

    Returns:
        Dataset over level: ``lower``, ``upper``, ``interval_score`` (level, case, ...), the mean
        ``interval_score_mean`` (level) with ``_mean_se`` over cases, ``width_mean``, and
        ``coverage`` (level) with ``coverage_se``, and ``attained`` (level), what it should be: the
        level, or (n - 1) / (n + 1) where there are only n draws. Figures are of what was observed.

    Raises:
        TypeError, ValueError: As for `crps`; a level out of range.
    """
    numbers = open_numbers(tree, site)
    value = numbers.observations()
    counts = count_left_out(value)
    check_levels(levels)
    level = xr.DataArray(np.array(levels, float), dims="level", coords={"level": list(levels)})
    ends = _quantiles(numbers, np.concatenate([(1 - level) / 2, (1 + level) / 2]))
    parts = (ends.isel(level=slice(len(level))), ends.isel(level=slice(len(level), None)))
    lower, upper = (part.assign_coords(level=level) for part in parts)
    outside = (lower - value).clip(min=0) + (value - upper).clip(min=0)
    result = xr.Dataset({"lower": lower, "upper": upper})
    result["interval_score"] = upper - lower + 2 / (1 - level) * outside
    add_mean(result, "interval_score")
    result["width_mean"] = case_means((upper - lower).where(np.isfinite(outside))).mean("case")
    inside = case_means((outside == 0).where(np.isfinite(outside)))
    result["coverage"], result["coverage_se"] = inside.mean("case"), over_cases(inside)
    result["attained"] = level.clip(max=attained(1.0, num_functions(numbers.drawn)))
    names = ("coverage", "coverage_se", "attained")
    return describe_numbers(result, numbers, names).assign_attrs(counts)


def _quantiles(numbers: Numbers, levels: Sequence[float] | np.ndarray) -> xr.DataArray:
    """Quantiles of the draws (level, case, ...)."""
    check_levels(levels)

    def of_block(block: Block) -> xr.DataArray:
        drawn = one_of_each(numbers.draws(block))  # ranks count independent draws
        flat = drawn.values.reshape(-1, *drawn.shape[2:])
        values = np.quantile(flat, levels, axis=0, method=RANKS)
        template = drawn.isel(chain=0, draw=0, drop=True)
        return template.expand_dims(level=np.array(levels, float)).copy(data=values)

    return join_blocks((block, of_block(block)) for block in numbers.blocks())
