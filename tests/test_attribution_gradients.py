"""The gradient family over draws: closed forms, axioms, captum as oracle, regions and numbers."""

from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from attribution_nets import conv_net, images, segmenter
from torch import Tensor, nn

from ppl_med.explain.attribution import IntegratedGradients, SmoothGrad, attribute
from ppl_med.testing import assert_mean

FALSE_ALARM = 1e-4
SPACE = ("channel", "row", "col")


def total(values: Any) -> Any:
    return values.sum([dim for dim in values.dims if dim in ("channel", "depth", "row", "col")])


def linear(weight: Tensor):
    return lambda x: x.flatten(1) @ weight.flatten(1).T


# --- input x gradient, SmoothGrad, VarGrad


@pytest.mark.parametrize("space", [2, 3])
def test_input_x_gradient_is_captums(space: int) -> None:
    net, x = conv_net(space), images(space=space)
    result = attribute([net], x, 1, method="input_x_gradient")
    oracle = captum.attr.InputXGradient(net).attribute(x.clone().requires_grad_(), 1).detach()
    np.testing.assert_allclose(result["mean"], oracle, atol=1e-12)
    np.testing.assert_allclose(
        result.conservation[0, 0], oracle.flatten(1).sum(1) / net(x)[:, 1], rtol=1e-9
    )


def test_smooth_grad_without_noise_is_saliency() -> None:
    net, x = conv_net(), images()
    smooth = attribute([net], x, 0, method="smooth_grad", noise_scale=0.0, samples=3)
    saliency = attribute([net], x, 0, method="saliency")
    np.testing.assert_allclose(smooth["mean"], saliency["mean"], atol=1e-12)
    np.testing.assert_allclose(smooth.noise_error, 0, atol=1e-9)


def test_noise_does_not_move_a_linear_function() -> None:
    weight, x = torch.randn(2, 2, 8, 8, dtype=torch.float64), images()
    smooth = attribute([linear(weight)], x, 1, method="smooth_grad", noise_scale=3.0, samples=4)
    np.testing.assert_allclose(smooth["mean"], weight[1].expand(x.shape), atol=1e-9)
    spread = attribute([linear(weight)], x, 1, method="var_grad", noise_scale=3.0, samples=4)
    np.testing.assert_allclose(spread["mean"], 0, atol=1e-12)


def test_noise_has_the_law_of_a_quadratic_function() -> None:
    # f = Σ x²/2: the gradient at x + ε is x + ε, with mean x and variance σ² in every pixel.
    def half_square(x: Tensor) -> Tensor:
        return torch.stack([(x**2 / 2).flatten(1).sum(1)] * 2, 1)

    x = images(2, 1, 20)
    sigma = 0.5 * (x.flatten(1).max(1).values - x.flatten(1).min(1).values)
    options: Any = {"samples": 50, "noise_scale": 0.5}
    smooth = attribute([half_square], x, 0, method="smooth_grad", **options)
    spread = attribute([half_square], x, 0, method="var_grad", **options)
    for case in range(2):
        error = (smooth["mean"][case].values - x[case].numpy()) / (sigma[case] / 50**0.5).item()
        assert_mean(error.ravel(), 0.0, FALSE_ALARM)
        assert_mean(error.ravel() ** 2, 1.0, FALSE_ALARM)
        ratio = spread["mean"][case].values / sigma[case].item() ** 2
        assert_mean(ratio.ravel(), 1.0, FALSE_ALARM)
        # The stated standard errors: of a mean, and of a variance of 50 normals.
        noise = float(smooth.noise_error[0, 0, case]) / (sigma[case].item() / 50**0.5)
        assert abs(noise - 1) < 0.05
        relative = float(spread.noise_error[0, 0, case]) / sigma[case].item() ** 2
        assert abs(relative - ratio.std()) < 0.05


def test_noise_is_the_same_for_every_draw_and_batch_size() -> None:
    net, x = conv_net(), images()
    one = attribute([net, net], x, 0, method=SmoothGrad(samples=3), keep_draws=True)
    two = attribute([net], x, 0, method="smooth_grad", samples=3, batch_size=1)
    np.testing.assert_allclose(np.ptp(one["attribution"].values, axis=1), 0, atol=1e-7)
    np.testing.assert_allclose(one["mean"], two["mean"], atol=1e-12)


# --- integrated gradients: paths and axioms


def bend(baseline: Tensor, image: Tensor, t: float) -> Tensor:
    """From the baseline to the image along a parabola."""
    return baseline + t * (image - baseline) + t * (1 - t) * image.flip(-1)


