"""Options of the study."""

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Options:
    """Fit a regression on images, written as a plain Pyro function."""

    out: Path = Path("runs/write_your_own")
    seed: int = 0
    device: str | None = None
    smoke: bool = False
    resume: bool = False
