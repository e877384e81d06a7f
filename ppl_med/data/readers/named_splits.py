"""Splits of a data set whose classes stand in its files, not in this library."""

from collections.abc import Mapping, Sequence
from typing import Any


class Splits(dict[str, dict[str, Any]]):
    """For every split its arrays, as any reader returns them, and what their classes are called.

    Attributes:
        classes: Names of the classes, of the findings, or of what boxes hold, in the order of their
            numbers; empty for numbers.
        likelihood: What ``BayesianClassifier`` and ``BayesianSegmenter`` call the likelihood:
            "categorical", "bernoulli" or "ordinal"; "findings" where ``FindingsClassifier`` is
            meant.
    """

    def __init__(
        self,
        splits: Mapping[str, dict[str, Any]],
        classes: Sequence[str] = (),
        likelihood: str = "categorical",
    ) -> None:
        super().__init__(splits)
        self.classes, self.likelihood = tuple(classes), likelihood