def test_curved_path_has_its_own_closed_form() -> None:
    # f = Σ x²/2: a = ∫ γ γ' dt = (γ(1)² - γ(0)²) / 2 pixel by pixel, whatever the path.
    def half_square(x: Tensor) -> Tensor:
        return torch.stack([(x**2 / 2).flatten(1).sum(1)] * 2, 1)

    x, baseline = images(), images()
    result = attribute([half_square], x, 0, baseline=baseline, path=bend, steps=400, batch_size=99)
    np.testing.assert_allclose(result["mean"], (x**2 - baseline**2) / 2, atol=1e-4)
    net = segmenter()
    function = lambda v: net(v).flatten(2).sum(2)  # noqa: E731
    curved = attribute([function], x, 1, baseline=baseline, path=bend, steps=400)
    straight = attribute([function], x, 1, baseline=baseline, steps=50)
    assert np.abs(curved["mean"] - straight["mean"]).max() > 0.02  # another path, another map
    for result in (curved, straight):
        assert np.abs(result.completeness_delta).max() < 1e-2  # but the same sum


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("path", "message"),
    [
        (lambda b, x, t: b, "does not end at the image"),
        (lambda b, x, t: x[:, :1], "path returned"),
        ("curved", "path must be .* got 'curved'"),
    ],
)
def test_refuses_paths(path: Any, message: str) -> None:
    with pytest.raises(Exception, match=message):
        attribute([conv_net()], images(), 0, path=path)


def test_sensitivity_holds_for_integrated_gradients_and_fails_for_the_gradient() -> None:
    # f(x) = 1 - relu(1 - x) saturates: f(2) - f(0) = 1, yet the gradient at 2 is 0.
    def saturating(x: Tensor) -> Tensor:
        return torch.stack([1 - torch.relu(1 - x.flatten(1).sum(1))] * 2, 1)

    x = torch.full((1, 1, 1, 1), 2.0)
    integrated = attribute([saturating], x, 0, steps=300)
    assert abs(float(integrated["mean"].sum()) - 1) < 0.01
    for method in ("saliency", "input_x_gradient"):
        assert float(np.abs(attribute([saturating], x, 0, method=method)["mean"]).sum()) == 0


def test_dummy_pixels_get_nothing() -> None:
    weight = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    weight[:, :, 3] = 0
    net = lambda x: linear(weight)(x).tanh()  # noqa: E731
    assert np.abs(attribute([net], images(), 0)["mean"][:, :, 3]).max() == 0


def test_implementation_invariance() -> None:
    """One function, two nets: one splits every unit of the hidden layer into two halves."""
    first = nn.Linear(32, 6).double()
    second = nn.Linear(6, 2).double()
    plain = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second)
    wide, head = nn.Linear(32, 12).double(), nn.Linear(12, 2).double()
    with torch.no_grad():
        wide.weight.copy_(torch.cat([first.weight, 3 * first.weight]))
        wide.bias.copy_(torch.cat([first.bias, 3 * first.bias]))
        head.weight.copy_(torch.cat([second.weight / 2, second.weight / 6], 1))
        head.bias.copy_(second.bias)
    other = nn.Sequential(nn.Flatten(), wide, nn.ReLU(), head)
    x = images(size=4)
    torch.testing.assert_close(plain(x), other(x))
    maps = [attribute([net], x, 1, tolerance=1)["mean"] for net in (plain, other)]
    np.testing.assert_allclose(maps[0], maps[1], atol=1e-12)


def test_linearity_and_symmetry() -> None:
    one, two = segmenter(), segmenter()
    sums = [lambda x, net=net: net(x).flatten(2).sum(2) for net in (one, two)]
    both = lambda x: 2 * sums[0](x) - 3 * sums[1](x)  # noqa: E731
    x = images()
    maps = [attribute([f], x, 0, tolerance=1)["mean"] for f in (*sums, both)]
    np.testing.assert_allclose(maps[2], 2 * maps[0] - 3 * maps[1], atol=1e-10)
    # Swapping two equal pixels that enter f alike gives them equal shares.
    symmetric = lambda x: torch.stack([(x[:, 0, 0, 0] * x[:, 0, 0, 1]).tanh()] * 2, 1)  # noqa: E731
    x[:, 0, 0, 0] = x[:, 0, 0, 1]
    shares = attribute([symmetric], x, 0)["mean"][:, 0, 0]
    np.testing.assert_allclose(shares[:, 0], shares[:, 1], atol=1e-12)


def test_bias_free_relu_net_has_one_answer() -> None:
    net, x = conv_net(bias=False), images()
    result = [
        attribute([net], x, 2, method=m) for m in ("integrated_gradients", "input_x_gradient")
    ]
    np.testing.assert_allclose(result[0]["mean"], result[1]["mean"], atol=1e-10)
    np.testing.assert_allclose(total(result[0]["mean"]), net(x)[:, 2], atol=1e-10)
    np.testing.assert_allclose(result[1].conservation, 1, atol=1e-10)


