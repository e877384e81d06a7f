"""Ties among the largest weights: what a generalised Pareto distribution cannot be fitted to."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def explained_ties(name: str) -> Iterator[None]:
    """Say what it means that ArviZ finds all weights of a tail equal.

    Args:
        name: Of the argument that holds the likelihood.
    """
    try:
        yield
    except ValueError as error:
        if "tail values are the same" not in str(error):
            raise
        raise ValueError(
            f"{name} has a case that many draws fit equally badly, as where a guide draws one of a "
            "few functions again and again: the tail of its weights has no shape, so that leaving "
            "it out cannot be checked. Use a guide with more functions, or held-out cases."
        ) from error
