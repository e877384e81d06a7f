"""Options of the study."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dense_uncertainty.options import StudyOptions


@dataclass
class Options(StudyOptions):
    """Train four variants of a depth net on scenes of known noise."""

    out: Path = Path("runs/depth")
    """Folder for the results; an earlier study in it is moved aside."""
    split: Literal["val", "test"] = "val"
    """Scenes to compare on. Choose settings on val; use test once, at the end."""
    likelihood: Literal["gaussian", "laplace"] = "gaussian"
    """Distribution of the noise that the net assumes."""
    noise: Literal["gaussian", "laplace"] | None = None
    """Distribution of the noise in the scenes; that of the likelihood by default."""
    outliers: float = 0.0
    """Share of the training pixels whose depth is an echo from elsewhere."""
    scenes: int = 160
    """Training scenes."""
    size: int = 32
    """Rows and columns, pixels."""
    channels: tuple[int, ...] = (16, 24)
    """Channels of the U-Net by scale, the finest first."""
    steps: int = 700
    """Training steps, the same for every fraction."""
    batch_size: int = 4
    """Images in a training step."""
    members: int = 3
    """Nets of the ensemble, each trained for all steps."""
    guide: Literal["dropout", "ensemble"] = "ensemble"
    """Distribution over weights, in the variants that have one."""
    rate: float = 0.02
    """Rate of dropout."""
    cases: int = 50
    """Test scenes of every kind."""

    def shrink(self) -> None:
        """Make everything small, for --smoke."""
        self.scenes, self.size, self.channels = 16, 16, (4, 6)
        self.steps, self.draws, self.members, self.cases = 4, 4, 2, 6
