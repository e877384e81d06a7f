"""Options of the study."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Name = Literal["pneumoniamnist", "malaria"]
Guide = Literal["frequentist", "mean_field", "dropout", "ensemble", "last_layer"]
Likelihood = Literal["categorical", "label_noise", "label_smoothing", "margin_smoothing", "focal"]


@dataclass
class Options:
    """Train, recalibrate, and predict sets under several guides and seeds."""

    pictures: Name = "pneumoniamnist"
    """Which data set."""
    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder that holds the data set's own; by default what PPL_MED_DATA names."""
    guide: tuple[Guide, ...] = ("frequentist", "mean_field", "dropout", "ensemble", "last_layer")
    """Which methods to run. Frequentist nets that others need are trained if they are not there."""
    likelihood: Likelihood = "categorical"
    """What is trained; see ppl_med.likelihoods for which of them are densities."""
    alpha: float = 0.1
    """Share of prediction sets that may miss the true class."""
    seed: tuple[int, ...] = (0, 1, 2)
    """Seeds of start values, data order and draws."""
    out: Path = Path("runs/calibrated_chest_xray")
    """Folder for the results; an earlier study in it is moved aside."""
    device: str | None = None
    """Where to train, such as cpu or cuda; a GPU where there is one."""
    draws: int = 32
    """Posterior draws."""
    replicates: int = 200
    """Bootstrap data sets for the intervals."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume in the output folder; finished runs are kept."""
