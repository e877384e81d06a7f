"""Seals by which a result shows that it is whole: of a Zarr store, and of a netCDF file.

Zarr reads a chunk that is missing as fill values, class 0 among them, and damaged metadata as they
are; HDF5, which netCDF files are, may hang or crash on a damaged file. So what is written here
carries checksums: every Zarr chunk one of its own (crc32c), a store one of every ``zarr.json``, and
a netCDF file one of the whole file, in a last line that HDF5 does not look at.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppl_med.axes import SAMPLES

SEAL = "ppl_med_complete"  # root attribute of a store: a checksum of the metadata of every node
_ROOT = "/"
_PER_CASE = {*SAMPLES, "case", "class"}
_LINE = re.compile(rb"ppl_med crc32 ([0-9a-f]{8})\n\Z")
_LENGTH = len(b"ppl_med crc32 01234567\n")
_BLOCK = 2**24
_SECONDS, _BYTES_A_SECOND = 60, 5e7  # for which a process may look at a file of HDF5

# Opens every object of a file; with the argument "all" reads every value, too.
_WALK = """
import sys, h5py
def look(_, one):
    dict(one.attrs)
    if isinstance(one, h5py.Dataset):
        if sys.argv[2] == "all" and one.size:
            one[...]
        elif one.chunks is not None:
            one.id.get_num_chunks()
with h5py.File(sys.argv[1], "r", locking=False) as file:
    dict(file.attrs)
    file.visititems(look)
"""


def chunk_codecs(variables: Mapping[Any, Any]) -> dict[Any, dict[str, Any]]:
    """Encoding by variable, for ``to_zarr``: with a checksum, and compressed where that pays.

    Digits of numbers per case and draw are noise: they would shrink by 3 to 8 %, and take three
    times as long to read. Maps have regions of one value, text and labels repeat.

    Args:
        variables: What is stored, by name, with ``dims`` and ``dtype``.
    """
    from zarr.codecs import Crc32cCodec, ZstdCodec

    def codecs(one: Any) -> tuple[Any, ...]:
        noise = one.dtype.kind == "f" and {*one.dims} <= _PER_CASE
        return (Crc32cCodec(),) if noise else (ZstdCodec(), Crc32cCodec())

    return {name: {"compressors": codecs(one)} for name, one in variables.items()}


def is_store(path: Path) -> bool:
    """Whether a folder holds what Zarr writes."""
    return any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zarray"))


def seal_store(path: Path) -> None:
    """Note in a complete store what it consists of."""
    import zarr

    zarr.open_group(path, mode="r+").attrs[SEAL] = _inventory(path)


def check_store(path: Path) -> None:
    """Raise a ValueError where a store lacks chunks, or was changed since it was sealed.

    A store without a seal is one of another program, or of an interrupted run; only chunks without
    any content are noticed there.
    """
    import zarr

    root = zarr.open_group(path, mode="r")
    files = (file for file in path.rglob("*") if file.is_file())
    empty = next((file for file in files if file.stat().st_size == 0), None)
    if empty is not None:
        raise ValueError(f"{empty.relative_to(path)} is empty")
    if SEAL not in root.attrs:
        return
    noted = root.attrs[SEAL]
    if isinstance(noted, dict):
        found = _inventory(path)
        changed = sorted(name for name, value in noted.items() if found.get(name) != value)
        if changed:
            raise ValueError(f"{changed[0]} is missing, or was changed since it was written")
    check_chunks(path)


def check_chunks(path: Path, cases: Sequence[tuple[int, int]] | None = None) -> None:
    """Raise a ValueError where chunks are missing, which Zarr would read as fill values.

    Args:
        path: The store.
        cases: Only chunks with some of these cases, spans [first, last); all by default.
    """
    import zarr

    for name, array in zarr.open_group(path, mode="r").members(max_depth=None):
        if not isinstance(array, zarr.Array):
            continue
        units = array.shards or array.chunks
        grid: list[Sequence[int]] = [
            range(-(-size // unit)) for size, unit in zip(array.shape, units, strict=True)
        ]
        dims: Any = getattr(array.metadata, "dimension_names", None) or ()
        if cases is not None and "case" in dims:
            axis = dims.index("case")
            parts = [range(first // units[axis], -(-last // units[axis])) for first, last in cases]
            grid[axis] = sorted({place for part in parts for place in part})
        folder = path / name
        there = {one.relative_to(folder).as_posix() for one in folder.rglob("*")}
        keys = [array.metadata.encode_chunk_key(place) for place in itertools.product(*grid)]
        if missing := sum(key not in there for key in keys):
            raise ValueError(f"{name} lacks {missing} of {len(keys)} chunks")


def _inventory(path: Path) -> dict[str, int]:
    """A checksum of the metadata of every node, by name."""
    notes = {
        file.parent.relative_to(path).as_posix(): zlib.crc32(file.read_bytes())
        for file in path.rglob("zarr.json")
        if file.parent != path
    }
    root = json.loads((path / "zarr.json").read_bytes())
    root.get("attributes", {}).pop(SEAL, None)
    return notes | {_ROOT: zlib.crc32(json.dumps(root, sort_keys=True).encode())}


def sealed(content: bytes | memoryview) -> tuple[bytes | memoryview, bytes]:
    """The content of a netCDF file, and the line that follows it."""
    return content, b"ppl_med crc32 %08x\n" % zlib.crc32(content)


def check_netcdf(path: Path) -> None:
    """Raise a ValueError where a netCDF file was damaged, or harms a process that reads it.

    A file without a seal, such as one of another program, is read by another process first.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - 2 * _LENGTH, 0))
        last = file.read()
        line = _LINE.search(last)
        if line is None and b"ppl_med" in last:
            raise ValueError("its end is missing")
        if line is not None:
            file.seek(0)
            left, found = size - _LENGTH, 0
            while left > 0 and (block := file.read(min(_BLOCK, left))):
                found, left = zlib.crc32(block, found), left - len(block)
            if found != int(line[1], 16):
                raise ValueError("its checksum is wrong")
            return
    check_hdf5(path)


def check_hdf5(path: str | os.PathLike[str], *, values: bool = True) -> None:
    """Raise a ValueError where another process cannot read an HDF5 file, crashes or hangs on it.

    Args:
        path: The file.
        values: Read all values, not only what the file holds.
    """
    if not sys.executable:  # Python inside another program
        return
    limit = _SECONDS + os.path.getsize(path) / _BYTES_A_SECOND
    command = [sys.executable, "-I", "-c", _WALK, os.fspath(path), "all" if values else "some"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"reading it does not end within {limit:.0f} s") from error
    if done.returncode < 0:
        raise ValueError(f"reading it crashes HDF5 (signal {-done.returncode})")
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ValueError(*last or ["another process could not read it"])
