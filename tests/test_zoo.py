"""What every network, model and guide of the zoo inherits; a new one is one more line in a table.

``NETS``: shapes and gradients of networks whose weights are drawn. ``PROGRAMS``: pairs of a model
and a guide, from the contract over training and prediction to saved files.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
import torchvision
import xarray as xr
from monai.networks import nets as monai_nets
from pyro.infer.autoguide import AutoNormal
from pyro.poutine.util import site_is_factor
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from ppl_med import inference, models
from ppl_med.data import Batches
from ppl_med.explain import AttributionConstrained, NoPositiveAttribution, RightReasons
from ppl_med.explain.attribution.score import class_logits
from ppl_med.inference import (
    SWAG,
    BernoulliDropout,
    BestHead,
    ConcreteDropout,
    ConditionalHierarchy,
    ConditionalNormal,
    Ensemble,
    FromPrior,
    Guides,
    LowRankNormal,
    MeanFieldNormal,
    Noising,
    PointEstimate,
    RadialNormal,
    fit,
    functions,
    guides,
    load,
    predict,
    save,
)
from ppl_med.inference import Laplace as LaplaceGuide
from ppl_med.likelihoods import (
    Boxes,
    Categorical,
    Findings,
    Gaussian,
    LaplaceNoise,
    Quantiles,
    StudentT,
    in_double,
    stored_parameters,
)
from ppl_med.models import (
    BayesianClassifier,
    BayesianDetector,
    BayesianRegressor,
    BayesianSegmenter,
    CategoricalDiffusion,
    CollectiveInsightDiffusion,
    ConditionalVAE,
    ConfounderFreeClassifier,
    DenseRegressor,
    DUQClassifier,
    FindingsClassifier,
    GaussianDiffusion,
    GeneralizedODINClassifier,
    HierarchicalProbabilisticUNet,
    ImageDiffusion,
    ImageToImageVAE,
    ImageVAE,
    LatentClassifier,
    MultiHeadUNet,
    ProbabilisticUNet,
    RectifiedFlow,
    SiteTemperature,
    StochasticSegmentationNetwork,
)
from ppl_med.networks import (
    AdditiveCNN,
    AdditiveMIL,
    AlexNet,
    AttentionMIL,
    CompactCNN,
    DenoisingUNet,
    FCDenseNet,
    GaussianEncoder,
    LeNet,
    PooledCNN,
    UNet,
)
from ppl_med.programs import protocol
from ppl_med.programs.elbo import follows_prior
from ppl_med.programs.protocol import left_to_prior
from ppl_med.programs.sites import argument_names, is_local, plates, sample_sites, site_dims
from ppl_med.testing import check_guide, check_program
from ppl_med.weights import (
    FanInNormal,
    Laplace,
    LearntNormal,
    Normal,
    Prior,
    RandomWeights,
    ScaleMixture,
)

CLASSES = ("a", "b")
CASES = 4
Pair = tuple[Any, Any]

# --- networks: how each is built, the shape of its image, the axes of its output beyond the class

IMAGE: tuple[str, ...] = ()
PIXEL = ("row", "col")
VOXEL = ("depth", "row", "col")
SMALL_VIT = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
SMALL_DENSE = {"init_features": 4, "growth_rate": 2, "block_config": (2, 2)}
TWO_LAYERS: dict[str, Any] = {"channels": (3, 4), "strides": (2, 1)}
SMALL_TIRAMISU: dict[str, Any] = {"num_layers": (2, 1, 2), "growth_rate": 3, "first_features": 4}
Line = tuple[Callable[[], nn.Module], tuple[int, ...], tuple[str, ...]]


def monai_net(name: str, dims: int, **options: Any) -> Callable[[], nn.Module]:
    kind = getattr(monai_nets, name)
    return partial(kind, spatial_dims=dims, in_channels=1, out_channels=2, **options)


def monai_lines(dims: int) -> dict[str, Line]:
    event = PIXEL if dims == 2 else VOXEL
    small, large = (1, *[16] * dims), (1, *[32] * dims)
    unet = {"channels": (4, 8, 8), "strides": (2, 2), "num_res_units": 1, "dropout": 0.2}
    basic = monai_net("BasicUNet", dims, features=(4, 4, 4, 4, 4, 4), dropout=0.2)
    segres = monai_net("SegResNet", dims, init_filters=8, blocks_down=(1, 1), blocks_up=(1,))
    return {
        f"unet-{dims}d": (monai_net("UNet", dims, **unet), small, event),
        f"basic-unet-{dims}d": (basic, large, event),
        f"segresnet-{dims}d": (segres, small, event),
        f"densenet121-{dims}d": (monai_net("DenseNet121", dims, **SMALL_DENSE), small, IMAGE),
    }


class TwoNames(nn.Module):
    """One convolution under two names, as in the blocks of nnU-Net, and one that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.all_modules = nn.Sequential(self.conv, nn.Tanh())
        twice = nn.Conv2d(3, 3, 3, padding=1)
        self.body = nn.Sequential(twice, nn.Tanh(), twice, nn.Tanh())
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(self.all_modules(image)))


