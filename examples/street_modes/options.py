"""Options of the study."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ambiguous_masks.options import ModelOptions


@dataclass
class Options(ModelOptions):
    """Train models of ambiguous segmentation on scenes with 32 modes of known probability."""

    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder that holds camvid/; by default what PPL_MED_DATA names."""
    scenes: bool = False
    """Synthetic scenes of 32 x 32 pixels instead of CamVid."""
    out: Path = Path("runs/street_modes")
    """Folder for the results; an earlier study in it is moved aside."""
    split: Literal["val", "test"] = "val"
    """Images to compare on. Choose settings on val; use test once, at the end."""
    size: tuple[int, int] | None = None
    """Rows and columns; 96 128 of CamVid, 32 32 of synthetic scenes."""
    cases: int = 200
    """Synthetic scenes to compare on."""
