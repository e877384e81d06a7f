"""The data sets of the study."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppl_med.data import (
    RotateAndScale,
    flips_and_turns_with_mask,
    load_malaria,
    load_pneumoniamnist,
)
from ppl_med.data.readers import malaria, pneumoniamnist
from recalibration.options import Name


@dataclass(frozen=True)
class Pictures:
    """One data set.

    Args:
        read: Arrays of train, val and test from the folder of all data.
        class_names: Of the labels.
        size: Rows and columns.
        motion: Random transformation of training batches.
        title: Of the report.
        caution: What a reader should know of the cases.
    """

    read: Callable[[Path], dict[str, dict[str, Any]]]
    class_names: tuple[str, ...]
    size: int
    motion: Callable[..., Any]
    title: str
    caution: str


PICTURES: dict[Name, Pictures] = {
    "pneumoniamnist": Pictures(
        load_pneumoniamnist,
        pneumoniamnist.CLASS_NAMES,
        28,
        RotateAndScale(degrees=10, factor=1.1),
        "Pneumonia on chest X-rays: can the number be trusted?",
        "Children of one hospital; which pictures are of one child is not known, so cases of "
        "training and test may share one.",
    ),
    "malaria": Pictures(
        lambda folder: load_malaria(folder, fraction=0.25),
        malaria.CLASS_NAMES,
        50,
        flips_and_turns_with_mask,
        "Malaria cells: can the number be trusted?",
        "A quarter of the training cells; no patient has cells in two parts.",
    ),
}
