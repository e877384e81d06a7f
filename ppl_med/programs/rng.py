"""State of the random number generators: saved, set, and put back.

torch's generators (CPU and CUDA) and, because data sets augment with them, Python's and NumPy's.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import pyro.util
import torch

NUMPY_SEEDS = 2**32
State = dict[str, Any]


def get_state(device: torch.device) -> State:
    """The state of every generator that training uses, as plain tensors, numbers and tuples."""
    states = pyro.util.get_rng_state()
    kind, keys, *rest = states["numpy"]
    plain: State = {
        "torch": states["torch"],
        "python": states["random"],
        "numpy": (kind, torch.from_numpy(keys.astype("int64")), *rest),
    }
    if device.type == "cuda":
        plain["cuda"] = torch.cuda.get_rng_state(device)
    return plain


def set_state(state: State, device: torch.device) -> None:
    """Counterpart of ``get_state``."""
    kind, keys, *rest = state["numpy"]
    numpy_state = (kind, keys.numpy().astype("uint32"), *rest)
    pyro.util.set_rng_state(
        {"torch": state["torch"], "random": state["python"], "numpy": numpy_state}
    )
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_all(seed: int) -> None:
    """Seed every generator."""
    pyro.set_rng_seed(seed % NUMPY_SEEDS)
    torch.manual_seed(seed)


def seed_in_use(seed: int) -> None:
    """Seed every generator in use: as ``seed_all``, at the cost of ``seed_torch``."""
    seed_torch(seed)
    random.seed(seed)
    np.random.seed(seed % NUMPY_SEEDS)  # noqa: NPY002 - data sets draw from it


def seed_torch(seed: int) -> None:
    """Seed torch's generators: as ``torch.manual_seed``, for devices in use.

    For devices that are not in use, ``torch.manual_seed`` writes down the stack and queues a call
    each time, which costs more than a small net's forward pass and is never given back.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def restored() -> Iterator[None]:
    """Put every generator back when the block ends."""
    states = pyro.util.get_rng_state()
    try:
        with torch_restored():
            yield
    finally:
        pyro.util.set_rng_state(states)


@contextmanager
def torch_restored() -> Iterator[None]:
    """Put torch's generators back when the block ends, those of every CUDA device in use too."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        yield