NETS: dict[str, Line] = {
    "two-names": (TwoNames, (1, 8, 8), PIXEL),
    "dynunet-2d": (
        monai_net(
            "DynUNet",
            2,
            kernel_size=(3, 3, 3),
            strides=(1, 2, 2),
            upsample_kernel_size=(2, 2),
            filters=(4, 4, 4),
        ),
        (1, 8, 8),
        PIXEL,
    ),
    "dense": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 2)),
        (1, 8, 8),
        IMAGE,
    ),
    "alexnet": (lambda: AlexNet(1, 2), (1, 32, 32), IMAGE),
    "lenet": (lambda: LeNet(1, 2, size=16), (1, 16, 16), IMAGE),
    "additive-cnn-2d": (partial(AdditiveCNN, (8, 9), **TWO_LAYERS), (1, 8, 9), IMAGE),
    "additive-cnn-3d": (partial(AdditiveCNN, (8, 8, 6), **TWO_LAYERS), (1, 8, 8, 6), IMAGE),
    "additive-mil-2d": (partial(AdditiveMIL, 2), (1, 8, 8), IMAGE),
    "additive-mil-3d": (partial(AdditiveMIL, 3), (1, 8, 8, 8), IMAGE),
    "attention-mil-2d": (partial(AttentionMIL, 2), (1, 8, 8), IMAGE),
    "attention-mil-3d": (partial(AttentionMIL, 3), (1, 8, 8, 8), IMAGE),
    "pooled-cnn-3d": (partial(PooledCNN, 3, **TWO_LAYERS), (1, 8, 8, 8), IMAGE),
    "compact": (lambda: CompactCNN(1, 2, width=3), (1, 16, 16), IMAGE),
    "fc-densenet-2d": (partial(FCDenseNet, 1, 2, **SMALL_TIRAMISU), (1, 9, 10), PIXEL),
    "fc-densenet-3d": (
        partial(FCDenseNet, 1, 2, **SMALL_TIRAMISU, spatial_dims=3),
        (1, 6, 7, 8),
        VOXEL,
    ),
    "torchvision-densenet": (
        lambda: torchvision.models.DenseNet(4, (2, 2), 8, num_classes=2),
        (3, 32, 32),
        IMAGE,
    ),
    "torchvision-vit": (
        lambda: torchvision.models.VisionTransformer(16, 4, num_classes=2, **SMALL_VIT),
        (3, 16, 16),
        IMAGE,
    ),
    **monai_lines(2),
    **monai_lines(3),
}
SLOW_NETS: dict[str, Line] = {
    "torchvision-resnet18": (
        lambda: torchvision.models.resnet18(num_classes=2),
        (3, 64, 64),
        IMAGE,
    ),
    "torchvision-alexnet": (
        lambda: torchvision.models.alexnet(num_classes=2),
        (3, 64, 64),
        IMAGE,
    ),
    "torchvision-densenet121": (
        lambda: torchvision.models.densenet121(num_classes=2),
        (3, 64, 64),
        IMAGE,
    ),
    "torchvision-vit-b-16": (
        lambda: torchvision.models.vit_b_16(image_size=32, num_classes=2),
        (3, 32, 32),
        IMAGE,
    ),
    "monai-vnet-2d": (monai_net("VNet", 2), (1, 32, 32), PIXEL),
    "monai-vnet-3d": (monai_net("VNet", 3), (1, 16, 16, 16), VOXEL),
}
ALL_NETS = NETS | SLOW_NETS
NAMES = [*NETS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_NETS)]
ESTIMATORS: dict[str, Callable[[Any], nn.Module]] = {
    "shared": partial(MeanFieldNormal, estimator="shared"),
    "flipout": partial(MeanFieldNormal, estimator="flipout"),
    "auto": partial(MeanFieldNormal, estimator="auto"),
    "dropout": BernoulliDropout,
}


class Program(nn.Module):
    """weights ~ prior; label ~ Categorical(softmax(net(image))), one a case or one a pixel."""

    def __init__(self, net: nn.Module, event: tuple[str, ...]) -> None:
        super().__init__()
        self.network = RandomWeights(net)
        self.likelihood = Categorical(CLASSES, event)

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        output = self.network(image)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            self.likelihood(output, label)
        return output


