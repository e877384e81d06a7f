"""Make3D: outdoor pictures, each with a coarse map of depths from a laser scanner.

Read from a folder as the archives of Stanford unpack:

    Train400Img/img-<part>.jpg                   RGB, 2272 x 1704
    Train400Depth/depth_sph_corr-<part>.mat      Position3DGrid (55, 305, 4), the last is metres
    Test134/img-<part>.jpg                       or Test134Img
    Gridlaserdata/depth_sph_corr-<part>.mat      or Test134Depth

The scanner reads no further than 81 m, and gives that for the sky; what it says beyond 70 m is not
to be trusted. Of the two conventions of the literature, C1 takes errors only where the truth is
below 70 m, C2 everywhere (Liu, Salzmann and He, CVPR 2014). The default here is C1, in training and
in test: from 70 m on the depth is NaN. ``max_depth=None`` gives C2.

References: Saxena, Sun and Ng, "Make3D: Learning 3D Scene Structure from a Single Still Image",
IEEE TPAMI 31, 2009. Saxena, Chung and Ng, "Learning Depth from Single Monocular Images", NeurIPS
2005.
"""

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_med.data.readers.array_files import read_mat
from ppl_med.data.readers.depth_maps import check_max_depth, measured
from ppl_med.data.readers.folders import check_files, find_place
from ppl_med.data.readers.image_files import check_size, read_rgb
from ppl_med.data.splits import check_splits

FOLDERS = {
    "train": (("Train400Img",), ("Train400Depth",)),
    "test": (("Test134", "Test134Img"), ("Gridlaserdata", "Test134Depth")),
}
_GRID = "Position3DGrid"


def load_make3d(
    folder: str | PathLike[str],
    *,
    size: tuple[int, int] = (460, 345),
    max_depth: float | None = 70.0,
) -> dict[str, dict[str, Any]]:
    """Read "train", which must be there, and "test", if it is.

    Args:
        folder: Holds the folders named above, itself or in a subfolder ``make3d``.
        size: Rows and columns wanted, of pictures and depths; pictures are averaged where they
            shrink, depths taken at the middle of the new pixel.
        max_depth: Metres from which a depth counts as not measured, by convention C1; None keeps
            all.

    Returns:
        For each split, arrays for ``Batches``: "image" uint8 (case, channel=3, row, col), red,
        green, blue; "depth" float32 (case, row, col), metres, NaN where it counts as not measured
        (not finite, 0 or less, or too far); "num_masked" int64 (case), how many pixels of the map
        these are; "id" str (case), the part of the file's name after "img-".

    Raises:
        FileNotFoundError: There is no such folder, or a picture has no depth.
        ValueError: An argument is out of range, a file is not as described above, or the splits
            share a case.
    """
    check_size(size, ("rows", "cols"))
    check_max_depth(max_depth)
    place = find_place(folder, "make3d", ("Train400Img", "Train400Depth"), module=__name__)
    pairs = {split: _folders(place, *options) for split, options in FOLDERS.items()}
    splits = {
        split: _read(*pair, size, max_depth) for split, pair in pairs.items() if pair is not None
    }
    check_splits(splits)
    return splits


def _folders(
    place: Path, images: tuple[str, ...], depths: tuple[str, ...]
) -> tuple[Path, Path] | None:
    """The first folder of each kind that is there."""
    found = [
        next((place / name for name in names if (place / name).is_dir()), None)
        for names in (images, depths)
    ]
    if found[0] is None:
        return None
    if found[1] is None:
        raise FileNotFoundError(f"{found[0]} is there but none of its depths: {', '.join(depths)}")
    return found[0], found[1]


def _read(
    images: Path, depths: Path, size: tuple[int, int], max_depth: float | None
) -> dict[str, NDArray[Any]]:
    paths = sorted(images.glob("img-*.jpg"))
    if not paths:
        raise FileNotFoundError(f"{images} holds no files img-<part>.jpg")
    ids = [path.stem.removeprefix("img-") for path in paths]
    grids = [depths / f"depth_sph_corr-{one}.mat" for one in ids]
    check_files(grids, needed_by=images)
    maps = [measured(_metres(grid), size, max_depth) for grid in grids]
    return {
        "image": np.stack([read_rgb(path, size) for path in paths]),
        "depth": np.stack([depth for depth, _ in maps]),
        "num_masked": np.array([count for _, count in maps]),
        "id": np.array(ids),
    }


def _metres(path: Path) -> NDArray[Any]:
    """Distance along the ray, dims (row, col)."""
    grid = read_mat(path, [_GRID])[_GRID]
    if grid.ndim != 3 or grid.shape[2] != 4:
        raise ValueError(f"{path}: {_GRID} has shape {grid.shape}; expected (row, col, 4)")
    return grid[..., 3]
