"""The Tiramisu: its published numbers, its cropping, and what it says of bad settings."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppl_med.inference import Ensemble, PointEstimate
from ppl_med.models import BayesianSegmenter, ProbabilisticUNet
from ppl_med.networks import FCDenseNet

SMALL: dict[str, Any] = {"num_layers": (2, 1, 2), "growth_rate": 3, "first_features": 4}


def numbers_of(net: nn.Module) -> int:
    """Values the authors' ``summary()`` counts: parameters and running statistics."""
    buffers = [b for name, b in net.named_buffers() if "num_batches" not in name]
    return sum(values.numel() for values in [*net.parameters(), *buffers])


def expected_numbers(layers: list[int], growth: int, classes: int, dims: int) -> int:
    """The same from the architecture alone: a layer on m maps has 4 m norms, w m k + k weights."""
    width = 3**dims
    total, maps, skips = 3 * 48 * width + 48, 48, []
    *outer, inner = layers

    def dense(start: int, count: int) -> int:
        return sum(
            4 * m + width * m * growth + growth
            for m in range(start, start + count * growth, growth)
        )

    for count in outer:
        total += dense(maps, count)
        maps += count * growth
        skips.append(maps)
        total += 4 * maps + maps * maps + maps
    total += dense(maps, inner)
    for previous, count in itertools.pairwise([inner, *reversed(outer)]):
        new = previous * growth
        total += width * new * new + new
        maps = new + skips.pop()
        total += dense(maps, count)
        maps += count * growth
    return total + maps * classes + classes


@pytest.mark.parametrize(
    ("depth", "layers", "growth", "millions"),
    [
        (56, [4] * 6, 12, None),  # 1.40 by the authors' own code; their table rounds to 1.5
        (67, [5] * 6, 16, 3.5),
        (103, [4, 5, 7, 10, 12, 15], 16, 9.4),
    ],
)
def test_the_published_nets(
    depth: int, layers: list[int], growth: int, millions: float | None
) -> None:
    net = FCDenseNet.of_depth(depth, 3, 11)
    kinds = nn.Conv2d | nn.ConvTranspose2d
    assert sum(isinstance(module, kinds) for module in net.modules()) == depth
    assert numbers_of(net) == expected_numbers(layers, growth, 11, 2)
    assert millions is None or round(numbers_of(net) / 1e6, 1) == millions
    assert not any("Dropout" in type(module).__name__ for module in net.modules())


def test_57_is_56_and_a_volume_has_wider_kernels() -> None:
    nets = [FCDenseNet.of_depth(depth, 1, 2) for depth in (56, 57)]
    assert numbers_of(nets[0]) == numbers_of(nets[1])
    volume = FCDenseNet.of_depth(56, 3, 11, spatial_dims=3)
    assert numbers_of(volume) == expected_numbers([4] * 6, 12, 11, 3)


def test_the_stack_grows_as_in_table_2() -> None:
    """Maps after each block of the 103 layers, as the authors correct them in their README."""
    net = FCDenseNet.of_depth(103, 3, 11)
    seen: list[int] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(inputs[0].shape[1] + output.shape[1])

    for block in [*net.down, net.bottleneck, *net.up]:
        block.register_forward_hook(note)
    with torch.no_grad():
        assert net.eval()(torch.zeros(1, 3, 32, 48)).shape == (1, 11, 32, 48)
    assert seen == [112, 192, 304, 464, 656, 896, 1088, 816, 576, 384, 256]
    assert net.num_features == 256


@pytest.mark.parametrize(("dims", "size"), [(2, (9, 12)), (2, (4, 7)), (3, (5, 6, 11))])
def test_any_size_keeps_its_pixels(dims: int, size: tuple[int, ...]) -> None:
    net = FCDenseNet(2, None, **SMALL, spatial_dims=dims).eval()
    with torch.no_grad():
        assert net(torch.randn(3, 2, *size)).shape == (3, net.num_features, *size)


def test_a_shift_by_whole_pools_shifts_the_output() -> None:
    """So enlarged maps lie on their skips: a crop one pixel off at either scale would show."""
    net = FCDenseNet(1, 2, **SMALL).eval()
    image = torch.zeros(1, 1, 96, 96)
    image[..., 40:48, 40:52] = torch.randn(8, 12)
    moved = image.roll((4, 8), (2, 3))
    with torch.no_grad():
        middle = (..., slice(36, 60), slice(36, 60))
        torch.testing.assert_close(net(moved).roll((-4, -8), (2, 3))[middle], net(image)[middle])


def test_an_enlarged_impulse_lies_on_its_block_of_pixels() -> None:
    """Weights of one tell which pixels a coarse pixel reaches: its own 2 x 2 and the next one."""
    net = FCDenseNet(1, None, num_layers=(1, 1), growth_rate=1, first_features=1).eval()
    nn.init.ones_(net.transitions_up[0].weight)  # type: ignore[arg-type]
    nn.init.zeros_(net.transitions_up[0].bias)  # type: ignore[arg-type]
    found: list[Tensor] = []
    net.up[0].register_forward_hook(lambda _, inputs, __: found.append(inputs[0]))
    coarse = torch.zeros(1, 1, 4, 4)
    coarse[0, 0, 1, 2] = 1.0
    net.bottleneck.register_forward_hook(lambda *_: coarse)
    with torch.no_grad():
        net(torch.zeros(1, 1, 8, 8))
    rows, cols = found[0][0, 0].nonzero().unbind(1)
    assert set(rows.tolist()) == {2, 3, 4} and set(cols.tolist()) == {4, 5, 6}


def test_it_serves_other_models_as_a_backbone_and_starts_anew_in_ensembles() -> None:
    backbone = FCDenseNet(1, None, **SMALL)
    model = ProbabilisticUNet(
        1, ("a", "b"), latent_dim=2, channels=(4, 6), num_convolutions=1, backbone=backbone
    )
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 2, 8, 8)
    segmenter = BayesianSegmenter(FCDenseNet(1, 2, **SMALL), ("a", "b"))
    first, second = (m for m, _ in Ensemble(segmenter, PointEstimate, members=2).members)
    a, b = first.network.initial(), second.network.initial()  # type: ignore[operator, union-attr]
    assert not torch.equal(a, b) and torch.isclose(a.std(), b.std(), rtol=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3"),
        ({"num_layers": (4,)}, "two or more blocks"),
        ({"num_layers": (4, 0)}, "one or more layers"),
        ({"growth_rate": 0}, "growth_rate must"),
        ({"num_outputs": 0}, "num_outputs must"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FCDenseNet(**({"num_outputs": 2} | settings))


def test_unknown_depths_and_small_images_are_named() -> None:
    with pytest.raises(ValueError, match=r"depth must be 56, 57, 67 or 103, got 121"):
        FCDenseNet.of_depth(121)
    with pytest.raises(ValueError, match=r"3 x 8; 2 halvings need 4 pixels"):
        FCDenseNet(1, 2, **SMALL)(torch.zeros(1, 1, 3, 8))
