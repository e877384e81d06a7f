"""Options of the study."""

import os
from dataclasses import dataclass, field
from pathlib import Path

PROBLEM_NAMES = ("regression", "moons", "digits", "cells")
GUIDE_NAMES = (
    "prior",
    "point",
    "mean field",
    "low rank",
    "radial",
    "dropout",
    "concrete dropout",
    "Laplace, diagonal",
    "Laplace, Kronecker",
    "Laplace, full",
    "Laplace, last layer",
    "SWAG",
    "ensemble",
    "SGLD",
    "SGHMC",
    "HMC",
)


@dataclass
class Options:
    """Hold guides against NUTS on small problems."""

    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder that holds mnist and malaria; by default what PPL_MED_DATA names."""
    problem: tuple[str, ...] = PROBLEM_NAMES
    """Problems."""
    guide: tuple[str, ...] = GUIDE_NAMES
    """Guides; NUTS is always there."""
    seed: tuple[int, ...] = (0, 1, 2)
    """Seeds of start values, training and draws; NUTS has the first."""
    device: str = "cpu"
    """Device; so small nets gain nothing on a GPU."""
    out: Path = Path("runs/truth")
    """Folder for the results; an earlier study in it is moved aside."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume in the output folder; finished runs are kept."""
