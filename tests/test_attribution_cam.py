"""Class activation maps: identities on pooled nets, captum and MONAI as oracles, invalid nets."""

import warnings
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from attribution_nets import PooledNet, conv_net, images, randomized, segmenter
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models import alexnet, densenet121, resnet18

from ppl_med.explain.attribution import GradCam, attribute
from ppl_med.inference import MeanFieldNormal, functions
from ppl_med.models import BayesianClassifier

FAMILY = ("cam", "grad_cam", "grad_cam_plus_plus", "score_cam")
TARGET = torch.tensor([2, 0, 1])


def up(maps: Tensor, x: Tensor) -> Tensor:
    mode = "bilinear" if x.ndim == 4 else "trilinear"
    return interpolate(maps, x.shape[2:], mode=mode, align_corners=False)


@pytest.mark.parametrize("space", [2, 3])
def test_cam_by_hand_and_from_grad_cam(space: int) -> None:
    net, x = PooledNet(space), images(space=space)
    result = attribute([net], x, TARGET, method="cam")
    maps = torch.einsum("nk,nk...->n...", net.head.weight[TARGET], net.features(x))[:, None]
    np.testing.assert_allclose(result["mean"], up(maps, x), atol=1e-12)
    assert result["mean"].dims == ("case", "channel", *("depth", "row", "col")[3 - space :])
    grad = attribute([net], x, TARGET, method="grad_cam", batch_size=2)
    np.testing.assert_allclose(4**space * grad["mean"], result["mean"], atol=1e-10)
    # The average of the map on the layer's grid is the logit without its bias.
    logit = net(x)[range(3), TARGET] - net.head.bias[TARGET]
    torch.testing.assert_close(maps.flatten(1).mean(1), logit)


def test_cam_of_one_logit_changes_sign_with_the_class() -> None:
    net, x = PooledNet(classes=1), images()
    maps = [attribute([net], x, target, method="cam")["mean"] for target in (0, 1)]
    np.testing.assert_allclose(maps[0], -maps[1], atol=1e-12)
    grad = attribute([net], x, 1, method="grad_cam")["mean"]
    np.testing.assert_allclose(16 * grad, maps[1], atol=1e-10)


@pytest.mark.parametrize("space", [2, 3])
def test_grad_cam_is_captums(space: int) -> None:
    net, x = conv_net(space), images(space=space)
    layer = next(m for m in net.modules() if isinstance(m, nn.MaxPool2d | nn.MaxPool3d))
    oracle = captum.attr.LayerGradCam(net, layer).attribute(x, TARGET)
    result = attribute([net], x, TARGET, method=GradCam(layer=layer))
    np.testing.assert_allclose(result["mean"], up(oracle, x).detach(), atol=1e-12)
    assert (result["mean"] < 0).any()
    cut = attribute([net], x, TARGET, method="grad_cam", layer=layer, relu=True)
    np.testing.assert_allclose(cut["mean"], up(oracle.relu(), x).detach(), atol=1e-12)


def test_grad_cam_plus_plus_is_monais() -> None:
    from monai.visualize import GradCAMpp

    net, x = PooledNet().float().requires_grad_(), images().float()
    net.head.weight.data.mul_(10)  # MONAI adds 1e-7 below the line, which small gradients notice
    oracle = GradCAMpp(net, "features.3", postprocessing=lambda v: v)
    maps = torch.cat([oracle.compute_map(x[i : i + 1], int(TARGET[i])) for i in range(3)])
    # MONAI keeps the factor exp(f), and cuts the negative part on the layer's grid.
    maps = maps / net(x)[range(3), TARGET].exp().view(-1, 1, 1, 1)
    result = attribute([net], x, TARGET, method="grad_cam_plus_plus", layer="features.3", relu=True)
    np.testing.assert_allclose(result["mean"], up(maps, x).detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("space", [2, 3])
def test_score_cam_by_hand(space: int) -> None:
    net, x, baseline = PooledNet(space), images(space=space), images(space=space)
    result = attribute(
        [net], x, 1, method="score_cam", baseline=baseline, output="probability", batch_size=2
    )
    for case in range(3):
        activation = net.features(x[case : case + 1])[0]
        scores = []
        for channel in activation:
            mask = up(channel[None, None], x)[0, 0]
            mask = (mask - mask.min()) / (mask.max() - mask.min()).clamp(min=1e-12)
            masked = mask * x[case] + (1 - mask) * baseline[case]
            scores.append(
                (net(masked[None]).softmax(1) - net(baseline[case : case + 1]).softmax(1))[0, 1]
            )
        weight = torch.stack(scores).softmax(0)
        expected = up(torch.einsum("k,k...->...", weight, activation)[None, None], x)[0]
        np.testing.assert_allclose(result["mean"][case], expected, atol=1e-10)


def test_needs_no_gradient() -> None:
    net, x = PooledNet(), images()
    function = lambda v: net(v).detach()  # noqa: E731
    for method in ("cam", "score_cam"):
        assert float(np.abs(attribute([function], x, 0, method=method)["mean"]).max()) > 0


def test_layers_are_named_through_the_posterior_functions() -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 2),
    )
    model = BayesianClassifier(net, ["no", "yes"])
    made = functions(model, MeanFieldNormal(model, init_scale=0.3), draws=3)
    x = images().float()
    for method in FAMILY:
        named = attribute(made, x, 1, method=method, layer="net.1", keep_draws=True)
        auto = attribute(made, x, 1, method=method, keep_draws=True)
        np.testing.assert_array_equal(named.attribution, auto.attribution)
        assert float(named["sd"].max()) > 0


