"""NYU Depth v2, labelled part: 1449 pictures of rooms with the depth of every pixel.

Read from ``nyu_depth_v2_labeled.mat``, a MATLAB file of version 7.3, which is HDF5. MATLAB writes
the last axis first, so the arrays, sizes as in MATLAB, come with their axes reversed:

    images      uint8 (row=480, col=640, channel=3, case)
    depths      metres (row, col, case), holes filled in by the authors
    rawDepths   metres (row, col, case), as the Kinect gave them, 0 where it gave none
    scenes      name of the room (case), where it is there

and from the official split, ``splits.mat`` (version 5), where it is there: ``trainNdxs`` and
``testNdxs``, numbers of cases from 1, 795 and 654 of them.

Reference: Silberman, Hoiem, Kohli and Fergus, "Indoor Segmentation and Support Inference from RGBD
Images", ECCV 2012.
"""

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import a_path
from ppl_med.data.readers.array_files import read_mat
from ppl_med.data.readers.depth_maps import check_max_depth, measured
from ppl_med.data.readers.folders import find_place, naming_file
from ppl_med.data.readers.image_files import check_size, resized
from ppl_med.data.splits import check_splits
from ppl_med.storage.seals import check_hdf5

_FILE = "nyu_depth_v2_labeled.mat"
_SPLITS = {"train": "trainNdxs", "test": "testNdxs"}


def load_nyuv2(
    folder: str | PathLike[str],
    *,
    size: tuple[int, int] | None = None,
    raw: bool = False,
    max_depth: float | None = None,
    split_file: str | PathLike[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Read the pictures and depths, divided as the official split file says.

    Args:
        folder: Holds ``nyu_depth_v2_labeled.mat``, itself or in a subfolder ``nyuv2``.
        size: Rows and columns wanted; None for those of the file (3 GB). Pictures are averaged
            where they shrink, depths taken at the middle of the new pixel.
        raw: Read ``rawDepths``, as they were measured, instead of the filled-in ones.
        max_depth: Metres from which a depth counts as not measured; None for no limit.
        split_file: The official split; None takes ``splits.mat`` beside the data if it is there.

    Returns:
        For each split, "train" and "test", or "all" without a split file, arrays for ``Batches``:
        "image" uint8 (case, channel=3, row, col), red, green, blue; "depth" float32 (case, row,
        col), metres, NaN where it was not measured (not finite, 0 or less, or too far);
        "num_masked" int64 (case), how many pixels of the map these are; "scene" str (case), the
        room, if the file tells; "id" str (case), "nyuv2-<number in the file, from 1>".

    Raises:
        FileNotFoundError: There is no such folder or file.
        ValueError: An argument is out of range, a file is not as described above, or the splits
            share a case.
    """
    check_max_depth(max_depth)
    if split_file is not None:
        a_path("split_file", split_file)
    if size is not None:
        check_size(size, ("rows", "cols"))
    place = find_place(folder, "nyuv2", (_FILE,), module=__name__)
    splits = _numbers(Path(split_file) if split_file is not None else place / "splits.mat")
    if splits is None and split_file is not None:
        raise FileNotFoundError(f"split_file {str(split_file)!r} is not there")
    return _read(place / _FILE, splits, size, "rawDepths" if raw else "depths", max_depth)


def _numbers(path: Path) -> dict[str, NDArray[np.int64]] | None:
    """Numbers of the cases, from 1, of every split."""
    if not path.is_file():
        return None
    content = read_mat(path, [*_SPLITS.values()], "it is not the official split of NYU Depth v2")
    numbers = {split: content[name].reshape(-1).astype(int) for split, name in _SPLITS.items()}
    check_splits({split: {"id": values} for split, values in numbers.items()})
    return numbers


def _read(
    path: Path,
    splits: dict[str, NDArray[np.int64]] | None,
    size: tuple[int, int] | None,
    name: str,
    max_depth: float | None,
) -> dict[str, dict[str, Any]]:
    import h5py

    if not h5py.is_hdf5(path):
        raise ValueError(
            f"{path} is no HDF5 file; expected MATLAB's version 7.3: download it again, or save it "
            "with the option -v7.3"
        )
    with naming_file(path, "HDF5 file"):
        check_hdf5(path, values=False)  # it may hang or crash on a damaged file
        file = h5py.File(path, "r")
    with file:
        missing = [key for key in ("images", name) if key not in file]
        if missing:
            raise ValueError(f"{path} lacks {missing}; it holds {sorted(file)}")
        images, depths = file["images"], file[name]
        _check_shapes(path, images, depths, name)
        numbers = splits or {"all": np.arange(1, len(images) + 1)}
        for split, values in numbers.items():
            if len(values) == 0 or values.min() < 1 or values.max() > len(images):
                raise ValueError(
                    f"split {split!r} names cases beyond 1..{len(images)}, or none; the split file "
                    f"is not for {path}"
                )
        with naming_file(path, "HDF5 file"):
            scenes = _scenes(file, len(images))
            return {
                split: _split(images, depths, scenes, values, size, max_depth)
                for split, values in numbers.items()
            }


def _check_shapes(path: Path, images: Any, depths: Any, name: str) -> None:
    """Axes are reversed: images (case, channel, col, row), depths (case, col, row)."""
    fits = images.ndim == 4 and images.shape[1] == 3 and images.dtype == np.uint8
    if not fits or depths.shape != (images.shape[0], *images.shape[2:]):
        raise ValueError(
            f"{path}: images is {images.dtype} {images.shape} and {name} {depths.shape}, as HDF5 "
            "sees them; expected uint8 (case, 3, col, row) and (case, col, row)"
        )


def _scenes(file: Any, num_cases: int) -> list[str] | None:
    """Names of the rooms: references to arrays of character codes."""
    if "scenes" not in file or file["scenes"].size != num_cases:
        return None
    references = file["scenes"][()].reshape(-1)
    return ["".join(map(chr, file[one][()].reshape(-1))) for one in references]


def _split(
    images: Any,
    depths: Any,
    scenes: list[str] | None,
    numbers: NDArray[np.int64],
    size: tuple[int, int] | None,
    max_depth: float | None,
) -> dict[str, Any]:
    rows, cols = size or images.shape[:1:-1]
    image = np.empty((len(numbers), 3, rows, cols), np.uint8)
    depth = np.empty((len(numbers), rows, cols), np.float32)
    masked = np.empty(len(numbers), np.int64)
    for index, number in enumerate(numbers):
        image[index] = resized(images[number - 1].transpose(0, 2, 1), size)
        depth[index], masked[index] = measured(depths[number - 1].T, size, max_depth)
    arrays = {
        "image": image,
        "depth": depth,
        "num_masked": masked,
        "id": np.array([f"nyuv2-{number:04d}" for number in numbers]),
    }
    if scenes is not None:
        arrays["scene"] = np.array([scenes[number - 1] for number in numbers])
    return arrays
