"""Datasets by name as one small file, and as digests: what the frozen runs left behind.

Arrays lie end to end in a compressed npz, one vector a type; its ``manifest``, a JSON text, says
which part is whose, with dims, coordinates and attributes. Nothing is pickled. What differs from
run to run (times, versions) is left out.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

Results = dict[str, xr.Dataset]
_VOLATILE = ("time", "version", "seconds", "created", "library", "device", "sha256")

FORMER = {"bias_attribution": "unlocated"}  # variables renamed since, as the changelog says


def as_stored(dataset: xr.Dataset) -> xr.Dataset:
    """The Dataset with the names its variables had when the results were stored."""
    return dataset.rename({now: old for now, old in FORMER.items() if now in dataset})


def named(name: str, *modules: str) -> Any:
    """What has this name, from the first of the modules that has it."""
    for module in modules:
        with contextlib.suppress(ImportError, AttributeError):
            return getattr(import_module(module), name)
    raise ImportError(f"{name} is in none of {modules}")


def lasting(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes that are the same in every run, as JSON knows them."""
    kept = {
        str(name): value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        for name, value in attrs.items()
        if not any(word in str(name).lower() for word in _VOLATILE)
    }
    return json.loads(json.dumps(kept))


def write(path: Path, results: Results) -> None:
    """Write Datasets, each under its name."""
    pools: dict[str, list[np.ndarray]] = {}
    ends: dict[str, int] = {}
    places: dict[tuple[str, bytes], int] = {}

    def place(values: np.ndarray) -> list[Any]:
        flat = np.ascontiguousarray(_plain(values)).reshape(-1)
        kind = str(flat.dtype) if flat.dtype.kind != "U" else "str"
        known = places.get((kind, flat.tobytes()))
        if known is None:
            known = places[kind, flat.tobytes()] = ends.get(kind, 0)
            pools.setdefault(kind, []).append(flat)
            ends[kind] = known + flat.size
        return [kind, known, list(values.shape)]

    manifest = {
        name: {
            "attrs": lasting(dataset.attrs),
            "variables": {
                str(variable): {
                    "dims": list(map(str, array.dims)),
                    "attrs": lasting(array.attrs),
                    "coord": variable in dataset.coords,
                    "place": place(array.values),
                }
                for variable, array in dataset.variables.items()
            },
        }
        for name, dataset in results.items()
    }
    joined = {kind: np.concatenate(parts) for kind, parts in pools.items()}
    text = np.frombuffer(json.dumps(manifest).encode(), np.uint8)
    np.savez_compressed(path, manifest=text, **joined)  # type: ignore[arg-type]


def read(path: Path) -> Results:
    """Read what `write` wrote."""
    with np.load(path, allow_pickle=False) as file:
        pools = {name: file[name] for name in file.files}
    manifest = json.loads(pools.pop("manifest").tobytes())
    return {name: _dataset(entry, pools) for name, entry in manifest.items()}


def _dataset(entry: dict[str, Any], pools: dict[str, np.ndarray]) -> xr.Dataset:
    variables, coords = {}, set()
    for name, told in entry["variables"].items():
        kind, start, shape = told["place"]
        values = pools[kind][start : start + int(np.prod(shape))].reshape(shape)
        variables[name] = xr.Variable(told["dims"], values, told["attrs"])
        coords |= {name} if told["coord"] else set()
    data = {name: variable for name, variable in variables.items() if name not in coords}
    return xr.Dataset(data, {name: variables[name] for name in coords}, entry["attrs"])


def tree_of(results: Results, run: str) -> xr.DataTree:
    """The predicted tree of a run: the Datasets named ``run/group``."""
    groups = {
        f"/{name.partition('/')[2]}": dataset
        for name, dataset in results.items()
        if name.startswith(f"{run}/") and name != f"{run}/history"
    }
    return xr.DataTree.from_dict(groups)


def groups_of(tree: xr.DataTree, run: str) -> Results:
    """The Datasets of a tree under ``run/group``; its own attributes under ``run/``."""
    found = {f"{run}/": xr.Dataset(attrs=tree.attrs)}
    return found | {f"{run}/{name}": tree[name].to_dataset().load() for name in tree.children}


def digests(results: Results) -> dict[str, str]:
    """SHA-256 of the values, names, dims and coordinates of each Dataset."""
    return {name: _digest(as_stored(dataset)) for name, dataset in results.items()}


def _digest(dataset: xr.Dataset) -> str:
    found = hashlib.sha256()
    for name in sorted(map(str, dataset.variables)):
        array = dataset.variables[name]
        values = np.ascontiguousarray(_plain(array.values))
        found.update(f"{name} {array.dims} {values.dtype} {values.shape}".encode())
        found.update(values.tobytes())
    return found.hexdigest()[:16]


def _plain(values: np.ndarray) -> np.ndarray:
    """Values without Python objects."""
    return values.astype(str) if values.dtype.kind in "OTU" else values
