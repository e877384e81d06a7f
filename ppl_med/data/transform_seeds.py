"""Seeds of MONAI's random transforms, which keep generators of their own."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from torch import Tensor
from torch.utils.data import get_worker_info

LARGEST_SEED = 2**32
DEEPEST, MOST_PARTS = 4, 64  # of a data set in a data set, and transforms in one list


def random_parts(dataset: Any) -> list[Any]:
    """The transforms of a data set, and of those inside it, whose state can be set.

    Looks for ``set_random_state``, MONAI's name, in the attributes of the data set, as MONAI does;
    what a ``Compose`` holds is seeded by it.
    """
    found: list[Any] = []
    seen: set[int] = set()
    todo = [(dataset, 0)]
    while todo:
        one, depth = todo.pop(0)
        if id(one) in seen or depth > DEEPEST or isinstance(one, type | ModuleType | Tensor):
            continue
        seen.add(id(one))
        if isinstance(one, list | tuple):
            # Lists of cases are long, and hold no transforms.
            todo += [(part, depth) for part in one[:MOST_PARTS]]
            continue
        if hasattr(one, "set_random_state"):
            found.append(one)
        if hasattr(one, "__dict__") and (one is dataset or not hasattr(one, "set_random_state")):
            todo += [(value, depth + 1) for value in vars(one).values()]
    return found


def seed_parts(parts: Sequence[Any], seed: int) -> None:
    """Set the state of each transform to a seed of its own."""
    for position, part in enumerate(parts):
        part.set_random_state(seed=(seed + position) % LARGEST_SEED)


def seed_worker(worker: int) -> None:
    """Give the transforms in a worker of a DataLoader the worker's seed, as MONAI's loader does."""
    info: Any = get_worker_info()
    seed_parts(random_parts(info.dataset), info.seed)
