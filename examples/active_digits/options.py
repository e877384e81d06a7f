"""Options of the study."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from active_digits.methods import METHODS, REPEATED


@dataclass
class Options:
    """Buy labels of digits by several acquisitions."""

    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder that holds mnist; by default what PPL_MED_DATA names."""
    method: tuple[str, ...] = tuple(METHODS)
    """Which nets and acquisitions, such as dropout-bald or point-random."""
    repeated: tuple[str, ...] = REPEATED
    """Which of them on repeated digits; --repeated with nothing behind leaves that part out."""
    seed: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of the first labels, the first weights, training and draws."""
    budget: int = 300
    """Labels to buy by an acquisition."""
    random_budget: int = 820
    """Labels to buy at random."""
    repeated_budget: int = 120
    """Labels to buy on repeated digits."""
    size: int = 10
    """Labels a step."""
    random_size: int = 100
    """Labels a step where they are random."""
    steps: int = 200
    """Steps of training, from scratch, at every purchase; 3 for 4 labels where that is more."""
    draws: int = 20
    """Posterior draws."""
    subsample: int = 1000
    """Digits of the pool that are scored at a step."""
    out: Path = Path("runs/active_digits")
    """Folder for the results; an earlier study in it is moved aside."""
    device: str | None = None
    """Where to train, such as cpu or cuda; a GPU where there is one."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume in the output folder; finished runs are kept."""
