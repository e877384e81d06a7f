"""Saving and loading results: a posterior tree or a Dataset, as netCDF (.nc) or zarr (.zarr).

Nothing is ever unpickled. A netCDF file is built in memory first, so prefer zarr for large results.
For data larger than memory open the store lazily:
``xarray.open_datatree("run.zarr", engine="zarr")``.
"""

import errno
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ppl_med.checks import a_path
from ppl_med.storage.atomic import replacing, set_aside
from ppl_med.storage.seals import (
    SEAL,
    check_netcdf,
    check_store,
    chunk_codecs,
    is_store,
    seal_store,
    sealed,
)

_SUFFIXES = (".nc", ".zarr")


def save(tree: xr.DataTree | xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write a tree or Dataset, replacing an earlier result only once the new one is complete.

    Args:
        tree: What `predict`, `fit` or an analysis returned.
        path: Target, ``*.nc`` (one file) or ``*.zarr`` (a folder).

    Returns:
        The path written.

    Raises:
        TypeError: ``tree`` is no DataTree or Dataset, or an attribute cannot be stored.
        ValueError: Unknown suffix, or a DataTree without groups (save it as a Dataset).
        FileExistsError: The path is a folder with other things than a Zarr store in it.
        OSError: The disk is full or the folder cannot be written; an earlier result at ``path``
            is intact and the temporary file is gone.
    """
    path = _target(path)
    check_storable(tree)
    if path.suffix == ".zarr" and path.is_dir() and any(path.iterdir()) and not is_store(path):
        raise FileExistsError(
            errno.EEXIST,
            "a folder that is no Zarr store is never replaced; choose another path",
            str(path),
        )
    write = _write_netcdf if path.suffix == ".nc" else _write_zarr
    with replacing(path, "result", needed=tree.nbytes) as partial:
        write(tree, partial)
    return path


def load(path: str | os.PathLike[str]) -> xr.DataTree | xr.Dataset:
    """Read what `save` wrote, wholly into memory.

    Args:
        path: ``*.nc`` or ``*.zarr``.

    Returns:
        The DataTree or Dataset that was saved; a file without groups gives a Dataset.

    Raises:
        FileNotFoundError: Nothing at ``path``.
        ValueError: Unknown suffix, or the file is truncated, damaged or of another format.
    """
    path = _target(path)
    if not path.exists():
        earlier = set_aside(path)
        hint = f" A crash left the previous result at {earlier}." if earlier.exists() else ""
        raise FileNotFoundError(errno.ENOENT, f"no saved result.{hint}", str(path))
    engine = "h5netcdf" if path.suffix == ".nc" else "zarr"
    options: dict[str, Any] = {} if engine == "h5netcdf" else {"consolidated": False}
    try:
        (check_store if engine == "zarr" else check_netcdf)(path)
        with xr.open_datatree(path, engine=engine, **options) as opened:
            tree = opened.load()
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # h5py and zarr raise OSError, KeyError, ValueError, RuntimeError
        raise ValueError(
            f"{path} cannot be read as {engine}: it is truncated, damaged or of another format "
            f"({type(error).__name__}: {error}). Write it again."
        ) from error
    tree = xr.DataTree.from_dict({name: _plain(node) for name, node in _nodes(tree).items()})
    return tree if tree.children else tree.to_dataset()


def to_inference_data(tree: xr.DataTree) -> Any:
    """Return the container that the installed arviz takes.

    Args:
        tree: The tree of `predict`.

    Returns:
        ``arviz.InferenceData`` for arviz below 1; from arviz 1 on, ``tree`` itself, since
        arviz takes a DataTree as it is.

    Raises:
        ImportError: arviz is not installed.
    """
    try:
        import arviz
    except ImportError as error:
        raise ImportError("to_inference_data needs arviz: pip install arviz") from error
    if "InferenceData" not in vars(arviz):
        return tree
    groups: dict[str, Any] = {name: node.to_dataset() for name, node in tree.children.items()}
    return arviz.InferenceData(attrs=dict(tree.attrs), **groups)


def _target(path: str | os.PathLike[str]) -> Path:
    path = a_path("path", path)
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"path must end in .nc or .zarr, not {path.name!r}.")
    return path


def check_storable(tree: xr.DataTree | xr.Dataset) -> None:
    """Raise a TypeError or ValueError where a result holds what no file can hold."""
    if not isinstance(tree, xr.DataTree | xr.Dataset):
        raise TypeError(f"tree must be a DataTree or Dataset, not {type(tree).__name__}.")
    if isinstance(tree, xr.DataTree) and not tree.children:
        raise ValueError("tree has no groups; save tree.to_dataset().")
    for name, node in _nodes(tree).items():
        for key, value in node.attrs.items():
            _check_attribute(name, key, value)
        for variable, array in node.variables.items():
            owner = f"{name.rstrip('/')}/{variable}"
            if array.dtype.kind == "O" and not all(isinstance(v, str) for v in array.values.flat):
                raise TypeError(f"{owner} holds Python objects; use numbers or text.")
            for key, value in array.attrs.items():
                _check_attribute(owner, key, value)


def _check_attribute(owner: str, key: object, value: object) -> None:
    array = np.asarray(value if isinstance(value, list | tuple | np.ndarray) else [value])
    plain = array.ndim == 1 and array.size > 0 and array.dtype.kind in "iufU"
    if not plain or not isinstance(key, str):
        raise TypeError(
            f"attribute {key!r} of {owner} is {value!r}, which netCDF cannot hold; use text, a "
            "number, or a flat list of either (int(flag) for a bool, '' for None)."
        )


def _nodes(tree: xr.DataTree | xr.Dataset) -> dict[str, xr.Dataset]:
    if isinstance(tree, xr.Dataset):
        return {"/": tree}
    return {node.path: node.to_dataset(inherit=False) for node in tree.subtree}


def _write_netcdf(tree: xr.DataTree | xr.Dataset, partial: Path) -> None:
    # Through memory: HDF5 crashes the whole process when its own write meets a full disk.
    content = tree.to_netcdf(engine="h5netcdf")
    with partial.open("xb") as file:
        for part in sealed(content):
            file.write(part)


def _write_zarr(tree: xr.DataTree | xr.Dataset, partial: Path) -> None:
    import zarr

    stored = {name: variable_text(without_shards(node)) for name, node in _nodes(tree).items()}
    codecs = {name: chunk_codecs(node.variables) for name, node in stored.items()}
    with warnings.catch_warnings(), zarr.config.set({"array.write_empty_chunks": True}):
        warnings.filterwarnings("ignore", category=zarr.errors.ZarrUserWarning)
        tree = xr.DataTree.from_dict(stored)
        tree.to_zarr(partial, mode="w", consolidated=False, encoding=codecs)
    seal_store(partial)


def variable_text(data: xr.Dataset) -> xr.Dataset:
    """Give text variable length: zarr 3 has no fixed-length text, and appending would cut it."""
    return data.assign(
        {
            name: (one.dims, one.values.astype(np.dtypes.StringDType()), one.attrs)
            for name, one in data.variables.items()
            if one.dtype.kind in "UO"
        }
    )


def without_shards(data: xr.Dataset) -> xr.Dataset:
    """Forget that the arrays lie in shards: Dask writes by chunks, of which two may share one."""
    data = data.copy()
    for variable in data.variables.values():
        variable.encoding = {n: v for n, v in variable.encoding.items() if n != "shards"}
    return data


def _plain(data: xr.Dataset) -> xr.Dataset:
    """Undo storage types: fixed-length text, native byte order, no marker, no encoding."""
    changed = {}
    for name, variable in data.variables.items():
        values, kept = variable.values, variable.values
        if values.dtype.kind in "TO":
            kept = np.array(values.tolist(), dtype=str)
        elif not values.dtype.isnative:
            kept = values.astype(values.dtype.newbyteorder("="))
        if kept is not values:
            changed[name] = (variable.dims, kept, variable.attrs)
    data = data.assign(changed).drop_encoding()
    data.attrs.pop(SEAL, None)
    return data
