"""Checkpoints as safetensors files: tensors under readable names, the rest as JSON in the header.

The format holds numbers only, so nothing in a file can run. The header's entry ``ppl_med`` is the
nested content with ``{"tensor": name, "crc32": ...}`` in the place of every tensor.

Reference: https://huggingface.co/docs/safetensors, which has no checksums of its own.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ppl_med.inference.data_digest import bytes_of

SUFFIX = ".safetensors"
_HEADER = "ppl_med"
_TENSOR = {"tensor", "crc32"}


def as_safetensors(content: Mapping[str, Any]) -> bytes:
    """The bytes of a file that holds nested dicts and lists of tensors, numbers and text.

    Raises:
        TypeError: If there is something else in it, such as the optimizer of a running fit.
    """
    tensors: dict[str, Tensor] = {}
    outline = _without_tensors(content, "", tensors)
    return save(tensors, metadata={_HEADER: json.dumps(outline)})


def from_safetensors(path: Path) -> Any:
    """What ``as_safetensors`` was given.

    Raises:
        ValueError: If the file is damaged, or another program wrote it.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        outline = json.loads(metadata[_HEADER])
    except (OSError, MemoryError):
        raise
    except Exception as error:  # safetensors has errors of its own
        raise ValueError(f"no file of ppl_med ({type(error).__name__}: {error})") from error
    return _with_tensors(outline, tensors)


def _without_tensors(part: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(part, Tensor):
        while name in tensors:
            name += "_"
        tensors[name] = part.detach().cpu().contiguous().clone()
        return {"tensor": name, "crc32": zlib.crc32(bytes_of(part))}
    if isinstance(part, Mapping):
        if not all(isinstance(key, str) for key in part):
            raise TypeError(f"{name or 'content'} has keys that are no text, which {SUFFIX} lacks")
        return {key: _without_tensors(one, f"{name}.{key}", tensors) for key, one in part.items()}
    if isinstance(part, list | tuple):
        return [_without_tensors(one, f"{name}.{i}", tensors) for i, one in enumerate(part)]
    if part is None or isinstance(part, bool | int | float | str):
        return part
    raise TypeError(f"{name} is a {type(part).__name__}, which {SUFFIX} cannot hold")


def _with_tensors(part: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(part, list):
        return [_with_tensors(one, tensors) for one in part]
    if not isinstance(part, dict):
        return part
    if part.keys() == _TENSOR:
        found = tensors.get(part["tensor"])
        if found is None or zlib.crc32(bytes_of(found)) != part["crc32"]:
            raise ValueError(f"{part['tensor']} is missing or has a wrong checksum")
        return found
    return {key: _with_tensors(one, tensors) for key, one in part.items()}
