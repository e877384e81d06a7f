"""Attribution of entropies and mutual information: complete, exact against one joint gradient."""

from typing import Any

import numpy as np
import pytest
import torch
from attribution_nets import conv_net, images, segmenter
from torch import Tensor, nn

from ppl_med.explain.attribution import attribute_uncertainty
from ppl_med.inference import MeanFieldNormal, functions
from ppl_med.models import BayesianClassifier

QUANTITIES = ("entropy", "expected_entropy", "mutual_information")


def uncertainty(quantity: str, nets: list[nn.Module], x: Tensor) -> Tensor:
    """(case, *space), by the textbook."""
    probs = torch.stack([net(x) for net in nets]).softmax(2)
    mean = probs.mean(0)
    entropy = -(mean * mean.log()).sum(1)
    expected = -(probs * probs.log()).sum(2).mean(0)
    return {"entropy": entropy, "expected_entropy": expected}.get(quantity, entropy - expected)


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("batch_size", [3, 256])
def test_complete_and_equal_to_the_joint_gradient(quantity: Any, batch_size: int) -> None:
    nets, x = [conv_net() for _ in range(4)], images()
    settings: Any = {"batch_size": batch_size, "keep_draws": True, "tolerance": 1.0}
    slope = attribute_uncertainty(nets, x, quantity, method="saliency", **settings)
    leaf = x.clone().requires_grad_()
    (exact,) = torch.autograd.grad(uncertainty(quantity, nets, leaf).sum(), leaf)
    np.testing.assert_allclose(slope["mean"], exact, atol=1e-12)
    np.testing.assert_allclose(slope.quantity, uncertainty(quantity, nets, x), atol=1e-12)
    np.testing.assert_allclose(slope.attribution.mean(("chain", "draw")), exact, atol=1e-6)

    result = attribute_uncertainty(nets, x, quantity, steps=20, **settings)
    change = uncertainty(quantity, nets, x) - uncertainty(quantity, nets, torch.zeros_like(x))
    found = result["mean"].sum(("channel", "row", "col"))
    np.testing.assert_allclose(result.completeness_delta, found - change.numpy(), atol=1e-10)


def smooth_net() -> nn.Module:
    """Tanh, so that the rule converges fast."""
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(256, 3))
    return net.double().eval()


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_integrated_gradients_complete_to_a_thousandth(quantity: Any) -> None:
    nets, x = [smooth_net() for _ in range(8)], images()
    result = attribute_uncertainty(nets, x, quantity, steps=64)
    assert np.abs(result.completeness_delta_relative).max() < 1e-3
    np.testing.assert_allclose(result["mcse"], result["sd"] / 8**0.5)


@pytest.mark.parametrize("space", [2, 3])
def test_region_of_a_segmentation(space: int) -> None:
    nets, x = [segmenter(space) for _ in range(4)], images(space=space, size=5)
    region = torch.rand(len(x), *x.shape[2:]) < 0.5
    result = attribute_uncertainty(nets, x, region=region, steps=64)
    values = uncertainty("mutual_information", nets, x)
    exact = [values[i][region[i]].mean() for i in range(3)]
    np.testing.assert_allclose(result.quantity, exact, atol=1e-12)
    assert np.abs(result.completeness_delta_relative).max() < 1e-3


def test_equal_draws_have_no_epistemic_attribution() -> None:
    net = conv_net()
    result = attribute_uncertainty([net, net, net], images(), steps=4)
    np.testing.assert_allclose(result["mean"], 0, atol=1e-12)


def test_posterior_functions_of_a_model() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(108, 2))
    model = BayesianClassifier(net, ["no", "yes"])
    made = functions(model, MeanFieldNormal(model, init_scale=0.5), draws=6)
    result = attribute_uncertainty(made, images().float(), steps=64, tolerance=1e-2)
    assert result.attrs["completeness_beyond_tolerance"] == 0 and result.quantity.min() > 0
    logits = torch.stack([f(images().float()) for f in made])
    assert logits.shape == (6, 3, 2)


@pytest.mark.usefixtures("types_unchecked")
def test_refusals() -> None:
    nets, x = [conv_net(), conv_net()], images()
    with pytest.raises(ValueError, match="not linear in the gradient"):
        attribute_uncertainty(nets, x, method="var_grad")
    with pytest.raises(ValueError, match="needs region="):
        attribute_uncertainty([segmenter()], x)
    with pytest.raises(ValueError, match="quantity must"):
        attribute_uncertainty(nets, x, "variance")  # type: ignore[arg-type]
