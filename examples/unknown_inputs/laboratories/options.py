"""Options of the study."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from laboratories.others import PLANTED

Guide = Literal["point", "last_layer", "dropout", "ensemble"]


@dataclass
class Options:
    """Train U-Nets on cells of one laboratory and adapt them to others."""

    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder with wbc_seg/; by default what PPL_MED_DATA names."""
    second_site: Path | None = None
    """Folder with images/ and masks/ of the second laboratory, if there is one."""
    guide: tuple[Guide, ...] = get_args(Guide)
    """Which posteriors. The point estimate is the first member of the ensemble."""
    seed: tuple[int, ...] = (0, 1, 2)
    """Seeds of start values, data order and draws."""
    out: Path = Path("runs/laboratories")
    """Folder for the results; an earlier study in it is moved aside."""
    device: str | None = None
    """Where to run, such as cpu or cuda; a GPU where there is one."""
    epochs: int = 30
    """Epochs of training."""
    draws: int = 4
    """Posterior draws; of a point estimate and an ensemble, those of the source share, in all."""
    laboratory: tuple[str, ...] = ("own", *PLANTED)
    """Which pictures of the first laboratory to read, as they are ("own") or made worse."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume in the output folder; finished runs are kept."""
