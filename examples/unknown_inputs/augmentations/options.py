"""Options of the study."""

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Options:
    """Split the variance of predictions of cells over draws and symmetries."""

    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder with malaria/malaria.npz; by default PPL_MED_DATA."""
    out: Path = Path("runs/augmentations")
    """Folder for the table and the picture."""
    seed: int = 0
    """Seed of start values, data order and draws."""
    train: int = 1000
    """Cells to train on."""
    test: int = 200
    """Held-out cells, of other patients."""
    epochs: int = 12
    """Epochs of each net."""
    draws: int = 16
    """Posterior draws."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
