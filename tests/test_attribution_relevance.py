"""LRP, DeepLIFT and FullGrad: identities, captum and zennit as oracles, nets of the field."""

import warnings
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from attribution_nets import conv_net, images, randomized
from captum.attr._utils.lrp_rules import EpsilonRule
from monai.networks.nets import SegResNet, UNet
from torch import Tensor, nn
from torchvision.models import VisionTransformer, alexnet, densenet121, resnet18

from ppl_med.explain.attribution import RelevancePropagation, attribute
from ppl_med.inference import MeanFieldNormal, functions
from ppl_med.models import BayesianClassifier

TARGET = torch.tensor([2, 0, 1])
FAMILY = ("lrp", "deep_lift", "full_gradient")


def total(values: Any) -> Any:
    return values.sum([dim for dim in values.dims if dim in ("channel", "depth", "row", "col")])


# --- LRP


def by_the_rule(net: nn.Sequential, x: Tensor, epsilon: float) -> Tensor:
    """R_i = Σ_j x_i w_ij R_j / (z_j + ε sign z_j), layer by layer; ReLU passes it on."""
    inputs = [x.flatten(1)]
    for layer in net:
        inputs.append(layer(inputs[-1]))
    relevance = torch.zeros_like(inputs[-1])
    relevance[range(3), TARGET] = inputs[-1][range(3), TARGET]
    for layer, before, after in zip(reversed(net), inputs[-2::-1], inputs[:0:-1], strict=True):
        if isinstance(layer, nn.Linear):
            share = relevance / (after + epsilon * torch.where(after >= 0, 1.0, -1.0))
            relevance = before * (share @ layer.weight)
    return relevance.view_as(x)


@pytest.mark.parametrize("epsilon", [1e-9, 0.05, 2.0])
def test_lrp_is_its_rule(epsilon: float) -> None:
    layers = nn.Sequential(nn.Linear(32, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))
    net, x = nn.Sequential(nn.Flatten(), layers.double()).requires_grad_(False), images(size=4)
    result = attribute([net], x, TARGET, method="lrp", epsilon=epsilon)
    exact = by_the_rule(layers, x, epsilon)
    np.testing.assert_allclose(result["mean"], exact, atol=1e-10)
    share = exact.flatten(1).sum(1) / net(x)[range(3), TARGET]
    np.testing.assert_allclose(result.conservation[0, 0], share, rtol=1e-8)


@pytest.mark.parametrize("epsilon", [1e-9, 0.25])
def test_lrp_is_captums(epsilon: float) -> None:
    net, x = conv_net(), images()
    oracle = captum.attr.LRP(net[:-2])
    # captum knows no Flatten, so the rule is compared on the convolutional part.
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.rule = EpsilonRule(epsilon)
    place = (1, 1, 2)
    exact = oracle.attribute(x.clone().requires_grad_(), place).detach()
    region = torch.zeros(3, 4, 4)
    region[:, 1, 2] = 1
    result = attribute([net[:-2]], x, 1, method="lrp", epsilon=epsilon, region=region)
    np.testing.assert_allclose(result["mean"], exact, atol=1e-8)


@pytest.mark.parametrize("space", [2, 3])
def test_lrp_without_epsilon_is_input_x_gradient(space: int) -> None:
    net, x = conv_net(space), images(space=space)  # with biases and batch norm
    maps = [
        attribute([net], x, TARGET, method=method)
        for method in (RelevancePropagation(epsilon=0.0), "input_x_gradient")
    ]
    np.testing.assert_allclose(maps[0]["mean"], maps[1]["mean"], atol=1e-10)
    np.testing.assert_allclose(maps[0].conservation, maps[1].conservation, rtol=1e-8)


def test_lrp_is_zennits_on_a_residual_net() -> None:
    composites = pytest.importorskip("zennit.composites")
    attribution = pytest.importorskip("zennit.attribution")
    canonizers = pytest.importorskip("zennit.torchvision")
    net, x = randomized(resnet18(num_classes=3)).double(), torch.randn(2, 3, 32, 32).double()
    result = attribute([net], x, 1, method="lrp", epsilon=0.1)
    rules = composites.EpsilonPlus  # noqa: F841  imported to fail early where zennit changed
    from zennit.core import Composite
    from zennit.rules import Epsilon, Norm, Pass
    from zennit.types import (
        Activation,
        AvgPool,
        BatchNorm,
        Convolution,
        Linear,
    )

    def rule(context: Any, name: str, module: nn.Module) -> Any:
        if isinstance(module, Activation):
            return Pass()
        if isinstance(module, Convolution | Linear | BatchNorm | AvgPool):
            return Epsilon(0.1)
        return Norm(1e-12) if type(module).__name__ == "Sum" else None

    canonizer = canonizers.ResNetBasicBlockCanonizer()
    with attribution.Gradient(net, Composite(rule, [canonizer])) as attributor:
        output = net(x).detach()
        target = torch.zeros_like(output)
        target[:, 1] = output[:, 1]
        _, exact = attributor(x, target)
    scale = float(exact.abs().max())
    np.testing.assert_allclose(result["mean"] / scale, exact / scale, atol=1e-5)


