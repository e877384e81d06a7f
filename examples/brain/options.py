"""Options of the study."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Source = Literal["phantom", "hippocampus"]


@dataclass
class Options:
    """Tell Alzheimer phantoms from healthy ones, and where they differ."""

    source: tuple[Source, ...] = ("phantom",)
    """Which scans."""
    data: Path | None = None
    """A folder of your own scans instead (OASIS-1, ADNI, BIDS)."""
    classes: tuple[str, str] | None = None
    """Names of the two groups in your table, the healthy one first; needed where it has no CDR."""
    hippocampus: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder that holds hippocampus/; by default what PPL_MED_DATA names."""
    size: tuple[int, int, int] = (16, 20, 16)
    """Voxels of phantoms and of your scans along depth, row and col."""
    cases: int = 1600
    """Phantoms to train on."""
    test_cases: int = 300
    """Phantoms to test on."""
    start_steps: int = 480
    """Steps before the posterior."""
    steps: int = 1200
    """Steps of the posterior."""
    batch_size: int = 100
    """Cases per step."""
    draws: int = 32
    """Posterior draws."""
    explained: int = 40
    """Diseased test cases whose maps are computed."""
    people: int = 40
    """People of the leakage demonstration."""
    leak_epochs: int = 60
    """Its passes over the slices."""
    seed: tuple[int, ...] = (0, 1, 2)
    """Seeds of scans, start values and draws."""
    out: Path = Path("runs/brain")
    """Folder for the results; an earlier study in it is moved aside."""
    device: str | None = None
    """Where to train, such as cpu or cuda; a GPU where there is one."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume in the output folder; finished nets are kept."""

    def shrink(self) -> None:
        """Make the run one of seconds."""
        self.source, self.seed, self.size = ("phantom",), self.seed[:1], (12, 14, 12)
        self.cases, self.test_cases, self.start_steps, self.steps = 40, 40, 2, 2
        self.draws, self.explained, self.people, self.leak_epochs = 4, 4, 10, 2
