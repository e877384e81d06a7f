"""Options of the study."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Name = Literal["malaria", "pneumonia"]


@dataclass
class Options:
    """Train two networks and two VAEs, and ask for counterfactuals of three kinds."""

    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder that holds malaria/malaria.npz; by default what PPL_MED_DATA names."""
    dataset: tuple[Name, ...] = ("malaria",)
    """Which cells or X-rays: malaria, pneumonia (pneumoniamnist/pneumoniamnist.npz) or both."""
    part: Literal["test", "val"] = "test"
    """Part whose cases are explained; val is for choosing settings."""
    cases: int = 16
    """Cases of each class to explain."""
    method: tuple[Literal["diffusion"], ...] = ()
    """Further kinds: diffusion trains a chain of images; a training image comes along with it."""
    draws: int = 8
    """Posterior draws that the search sees; four times as many judge."""
    steps: int = 1000
    """Training steps of each network."""
    vae_steps: int = 1000
    """Training steps of each VAE."""
    diffusion_steps: int = 2000
    """Training steps of the diffusion."""
    latent_dim: int = 16
    """Size of the VAE's code."""
    seed: int = 0
    """Seed of start values, data order and draws."""
    device: str | None = None
    """Where to train, such as cpu or cuda; a GPU where there is one."""
    out: Path = Path("runs/counterfactual_cells")
    """Folder for the results; an earlier run in it is moved aside."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume in the output folder; finished training is kept."""

    def shrink(self) -> None:
        """Make it a run of seconds."""
        self.cases, self.draws, self.steps, self.vae_steps, self.latent_dim = 2, 2, 4, 4, 2
        self.diffusion_steps = 4
