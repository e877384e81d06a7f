"""Options that the studies share, and what they choose from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Variant = Literal["baseline", "aleatoric", "epistemic", "both"]
Corruption = Literal["blur", "noise", "fog"]
VARIANTS: tuple[Variant, ...] = ("baseline", "aleatoric", "epistemic", "both")


@dataclass
class StudyOptions:
    """Runs and their training."""

    variant: tuple[Variant, ...] = VARIANTS
    """Which variants to run."""
    fraction: tuple[float, ...] = (1.0, 0.5, 0.25)
    """Fractions of the training cases; the smaller are part of the larger."""
    seed: tuple[int, ...] = (0,)
    """Seeds of start values, data order, subset and draws."""
    out: Path = Path("runs/dense")
    """Folder for the results; an earlier study in it is moved aside."""
    device: str | None = None
    """Where to train, such as cpu or cuda; a GPU where there is one."""
    steps: int = 1000
    """Training steps, the same for every fraction."""
    batch_size: int = 8
    """Images in a training step."""
    learning_rate: float = 3e-3
    """Learning rate of Adam at the start; it falls to 0 along a cosine."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Precision of the layers in training; auto is bfloat16 on GPUs and CPUs that have it."""
    guide: Literal["dropout", "ensemble"] = "dropout"
    """Distribution over weights, in the variants that have one."""
    rate: float = 0.1
    """Rate of dropout."""
    members: int = 4
    """Nets of the ensemble, each trained for all steps."""
    draws: int = 16
    """Posterior draws; of an ensemble, divided among its members."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume in the output folder; finished runs are kept."""
