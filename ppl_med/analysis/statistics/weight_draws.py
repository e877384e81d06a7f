"""Draws that share their weights: how many functions there are, and errors over these.

`predict` with ``samples=S`` gives every draw of the weights to S entries of the axis ``draw``; its
coordinate ``weights`` says which draw of them each has. Such entries are alike: of a figure with
variance b between draws of the weights and w within them, the mean over W draws of the weights has
the variance (b + w / S) / W, not (b + w) / (S W). So draws of the weights are the units: errors are
those of cluster sampling, pairs that stand for two independent draws are pairs of different
weights, and ranks take one entry of each. Chains are apart: equal numbers in two chains are two
draws. Without the coordinate every entry has weights of its own.

Source: Searle, Casella and McCulloch, Variance Components, Wiley 1992, chapter 3; Liang and Zeger,
Biometrika 73, 1986, for clusters of unequal sizes.
"""

from typing import TypeVar

import numpy as np
import xarray as xr

from ppl_med.axes import SAMPLES, WEIGHTS

Part = TypeVar("Part", xr.DataArray, xr.Dataset)


def weights_of(given: xr.DataArray | xr.Dataset) -> np.ndarray | None:
    """Return which draw of the weights every draw has, numbered 0, 1, ... (draw,).

    Args:
        given: What was predicted (chain, draw, ...).

    Returns:
        Numbers; None where every draw has weights of its own, as far as is known.
    """
    if WEIGHTS not in given.coords or given.coords[WEIGHTS].dims != ("draw",):
        return None
    names, index = np.unique(given.coords[WEIGHTS].values, return_inverse=True)
    return None if len(names) == len(index) else index


def check_own_weights(given: xr.DataArray | xr.Dataset, name: str, instead: str) -> None:
    """Raise a ValueError where several draws share their weights.

    Args:
        given: What was predicted (chain, draw, ...).
        name: Of the argument it is of.
        instead: What to use.
    """
    if weights_of(given) is not None:
        raise ValueError(
            f"{name} has several samples of each draw of the weights, each with a latent of its "
            f"own: the density of a case under the weights alone is not known. Use {instead}."
        )


def num_functions(given: xr.DataArray | xr.Dataset) -> int:
    """Return how many independent functions there are: draws of the weights, over all chains."""
    index = weights_of(given)
    draws = given.sizes["draw"] if index is None else int(index.max()) + 1
    return int(given.sizes["chain"] * draws)


def function_numbers(given: xr.DataArray | xr.Dataset) -> np.ndarray:
    """Return equal numbers for draws that share their weights, chain by chain (chain x draw,)."""
    index, (chains, draws) = weights_of(given), (given.sizes[dim] for dim in SAMPLES)
    index = np.arange(draws) if index is None else index
    return (np.arange(chains)[:, None] * draws + index).ravel()


def one_of_each(given: Part) -> Part:
    """Return the first draw of every draw of the weights: entries that are independent."""
    index = weights_of(given)
    if index is None:
        return given
    return given.isel(draw=np.sort(np.unique(index, return_index=True)[1]))


def over_weights(array: xr.DataArray) -> xr.DataArray:
    """Return one value of every draw of the weights, whose mean is the mean over all draws.

    Args:
        array: Values (chain, draw, ...), in memory.

    Returns:
        (chain, draw, ...) with as many draws as there are of the weights, exact where all values
        are equal: means over the draws that share them. Where some share more than others, these
        count for more, as they do in the mean over all.
    """
    index = weights_of(array)
    if index is None:
        return array
    first = array.isel(chain=0, draw=0, drop=True)
    shifted = array - first
    centre = shifted.mean(SAMPLES)
    sums = _sums((shifted - centre).transpose("draw", ...), index)
    share = (int(index.max()) + 1) / len(index)
    found = first + centre + share * sums
    return found.transpose(*array.dims)