def test_mean_over_draws_is_the_attribution_of_the_mean_logit() -> None:
    nets, x = [conv_net() for _ in range(5)], images()
    over_draws = attribute(nets, x, 1, steps=20, tolerance=1)
    of_mean = attribute(
        [lambda x: torch.stack([net(x) for net in nets]).mean(0)], x, 1, steps=20, tolerance=1
    )
    np.testing.assert_allclose(over_draws["mean"], of_mean["mean"], atol=1e-5)
    np.testing.assert_allclose(over_draws["mcse"], over_draws["sd"] / 5**0.5)


# --- regions and numbers


@pytest.mark.parametrize("space", [2, 3])
@pytest.mark.parametrize("output", ["logit", "log_probability", "probability"])
def test_region_of_a_segmentation(space: int, output: Any) -> None:
    net, x = segmenter(space), images(space=space, size=6)
    region = torch.rand(len(x), *x.shape[2:]) < 0.3
    target = torch.tensor([2, 0, 1])
    result = attribute([net], x, target, output=output, region=region, steps=60)
    values: list[Any] = []
    for where in (x, torch.zeros_like(x)):
        logits = net(where)
        if output != "logit":
            logits = logits.log_softmax(1) if output == "log_probability" else logits.softmax(1)
        values.append([logits[i, target[i]][region[i]].mean() for i in range(3)])
    np.testing.assert_allclose(
        total(result["mean"]), np.array(values[0]) - np.array(values[1]), atol=1e-6
    )
    # Two 3-wide convolutions: nothing comes from more than two pixels away.
    single = torch.zeros_like(region)
    single.flatten(1)[:, 0] = True
    corner = attribute([net], x, 0, region=single)["mean"].values
    assert np.abs(corner[..., 3:]).max() == 0 and np.abs(corner[..., 2]).max() > 0


def test_numbers_are_explained_as_they_are() -> None:
    weight, x = torch.randn(2, 2, 8, 8, dtype=torch.float64), images()
    two = attribute([linear(weight)], x, 1, output="value")
    np.testing.assert_allclose(two["mean"], weight[1] * x, atol=1e-9)
    one = attribute([lambda x: linear(weight[:1])(x)[:, 0]], x, output="value")
    np.testing.assert_allclose(one["mean"], weight[0] * x, atol=1e-9)
    assert one["mean"].attrs["units"] == "1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"region": None}, "needs region="),
        ({"region": torch.ones(3, 8, 7)}, "covers"),
        ({"region": torch.ones(2, 8, 8)}, "region must be"),
        ({"region": torch.zeros(3, 8, 8)}, "empty in cases"),
        ({"region": torch.full((3, 8, 8), 0.5)}, "other than 0 and 1"),
        ({"target": None}, "target is missing"),
        ({"target": 3}, "classes 0 to 2"),
        ({"functions": [lambda x: segmenter()(x).argmax(1)[:, None]]}, "gives|two outputs|int64"),
        ({"functions": [lambda x: x.flatten(1)]}, "no space; leave region out"),
        ({"method": "saliency", "steps": 3}, "no option 'steps'"),
        ({"method": IntegratedGradients(), "steps": 3}, "already"),
        ({"method": "smooth_grad", "noise_scale": -1.0}, "noise_scale"),
        ({"method": "var_grad", "samples": 1}, "2 or more"),
    ],
)
def test_refuses(change: dict, message: str) -> None:
    arguments = {
        "functions": [segmenter()],
        "image": images(),
        "target": 0,
        "region": torch.ones(3, 8, 8),
    } | change
    with pytest.raises((ValueError, TypeError), match=message):
        attribute(**arguments)


def test_a_number_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="numbers 0 to 1"):
        attribute([linear(torch.ones(2, 2, 8, 8).double())], images(), 2, output="value")


def test_var_grad_is_the_unbiased_variance_of_the_slopes() -> None:
    """A net of which every noisy copy has one of two slopes: the divisor is samples - 1."""
    image = torch.zeros(1, 1, 1, 2)
    image[..., 1] = 1.0
    slopes: list[torch.Tensor] = []

    def function(points: torch.Tensor) -> torch.Tensor:
        square = points.flatten(1)[:, :1] ** 2
        return torch.cat([torch.zeros_like(square), square], 1)

    samples = 3
    found = attribute(
        [function], image, 1, method="var_grad", output="logit", samples=samples, noise_scale=1.0
    )
    noise = [torch.Generator().manual_seed(0)]
    for _ in range(samples):
        slopes.append(2 * torch.randn(image.shape[1:], generator=noise[0])[0, 0, 0])
    expected = float(torch.stack(slopes).double().var(unbiased=True))
    assert float(found["mean"][0, 0, 0, 0]) == pytest.approx(expected, rel=1e-5)