def test_activations_pass_relevance_by_their_ratio() -> None:
    """f(x) = Σ w_i g(v_i x_i), without biases: relevance of a pixel is its own term."""
    v, w = torch.rand(128).double() + 0.5, torch.randn(128).double()
    for activation in (nn.PReLU().double(), nn.GELU(), nn.SiLU(inplace=True), nn.Tanh()):
        first, last = nn.Linear(128, 128, bias=False), nn.Linear(128, 2, bias=False)
        net = nn.Sequential(nn.Flatten(), first, activation, last).double().requires_grad_(False)
        first.weight.copy_(torch.diag(v))
        last.weight.copy_(torch.stack([w, -w]))
        x = images()
        result = attribute([net], x, 0, method="lrp", epsilon=0.0)
        exact = (activation(x.flatten(1) * v) * w).view_as(x)
        np.testing.assert_allclose(result["mean"], exact, atol=1e-12)
        np.testing.assert_allclose(result.conservation, 1)


@pytest.mark.parametrize(
    "norm", [nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm([4, 8, 8])]
)
def test_norms_of_the_image_are_linear_with_their_spread_held(norm: nn.Module) -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), norm, nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)
    )
    net = net.double().requires_grad_(False)
    nn.init.zeros_(net.get_parameter("4.bias"))
    x = images()
    values = [net(x)]
    result = attribute([net], x, 1, method="lrp", epsilon=0.0)
    # A linear map of x without constants, piece by piece: what goes in comes out.
    np.testing.assert_allclose(result.conservation, 1, rtol=1e-9)
    torch.testing.assert_close(net(x), values[0])


def test_epsilon_breaks_implementation_invariance() -> None:
    """A unit split in two halves is the same function, but each half loses ε of its own."""
    first, second = nn.Linear(32, 6).double(), nn.Linear(6, 3).double()
    wide, head = nn.Linear(32, 12).double(), nn.Linear(12, 3).double()
    with torch.no_grad():
        wide.weight.copy_(torch.cat([first.weight] * 2) / 2)
        wide.bias.copy_(torch.cat([first.bias] * 2) / 2)
        head.weight.copy_(torch.cat([second.weight] * 2, 1))
        head.bias.copy_(second.bias)
    nets = [
        nn.Sequential(nn.Flatten(), first, nn.ReLU(), second),
        nn.Sequential(nn.Flatten(), wide, nn.ReLU(), head),
    ]
    x = images(size=4)
    torch.testing.assert_close(nets[0](x), nets[1](x))
    maps = [attribute([net], x, 0, method="lrp", epsilon=0.3)["mean"] for net in nets]
    assert float(np.abs(maps[0] - maps[1]).max()) > 1e-2


# --- DeepLIFT


@pytest.mark.parametrize("space", [2, 3])
def test_deep_lift_is_captums_and_complete(space: int) -> None:
    net, x, baseline = conv_net(space), images(space=space), images(space=space)
    net[3] = nn.AvgPool2d(2) if space == 2 else nn.AvgPool3d(2)  # captum's max pool is not complete
    result = attribute([net], x, TARGET, method="deep_lift", baseline=baseline, batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = captum.attr.DeepLift(net).attribute(x, baseline, TARGET).detach()
    np.testing.assert_allclose(result["mean"], oracle, atol=1e-10)
    assert np.abs(result.completeness_delta).max() < 1e-9


def test_deep_lift_refuses_a_sum_that_captum_misses() -> None:
    """Max pools, away from a constant baseline."""
    with pytest.raises(ValueError, match=r"its sum misses.*integrated_gradients"):
        attribute([conv_net()], images(), 0, method="deep_lift", baseline=images())


# --- FullGrad


@pytest.mark.parametrize("space", [2, 3])
def test_full_gradient_by_hand(space: int) -> None:
    net, x = conv_net(space), images(space=space)
    result = attribute([net], x, TARGET, method="full_gradient", batch_size=2)
    logit = net(x)[range(3), TARGET]
    np.testing.assert_allclose(
        total(result["mean"]) + result.bias_attribution[0, 0], logit, atol=1e-9
    )
    assert result["mean"].sizes["channel"] == 1
    # Of the layers, only the linear one has no space.
    np.testing.assert_allclose(result.bias_attribution[0, 0], net[-1].bias[TARGET], atol=1e-12)


def test_full_gradient_puts_the_bias_where_it_acts() -> None:
    """A bias behind one pixel of a 1x1 convolution stays at that pixel."""
    conv, head = nn.Conv2d(2, 1, 1), nn.Linear(64, 2, bias=False)
    net = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), head).double().requires_grad_(False)
    head.weight.zero_()
    head.weight[1, 19] = 2.0  # row 2, col 3
    assert conv.bias is not None
    conv.bias.fill_(9.0)
    x = images()
    result = attribute([net], x, 1, method="full_gradient")["mean"][:, 0]
    np.testing.assert_allclose(result[:, 2, 3], net(x)[:, 1])
    assert np.abs(result).sum() == np.abs(result[:, 2, 3]).sum()


