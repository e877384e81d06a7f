"""Several samples of one draw of the weights: whether they differ, and which weights each has."""

from collections.abc import Iterable

import numpy as np
import xarray as xr

from ppl_med.axes import WEIGHTS
from ppl_med.inference.prediction.posterior_sampler import PosteriorSampler

ALONG = {WEIGHTS: "draw"}  # axes of coordinates that have none of their own


def weights_of(entries: int, samples: int) -> dict[str, np.ndarray]:
    """Which draw of the weights every entry of the axis ``draw`` has; nothing of one sample."""
    return {WEIGHTS: np.arange(entries) // samples} if samples > 1 else {}


def check_samples(samples: int, sampler: PosteriorSampler, names: Iterable[str]) -> None:
    """Raise where samples with the same weights would be copies, or cannot be told.

    Args:
        samples: How many.
        sampler: Of a program.
        names: Of axes and global latents that the result has beside its sites of cases.

    Raises:
        ValueError: Several samples of a program without latents of a case, or whose result has
            something else called "weights".
    """
    if samples == 1:
        return
    if not sampler.local:
        raise ValueError(
            f"samples={samples}: the model has no latent of a case (a code, or steps of a chain of "
            "noise), so samples with the same weights would be copies of each other; leave samples "
            "out and raise draws. The likelihood's own spread is known without samples, see "
            "analysis.uncertainty.variance"
        )
    if WEIGHTS in {*names, *sampler.local, *sampler.observed, *sampler.noted}:
        raise ValueError(
            f"samples={samples}: the model has a site or an axis {WEIGHTS!r} that is no "
            "RandomWeights, and the result has a coordinate of this name; rename it"
        )


def repeated(stats: xr.Dataset, samples: int) -> xr.Dataset:
    """Figures of every draw of the weights, for each of the samples that have them."""
    if samples == 1:
        return stats
    places = np.repeat(np.arange(stats.sizes["draw"]), samples)
    own = {"draw": np.arange(len(places)), WEIGHTS: ("draw", places)}
    return stats.isel(draw=places).assign_coords(own)
