"""Occlusion: exact on linear functions, captum as oracle, no gradient needed."""

from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from attribution_nets import conv_net, images
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from ppl_med.explain.attribution import attribute


def linear(weight: Tensor):
    return lambda x: x.flatten(1) @ weight.flatten(1).T


def test_linear_function_by_patches() -> None:
    weight, x, baseline = torch.randn(2, 2, 8, 8).double(), images(), images()
    result = attribute(
        [linear(weight)], x, 1, method="occlusion", patch=4, baseline=baseline, batch_size=5
    )
    change = (weight[1] * (x - baseline)).sum(1, keepdim=True)
    exact = interpolate(avg_pool2d(change, 4) * 16, scale_factor=4).expand_as(x)
    np.testing.assert_allclose(result["mean"], exact, atol=1e-9)
    assert result.attrs["baseline"] == "tensor" and result.attrs["patch"] == 4


@pytest.mark.parametrize(("patch", "stride"), [(3, 1), ((2, 3), (1, 2)), (5, 4)])
def test_overlapping_patches_are_captums(patch: Any, stride: Any) -> None:
    net, x, target = conv_net(), images(), torch.tensor([0, 2, 1])
    result = attribute([net], x, target, method="occlusion", patch=patch, stride=stride)
    pair = [(v, v) if isinstance(v, int) else v for v in (patch, stride)]
    oracle = captum.attr.Occlusion(net).attribute(x, (2, *pair[0]), (2, *pair[1]), 0.0, target)
    np.testing.assert_allclose(result["mean"], oracle, atol=1e-12)


@pytest.mark.parametrize("space", [2, 3])
def test_regions_by_hand(space: int) -> None:
    net, x = conv_net(space), images(space=space)
    labels = torch.randint(3, 7, (len(x), *x.shape[2:]))
    result = attribute([net], x, 0, method="occlusion", regions=labels, baseline=0.5, batch_size=2)
    for label in range(3, 7):
        where = (labels == label)[:, None].expand_as(x)
        fall = (net(x) - net(torch.where(where, 0.5, x)))[:, 0]
        expected = fall.view(-1, *[1] * (space + 1)).expand_as(x)
        found = torch.from_numpy(result["mean"].values)
        torch.testing.assert_close(found[where], expected[where], atol=1e-10, rtol=0)


def test_needs_no_gradient() -> None:
    weight = torch.randn(2, 2, 8, 8).double()
    function = lambda x: linear(weight)(x).detach()  # noqa: E731
    result = attribute([function], images(), 0, method="occlusion")
    assert float(np.abs(result["mean"]).min()) > 0
    with pytest.raises(ValueError, match=r"no gradient.*method='occlusion'"):
        attribute([function], images(), 0, method="saliency")


def test_superpixels_follow_the_intensity() -> None:
    pytest.importorskip("skimage")
    x = torch.zeros(1, 1, 16, 16).double()
    x[..., 8:] = 1
    weight = torch.randn(2, 1, 16, 16).double()
    options: Any = {"regions": "superpixel", "num_superpixels": 2}
    result = attribute([linear(weight)], x, 0, method="occlusion", **options)
    np.testing.assert_allclose(result["mean"][0, 0, :, 12], float((weight[0] * x).sum()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 9}, "patch must"),
        ({"patch": 0}, "patch must"),
        ({"patch": (2, 2, 2)}, "patch must be one number"),
        ({"patch": 2, "stride": 3}, "leaves pixels out"),
        ({"regions": torch.zeros(3, 8, 7, dtype=torch.int64)}, "regions must be labels"),
        ({"regions": torch.zeros(3, 8, 8)}, "integer labels"),
        ({"window": 3}, "no option 'window'"),
    ],
)
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        attribute([conv_net()], images(), 0, method="occlusion", **options)