def one_pass(model: Program, guide: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Output and negative log-likelihood under one draw of the guide."""
    proposed = poutine.trace(guide).get_trace(**batch)
    trace = poutine.trace(poutine.replay(model, trace=proposed)).get_trace(**batch)
    fn: Any = trace.nodes["label"]["fn"]
    output: Any = trace.nodes["_RETURN"]["value"]
    return output, -fn.log_prob(batch["label"]).mean()


def by_entry(name: str, value: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """A guide's parameter by parameter of the net, where an axis of it runs over the weights.

    A mean or a scale is a vector over all weights, a low-rank factor has such an axis among
    others; what has none, such as a posterior net's own weights, stays whole.
    """
    layouts = [part.layout for part in model.modules() if isinstance(part, RandomWeights)]
    for layout in layouts:
        for axis, size in enumerate(value.shape):
            if size == layout.num_weights:
                parts = value.split(layout.sizes, axis)
                names = [f"{name}[{entry.name}]" for entry in layout.entries]
                return dict(zip(names, parts, strict=True))
    return {name: value}


def gradients(model: Program, guide: nn.Module) -> dict[str, Tensor | None]:
    """By name; those of a guide over the weights one by one for every parameter of the net."""
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in guide.named_parameters():
        found |= {name: None} if parameter.grad is None else by_entry(name, parameter.grad, model)
    return found


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("name", NAMES)
def test_a_net_with_drawn_weights_keeps_its_shape_and_learns(name: str, kind: str) -> None:
    make, shape, event = ALL_NETS[name]
    net = make()
    for (
        parameter
    ) in net.parameters():  # some nets start with a head of zeros, which stops gradients
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    image = torch.randn(CASES, *shape)
    with torch.no_grad():
        expected = net.eval()(image).shape
    model = Program(net, event)
    guide = ESTIMATORS[kind](model)
    label = torch.randint(2, (CASES, *expected[2:]))
    batch = {"image": image, "label": label}
    with torch.no_grad():
        assert model.eval()(image).shape == expected, "a draw of the prior"
    model.train(), guide.train()
    # The first pass of an estimator draws one weight for all and counts uses; later ones are its.
    for _ in range(3):
        output, loss = one_pass(model, guide, batch)
        assert output.shape == expected
        assert torch.isfinite(loss)
        loss.backward()
    with_gradient = gradients(model, guide)
    assert [n for n, g in with_gradient.items() if g is None or not g.isfinite().all()] == []
    assert [n for n, g in with_gradient.items() if not g.any()] == []  # type: ignore[union-attr]


@pytest.mark.parametrize("name", NAMES)
def test_at_its_own_weights_a_random_net_is_the_net(name: str) -> None:
    """Bit for bit: every parameter is put back where it belongs, nothing else has changed."""
    make, shape, event = ALL_NETS[name]
    net, image = make().eval(), torch.randn(2, *shape)
    model = Program(net, event).eval()
    before = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad(), pyro.condition(data={"weights": model.network.initial()}):
        assert torch.equal(model.network(image), net(image))
    after = dict(model.named_parameters(remove_duplicate=False))
    assert [name for name in before | after if after.get(name) is not before.get(name)] == []


def test_dropout_spares_the_channels_of_an_image_behind_a_class_token() -> None:
    """The first parameter of a vision transformer is a token, its first layer comes later."""
    make, _, event = NETS["torchvision-vit"]
    guide: Any = BernoulliDropout(Program(make(), event))
    assert "conv_proj.weight" not in guide.parts["weights"].rates
    assert "heads.head.weight" in guide.parts["weights"].rates


# --- programs: a model and its guide

CHANNELS, SIZE, NUM_CASES = 1, 8, 32


def small_net(num_outputs: int = 2) -> nn.Module:
    """Convolution, norm and dense layers: random weights beside deterministic ones."""
    return nn.Sequential(
        nn.Conv2d(CHANNELS, 4, 3, stride=2, bias=False),
        nn.BatchNorm2d(4),
        nn.PReLU(),
        nn.Conv2d(4, 4, 3, stride=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4, num_outputs),
    )


def classifier(
    guide: Callable[[Any], nn.Module],
    prior: Prior | None = None,
    where: Any = None,
    likelihood: str = "categorical",
) -> Pair:
    net = small_net(1 if likelihood in ("bernoulli", "ordinal") else 2)
    model = BayesianClassifier(net, CLASSES, prior, where, likelihood)
    return model, guide(model)


def findings_classifier(guide: Callable[[Any], nn.Module]) -> Pair:
    model = FindingsClassifier(small_net(3), Findings(("x", "y", "z"), CLASSES))
    return model, guide(model)


def duq(guide: Callable[[Any], nn.Module]) -> Pair:
    model = DUQClassifier(small_net(6), CLASSES, 6, centroid_dim=3, batch_size=16)
    return model, guide(model)


def generalized_odin(guide: Callable[[Any], nn.Module], similarity: Any = "cosine") -> Pair:
    model = GeneralizedODINClassifier(small_net(6), CLASSES, 6, similarity=similarity)
    return model, guide(model)


def ensemble(guide: Callable[[Any], nn.Module]) -> Pair:
    model = BayesianClassifier(small_net(), CLASSES)
    return model, Ensemble(model, guide, members=2)


def ensemble_of_duq() -> Pair:
    model, _ = duq(PointEstimate)
    return model, Ensemble(model, PointEstimate, members=2)


def site_temperature() -> Pair:
    model = SiteTemperature(["north", "south"], CLASSES)
    guide = AutoNormal(model)
    log_probs = torch.zeros(6, 2, 1, 1)  # one call makes its parameters
    guide(image=log_probs, site=torch.zeros(6, dtype=torch.int64), label=torch.arange(6) % 2)
    return model, guide


def latent_classifier() -> Pair:
    model = LatentClassifier(CHANNELS, CLASSES, latent_dim=2, width=3)
    return model, ConditionalNormal(GaussianEncoder(CHANNELS, 2, 3, num_classes=2))


def conditional_vae() -> Pair:
    model = ConditionalVAE(CHANNELS, CLASSES, (SIZE, SIZE), latent_dim=2, width=3)
    return model, ConditionalNormal(model.posterior_net())


def image_vae(*, store_images: bool) -> Pair:
    model = ImageVAE(CHANNELS, (SIZE, SIZE), latent_dim=2, width=3, store_images=store_images)
    return model, ConditionalNormal(model.posterior_net(), observation="image")


class SmallDenoiser(nn.Module):
    """A denoising net that is told the step by its output's bias."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(CHANNELS, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2 * CHANNELS, 1)
        )
        self.time = nn.Linear(1, 2 * CHANNELS)

    def forward(self, image: Any = None, features: Any = None, noised: Any = None, step: Any = 0):
        if image is not None:
            return image
        return self.layers(noised) + self.time(step.float()[:, None])[:, :, None, None]


