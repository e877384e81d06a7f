"""Options of the study."""

from dataclasses import dataclass, field
from os import environ
from pathlib import Path
from typing import Literal

Name = Literal["mnist", "pneumoniamnist", "malaria"]


@dataclass
class Options:
    """Plant shifts on real images and count what the diagnosis calls them."""

    data: Path = field(default_factory=lambda: Path(environ.get("PPL_MED_DATA", "data")))
    """Folder with mnist, pneumoniamnist and malaria; by default PPL_MED_DATA."""
    out: Path = Path("runs/diagnosis")
    """Folder for the results; an earlier run in it is moved aside."""
    sets: tuple[Name, ...] = ("mnist", "pneumoniamnist", "malaria")
    """Which images."""
    part: Literal["val", "test"] = "test"
    """Cases from which reference and new ones are drawn; choose settings on val."""
    digits: tuple[int, ...] = (3, 6, 8)
    """Digits of which each is unknown in its turn, with a net of its own."""
    repeats: int = 50
    """Of every planted shift, with new draws of cases."""
    severity: int = 3
    """Of the worse images, 1 to 5."""
    unknown: float = 0.2
    """Share of the unknown digit among the new cases."""
    epochs: int = 10
    """Of training."""
    seed: int = 0
    """Seed of splits, start values, training and draws."""
    device: str | None = None
    """Where to train, such as cpu or cuda; a GPU where there is one."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
