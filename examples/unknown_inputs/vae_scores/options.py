"""Options of the study."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Pair = Literal["digits", "films"]


@dataclass
class Options:
    """Train VAEs and compare what their scores say of images from elsewhere."""

    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder with mnist, notmnist, pneumoniamnist and malaria; by default PPL_MED_DATA."""
    pair: tuple[Pair, ...] = ("digits", "films")
    """What to train on: digits, against letters; or films, against blood cells."""
    seed: tuple[int, ...] = (0, 1)
    """Seeds of start values, order and draws."""
    out: Path = Path("runs/vae_scores")
    """Folder for the results; an earlier run in it is moved aside."""
    epochs: int = 30
    """Passes over the training cases."""
    members: int = 3
    """VAEs of the ensemble, two or more."""
    draws: int = 32
    """Codes of every image."""
    train: int = 4000
    """Training cases, at most."""
    cases: int = 300
    """Test cases, cases from elsewhere and held-out cases: at most so many of each."""
    share: float = 0.2
    """Pixels that are random in the training images of the background model."""
    steps: int = 50
    """Steps of the codes that are refitted for the likelihood regret."""
    device: str | None = None
    """Where to train, such as cpu or cuda; a GPU where there is one."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
