"""Options that the studies share, and the names of their models."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Name = Literal[
    "prob_unet", "dropout_unet", "ensemble", "m_heads", "image_to_image_vae", "ssn", "hierarchical",
    "categorical_diffusion", "gaussian_diffusion", "deterministic_diffusion", "cimd",
    "flow", "flow_low_rank",
]  # fmt: skip


@dataclass
class ModelOptions:
    """Models and their training."""

    model: tuple[Name, ...] = ("prob_unet",)
    """Which models to run."""
    out: Path = Path("runs/ambiguous_masks")
    """Folder for the results; an earlier study in it is moved aside."""
    channels: tuple[int, ...] = (16, 32, 48, 48)
    """Channels by scale, the finest first."""
    convolutions: int = 2
    """Convolutions (or residual blocks) at each scale."""
    official: bool = False
    """The sizes of the authors' code, 32 to 192 channels on 7 scales, and learning rate 1e-4."""
    steps: int = 4000
    """Training steps per model, or per member of the ensemble."""
    batch_size: int = 32
    """Images in a training step."""
    learning_rate: float = 1e-3
    """Learning rate of Adam; it falls to 0 over the last third of the steps."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Precision of the layers in training; auto is bfloat16 on GPUs and CPUs that have it."""
    draws: int = 16
    """Samples of every image; the ensemble has one per member."""
    objective: Literal["elbo", "iwae", "geco"] | None = None
    """For models with a latent code: geco is the default of hierarchical, elbo of the others."""
    beta: float = 1.0
    """Weight of the KL under elbo, for models with a latent code; 1 is the ELBO itself."""
    warm_up: float = 0.0
    """Part of the steps over which the weight of the KL goes from kl_start to beta."""
    kl_start: float = 0.0
    """Weight of the KL where the warm-up starts: 0 against collapse, above 1 for a short code."""
    elbo_part: float = 0.7
    """Part of the steps that train by the ELBO before iwae tightens the bound; 0 leaves it out."""
    geco_target: float = 0.01
    """Negative log-likelihood to reach under geco, nats per pixel."""
    prior_components: int = 1
    """Normals that the prior net of prob_unet mixes."""
    particles: int = 8
    """Draws in the bounds of iwae and of ssn."""
    members: int = 4
    """Members of the ensemble; the paper has 16."""
    chain_steps: int = 25
    """Steps of the chain of a diffusion model."""
    sampling_steps: int | None = None
    """Steps in which its masks are drawn, or those of a flow; all by default, 25 of a flow."""
    hardening: float = 0.3
    """Factor on the signal in its schedule, and a flow's: less for larger regions."""
    patch: int = 1
    """Pixels along each axis that one position of its U-Net stands for."""
    diffusion_channels: tuple[int, ...] = (16, 32, 32)
    """Channels of its U-Net by scale, the finest first; multiples of 8."""
    guess_weight: float = 0.0
    """Weight of the auxiliary loss of categorical_diffusion."""
    attention: bool = False
    """Whether the coarsest scale of its U-Net has self-attention."""
    average: float = 0.995
    """Decay of the moving average of its weights, which is what is kept."""
    seed: int = 0
    """Seed of start values, data order, augmentation and draws."""
    device: str | None = None
    """Where to train, such as cpu or cuda; a GPU where there is one."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Resume in the output folder; finished models are kept."""

    def shrink(self) -> None:
        """Make every model small and its training a few steps, for --smoke."""
        self.channels, self.convolutions = (4, 6), 1
        self.steps, self.batch_size, self.draws = 4, 8, 4
        self.particles, self.members = 2, 2
        self.chain_steps, self.sampling_steps, self.diffusion_channels = 4, None, (8, 8)

    @property
    def rate(self) -> float:
        """Learning rate before it falls."""
        return 1e-4 if self.official else self.learning_rate
