"""Maps of attribution, given by themselves or in the Dataset that ``attribute`` returns."""

import xarray as xr

from ppl_med import axes

SPACE = axes.SPACE[3]


def select_maps(given: xr.DataArray | xr.Dataset, name: str) -> xr.DataArray:
    """Return the maps: of a Dataset ``attribution``, if it is there, else ``mean``.

    Args:
        given: Maps, or a Dataset of them.
        name: Name of the argument, for errors.

    Raises:
        TypeError: It is neither.
        ValueError: The Dataset holds no maps.
    """
    if isinstance(given, xr.Dataset):
        names = [each for each in ("attribution", "mean") if each in given]
        if not names:
            raise ValueError(
                f"{name} is a Dataset without 'attribution' or 'mean'; give what attribute returned"
            )
        given = given[names[0]]
    if not isinstance(given, xr.DataArray):
        raise TypeError(f"{name} is {type(given).__name__}; give a DataArray or Dataset")
    return given
