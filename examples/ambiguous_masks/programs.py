"""The models that the studies compare, each with its guide and objective."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ppl_med.inference import (
    BernoulliDropout,
    BestHead,
    ConditionalHierarchy,
    ConditionalNormal,
    Elbo,
    Ensemble,
    FromPrior,
    Geco,
    Guides,
    ImportanceWeighted,
    Noising,
    PointEstimate,
    warm_up,
)
from ppl_med.models import (
    BayesianSegmenter,
    CategoricalDiffusion,
    CollectiveInsightDiffusion,
    GaussianDiffusion,
    HierarchicalProbabilisticUNet,
    ImageToImageVAE,
    MultiHeadUNet,
    ProbabilisticUNet,
    RectifiedFlow,
    StochasticSegmentationNetwork,
)
from ppl_med.networks import DenoisingUNet, UNet, hierarchical_unet, unet

Name = Literal[
    "prob_unet", "dropout_unet", "ensemble", "m_heads", "image_to_image_vae", "ssn", "hierarchical",
    "categorical_diffusion", "gaussian_diffusion", "deterministic_diffusion", "cimd",
    "flow", "flow_low_rank",
]  # fmt: skip
Program = tuple[Any, Any, dict[str, Any]]
CODE = 6  # numbers in the latent code of cimd


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


def build(
    name: str, options: ModelOptions, in_channels: int, classes: list[str], size: tuple[int, int]
) -> Program:
    """One model with its start values.

    Args:
        name: Which.
        options: Sizes, objective, seed.
        in_channels: Image channels.
        classes: Class names, the background first.
        size: Rows and columns.

    Returns:
        Model, guide, and what ``fit`` needs besides.
    """
    model, guide, settings = _build(name, options, in_channels, classes, size)
    for part in (model, guide):
        part.to(memory_format=torch.channels_last)  # a fifth faster on a CPU
    return model, guide, settings


def _build(
    name: str, options: ModelOptions, in_channels: int, classes: list[str], size: tuple[int, int]
) -> Program:
    torch.manual_seed(options.seed)
    start = {"in_channels": in_channels, "classes": classes}
    sizes = {"channels": options.channels, "num_convolutions": options.convolutions}
    if options.official:
        sizes = {"channels": unet.CHANNELS, "num_convolutions": 3}
    if name in ("dropout_unet", "ensemble"):
        return _plain(name, options, in_channels, classes, sizes)
    if name == "m_heads":
        heads = MultiHeadUNet(**start, **sizes)
        return heads, BestHead(heads, epsilon=0.05), {}
    if name == "ssn":
        ssn = StochasticSegmentationNetwork(**start, **sizes)
        return ssn, FromPrior("z", "noise"), {"objective": ImportanceWeighted(options.particles)}
    if name == "hierarchical":
        return _hierarchical(options, start, sizes, size)
    if name == "cimd" or name.endswith("_diffusion"):
        return _diffusion(name, options, in_channels, classes)
    if name in ("flow", "flow_low_rank"):
        return _flow(name, options, in_channels, classes, sizes)
    model: ProbabilisticUNet | ImageToImageVAE
    if name == "prob_unet":
        model = ProbabilisticUNet(**start, **sizes, prior_components=options.prior_components)
    else:
        model = ImageToImageVAE(**start, **sizes)
    guide = ConditionalNormal(model.posterior_net(), observation="mask")
    return model, guide, _objective(options, "elbo", size)


def _denoiser(
    options: ModelOptions, in_channels: int, noised: int, outputs: int, code: int = 0
) -> DenoisingUNet:
    channels = options.diffusion_channels
    branch = [max(8, width // 2) for width in channels]
    return DenoisingUNet(
        in_channels, noised, outputs, channels, branch,
        attention=options.attention, patch=options.patch, num_code=code,
    )  # fmt: skip


def _flow(
    name: str, options: ModelOptions, in_channels: int, classes: list[str], sizes: dict[str, Any]
) -> Program:
    """Masks along straight lines out of noise, or out of a low-rank normal."""
    channels, rank = 1 if len(classes) == 2 else len(classes), 10
    net, start = _denoiser(options, in_channels, channels, channels), None
    if name == "flow_low_rank":
        output = unet.convolution(2, sizes["channels"][0], (2 + rank) * channels, 1)
        start = nn.Sequential(UNet(in_channels, **sizes), output)
    model = RectifiedFlow(
        net, classes, start, rank,
        sampling_steps=options.sampling_steps or 25, hardening=options.hardening,
    )  # fmt: skip
    return model, PointEstimate(model, use_prior=False), {"average": options.average}


def _diffusion(name: str, options: ModelOptions, in_channels: int, classes: list[str]) -> Program:
    """A chain of masks out of noise, with one value for every weight."""
    number = len(classes)
    noised = 1 if number == 2 else number
    chain: dict[str, Any] = {
        "num_steps": options.chain_steps,
        "sampling_steps": options.sampling_steps,
        "hardening": options.hardening,
    }

    def net(noised: int, outputs: int, code: int = 0) -> DenoisingUNet:
        return _denoiser(options, in_channels, noised, outputs, code)

    model: CategoricalDiffusion | GaussianDiffusion
    guides: list[Any] = []
    if name == "categorical_diffusion":
        model = CategoricalDiffusion(
            net(number, number), classes, guess_weight=options.guess_weight, **chain
        )
    elif name == "gaussian_diffusion":
        model = GaussianDiffusion(net(noised, 2 * noised), classes, **chain)
    elif name == "deterministic_diffusion":
        chain["sampling"] = "deterministic"
        model = GaussianDiffusion(net(noised, 2 * noised), classes, **chain)
    else:
        model = CollectiveInsightDiffusion(
            net(noised, 2 * noised, CODE),
            classes,
            in_channels,
            CODE,
            options.diffusion_channels,
            **chain,
        )
        guides = [ConditionalNormal(model.posterior_net(), observation="mask")]
    point = PointEstimate(model, use_prior=False)
    return model, Guides(point, *guides, Noising(model.noising)), {"average": options.average}


def _objective(options: ModelOptions, default: str, size: tuple[int, int]) -> dict[str, Any]:
    chosen = options.objective or default
    if chosen == "geco":
        return {"objective": Geco(options.geco_target * math.prod(size))}
    top = options.beta if chosen == "elbo" else 1.0
    weight = warm_up(options.warm_up, top, options.kl_start) if options.warm_up else top
    if chosen == "elbo":
        return {"objective": Elbo(), "kl_weight": weight}
    if options.warm_up > options.elbo_part:
        raise ValueError(
            f"--warm-up {options.warm_up:g} must end before iwae begins, at --elbo-part "
            f"{options.elbo_part:g} of the steps"
        )
    first = round(options.elbo_part * options.steps)
    tighter = ImportanceWeighted(options.particles, elbo_steps=first)
    return {"objective": tighter, "kl_weight": weight}


def _hierarchical(
    options: ModelOptions, start: dict[str, Any], sizes: dict[str, Any], size: tuple[int, int]
) -> Program:
    channels = sizes["channels"]
    if options.official:  # no more halvings than the image bears
        halvings = min((n & -n).bit_length() - 1 for n in size)
        channels = hierarchical_unet.CHANNELS[: halvings + 1]
    levels = max(1, min(4, len(channels) - 2))
    model = HierarchicalProbabilisticUNet(
        **start, latent_dims=(1,) * levels, channels=channels, num_blocks=sizes["num_convolutions"]
    )
    guide = ConditionalHierarchy(model.posterior_net())
    return model, guide, _objective(options, "geco", size)


def _plain(
    name: str, options: ModelOptions, in_channels: int, classes: list[str], sizes: dict[str, Any]
) -> Program:
    """A U-Net without a latent code: under dropout, or several."""
    output = unet.convolution(2, sizes["channels"][0], len(classes), 1)
    model = BayesianSegmenter(nn.Sequential(UNet(in_channels, **sizes), output), classes)
    if name == "dropout_unet":
        # Half the inputs of the three innermost blocks on either side, as in Kohl et al.
        scales = len(sizes["channels"])
        inner = [f"0.encoder.blocks.{k}.0.weight" for k in range(max(1, scales - 3), scales)]
        inner += [f"0.decoder.{k}.0.weight" for k in range(min(3, scales - 1))]
        return model, BernoulliDropout(model, dict.fromkeys(inner, 0.5)), {}

    def guide(member: Any) -> PointEstimate:
        return PointEstimate(member, use_prior=False)

    ensemble = Ensemble(model, guide, options.members, seed=options.seed)
    return model, ensemble, {}
