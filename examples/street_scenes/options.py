"""Options of the study."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dense_uncertainty.options import Corruption, StudyOptions


@dataclass
class Options(StudyOptions):
    """Train four variants of a segmentation net on CamVid."""

    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder that holds camvid/; by default what PPL_MED_DATA names."""
    out: Path = Path("runs/street_scenes")
    """Folder for the results; an earlier study in it is moved aside."""
    split: Literal["val", "test"] = "val"
    """Images to compare on. Choose settings on val; use test once, at the end."""
    size: tuple[int, int] = (72, 96)
    """Rows and columns; the files have 180 240. Multiples of 8 for the U-Net."""
    net: Literal["residual", "plain", "tiramisu56", "tiramisu103"] = "residual"
    """A U-Net with residual units and instance normalisation (MONAI), one without, or a fully
    convolutional DenseNet of so many layers."""
    channels: tuple[int, ...] = (16, 32, 48, 64)
    """Channels of the U-Nets by scale, the finest first."""
    steps: int = 750
    """Training steps, the same for every fraction."""
    guide: Literal["dropout", "ensemble"] = "ensemble"
    """Distribution over weights, in the variants that have one."""
    draws: int = 4
    """Posterior draws; of an ensemble, divided among its members."""
    rate: float = 0.1
    """Rate of dropout; 0.2 in the papers."""
    noise_samples: int = 4
    """Samples of the noise on the logits in each pass of the net; more cost more."""
    corruption: tuple[Corruption, ...] = ("blur", "noise", "fog")
    """What the corrupted images have."""
    severity: int = 3
    """Severity of the corruption, 1 to 5."""
    cells: bool = False
    """Also try pictures of blood cells (wbc_seg/), which show no streets at all."""
    cases: int | None = None
    """Images to compare on, evenly spaced; all by default."""

    def shrink(self) -> None:
        """Make everything small, for --smoke."""
        self.channels, self.size = (4, 6), (24, 32)
        self.steps, self.batch_size, self.draws, self.members, self.cases = 3, 4, 4, 2, 6
        self.corruption = self.corruption[:1]