def test_one_answer_on_bias_free_relu_nets() -> None:
    net, x = conv_net(bias=False), images()
    methods: Any = (
        ("input_x_gradient", {}),
        ("integrated_gradients", {}),
        ("lrp", {"epsilon": 0.0}),
        ("full_gradient", {}),
    )
    maps = {
        method: attribute([net], x, 2, method=method, **options)["mean"].sum("channel")
        for method, options in methods
    }
    for found in maps.values():
        np.testing.assert_allclose(found, maps["input_x_gradient"], atol=1e-9)
        np.testing.assert_allclose(found.sum(("row", "col")), net(x)[:, 2], atol=1e-9)
    relu = nn.Sequential(nn.Flatten(), nn.Linear(128, 9, False), nn.ReLU(), nn.Linear(9, 3, False))
    same = [attribute([relu.double()], x, 2, method=m)["mean"] for m in ("deep_lift", "saliency")]
    np.testing.assert_allclose(same[0], same[1] * x.numpy(), atol=1e-9)


# --- nets of the field


NETS: dict[str, Any] = {
    "resnet18": lambda: resnet18(num_classes=3),
    "densenet121": lambda: densenet121(num_classes=3),
    "alexnet": lambda: alexnet(num_classes=3),
    "unet": lambda: UNet(2, 3, 2, (8, 16, 32), (2, 2), num_res_units=2),
    "segresnet": lambda: SegResNet(spatial_dims=2, init_filters=8, in_channels=3, out_channels=2),
    "vit": lambda: VisionTransformer(64, 16, 2, 4, 24, 48, num_classes=3),
}
# Where a method is valid; elsewhere it raises and names integrated gradients.
VALID: dict[str, set[str]] = {
    "lrp": {"resnet18", "densenet121", "alexnet", "unet", "segresnet"},
    "deep_lift": set(),  # max pools, norms or activations called twice in all of them
    "full_gradient": {"resnet18", "densenet121", "alexnet"},
    "guided_backprop": {"resnet18", "alexnet"},
}


LARGE = ("densenet121", "alexnet", "resnet18")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in LARGE]


@pytest.mark.parametrize("name", [*SLOW, "unet", "segresnet", "vit"])
def test_valid_pairs_run_and_invalid_ones_name_the_alternative(name: str) -> None:
    net = randomized(NETS[name]())
    x = torch.randn(1, 3, 64, 64)
    region = torch.ones(1, 64, 64) if name in ("unet", "segresnet") else None
    for method, valid in VALID.items():
        if name not in valid:
            with pytest.raises(ValueError, match="integrated_gradients"):
                attribute([net], x, 1, method=method, region=region)
            continue
        result = attribute([net], x, 1, method=method, region=region)
        assert np.isfinite(result["mean"]).all() and float(np.abs(result["mean"]).max()) > 0
        if method in ("deep_lift", "full_gradient"):
            assert np.abs(result.completeness_delta_relative).max() < 1e-3
    plain = attribute([net], x, 1, method="input_x_gradient", region=region)
    if name in ("resnet18", "densenet121", "alexnet"):
        lrp = attribute([net], x, 1, method="lrp", epsilon=0.0)
        scale = float(np.abs(plain["mean"]).max())
        np.testing.assert_allclose(lrp["mean"] / scale, plain["mean"] / scale, atol=1e-3)


def test_posterior_functions_of_a_model() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2))
    model = BayesianClassifier(net, ["no", "yes"])
    made = functions(model, MeanFieldNormal(model, init_scale=0.3), draws=3)
    x = images().float()
    for method in FAMILY:
        result = attribute(made, x, 1, method=method, keep_draws=True)
        assert float(result["sd"].max()) > 0
    lrp = attribute(made, x, 1, method="lrp", epsilon=0.0)
    plain = attribute(made, x, 1, method="input_x_gradient")
    np.testing.assert_allclose(lrp["mean"], plain["mean"], atol=1e-5)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 3, 3).double(), nn.Linear(108, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        return self.head((z * z.sigmoid()).flatten(1))


class Constant(Gated):
    """A bias that belongs to no module with a bias."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(1)) + 3


class Functional(Gated):
    def forward(self, x: Tensor) -> Tensor:
        z = nn.functional.conv2d(x, self.conv.weight)
        return self.head(z.relu().flatten(1))


class Twice(Gated):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.relu(self.conv(x)) - 0.1).flatten(1))


@pytest.mark.parametrize(
    ("method", "net", "message"),
    [
        ("lrp", Gated(), "multiplies values"),
        ("lrp", Functional(), "weights outside"),
        ("full_gradient", Gated(), "piecewise linear"),
        ("full_gradient", Constant(), "adds constants outside"),
        ("deep_lift", Gated(), "operations without a rule"),
        ("deep_lift", Twice(), "twice"),
        ("deep_lift", lambda x: x.flatten(1), "no torch module"),
    ],
)
def test_refuses_nets(method: str, net: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}.*integrated_gradients"):
        attribute([net], images(), 0, method=method)
    with pytest.raises(ValueError, match="not valid for output='probability'"):
        attribute([net], images(), 0, method=method, output="probability")
