"""What a figure needs from its input, checked before anything is drawn."""

from collections.abc import Iterable, Mapping

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray


def require_variables(
    dataset: xr.Dataset, argument: str, names: Iterable[str], source: str
) -> None:
    """Raise unless a Dataset holds the variables that a figure draws.

    Args:
        dataset: What the caller gave.
        argument: Its name in the caller's signature.
        names: Variables needed.
        source: The function that makes such a Dataset, for the message.

    Raises:
        TypeError: ``dataset`` is not an xarray Dataset.
        ValueError: A variable is missing.
    """
    if not isinstance(dataset, xr.Dataset):
        raise TypeError(
            f"{argument} must be an xarray.Dataset as {source} returns it, "
            f"got {type(dataset).__name__}"
        )
    missing = [name for name in names if name not in dataset]
    if missing:
        raise ValueError(
            f"{argument} has no {', '.join(missing)} "
            f"(it has {', '.join(map(str, dataset.data_vars))}); "
            f"pass the result of {source}"
        )


def require_named(
    datasets: xr.Dataset | Mapping[str, xr.Dataset],
    argument: str,
    names: Iterable[str],
    source: str,
) -> dict[str, xr.Dataset]:
    """Check what a figure draws one or several of.

    Args:
        datasets: What the caller gave: one Dataset, or several by name.
        argument: Its name in the caller's signature.
        names: Variables that each needs.
        source: The function that makes such a Dataset, for the messages.

    Returns:
        The Datasets by name; a single one has the name "".

    Raises:
        TypeError: One is not an xarray Dataset.
        ValueError: There is none, or a variable is missing.
    """
    named = {"": datasets} if isinstance(datasets, xr.Dataset) else dict(datasets)
    if not named:
        raise ValueError(f"{argument} is empty; give at least one result of {source}")
    wanted = tuple(names)
    for name, dataset in named.items():
        require_variables(dataset, one_of(argument, name), wanted, source)
    return named


def one_of(argument: str, name: str) -> str:
    """How a message calls one of the Datasets of ``require_named``."""
    return f"{argument}[{name!r}]" if name else argument


def require_dims(array: xr.DataArray, argument: str, dims: Iterable[str]) -> xr.DataArray:
    """Put the axes of an array in a known order.

    Args:
        array: What the caller gave.
        argument: Its name, for the message.
        dims: The axes it must have, no more and no fewer.

    Returns:
        The array with its axes in the order of ``dims``.

    Raises:
        ValueError: An axis is missing or left over.
    """
    wanted = tuple(dims)
    if set(array.dims) != set(wanted):
        raise ValueError(
            f"{argument} must have the dimensions {wanted}, got {array.dims}; "
            "select or average the others first"
        )
    return array.transpose(*wanted)


def require_images(
    images: ArrayLike, num_cases: int, argument: str = "images"
) -> NDArray[np.float64]:
    """Check pictures and bring each to the range 0 to 1 for display.

    Each case is windowed on its own from its 0.5th to its 99.5th percentile, so any unit will do.

    Args:
        images: (case, channel, row, col) with 1 (grey) or 3 (RGB) channels.
        num_cases: How many there must be.
        argument: Name for the message.

    Returns:
        (case, row, col, channel), values 0 to 1.

    Raises:
        ValueError: Wrong number of axes, channels or cases, or a value that is not finite.
    """
    array = np.asarray(images, dtype=np.float64)
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ValueError(
            f"{argument} must be (case, channel, row, col) with 1 or 3 channels, "
            f"got shape {array.shape}; choose the channels to show, e.g. image[:, :1]"
        )
    if len(array) != num_cases:
        raise ValueError(
            f"{argument} holds {len(array)} cases where {num_cases} are described; "
            "pass one image per case, in the same order"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{argument} holds NaN or infinite values; replace them before plotting")
    low, high = np.quantile(array, [0.005, 0.995], axis=(1, 2, 3), keepdims=True)
    scaled = np.clip((array - low) / np.where(high > low, high - low, 1.0), 0.0, 1.0)
    return np.moveaxis(scaled, 1, -1)
