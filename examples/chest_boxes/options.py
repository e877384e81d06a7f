"""Options of the study."""

from dataclasses import dataclass, field
from os import environ
from pathlib import Path
from typing import Literal


@dataclass
class Options:
    """Find opacities on chest films."""

    data: Path = field(default_factory=lambda: Path(environ.get("PPL_MED_DATA", "data")))
    """Folder that holds cxr_lesions; by default what PPL_MED_DATA names. Phantoms need none."""
    source: Literal["phantoms", "cxr_lesions"] = "phantoms"
    """The study, or real films."""
    split: Literal["val", "test"] = "val"
    """Phantoms to score. Choose settings on val; use test once, at the end."""
    seed: int = 0
    """First of the seeds of films, start values and order."""
    repeat: int = 3
    """Number of seeds; more can be added with --resume."""
    members: int = 3
    """Nets of an ensemble."""
    rate: float = 4e-3
    """Learning rate of Adam at the start; it falls along a cosine."""
    shift: float = 4.0
    """Largest shift of a training film, pixels."""
    films: int = 300
    """Films that are scored, and as many of unseen anatomy."""
    pairs: int = 40
    """Films with a pair of nodules at each distance."""
    device: str | None = None
    """Device; by default a GPU where there is one."""
    out: Path = Path("runs/chest_boxes")
    """Folder for the results; an earlier study in it is moved aside."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume in the output folder; finished nets are kept."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds."""
        return tuple(range(self.seed, self.seed + self.repeat))