def image_diffusion(form: Any, guide: Callable[[Any], nn.Module]) -> Pair:
    model = ImageDiffusion(SmallDenoiser(), CHANNELS, num_steps=4, form=form)
    return model, Guides(guide(model), Noising(model.noising, observation="image"))


def confounder_free() -> Pair:
    features = nn.Sequential(nn.Conv2d(CHANNELS, 4, 3), nn.ReLU(), nn.Flatten())
    width = 4 * (SIZE - 2) ** 2
    model = ConfounderFreeClassifier(features, nn.Linear(width, 2), CLASSES, width)
    return model, BernoulliDropout(model)


def constrained() -> Pair:
    net = nn.Sequential(nn.Conv2d(CHANNELS, 4, 3), nn.GELU(), nn.Flatten())  # no BatchNorm
    net.append(nn.Linear(4 * (SIZE - 2) ** 2, 2))
    model = BayesianClassifier(net, CLASSES)
    wrapped = AttributionConstrained(model, [RightReasons(0.1), NoPositiveAttribution(0.1)])
    return wrapped, MeanFieldNormal(wrapped)


MAXIMUM_LIKELIHOOD = partial(PointEstimate, use_prior=False)
SMALL: dict[str, Any] = {"channels": (4, 6), "num_convolutions": 1}


def segmenter(guide: Callable[[Any], nn.Module]) -> Pair:
    net = nn.Sequential(UNet(CHANNELS, **SMALL), nn.Conv2d(4, 2, 1))
    model = BayesianSegmenter(net, CLASSES)
    return model, guide(model)


def tiramisu_segmenter() -> Pair:
    model = BayesianSegmenter(FCDenseNet(CHANNELS, 2, **SMALL_TIRAMISU), CLASSES)
    return model, BernoulliDropout(model)


def with_posterior_net(kind: Callable[..., Any], **settings: Any) -> Pair:
    model = kind(CHANNELS, CLASSES, latent_dim=2, **SMALL, **settings)
    return model, ConditionalNormal(model.posterior_net(), observation="mask")


def multi_head_unet() -> Pair:
    model = MultiHeadUNet(CHANNELS, CLASSES, heads=3, **SMALL)
    return model, BestHead(model)


def stochastic_segmentation(rank: int) -> Pair:
    model = StochasticSegmentationNetwork(CHANNELS, CLASSES, rank=rank, **SMALL)
    return model, FromPrior("z", "noise")


def joined_guides() -> Pair:
    model, _ = stochastic_segmentation(3)
    return model, Guides(FromPrior("z"), FromPrior("noise"))


def hierarchical() -> Pair:
    model = HierarchicalProbabilisticUNet(CHANNELS, CLASSES, (2, 1), (4, 6, 6), num_blocks=1)
    return model, ConditionalHierarchy(model.posterior_net())


def logit_normal_segmenter() -> Pair:
    net = nn.Sequential(UNet(CHANNELS, **SMALL), nn.Conv2d(4, 4, 1))
    model = BayesianSegmenter(net, CLASSES, likelihood="logit_normal")
    return model, MeanFieldNormal(model)


def calibrated_segmenter(likelihood: str, guide: Callable[[Any], nn.Module]) -> Pair:
    net = nn.Sequential(UNet(CHANNELS, **SMALL), nn.Conv2d(4, 2, 1))
    model = BayesianSegmenter(net, CLASSES, likelihood=likelihood)
    return model, guide(model)


def denoiser(num_noised: int, num_outputs: int, **on: Any) -> DenoisingUNet:
    net = DenoisingUNet(CHANNELS, num_noised, num_outputs, (8, 8), (4, 6), norm_groups=4, **on)
    for parameter in net.parameters():  # layers that start at zero stop the gradients of others
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return net


def rectified_flow(guide: Callable[[Any], nn.Module], rank: int | None = None, **on: Any) -> Pair:
    net = denoiser(1, 1)
    parts = None if rank is None else (UNet(CHANNELS, **SMALL), nn.Conv2d(4, 2 + rank, 1))
    start = None if parts is None else nn.Sequential(*parts)
    settings = {"rank": rank or 0, "sampling_steps": 3, **on}
    model = RectifiedFlow(net, CLASSES, start, **settings)
    return model, guide(model)


def diffusion(kind: Any, guide: Callable[[Any], nn.Module], **settings: Any) -> Pair:
    model = kind(denoiser(2 if kind is CategoricalDiffusion else 1, 2), CLASSES, 2, **settings)
    return model, with_noising(guide)(model)


def with_noising(guide: Callable[[Any], nn.Module]) -> Callable[[Any], nn.Module]:
    return lambda model: Guides(guide(model), Noising(model.noising))


def collective_insight() -> Pair:
    net = denoiser(1, 2, num_code=2)
    sizes: Any = {"encoder_channels": (4, 6), "num_convolutions": 1}
    model = CollectiveInsightDiffusion(net, CLASSES, CHANNELS, 2, num_steps=2, **sizes)
    code = ConditionalNormal(model.posterior_net(), observation="mask")
    return model, Guides(MAXIMUM_LIKELIHOOD(model), code, Noising(model.noising))


def ensemble_of_diffusions() -> Pair:
    model, _ = diffusion(CategoricalDiffusion, PointEstimate)
    return model, Ensemble(model, with_noising(PointEstimate), members=2)


