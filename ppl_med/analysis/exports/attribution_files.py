"""Attribution maps as NIfTI files in register with the scans they explain.

exports.write_attribution(maps, "maps/", affine=batch["affine"])   # maps/<case>_mean.nii.gz, _sd
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike

from ppl_med import checks
from ppl_med.analysis.exports.nifti import check_nibabel, safe_name, save_map
from ppl_med.axes import SPACE


def write_attribution(
    maps: xr.Dataset,
    folder: str | os.PathLike[str],
    *,
    affine: ArrayLike,
    names: Sequence[str] = ("mean", "sd"),
) -> pd.DataFrame:
    """Write maps of every case as ``<folder>/<case>_<name>.nii.gz``.

    They stay on the grid of the images that were explained: the standard deviation of a map that
    was interpolated would be that of no map. Viewers overlay them on the scan by the affine.

    Args:
        maps: What ``attribute`` returned: variables (case, channel, [depth,] row, col) of one
            channel.
        folder: Where the files go; it is made. Earlier files of the same names are replaced.
        affine: From index ([depth,] row, col) to mm, RAS+, (case, 4, 4), as readers give it.
        names: Which variables to write.

    Returns:
        Table of the files: id, map, path, unit.

    Raises:
        ImportError: nibabel is not installed.
        TypeError: ``maps`` is no Dataset.
        ValueError: A variable is missing or has several channels, the affine does not fit, or two
            ids give one file name.
        OSError: A file cannot be written.
    """
    check_nibabel("write_attribution")
    if not isinstance(maps, xr.Dataset):
        raise TypeError(f"maps is {type(maps).__name__}; give the Dataset that attribute returned")
    for name in checks.different_names("names", names):
        checks.choice("names", name, [str(one) for one in maps.data_vars])
        found = maps[name].dims
        space = tuple(dim for dim in SPACE[3] if dim in found)
        if found != ("case", "channel", *space) or len(space) < 2:
            checks.reject(name, "maps (case, channel, [depth,] row, col)", found)
        if maps.sizes["channel"] != 1:
            raise ValueError(
                f"{name} has {maps.sizes['channel']} channels; choose one, as in "
                "maps.isel(channel=[0])"
            )
    ids = maps["case"].values.tolist() if "case" in maps.coords else range(maps.sizes["case"])
    grids = _affines(affine, len(ids))
    files = [safe_name(one) for one in ids]
    if len(set(files)) < len(files):
        twice = next(one for one in files if files.count(one) > 1)
        raise ValueError(f"two case ids give the same file name {twice!r}; write them apart")
    place = checks.a_path("folder", folder)
    place.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for position, (one, file, grid) in enumerate(zip(ids, files, grids, strict=True)):
        for name in names:
            values = maps[name].isel(case=position, channel=0)
            unit = str(maps[name].attrs.get("units", ""))
            path = place / f"{file}_{safe_name(name)}.nii.gz"
            save_map(path, values.values.astype(np.float32), grid, f"{name}, {unit}")
            rows.append({"id": one, "map": name, "path": str(path), "unit": unit})
    return pd.DataFrame(rows, columns=["id", "map", "path", "unit"])


def _affines(affine: ArrayLike, cases: int) -> np.ndarray:
    found = np.asarray(affine, np.float64)
    if found.shape != (cases, 4, 4):
        checks.reject("affine", f"of shape ({cases}, 4, 4)", found.shape)
    if not np.isfinite(found).all() or (abs(np.linalg.det(found)) < 1e-12).any():
        raise ValueError("affine holds a matrix that is no map of indices to mm")
    return found
