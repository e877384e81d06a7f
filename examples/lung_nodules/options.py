"""Options of the study."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ambiguous_masks.options import ModelOptions, Name

Copied = Literal["random_masks", "nearest_masks"]


@dataclass
class Options(ModelOptions):
    """Train models of ambiguous segmentation on lung nodules and compare them with the graders."""

    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder that holds lidc/lidc_train.npz and the others; by default what PPL_MED_DATA names."""
    out: Path = Path("runs/lung_nodules")
    """Folder for the results; an earlier study in it is moved aside."""
    split: Literal["val", "test"] = "val"
    """Patients to compare on. Choose settings on val; use test once, at the end."""
    size: Literal[64, 128] = 64
    """Rows and columns; 64 are averages over blocks of 2 x 2 pixels."""
    model: tuple[Name | Copied, ...] = ("random_masks", "nearest_masks", "prob_unet")
    """Which models to run; random_masks and nearest_masks copy masks of training patients."""
    every: int = 1
    """Compare on every so many-th case only, to save the time of slow samplers."""
    repeat: int = 1
    """How often every model is trained, with the seeds from --seed on."""
