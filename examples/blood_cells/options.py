"""Options of the study."""

from dataclasses import dataclass, field
from os import environ
from pathlib import Path

GUIDES = ("deterministic", "stopped_early", "mean_field", "dropout")
ENSEMBLES = {"ensemble": "deterministic", "ensemble_of_normals": "mean_field"}


@dataclass
class Options:
    """Find blood cells."""

    data: Path = field(default_factory=lambda: Path(environ.get("PPL_MED_DATA", "data")))
    """Folder that holds bccd; by default what PPL_MED_DATA names."""
    guide: tuple[str, ...] = (*GUIDES, *ENSEMBLES)
    """Which guides; an ensemble joins the nets, or the normals, of all seeds."""
    seed: tuple[int, ...] = (0, 1, 2)
    """Seeds of start values, order and draws."""
    epochs: int = 80
    """Passes over the 205 training images."""
    rate: float = 2e-3
    """Learning rate of Adam at the start; it falls along a cosine."""
    batch_size: int = 8
    """Images of a step."""
    draws: int = 16
    """Functions of a posterior."""
    size: tuple[int, int] = (180, 240)
    """Rows and columns to which the smears, 480 x 640, are reduced."""
    resamples: int = 200
    """Resamples of the images, for the intervals."""
    device: str | None = None
    """Device; by default a GPU where there is one."""
    out: Path = Path("runs/blood_cells")
    """Folder for the results; an earlier study in it is moved aside."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume in the output folder; finished runs are kept."""
