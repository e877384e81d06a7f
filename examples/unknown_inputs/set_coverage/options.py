"""Options of the study."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Data = Literal["pneumoniamnist", "malaria", "cxr_nih"]


Guide = Literal["point", "last_layer", "dropout", "ensemble"]


@dataclass
class Options:
    """Calibrate prediction sets, shift the test cases, and see who warns."""

    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder with pneumoniamnist, malaria and cxr_nih; by default what PPL_MED_DATA names."""
    pictures: tuple[Data, ...] = ("pneumoniamnist", "malaria", "cxr_nih")
    """Which data sets."""
    guide: tuple[Guide, ...] = ("point", "last_layer", "dropout", "ensemble")
    """Which methods."""
    seed: tuple[int, ...] = (0, 1, 2)
    """Seeds of start values, data order and draws."""
    splits: int = 10
    """Random halves of the validation part for every guide and seed, for false alarms."""
    draws: int = 8
    """Posterior draws."""
    out: Path = Path("runs/unknown_inputs_coverage")
    """Folder for the results; an earlier study in it is moved aside."""
    device: str | None = None
    """Where to train, such as cpu or cuda; a GPU where there is one."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume in the output folder; trained nets are kept."""
