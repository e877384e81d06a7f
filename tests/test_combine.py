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


def in_training(combine: Combine, features: Tensor, z: Tensor) -> Tensor:
    """Whole batches, whose ``relu`` is torch's own."""
    with torch.enable_grad():
        return combine(combine.of_features(features), z).detach()


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e3, 1e6, 1e38, math.inf, math.nan])
@pytest.mark.parametrize("num_layers", [1, 3, 12])
def test_codes_far_out_lose_no_digits(num_layers: int, scale: float) -> None:
    """Against float64, with units that ``relu`` sets to 0: ``-b + b`` is off by the size of b."""
    combine = Combine(4, 3, 2, width=32, num_layers=num_layers)
    exact = Combine(4, 3, 2, width=32, num_layers=num_layers).double()
    exact.load_state_dict(combine.state_dict())
    features, z = torch.randn(2, 4, 6, 7), scale * torch.randn(5, 2, 3)
    with torch.no_grad():
        found = combine(combine.of_features(features), z)
    usual = in_training(combine, features, z)
    torch.testing.assert_close(found.isfinite(), usual.isfinite())
    if scale <= 1e6:
        truth = in_training(exact, features.double(), z.double())
        room = 4 * (usual - truth).abs().max() + 2.0**-12
        assert (found - truth).abs().max() <= room


def test_dead_units_stay_dead() -> None:
    """A bias of -1e6 in every hidden layer: what is left is the last bias, exactly."""
    combine = Combine(4, 3, 2, width=32)
    for layer in combine.hidden:
        torch.nn.init.constant_(layer.bias, -1e6)  # type: ignore[arg-type]
    torch.nn.init.constant_(combine.output.bias, 0.25)
    with torch.no_grad():
        found = combine(combine.of_features(torch.randn(2, 4, 6, 7)), torch.randn(3, 2, 3))
    assert (found == 0.25).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_done_as_in_training(dtype: torch.dtype) -> None:
    combine = Combine(4, 3, 2, width=32).to(dtype)
    features, z = torch.randn(2, 4, 6, 7).to(dtype), torch.randn(5, 2, 3).to(dtype)
    with torch.no_grad():
        found = combine(combine.of_features(features), z)
    torch.testing.assert_close(found, in_training(combine, features, z), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("num_codes", [1, 3, 4])
@pytest.mark.parametrize("training", [True, False])
def test_codes_of_other_cases_are_refused(num_codes: int, training: bool) -> None:
    combine = Combine(4, 3, 2, width=5)
    with torch.set_grad_enabled(training), pytest.raises(RuntimeError):
        combine(combine.of_features(torch.randn(2, 4, 6, 7)), torch.randn(num_codes, 3))


def test_many_codes_of_one_image() -> None:
    combine = Combine(4, 3, 2, width=5)
    features, z = torch.randn(1, 4, 6, 7), torch.randn(6, 3)
    with torch.no_grad():
        found = combine(combine.of_features(features), z)
    torch.testing.assert_close(found, in_training(combine, features, z))


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
