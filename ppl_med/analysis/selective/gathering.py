"""What every curve is made of: entries read once into levels, and errors over cases."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.selective.entries import Source
from ppl_med.analysis.selective.levels import Figure, Levels, Table, join, round_off, tabulate
from ppl_med.analysis.selective.replicates import Replicates

Grid: TypeAlias = Sequence[float] | np.ndarray
_MOST = 2**26  # entries whose levels are kept apart
_TIES = "expectation over a random order of entries of equal uncertainty"


class Orders(NamedTuple):
    """Levels in the order of the uncertainty, and in that of the error (the oracle)."""

    score: Levels
    error: Levels


class Gathered(NamedTuple):
    """Levels of all entries, of resampled cases, and what the result says of them."""

    orders: Orders
    resampled: Orders | None
    attrs: dict[str, object]


Figures: TypeAlias = Mapping[str, Figure]


def gather(
    source: Source, bits: int | None, replicates: int, seed: int, *, binary: bool = False
) -> Gathered:
    """Read all entries once, into levels."""
    if bits is not None:
        checks.whole("mantissa_bits", bits, 1, 23, "or None for no rounding")
    checks.whole("replicates", replicates, 0)
    if bits is None and source.num_entries > _MOST:
        raise ValueError(
            f"mantissa_bits is None and there are {source.num_entries} entries, which would be "
            "held in memory; pass mantissa_bits=11."
        )
    tables: dict[str, Table] = {}
    resampled = Replicates(replicates, seed) if replicates else None
    left_out = 0
    seen = np.zeros(source.sizes["case"], bool)
    for block in source.entries():
        if binary and not np.isin(block.error, (0, 1)).all():
            raise ValueError("error must be 0 where right and 1 where wrong for precision.")
        left_out += block.num_left_out
        seen[block.first + block.case] = True
        for name, order in (("score", block.score), ("error", block.error)):
            table = tabulate(order if bits is None else round_off(order, bits), block.error)
            tables[name] = join(tables[name], table) if name in tables else table
        if resampled is not None:
            resampled.add(block)
    levels = Orders(tables["score"].levels, tables["error"].levels)
    if not levels.score.number.size:
        raise ValueError(
            "error is NaN everywhere, or -1 (not annotated) in what was observed: there is nothing "
            "to compare with."
        )
    again = None
    if resampled is not None:
        again = Orders(resampled.levels("score"), resampled.levels("error"))
    attrs: dict[str, object] = {
        "num_entries": int(levels.score.number.sum()),
        "num_left_out": left_out,
        "left_out": left_out,
        "left_out_cases": int((~seen).sum()),
        "num_cases": int(seen.sum()),
        "num_levels": levels.score.number.size,
        "mantissa_bits": "exact" if bits is None else bits,
        "ties": _TIES,
        "score": source.score if isinstance(source.score, str) else "given",
        "error": source.error if isinstance(source.error, str) else "given",
        "replicates": replicates,
    }
    return Gathered(levels, again, attrs)


def dataset(
    figures: Callable[[Orders], Figures],
    gathered: Gathered,
    dim: str,
    grid: np.ndarray,
    unit: str,
) -> xr.Dataset:
    """Return figures, along a grid or scalar, each with its standard error over cases.

    Args:
        figures: Computes them from levels.
        gathered: Levels.
        dim: Name of the grid.
        grid: Shares.
        unit: Unit of the figures that are not relative.
    """
    result = xr.Dataset(coords={dim: (dim, grid, {"units": "probability"})})
    found = figures(gathered.orders)
    again = figures(gathered.resampled) if gathered.resampled is not None else {}
    for name, value in found.items():
        units = "1" if name.endswith("_relative") else unit
        note = {"units": units, "long_name": name.replace("_", " ")}
        dims = (dim,) if value.ndim else ()
        result[name] = (dims, value, note)
        if again:
            spread = _spread(np.asarray(again[name]), gathered.attrs["num_cases"])
            result[f"{name}_se"] = (dims, spread, {**note, "note": "bootstrap over cases"})
    count = gathered.orders.score.number
    result["largest_tie"] = ((), count.max() / count.sum(), {"units": "probability"})
    result.attrs = gathered.attrs
    return result


def _spread(values: np.ndarray, num_cases: object) -> Figure:
    """Standard deviation over the replicates in which the figure is defined."""
    known = ~np.isnan(values).reshape(len(values), -1).any(1)
    if num_cases == 1 or known.sum() < 2:
        return np.full(values.shape[1:], np.nan)
    return values[known].std(0, ddof=1)


def shares(name: str, values: Grid, *, from_zero: bool = False) -> np.ndarray:
    """Return shares in (0, 1], or in [0, 1), as an array, or raise."""
    grid = np.asarray(values, np.float64)
    inside = (grid >= 0) & (grid < 1) if from_zero else (grid > 0) & (grid <= 1)
    if grid.ndim != 1 or not grid.size or not inside.all():
        checks.reject(name, f"a list of shares in {'[0, 1)' if from_zero else '(0, 1]'}", values)
    return grid
