"""Running moments of maps over posterior draws: memory for a few maps, however many draws.

Mean and sum of squared deviations are updated one draw at a time without cancellation.

Reference: Welford, "Note on a method for calculating corrected sums of squares and products",
Technometrics 4 (1962).
"""

import numpy as np
import xarray as xr


class DrawMoments:
    """Mean, standard deviation and sign probabilities of maps that arrive one draw at a time.

    Args:
        shape: Shape of one draw's map.
        num_draws: How many will come, over all chains.
        keep_draws: Also keep every map, as float32.
    """

    def __init__(self, shape: tuple[int, ...], num_draws: int, keep_draws: bool = False) -> None:
        self.count = 0
        self.mean, self.squares = np.zeros(shape), np.zeros(shape)
        self.positive, self.negative = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        self.draws = np.empty((num_draws, *shape), np.float32) if keep_draws else None

    def update(self, value: np.ndarray) -> None:
        """Fold in one draw's map."""
        if self.draws is not None:
            self.draws[self.count] = value
        self.count += 1
        difference = value - self.mean
        self.mean += difference / self.count
        self.squares += difference * (value - self.mean)
        self.positive += value > 0
        self.negative += value < 0

    def dataset(self, dims: tuple[str, ...], index: xr.DataArray) -> xr.Dataset:
        """Return the moments as named arrays.

        Args:
            dims: Names of a map's axes.
            index: Position of each draw among the updates, an integer DataArray (chain, draw).

        Returns:
            ``mean``, ``sd`` (S - 1 in the denominator), ``mcse`` of the mean for independent draws,
            ``probability_positive`` and ``probability_negative`` with ``dims``; with kept draws
            also ``attribution`` (chain, draw, *dims). With a single draw all but the mean are NaN.
        """
        single = self.count < 2
        sd = np.sqrt(self.squares / max(self.count - 1, 1))
        variables = {
            "mean": self.mean,
            "sd": sd,
            "mcse": sd / np.sqrt(self.count),
            "probability_positive": self.positive / self.count,
            "probability_negative": self.negative / self.count,
        }
        if single:
            variables.update(
                {name: np.full_like(self.mean, np.nan) for name in variables if name != "mean"}
            )
        result = xr.Dataset({name: (dims, value) for name, value in variables.items()})
        if self.draws is not None:
            result["attribution"] = (("chain", "draw", *dims), self.draws[index.values])
        result = result.assign_coords(chain=index["chain"], draw=index["draw"])
        result.attrs["num_draws"] = self.count
        if single:
            result.attrs["note"] = (
                "one function: sd, mcse and sign probabilities need two or more posterior draws"
            )
        else:
            result.attrs["probability_mcse_max"] = 0.5 / np.sqrt(self.count)
        return result
