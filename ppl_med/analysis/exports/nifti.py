"""Maps as NIfTI files in register with the image they were predicted for.

    exports.write_nifti(tree, "maps/")      # maps/<case>_mask.nii.gz, _probability, _entropy, _sd

The tree knows where its pixels lie: ``affine`` in constant_data, as MONAI's transforms leave it.
Where ``original_affine`` and ``spatial_shape`` stand beside it, maps go back to the grid of the
file that was read, before spacing, orientation and cropping were changed; see `case_maps` for how.
"""

import gzip
import os
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.exports.case_maps import MAPS, CaseMaps, Grid, case_maps
from ppl_med.analysis.tree import ClassList, class_indices, open_classes, open_probabilities
from ppl_med.analysis.tree.geometry import case_shape, column
from ppl_med.storage import replacing

_UNITS = {"mask": "class index", "entropy": "nats", "mutual_information": "nats"}


def write_nifti(
    tree: xr.DataTree,
    folder: str | os.PathLike[str],
    *,
    maps: Sequence[str] = ("mask", "probability", "sd", "entropy"),
    grid: Literal["file", "predicted"] = "file",
    like: Mapping[Any, str | os.PathLike[str]] | None = None,
    classes: ClassList = None,
    case: Hashable | Sequence[Hashable] | None = None,
) -> pd.DataFrame:
    """Write the maps of every case as ``<folder>/<case>_<map>.nii.gz``.

    Args:
        tree: The tree of `predict` of masks, with ``affine`` (case, 4, 4) in constant_data.
        folder: Where the files go; it is made. Earlier files of the same names are replaced.
        maps: Some of "mask" (class of the mean over draws), "probability" (mean over draws), "sd"
            (over draws), "entropy" (of the mean) and "mutual_information" (its model part), nats.
        grid: "file" for the grid of the file, where the tree knows it; "predicted" for that of the
            network.
        like: NIfTI files by case id, whose grids to use instead.
        classes: Classes of probability and sd, a file each where there are several; by default all
            but the first.
        case: Ids of the cases to write; all by default.

    Returns:
        Table of the files: id, map, class, path, and ``outside``, the share of its voxels that
        were not predicted: 0 in masks, NaN elsewhere.

    Raises:
        ImportError: nibabel is not installed.
        TypeError, ValueError: ``tree`` is of something else or has no affine, a map, case
            or class is unknown, or two ids give one file name.
        OSError: A file cannot be written.
    """
    check_nibabel("write_nifti")
    wanted = checks.different_names("maps", maps)
    for name in wanted:
        checks.choice("maps", name, MAPS)
    checks.choice("grid", grid, ("file", "predicted"))
    place = checks.a_path("folder", folder)
    place.mkdir(parents=True, exist_ok=True)
    numbers = class_indices(classes, open_probabilities(tree))
    rows: list[dict[str, Any]] = []
    for name, file, found, where in maps_of_cases(tree, case, grid, like):
        for what, kind, values in _layers(found, wanted, numbers, open_classes(tree).names):
            end = f"{what}_{safe_name(kind)}" if kind and len(numbers) > 1 else what
            path = place / f"{file}_{end}.nii.gz"
            unit = _UNITS.get(what, "probability")
            save_map(path, values, where.affine, f"{what} {kind}, {unit}")
            share = float(found.outside.mean())
            row = {"id": name, "map": what, "class": kind, "path": str(path), "outside": share}
            rows.append(row)
    return pd.DataFrame(rows, columns=["id", "map", "class", "path", "outside"])


def check_nibabel(what: str) -> None:
    """Raise an ImportError that says how to install it, where it is not there."""
    if find_spec("nibabel") is None:
        raise ImportError(f"{what} needs nibabel: pip install 'ppl-med[data]'")


