"""Runs of a guide that repeat each other without meaning to."""

import warnings
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from ppl_med.inference import process_group

_begun: WeakKeyDictionary[Any, set[tuple[int, ...]]] = WeakKeyDictionary()


def warn_of_repeats(guides: Iterable[Any], seed: int, num_cases: int, num_batches: int) -> None:
    """Warn where a guide is trained again from the first epoch with the same seed.

    Order, augmentation and draws are functions of seed, epoch and batch, so that ``fit(epochs=1)``
    in a loop shows the same batches with the same noise each time.
    """
    key, again = (seed, num_cases, num_batches), False
    for guide in guides:
        with suppress(TypeError):  # a callable that cannot be hashed or held weakly
            known = _begun.setdefault(guide, set())
            again = again or key in known
            known.add(key)
    if again and process_group.rank() == 0:
        warnings.warn(
            f"fit trains this guide a second time with seed={seed}: the batches come in the same "
            "order, with the same augmentation and the same draws as before; pass another seed in "
            "every call, or train in one call with epochs=...",
            stacklevel=5,
        )
