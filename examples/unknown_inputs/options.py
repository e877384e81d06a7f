"""Options of the study."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Name = Literal["digits", "children", "malaria", "films", "white_cells", "hippocampus"]
Guide = Literal["point", "mean_field", "last_layer", "dropout", "ensemble"]
GUIDES: tuple[Guide, ...] = ("point", "mean_field", "last_layer", "dropout", "ensemble")


@dataclass
class Options:
    """Score what nets have never seen."""

    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder that holds the data sets' own; by default what PPL_MED_DATA names."""
    source: tuple[Name, ...] = (
        "digits", "children", "malaria", "films", "white_cells", "hippocampus",
    )  # fmt: skip
    """What nets are trained on."""
    guide: tuple[Guide, ...] = GUIDES
    """Which methods to run. The mean-field net starts at the point estimate, trained if need be."""
    seed: tuple[int, ...] = (0, 1, 2)
    """Seeds of start values, data order and draws."""
    severity: tuple[Name, ...] = ("children", "malaria")
    """Sources, of classes, for which figures are also drawn as images get worse; --severity with
    nothing behind leaves them out."""
    second_site: Path | None = None
    """Folder with images/ and masks/ of the second laboratory of white cells, where it is there."""
    out: Path = Path("runs/unknown_inputs")
    """Folder for the results; an earlier study in it is moved aside."""
    device: str | None = None
    """Where to train, such as cpu or cuda; a GPU where there is one."""
    draws: int = 10
    """Posterior draws; a point estimate has one, an ensemble as many as members."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume in the output folder; finished runs are kept."""
