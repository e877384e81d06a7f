"""Options of the study."""

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Options:
    """Train a Bayesian CNN on synthetic blood smears and report what it knows."""

    out: Path = Path("runs/quickstart")
    """Folder for the results; an earlier run in it is moved aside."""
    seed: int = 0
    """Seed of data, start values, training and draws."""
    device: str | None = None
    """Where to train, such as cpu or cuda; a GPU where there is one."""
    draws: int = 32
    """Posterior draws."""
    steps: int = 1000
    """Training steps per model."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume an interrupted run in the output folder."""
