"""Guided backpropagation and guided Grad-CAM: captum as oracle, nets they do not hold for."""

import warnings
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from attribution_nets import PooledNet, conv_net, images, randomized
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu
from torchvision.models import alexnet, resnet18

from ppl_med.explain.attribution import attribute

TARGET = torch.tensor([2, 0, 1])


def oracle(net: nn.Module, x: Tensor, target: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum announces its hooks
        method = captum.attr.GuidedBackprop(net)
        return method.attribute(x.clone().requires_grad_(), target).detach()


@pytest.mark.parametrize("space", [2, 3])
def test_guided_backprop_is_captums(space: int) -> None:
    net, x = conv_net(space), images(space=space)
    result = attribute([net], x, TARGET, method="guided_backprop", batch_size=2)
    np.testing.assert_allclose(result["mean"], oracle(net, x, TARGET), atol=1e-12)
    plain = attribute([net], x, TARGET, method="saliency")
    assert float(np.abs(result["mean"] - plain["mean"]).max()) > 1e-3
    # The hooks are gone.
    again = attribute([net], x, TARGET, method="saliency")
    np.testing.assert_array_equal(again["mean"], plain["mean"])


@pytest.mark.parametrize("make", [resnet18, alexnet])
def test_torchvision_nets(make: Any) -> None:
    net, x = randomized(make(num_classes=3)), torch.randn(1, 3, 64, 64)
    result = attribute([net], x, 1, method="guided_backprop")
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # captum cannot hook in-place ones
    exact = oracle(net, x, 1)
    scale = float(exact.abs().max())
    np.testing.assert_allclose(result["mean"] / scale, exact / scale, atol=1e-5)


def test_guided_grad_cam_is_the_product() -> None:
    net, x = PooledNet(), images()
    result = attribute([net], x, TARGET, method="guided_grad_cam")
    cam = captum.attr.LayerGradCam(net, net.features[3])
    coarse = cam.attribute(x, TARGET).relu().detach()
    coarse = interpolate(coarse, x.shape[2:], mode="bilinear")
    np.testing.assert_allclose(result["mean"], coarse * oracle(net, x, TARGET), atol=1e-12)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 3, 3).double(), nn.Linear(108, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(relu(self.conv(x)).flatten(1))


def activated(activation: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.ReLU(),
        nn.Conv2d(3, 3, 1),
        activation,
        nn.Flatten(),
        nn.Linear(108, 3),
    ).double()


@pytest.mark.parametrize("method", ["guided_backprop", "guided_grad_cam"])
@pytest.mark.parametrize(
    ("net", "what"),
    [
        (Functional(), "calls relu as a function"),
        (activated(nn.PReLU()), "Prelu"),
        (activated(nn.GELU()), "Gelu"),
        (activated(nn.SiLU()), "Silu"),
        (activated(nn.Identity()), None),
    ],
    ids=["functional", "prelu", "gelu", "silu", "relu"],
)
def test_refuses_what_would_be_the_plain_gradient(
    method: str, net: nn.Module, what: str | None
) -> None:
    if what is None:
        attribute([net], images(), 0, method=method)
        return
    with pytest.raises(ValueError, match=f"{what}.*integrated_gradients"):
        attribute([net], images(), 0, method=method)
