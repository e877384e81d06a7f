"""The models that the studies compare, each with its guide and objective."""

import math
from typing import Any

import torch
from torch import nn

from ambiguous_masks.options import ModelOptions
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

Program = tuple[Any, Any, dict[str, Any]]
CODE = 6  # numbers in the latent code of cimd


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
