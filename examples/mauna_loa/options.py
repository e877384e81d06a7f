"""Options of the study."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Net = Literal["dropout", "mean_field", "heteroscedastic", "ensemble"]
NETS: tuple[Net, ...] = ("dropout", "mean_field", "heteroscedastic", "ensemble")


@dataclass
class Options:
    """Forecast carbon dioxide."""

    method: tuple[Net, ...] = NETS
    """Which nets; plain dropout comes with dropout."""
    time_alone: tuple[Net, ...] = ("dropout",)
    """Which of them are also given time alone."""
    seed: tuple[int, ...] = (0, 1, 2)
    """Seeds of start values and draws; recipes are chosen with seed 0."""
    steps: int = 600
    """Steps of a training, each with all months."""
    draws: int = 100
    """Functions of a forecast."""
    starts: int = 4
    """Starts of the Gaussian process's optimiser."""
    origin: tuple[int, ...] = (1968, 1970, 1972, 1974, 1976, 1978, 1980, 1982)
    """Years from which the Gaussian process is also judged, each over 20 years, with one start."""
    device: str = "cpu"
    """Device of the nets; so small ones gain nothing on a GPU."""
    out: Path = Path("runs/mauna_loa")
    """Folder for the results; an earlier study in it is moved aside."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume in the output folder; finished forecasts are kept."""
