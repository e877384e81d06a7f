"""Options of the study."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass
class Options:
    """Ask whether a net looks at the outline, and take it away."""

    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder that holds hippocampus/; by default what PPL_MED_DATA names."""
    source: tuple[Literal["phantom", "hippocampus"], ...] = ("phantom", "hippocampus")
    """Which subjects."""
    train: tuple[int, int] = (600, 120)
    """Training subjects: phantoms, and hippocampi."""
    test: tuple[int, int] = (200, 80)
    """Test subjects: phantoms, and hippocampi."""
    epochs: int = 40
    """Passes over the training subjects of phantoms; five times as many of the few hippocampi."""
    rate: float = 5e-3
    """Learning rate of Adam; falls to 0 along a cosine."""
    draws: int = 20
    """Posterior draws of every seed; intervals of 95 % need at least 39 in all."""
    permutations: int = 19
    """Permutations of the labels for the p-values of the outline."""
    seed: tuple[int, ...] = (0, 1, 2)
    """Seeds of start values, data order and draws; the subjects are the same."""
    out: Path = Path("runs/brain_shape")
    """Folder for the results; an earlier study in it is moved aside."""
    device: str | None = None
    """Where to train, such as cpu or cuda; a GPU where there is one."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume in the output folder; finished nets are kept."""

    def shrink(self) -> None:
        """Make the run one of seconds."""
        self.train, self.test, self.epochs, self.draws = (24, 12), (24, 12), 1, 2
        self.seed, self.permutations = self.seed[:1], 0
