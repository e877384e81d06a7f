"""MNIST and notMNIST as released."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np


def read_idx(folder: Path, part: str) -> dict[str, Any]:
    """Digits or letters of "train" or "t10k": big-endian sizes, then bytes."""
    images, label = (
        gzip.decompress((folder / f"{part}-{name}-ubyte.gz").read_bytes())
        for name in ("images-idx3", "labels-idx1")
    )
    number = int.from_bytes(images[4:8], "big")
    return {
        "image": np.frombuffer(images, np.uint8, offset=16).reshape(number, 1, 28, 28),
        "label": np.frombuffer(label, np.uint8, offset=8).astype(np.int64),
        "id": np.array([f"{part}-{row}" for row in range(number)]),
    }
