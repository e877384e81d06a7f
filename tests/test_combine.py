"""The map of features and a code to logits: the same whole, block by block, and by ``vmap``."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ppl_med.networks import Combine

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def of_convolutions(combine: Combine, features: Tensor, z: Tensor) -> Tensor:
    """The network of the paper: 1x1 convolutions of the features and the tiled code."""
    weight = torch.cat([combine.features.weight, combine.code.weight], 1)
    tiled = z[:, :, None, None].expand(-1, -1, *features.shape[2:])
    hidden = torch.cat([features, tiled], 1)
    layers = [(weight, combine.features.bias)]
    layers += [(layer.weight, layer.bias) for layer in combine.hidden]  # type: ignore[misc]
    for weights, bias in layers:
        hidden = functional.conv2d(hidden, weights[..., None, None], bias).relu()
    last = combine.output
    return functional.conv2d(hidden, last.weight[..., None, None], last.bias)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("training", [True, False])  # whole batches, or block by block
def test_combine_is_the_convolution_of_features_and_tiled_code(
    training: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppl_med.networks.combine.BLOCK", 5 * 16)  # 42 pixels: two and a rest
    combine = Combine(4, 3, 2, width=5, num_layers=3).to(dtype)
    features, z = torch.randn(2, 4, 6, 7, dtype=dtype), torch.randn(2, 3, dtype=dtype)
    close = partial(torch.testing.assert_close, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])
    with torch.set_grad_enabled(training):
        own = combine(combine.of_features(features), z)
        several = combine(combine.of_features(features), torch.stack([z, -z]))
    expected = of_convolutions(combine, features, z)
    close(own, expected)
    assert several.shape == (2, 2, 2, 6, 7)
    close(several[0], own)
    close(several[1], of_convolutions(combine, features, -z))
    if training:
        toward = torch.randn_like(own)
        parameters = [*combine.parameters()]
        both = [torch.autograd.grad((one * toward).sum(), parameters) for one in (own, expected)]
        for here, there in zip(*both, strict=True):
            close(here, there, atol=100 * TOLERANCES[dtype])


def test_combine_with_weights_of_every_draw() -> None:
    """Stacked by ``vmap``, without gradients: as one by one."""
    combine = Combine(4, 3, 2, width=5)
    features, z = torch.randn(2, 4, 6, 7), torch.randn(2, 3)
    own = dict(combine.named_parameters())
    stacked = {n: p.detach() + 0.1 * torch.randn(3, *p.shape) for n, p in own.items()}

    def run(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(combine, weights, (of_features(weights), z))

    def of_features(weights: dict[str, Tensor]) -> Tensor:
        layer = weights["features.weight"], weights["features.bias"]
        return functional.linear(features.movedim(1, -1), *layer)

    with torch.no_grad():
        found = torch.func.vmap(run)(stacked)
        for draw, one in enumerate(found):
            torch.testing.assert_close(one, run({n: p[draw] for n, p in stacked.items()}))


def test_the_first_layer_starts_at_the_scale_of_the_joint_one() -> None:
    combine = Combine(300, 100, 2, width=200)
    joint = torch.cat([combine.features.weight.flatten(), combine.code.weight.flatten()])
    assert joint.std().item() == pytest.approx(math.sqrt(2 / 400), rel=0.02)