DIFFUSIONS: dict[str, Callable[[], Pair]] = {
    "categorical-diffusion": partial(diffusion, CategoricalDiffusion, MAXIMUM_LIKELIHOOD),
    "categorical-diffusion-normal": partial(
        diffusion, CategoricalDiffusion, MeanFieldNormal, where="image_branch.*"
    ),
    "categorical-diffusion-low-rank": partial(
        diffusion, CategoricalDiffusion, partial(LowRankNormal, rank=2), where="image_branch.*"
    ),
    "gaussian-diffusion": partial(
        diffusion, GaussianDiffusion, ESTIMATORS["shared"], form="slow", where="image_branch.*"
    ),
    "collective-insight-diffusion": collective_insight,
    "gaussian-diffusion-dropout": partial(diffusion, GaussianDiffusion, BernoulliDropout),
}
SEGMENTERS: dict[str, Callable[[], Pair]] = {
    **DIFFUSIONS,
    **{f"segmenter-{name}": partial(segmenter, guide) for name, guide in ESTIMATORS.items()},
    "segmenter-point": partial(segmenter, PointEstimate),
    "segmenter-tiramisu": tiramisu_segmenter,
    "probabilistic-unet": partial(with_posterior_net, ProbabilisticUNet),
    "probabilistic-unet-backbone": partial(
        with_posterior_net, ProbabilisticUNet, backbone=UNet(CHANNELS, (5, 4), 1)
    ),
    "probabilistic-unet-mixture": partial(
        with_posterior_net, ProbabilisticUNet, prior_components=3
    ),
    "image-to-image-vae": partial(with_posterior_net, ImageToImageVAE),
    "multi-head-unet": multi_head_unet,
    "stochastic-segmentation": partial(stochastic_segmentation, 3),
    "diagonal-segmentation": partial(stochastic_segmentation, 0),
    "joined-guides": joined_guides,
    "hierarchical-probabilistic-unet": hierarchical,
    "rectified-flow": partial(rectified_flow, partial(MeanFieldNormal, init_scale=0.3)),
    "rectified-flow-point": partial(rectified_flow, MAXIMUM_LIKELIHOOD, solver="heun", target="v"),
    "rectified-flow-low-rank": partial(rectified_flow, BernoulliDropout, rank=3),
    "logit-normal-segmenter": logit_normal_segmenter,
    "label-noise-segmenter": partial(calibrated_segmenter, "label_noise", MeanFieldNormal),
    "label-smoothing-segmenter": partial(calibrated_segmenter, "label_smoothing", BernoulliDropout),
    "spatial-smoothing": partial(calibrated_segmenter, "spatial_smoothing", MeanFieldNormal),
    "neighbour-aware": partial(calibrated_segmenter, "neighbour_aware", BernoulliDropout),
}


def regressor(likelihood: Any, guide: Callable[[Any], nn.Module] = MeanFieldNormal) -> Pair:
    model = BayesianRegressor(small_net(likelihood.num_outputs), likelihood)
    return model, guide(model)


def dense_regressor(likelihood: Any = None) -> Pair:
    num_outputs = 2 if likelihood is None else likelihood.num_outputs
    net = nn.Sequential(UNet(CHANNELS, **SMALL), nn.Conv2d(4, num_outputs, 1))
    model = DenseRegressor(net, likelihood)
    return model, MeanFieldNormal(model)


def logit_normal_classifier() -> Pair:
    model = BayesianClassifier(small_net(4), CLASSES, likelihood="logit_normal")
    return model, BernoulliDropout(model)


def tiramisu_dense_regressor() -> Pair:
    model = DenseRegressor(FCDenseNet(CHANNELS, 2, **SMALL_TIRAMISU))
    return model, MeanFieldNormal(model)


REGRESSORS: dict[str, Callable[[], Pair]] = {
    "gaussian": lambda: regressor(Gaussian()),
    "gaussian-dropout": lambda: regressor(Gaussian(), BernoulliDropout),
    "gaussian-homoscedastic": lambda: regressor(Gaussian(heteroscedastic=False)),
    "gaussian-beta": lambda: regressor(Gaussian(beta=0.5)),
    "laplace-noise": lambda: regressor(LaplaceNoise()),
    "student-t": lambda: regressor(StudentT()),
    "quantiles": lambda: regressor(Quantiles((0.1, 0.5, 0.9))),
    "several-numbers": lambda: regressor(Gaussian(findings=("x", "y", "z"))),
    "several-quantiles": lambda: regressor(Quantiles((0.1, 0.9), findings=("x", "y", "z"))),
}
DENSE_REGRESSORS: dict[str, Callable[[], Pair]] = {
    "dense-laplace": dense_regressor,
    "dense-tiramisu": tiramisu_dense_regressor,
    "dense-gaussian": lambda: dense_regressor(Gaussian(PIXEL, site="depth", partial=True)),
    "dense-quantiles": lambda: dense_regressor(Quantiles((0.1, 0.9), PIXEL, site="depth")),
}