def save_map(path: Path, values: np.ndarray, affine: np.ndarray, what: str) -> None:
    """Write a map ([depth,] row, col) whose indices the affine takes to mm, RAS+."""
    import nibabel

    shape = (*values.shape, 1, 1)[: max(3, values.ndim)]
    image = nibabel.Nifti1Image(values.reshape(shape), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = f"ppl_med {what}".encode()[:79]
    with replacing(path, "map", needed=values.nbytes) as partial:
        partial.write_bytes(gzip.compress(image.to_bytes(), mtime=0))


def maps_of_cases(
    tree: xr.DataTree,
    case: Hashable | Sequence[Hashable] | None,
    grid: str,
    like: Mapping[Any, str | os.PathLike[str]] | None,
) -> Iterator[tuple[Any, str, CaseMaps, Grid]]:
    """Yield id, name for a file, maps, and their grid, of every case that is wanted."""
    source = open_classes(tree)
    ids = source.array["case"].values.tolist() if "case" in source.array.coords else None
    ids = list(range(source.sizes["case"])) if ids is None else ids
    chosen = ids if case is None else list(case) if isinstance(case, list | tuple) else [case]
    unknown = [one for one in chosen if one not in ids]
    if unknown:
        checks.reject("case", f"ids of the tree, such as {ids[0]!r}", unknown)
    files = [safe_name(one) for one in chosen]
    if len(set(files)) < len(files):
        twice = next(one for one in files if files.count(one) > 1)
        raise ValueError(f"two case ids give the same file name {twice!r}; write them apart")
    grids = [_grids(tree, source.array, ids.index(one), one, grid, like) for one in chosen]
    for one, file, (own, target) in zip(chosen, files, grids, strict=True):
        yield one, file, case_maps(source, ids.index(one), own, target), target


def safe_name(name: object) -> str:
    """A name of a file: letters of any script, digits, ``.``, ``-`` and ``_``, others as ``_``."""
    return re.sub(r"[^\w.-]", "_", str(name)).lstrip(".") or "_"


def _grids(
    tree: xr.DataTree,
    probs: xr.DataArray,
    position: int,
    name: Any,
    grid: str,
    like: Mapping[Any, str | os.PathLike[str]] | None,
) -> tuple[Grid, Grid]:
    """Where the pixels of a case lie, and where its maps go."""
    own = own_grid(tree, probs, position, name)
    if like is not None:
        if name not in like:
            checks.reject("like", f"a file for every case, {name!r} among them", list(like)[:5])
        import nibabel

        file: Any = nibabel.load(Path(like[name]))
        return own, Grid(np.asarray(file.affine), tuple(file.shape[:3]))
    before = column(tree, "original_affine", 4, 4)
    axes = probs.ndim - 4
    shape = next(
        (s for n in (axes, 3) if (s := column(tree, "spatial_shape", n)) is not None), None
    )
    if grid == "predicted" or before is None or shape is None:
        return own, own
    return own, Grid(before[position], tuple(int(size) for size in shape[position]))


def own_grid(tree: xr.DataTree, probs: xr.DataArray, position: int, name: Any) -> Grid:
    """Where the pixels of a case lie.

    Raises:
        ValueError: The tree does not say.
    """
    affine = column(tree, "affine", 4, 4)
    if affine is None:
        raise ValueError(
            "tree has no affine (case, 4, 4) in constant_data, so it is not known where its pixels "
            "lie. Predict on MONAI's MetaTensors, or give the batches an 'affine'."
        )
    own = Grid(affine[position], case_shape(tree, probs, position))
    if not np.isfinite(own.affine).all() or abs(np.linalg.det(own.affine)) < 1e-12:
        raise ValueError(f"the affine of case {name!r} is no map of indices to mm: {own.affine}")
    return own


def _layers(
    found: CaseMaps, maps: Sequence[str], numbers: np.ndarray, names: Sequence[str]
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Name, class and values of every file."""
    for name in maps:
        values = getattr(found, name)
        if name in ("probability", "sd"):
            yield from ((name, names[index], values[index]) for index in numbers)
        else:
            yield name, "", values
