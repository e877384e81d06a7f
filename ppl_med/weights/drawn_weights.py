"""A note of the weights that networks are run with, for whoever asks in the meantime."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

Drawn = list[dict[str, Tensor]]
_asked: list[Drawn] = []


@contextmanager
def noting_weights() -> Iterator[Drawn]:
    """Collect, run by run, the drawn weights by parameter name of every ``RandomWeights``."""
    found: Drawn = []
    _asked.append(found)
    try:
        yield found
    finally:
        _asked.remove(found)


def note_weights(weights: Mapping[str, Tensor]) -> None:
    """Tell those who asked what a network is about to run with."""
    for found in _asked:
        found.append(dict(weights))