class BoxNet(nn.Module):
    """Two anchors, the left and the right half of the image."""

    anchors: Tensor

    def __init__(self, num_outputs: int, kinds: tuple[float, float] = (1.0, 1.0)) -> None:
        super().__init__()
        last = nn.Conv2d(4, num_outputs - 5, (SIZE, SIZE // 2), SIZE // 2)
        self.layers = nn.Sequential(nn.Conv2d(CHANNELS, 4, 3, padding=1), nn.Tanh(), last)
        half = SIZE / 2
        anchors = torch.tensor([[0, half], [0, 0], [half, SIZE], [SIZE, SIZE], kinds])
        self.register_buffer("anchors", anchors, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        output = self.layers(image).flatten(2)
        return torch.cat([output, self.anchors.expand(len(image), -1, -1)], 1)


def detector(guide: Callable[[Any], nn.Module], **settings: Any) -> Pair:
    likelihood = Boxes(CLASSES, most=2, **settings)
    net = BoxNet(likelihood.num_outputs, (0.0, 1.0) if likelihood.proposals else (1.0, 1.0))
    model = BayesianDetector(net, likelihood)
    return model, guide(model)


DETECTORS: dict[str, Callable[[], Pair]] = {
    "detector": partial(detector, MeanFieldNormal),
    "detector-point": partial(detector, PointEstimate),
    "detector-dropout": partial(detector, BernoulliDropout, encoding="deltas"),
    "detector-density": partial(detector, MeanFieldNormal, match="best", noise="normal"),
    "detector-centre": partial(detector, MeanFieldNormal, match="centre", focal=2.0),
    "detector-proposals": partial(detector, MeanFieldNormal, proposals=True),
    "detector-anchors": partial(detector, MeanFieldNormal, keep="anchors"),
}
STRUCTURES: tuple[Any, ...] = ("full", "kron", "diag", "last_layer")
PROGRAMS: dict[str, Callable[[], Pair]] = {
    **{
        f"{likelihood}-{name}": partial(classifier, guide, likelihood=likelihood)
        for likelihood in ("categorical", "bernoulli")
        for name, guide in ESTIMATORS.items()
    },
    "categorical-point": partial(classifier, PointEstimate),
    "bernoulli-point": partial(classifier, PointEstimate, likelihood="bernoulli"),
    "maximum-likelihood": partial(classifier, MAXIMUM_LIKELIHOOD),
    "low-rank": partial(classifier, partial(LowRankNormal, rank=2)),
    "radial": partial(classifier, RadialNormal),
    "concrete-dropout": partial(classifier, ConcreteDropout),
    "swag": partial(classifier, partial(SWAG, start=0.0)),
    **{f"laplace-{s}": partial(classifier, partial(LaplaceGuide, structure=s)) for s in STRUCTURES},
    "laplace-bernoulli": partial(classifier, LaplaceGuide, likelihood="bernoulli"),
    "last-layer": partial(classifier, MeanFieldNormal, where="last_layer"),
    "last-layer-dropout": partial(
        classifier, partial(BernoulliDropout, skip_first=False), where="last_layer"
    ),
    "normal": partial(classifier, MeanFieldNormal, Normal(0.5)),
    "pretrained": partial(classifier, MeanFieldNormal, Normal(0.5, "pretrained")),
    "fan-in": partial(classifier, MeanFieldNormal, FanInNormal(1.0)),
    "laplace": partial(classifier, MeanFieldNormal, Laplace(0.3)),
    "mixture": partial(classifier, MeanFieldNormal, ScaleMixture()),
    "learnt-scales": partial(classifier, MeanFieldNormal, LearntNormal("weight")),
    "learnt-scales-low-rank": partial(classifier, LowRankNormal, LearntNormal()),
    "mixture-dropout": partial(classifier, BernoulliDropout, ScaleMixture()),
    "laplace-point": partial(classifier, PointEstimate, Laplace(0.3)),
    "latent": latent_classifier,
    "conditional-vae": conditional_vae,
    "image-vae": partial(image_vae, store_images=False),
    "image-vae-images": partial(image_vae, store_images=True),
    "image-diffusion": partial(image_diffusion, "fast", MAXIMUM_LIKELIHOOD),
    "image-diffusion-slow": partial(image_diffusion, "slow", MeanFieldNormal),
    "logit-normal": logit_normal_classifier,
    "ordinal": partial(classifier, MeanFieldNormal, likelihood="ordinal"),
    "label-noise": partial(classifier, MeanFieldNormal, likelihood="label_noise"),
    "label-smoothing": partial(classifier, BernoulliDropout, likelihood="label_smoothing"),
    "margin-smoothing": partial(classifier, MeanFieldNormal, likelihood="margin_smoothing"),
    "focal": partial(classifier, BernoulliDropout, likelihood="focal"),
    "findings": partial(findings_classifier, MeanFieldNormal),
    "findings-dropout": partial(findings_classifier, BernoulliDropout),
    "confounder-free": confounder_free,
    "duq": partial(duq, PointEstimate),
    "duq-normal": partial(duq, MeanFieldNormal),
    "duq-dropout": partial(duq, BernoulliDropout),
    "generalized-odin": partial(generalized_odin, PointEstimate),
    "generalized-odin-inner": partial(generalized_odin, MeanFieldNormal, "inner"),
    "generalized-odin-euclidean": partial(generalized_odin, MeanFieldNormal, "euclidean"),
    "generalized-odin-dropout": partial(generalized_odin, BernoulliDropout),
    "constrained": constrained,
    "site-temperature": site_temperature,
    **SEGMENTERS,
    **REGRESSORS,
    **DENSE_REGRESSORS,
    **DETECTORS,
}
# Not one program but several pairs: trained, predicted and stored like one.
SEVERAL: dict[str, Callable[[], Pair]] = {
    "ensemble-of-points": partial(ensemble, PointEstimate),
    "ensemble-of-normals": partial(ensemble, MeanFieldNormal),
    "ensemble-of-duq": ensemble_of_duq,
    "ensemble-of-diffusions": ensemble_of_diffusions,
}
PAIRS = PROGRAMS | SEVERAL
NO_FUNCTION_OF_AN_IMAGE = {"site-temperature"}  # it needs the site too
every_program = pytest.mark.parametrize("name", PROGRAMS)
every_pair = pytest.mark.parametrize("name", PAIRS)


@dataclass(frozen=True)
class Observed:
    """A program's observed site: what its data must look like, and what ``predict`` keeps."""

    site: str
    maps: bool
    findings: tuple[int, ...]
    support: Any
    stored: dict[str, list[str]]

    def of(self, signal: Tensor) -> Tensor:
        """What stands for a signal about -1 or 1 among the values that the site may have."""
        kinds = (type(constraints.boolean), constraints.integer_interval)
        if isinstance(self.support, kinds):
            return (signal > 0).long()
        if self.support.is_discrete:
            return (2 + 2 * signal).clamp(min=0).round()
        return transform_to(self.support)(signal)


@cache
def observed(name: str) -> Observed:
    """Read off one run of the model, so that a new one says nothing of it in a table."""
    with torch.random.fork_rng():
        model, _ = PAIRS[name]()
        batch = {key: value[:6] for key, value in inputs(name).items()}
        trace = poutine.trace(model.eval()).get_trace(**batch)
    sites = set(argument_names(model)) & sample_sites(trace).keys()
    assert len(sites) == 1, f"one sample site must have the name of an argument, got {sites}"
    (site,) = sites
    fn: Any = trace.nodes[site]["fn"]
    axes, support = site_dims(trace, site), fn.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    kept = (trace.nodes[site]["infer"] or {}).get("stored", True)
    code = {} if protocol.evidence_bound(model) else {"z": (["case", "latent"], None)}
    stored = stored_parameters(in_double(fn), axes) if kept else code
    findings = tuple(trace.nodes[site]["value"].shape[1:]) if "finding" in axes else ()
    parameters = {n: names for n, (names, _) in stored.items()}
    return Observed(site, "row" in axes, findings, support, parameters)


def cases() -> tuple[Tensor, Tensor, Tensor]:
    """Labels, images whose left half is brighter where the label is 1, and noise per pixel."""
    generator = torch.Generator().manual_seed(7)
    label = torch.arange(NUM_CASES) % 2
    image = torch.randn(NUM_CASES, CHANNELS, SIZE, SIZE, generator=generator)
    image[..., : SIZE // 2] += 2.0 * label[:, None, None, None] - 1
    return label, image, 0.1 * torch.randn(NUM_CASES, SIZE, SIZE, generator=generator)


def inputs(name: str) -> dict[str, Tensor]:
    """What a model reads beside its observation."""
    label, image, noise = cases()
    irrelevant = torch.zeros(NUM_CASES, SIZE, SIZE, dtype=torch.bool)
    irrelevant[..., SIZE // 2 :] = True
    if name == "site-temperature":  # log-probabilities, each a channel of one pixel
        return {"image": image[:, :, :1, :2].transpose(1, 3), "site": label.roll(1)}
    aids = {
        "confounder-free": {"confounder": noise[:, 0, 1]},
        "constrained": {"irrelevant": irrelevant},
    }
    if name in DETECTORS:
        aids[name] = {"box_label": torch.stack([label, torch.full_like(label, -1)], 1)}
    return {"image": image, **aids.get(name, {})}


def data(name: str) -> dict[str, Any]:
    """Inputs, and an observation that the brightness of the left half tells."""
    label, _, noise = cases()
    mask = torch.zeros(NUM_CASES, SIZE, SIZE, dtype=torch.int64)
    mask[..., : SIZE // 2] = label[:, None, None]
    found = observed(name)
    signal = 2.0 * mask - 1 + noise if found.maps else 2.0 * label - 1 + noise[:, 0, 0]
    for _ in found.findings:
        signal = torch.stack([signal, -signal, noise[:, 0, 1]], -1)
    ids = [f"case {index}" for index in range(NUM_CASES)]
    read = inputs(name)  # which the observation may be
    if found.site == "box":  # around the left half or the right one, and room for another
        start = SIZE / 2 * label + noise[:, 0, 0].abs()
        edges = torch.stack([start, 0 * start, start + SIZE / 2 - 1, 0 * start + SIZE], -1)
        read["box"] = torch.stack([edges, torch.full_like(edges, torch.nan)], 1)
    return {**read, found.site: read.get(found.site, found.of(signal)), "id": ids}


def mini_batch(name: str) -> dict[str, Tensor]:
    return {key: value[:6] for key, value in data(name).items() if key != "id"}


def start_values(model: nn.Module, guide: nn.Module) -> dict[str, Tensor]:
    """Trainable values by name; those of a guide over the weights by parameter of the net."""
    if isinstance(guide, Ensemble):
        return {n: p.detach().clone() for n, p in guide.named_parameters() if p.requires_grad}
    found = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    for name, parameter in guide.named_parameters():
        found |= by_entry(name, parameter.detach().clone(), model)
    return found


def test_every_model_and_guide_stands_in_the_table() -> None:
    """What is exported has a line above: it inherits these tests."""
    pairs = [make() for make in PAIRS.values()]
    made = {type(part).__name__ for pair in pairs for program in pair for part in program.modules()}
    assert set(models.__all__) - made == set()
    assert set(guides.__all__) - made == set()
    assert set(guides.__all__) <= set(inference.__all__)


@every_program
def test_a_program_keeps_its_contract(name: str) -> None:
    model, guide = PROGRAMS[name]()
    check_program(model, mini_batch(name))
    check_guide(model, guide, mini_batch(name))


@every_program
def test_the_guide_proposes_exactly_the_latents(name: str) -> None:
    model, guide = PROGRAMS[name]()
    batch = mini_batch(name)
    sites = sample_sites(poutine.trace(model).get_trace(**batch))
    sites = {name: site for name, site in sites.items() if not site_is_factor(site)}  # type: ignore[arg-type]
    sites = {name: site for name, site in sites.items() if "_deterministic" not in site["infer"]}
    latents = {n for n, site in sites.items() if not site["is_observed"]}
    assert latents and set(sites) - latents == {observed(name).site}
    proposals = sample_sites(poutine.trace(guide).get_trace(**batch))
    proposed = {n for n, site in proposals.items() if not site["infer"].get("is_auxiliary")}
    left = {n for n in latents if follows_prior(sites[n], n, left_to_prior(guide))}
    assert proposed == latents - left


@every_program
def test_a_mini_batch_stands_for_the_data_set(name: str) -> None:
    """Log p of what belongs to a case is num_cases / len(image) times the mini-batch's."""
    model, guide = (program.eval() for program in PROGRAMS[name]())
    batch, factor = mini_batch(name), 7
    for program in (model, guide):
        trace = poutine.trace(program).get_trace(**batch)
        again = poutine.trace(poutine.replay(program, trace=trace))
        whole = again.get_trace(**batch, num_cases=factor * len(batch["image"]))
        for site, node in sample_sites(whole).items():
            if not is_local(node):
                assert node["scale"] == 1
                continue
            alone: Any = trace.nodes[site]
            log_prob = alone["fn"].log_prob(alone["value"]).sum()
            trace.compute_log_prob(lambda n, _, site=site: n == site)
            whole.compute_log_prob(lambda n, _, site=site: n == site)
            if alone["mask"] is None and set(plates(alone)) == {"case"}:
                assert trace.nodes[site]["log_prob_sum"] == log_prob
            expected = factor * trace.nodes[site]["log_prob_sum"]
            assert torch.isclose(whole.nodes[site]["log_prob_sum"], expected)


def trained(name: str) -> tuple[Any, Any, xr.Dataset]:
    model, guide = PAIRS[name]()
    batches = Batches(data(name), batch_size=16, shuffle=True)
    history = fit(model, guide, batches, epochs=10, learning_rate=0.03, progress=False)
    return model, guide, history


@every_pair
@pytest.mark.filterwarnings("ignore:posterior collapse")  # these labels need no latent code
@pytest.mark.filterwarnings("ignore:the point is no mode")  # after so few epochs
def test_fit_moves_every_parameter_and_raises_the_elbo(name: str) -> None:
    before = start_values(*PAIRS[name]())
    pyro.set_rng_seed(0)
    model, guide, history = trained(name)
    after = start_values(model, guide)
    assert [n for n, value in after.items() if not value.isfinite().all()] == []
    assert [n for n, value in after.items() if torch.equal(value, before[n])] == []
    elbo = history["elbo"].values
    elbo = elbo.reshape(-1, elbo.shape[-1]).mean(0)  # over the members of an ensemble
    tenth = len(elbo) // 10
    assert elbo[-tenth:].mean() > elbo[:tenth].mean()


@every_pair
@pytest.mark.filterwarnings("ignore:posterior collapse")
@pytest.mark.filterwarnings("ignore:the point is no mode")
def test_predictions_have_names_and_outlive_the_process(name: str, tmp_path: Path) -> None:
    """A pair that was never called, built from other start values, predicts the same bits."""
    model, guide = PAIRS[name]()
    batches = Batches(data(name), batch_size=16)
    fit(model, guide, batches, epochs=1, validation=batches, progress=False)
    tree = predict(model, guide, batches, draws=3, seed=4, progress=False)
    dims = {str(dim) for group in tree.subtree for dim in group.dims}
    found = observed(name)
    posterior: Any = tree["posterior"]
    assert dims >= {"chain", "draw", "case", *(("row", "col") if found.maps else ())}
    assert {dim for dim in dims if "_dim_" in dim} == set(), "an axis without a name"
    assert any(dim.endswith("layer") for dim in dims) == ("weight_norm" in posterior)
    assert found.stored or "evidence_bound" in tree
    for parameter, axes in found.stored.items():
        assert posterior[parameter].dims == ("chain", "draw", *axes)
    if "probs" in found.stored:
        assert posterior.coords["class"].to_numpy().tolist() == list(CLASSES)
    of_cases = posterior if found.stored else tree["evidence_bound"]
    assert of_cases.coords["case"].to_numpy().tolist() == data(name)["id"]
    if "probs" in found.stored and name not in NO_FUNCTION_OF_AN_IMAGE:
        first = data(name)["image"][:1]
        for function in functions(model, guide, draws=3, seed=4):
            logits = class_logits(function(first)).detach()
            expected = posterior["probs"].sel(chain=function.chain, draw=function.draw)
            np.testing.assert_allclose(logits.softmax(1), expected[:1], atol=1e-5)
    save(tmp_path / "trained.pt", model, guide)
    torch.manual_seed(1)
    others = PAIRS[name]()
    load(tmp_path / "trained.pt", *others)
    again = predict(*others, batches, draws=3, seed=4, progress=False)
    xr.testing.assert_equal(tree, again)
