"""Options of the study."""

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Options:
    """What is known of p(R | x): by maximum likelihood, by SVI, by NUTS, by a classifier."""

    points: int = 1000
    draws: int = 500
    seed: int = 0
    out: Path = Path("runs/two_classes")
    device: str | None = None
    smoke: bool = False
    resume: bool = False