def between_pairs(all_pairs: xr.DataArray, own_pairs: xr.DataArray) -> xr.DataArray:
    """Return what every draw adds to a mean over pairs of draws that share no weights.

    Args:
        all_pairs: Mean of a figure of pairs of a draw with all draws, itself included (chain, draw,
            ...), with the coordinate ``weights``.
        own_pairs: The same with the draws of its chain that share its weights, itself included.

    Returns:
        (chain, draw, ...), whose mean over draws is the mean over these pairs; of one draw of the
        weights over pairs of different draws.
    """
    index = weights_of(all_pairs)
    assert index is not None
    counts = np.bincount(index)
    chains, draws = all_pairs.sizes["chain"], all_pairs.sizes["draw"]
    number = chains * draws
    left = number**2 - chains * int((counts**2).sum())
    if not left:
        return all_pairs * (number / (number - 1))
    own = xr.DataArray(counts[index], dims="draw")
    return (number * all_pairs - own * own_pairs) * (number / left)


def own_means(array: xr.DataArray) -> xr.DataArray:
    """Return the mean over the draws that share the weights of a draw, for each (chain, draw, ...).

    Args:
        array: Values with the coordinate ``weights``, in memory.

    Returns:
        The means, exact where values with the same weights are equal.
    """
    index = weights_of(array)
    assert index is not None
    bare = array.drop_vars([name for name in (*SAMPLES, WEIGHTS) if name in array.coords])
    first = bare.isel(draw=np.unique(index, return_index=True)[1][index])
    sums = _sums((bare - first).transpose("draw", ...), index)
    counts = xr.DataArray(np.bincount(index), dims="draw")
    means = (sums / counts).isel(draw=index) + first
    return means.assign_coords(array.coords).transpose(*array.dims)


def _sums(array: xr.DataArray, index: np.ndarray) -> xr.DataArray:
    """Sums over draws with equal numbers (draw of the weights as ``draw``, ...)."""
    order = np.argsort(index, kind="stable")
    starts = np.flatnonzero(np.diff(index[order], prepend=-1))
    values = np.add.reduceat(array.values[order], starts, axis=0)
    coords = {n: c for n, c in array.coords.items() if "draw" not in c.dims}
    return xr.DataArray(values, coords, array.dims)


class PairSums:
    """The variance of two draws that share no weights, from draws that come one after the other.

    With S draws of equal weights, n in all and SS sums of squared deviations, half the mean square
    of such pairs is (n SS - sum S SS_own) / (n^2 - sum S^2); where nothing is shared, SS / (n - 1).
    So it is where all is shared: the variance of this function's draws.

    Args:
        functions: Equal numbers for draws that share their weights (draw,), as they come.
    """

    def __init__(self, functions: np.ndarray) -> None:
        names, index, counts = np.unique(functions, return_inverse=True, return_counts=True)
        number = len(index)
        self._alone = len(names) in (1, number)
        self._left = number**2 - (number if self._alone else int((counts**2).sum()))
        self._order, self._counts = iter(index.tolist()), counts
        self._open: dict[int, list[np.ndarray]] = {}
        self._own, self._total, self._square = np.zeros(1), np.zeros(1), np.zeros(1)
        self._number = number

    def add(self, values: np.ndarray) -> None:
        """Add the next draw; sums of those with its weights are kept until all have come."""
        self._total, self._square = self._total + values, self._square + values**2
        if self._alone:
            return
        name = next(self._order)
        run = self._open.setdefault(name, [np.zeros(1), np.zeros(1), np.zeros(1)])
        self._open[name] = run = [run[0] + values, run[1] + values**2, run[2] + 1]
        if run[2][0] == self._counts[name]:
            self._own = self._own + run[2] * run[1] - run[0] ** 2
            del self._open[name]

    def variance(self) -> np.ndarray:
        """The variance of every entry; 0 of one draw."""
        pairs = self._number * self._square - self._total**2 - self._own
        return np.asarray((pairs / max(self._left, 1)).clip(min=0))
