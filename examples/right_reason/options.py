"""Options of the study."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ppl_med.data.synthetic.confounders import Kind


@dataclass
class Options:
    """Train nets that may and nets that must not use a tag, and ask what they look at."""

    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder that holds malaria, pneumoniamnist and cxr_nih; by default what PPL_MED_DATA names."""
    planted: tuple[Literal["malaria", "pneumoniamnist"], ...] = ("pneumoniamnist", "malaria")
    """Data sets to plant a tag in."""
    source: bool = True
    """Also study the two sources of cxr_nih."""
    part: Literal["val", "test"] = "test"
    """Where the nets are compared. Choose settings on val; use test once, at the end."""
    kind: Kind = "tag"
    """What is planted."""
    probability: tuple[float, float] = (0.1, 0.9)
    """Probability of the tag in class 0 and in class 1."""
    cases: int = 6000
    """Maximum number of training cases, and of cases to compare on."""
    explained: int = 60
    """Cases whose attributions are computed."""
    epochs: int = 40
    """Passes over the training cases; twice as many, in batches twice as large, with adversary."""
    constraint: float = 300.0
    """Weight of the attribution constraint, nats times intensity squared."""
    adversary: float = 4.0
    """Weight of the adversary's factor, nats per case."""
    draws: int = 40
    """Posterior draws; intervals of 95 % need at least 39."""
    healthy: int = 306
    """Maximum number of X-rays of the NIH without findings."""
    folds: int = 4
    """Folds of the study of two sources, by patient."""
    source_epochs: int = 15
    """Passes over the X-rays of both sources."""
    seed: int = 0
    """Seed of tags, start values, data order and draws."""
    out: Path = Path("runs/right_reason")
    """Folder for the results; an earlier study in it is moved aside."""
    device: str | None = None
    """Where to train, such as cpu or cuda; a GPU where there is one."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume in the output folder; finished nets are kept."""

    def shrink(self) -> None:
        """Make the run one of seconds."""
        self.cases, self.explained, self.epochs, self.draws = 64, 12, 1, 2
        self.healthy, self.folds, self.source_epochs = 30, 2, 1
        self.planted = self.planted[:1]
