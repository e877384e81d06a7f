"""Options of the study."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Guide = Literal["frequentist", "mean_field", "tempered", "dropout", "ensemble"]


@dataclass
class Options:
    """Train a net on malaria cells under several guides, data fractions and seeds."""

    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder with malaria/malaria.npz, or cell_images as released; by default PPL_MED_DATA."""
    guide: tuple[Guide, ...] = ("frequentist", "mean_field", "dropout", "ensemble")
    """Which methods to run. The ensemble is made of frequentist runs, trained if need be; tempered
    is a mean-field net for which each of the eight orientations of a cell is an observation."""
    net: Literal["strided", "alexnet"] = "strided"
    """StridedCNN, or the AlexNet of the Bayesian-CNN papers (35 times the weights)."""
    fraction: tuple[float, ...] = (1.0, 0.5, 0.25)
    """Fractions of the training cells."""
    seed: tuple[int, ...] = (0, 1, 2)
    """Seeds of start values, data order, subset and draws."""
    out: Path = Path("runs/malaria")
    """Folder for the results; an earlier study in it is moved aside."""
    device: str | None = None
    """Where to train, such as cpu or cuda; a GPU where there is one."""
    draws: int = 32
    """Posterior draws."""
    epochs: int = 40
    """Epochs with all the data; a fraction f gets epochs / sqrt(f). Mean-field trains on from there
    for 0.75 epochs / f, which is the same number of steps at every fraction."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Precision of the layers in training; auto is bfloat16 on GPUs and CPUs that have it."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume in the output folder; finished runs are kept."""
