"""Options of the study."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass
class Options:
    """Segment the hippocampus in 3D and measure its parts, with intervals."""

    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder that holds hippocampus/; by default what PPL_MED_DATA names."""
    guide: Literal["dropout", "ensemble", "mean_field", "frequentist"] = "dropout"
    """Distribution over the weights; an ensemble is one of nets with dropout."""
    split: Literal["val", "test"] = "val"
    """Cases to report on. Choose settings on val; use test once, at the end."""
    out: Path = Path("runs/hippocampus")
    """Folder for the results; an earlier run in it is moved aside."""
    seed: int = 0
    """Seed of start values, training and draws."""
    device: str | None = None
    """Where to train, such as cpu or cuda; a GPU where there is one."""
    steps: int = 600
    """Training steps."""
    batch_size: int = 2
    """Volumes per training step."""
    rate: float = 3e-3
    """Learning rate of Adam; falls to 0 along a cosine."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Precision of the layers in training; auto is bfloat16 on GPUs and CPUs that have it."""
    dropout: float = 0.1
    """Probability that the guide dropout drops a channel of a wide layer."""
    channels: tuple[int, ...] = (16, 32, 64, 128)
    """Channels of the U-Net by scale."""
    members: int = 4
    """Nets of the ensemble, each trained for all steps."""
    draws: int = 32
    """Posterior draws; of an ensemble, divided among its members."""
    window: tuple[int, int, int] | None = None
    """Predict by overlapping patches of this size, for volumes that do not fit into memory."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume an interrupted run in the output folder."""

    def shrink(self) -> None:
        """Make everything small."""
        self.steps, self.draws, self.channels, self.members = 3, 4, (4, 8), 2