@pytest.mark.parametrize("make", [resnet18, densenet121, alexnet])
def test_torchvision_nets(make: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = randomized(make(num_classes=3))
    x = torch.randn(2, 3, 64, 64)
    layer = {"resnet18": "layer4", "densenet121": "denseblock4", "alexnet": "features.10"}
    name = make.__name__
    result = attribute([net], x, 1, method="grad_cam", layer=layer[name])
    assert float(np.abs(result["mean"]).max()) > 0 and np.isfinite(result["mean"]).all()
    if name == "resnet18":
        cam = attribute([net], x, 1, method="cam")
        grad = attribute([net], x, 1, method="grad_cam")
        np.testing.assert_allclose(4 * grad["mean"], cam["mean"], rtol=1e-3, atol=1e-5)
    else:  # AlexNet has no global pool; DenseNet has a functional relu between norm and pool
        with pytest.raises(ValueError, match=r"use method='grad_cam'"):
            attribute([net], x, 1, method="cam")


class Attention(nn.Module):
    """Patches to tokens, as a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(2, 6, 4, stride=4), nn.LayerNorm(6)
        self.attention, self.head = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 3)
        self.double().eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.patches(x).flatten(2).transpose(1, 2))
        return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


@pytest.mark.parametrize("method", FAMILY)
def test_refuses_nets_without_space(method: str) -> None:
    x = images()
    for net, message in (
        (Attention(), "tokens.*integrated_gradients"),
        (nn.Sequential(nn.Flatten(), nn.Linear(128, 3)).double(), "no layer .* has space.*integr"),
        (lambda v: v.flatten(1), "no torch module.*integrated_gradients"),
    ):
        with pytest.raises(ValueError, match=message):
            attribute([net], x, 0, method=method)


@pytest.mark.parametrize(
    ("net", "layer", "message"),
    [
        (conv_net(), "7", "without|no space"),
        (conv_net(), "conv9", "layer must be one of"),
        (segmenter(), None, "needs a layer"),
        (nn.Sequential(conv := nn.Conv2d(2, 2, 1).double(), conv, nn.Flatten()), "0", "2 times"),
        (nn.ModuleDict({"a": nn.ReLU()})["a"], None, "needs region="),
    ],
)
def test_refuses_layers(net: nn.Module, layer: str | None, message: str) -> None:
    region = torch.ones(3, 8, 8) if layer is None and message == "needs a layer" else None
    with pytest.raises(ValueError, match=message):
        attribute([net], images(), 0, method="grad_cam", layer=layer, region=region)


def test_cam_is_for_logits() -> None:
    with pytest.raises(ValueError, match=r"cam is not valid for output='probability'"):
        attribute([PooledNet()], images(), 0, method="cam", output="probability")


def test_segmentation_takes_a_named_layer() -> None:
    net, x = segmenter(), images()
    result = attribute(
        [net], x, 0, method="grad_cam", layer="1", region=torch.ones(3, 8, 8, dtype=torch.bool)
    )
    assert result["mean"].shape == (3, 1, 8, 8)
