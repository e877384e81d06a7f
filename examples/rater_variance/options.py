"""Options of the study."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Guide = Literal["ensemble", "mean_field"]


@dataclass
class Options:
    """Split the variance of sampled masks, with few and with many training images."""

    guide: tuple[Guide, ...] = ("ensemble",)
    """Posteriors over the weights."""
    images: tuple[int, ...] = (32, 128, 512)
    """Numbers of training images; the smaller sets are part of the larger."""
    seed: tuple[int, ...] = (0, 1, 2, 3)
    """Seeds of images, masks, start values and draws."""
    split: Literal["val", "test"] = "val"
    """Images to compare on. Choose settings on val; use test once, at the end."""
    cases: int = 64
    """Images to compare on, others with each seed."""
    members: int = 3
    """Networks of the ensemble: each is one draw of the weights."""
    draws: int = 8
    """Draws of the weights of mean_field."""
    samples: int = 8
    """Masks with each draw of the weights."""
    steps: int = 200
    """Training steps with 512 images; with n, (n / 512)^(1/4) of them, as n are learnt by heart."""
    batch_size: int = 64
    """Images in a training step, or all of a smaller set."""
    learning_rate: float = 5e-3
    """Learning rate of Adam; it falls to 0 over the last third of the steps."""
    chain_steps: int = 6
    """Steps of the chain."""
    device: str = "cpu"
    """Device; so small nets gain nothing on a GPU."""
    out: Path = Path("runs/rater_variance")
    """Folder for the results; an earlier study in it is moved aside."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume in the output folder; finished runs are kept."""

    def shrink(self) -> None:
        """Make everything small, for --smoke."""
        self.images, self.seed, self.cases = (8, 16), (0, 1), 4
        self.members, self.draws, self.samples = 2, 2, 2
        self.steps, self.batch_size, self.chain_steps = 2, 8, 2
