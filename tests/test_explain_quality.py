"""Quality of attributions: closed forms on linear functions, chance of random maps, refusals."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from attribution_nets import conv_net, images, segmenter
from torch import Tensor, nn

from ppl_med.explain.attribution import attribute
from ppl_med.explain.quality import (
    linear_imputation,
    map_similarity,
    max_sensitivity,
    parameter_randomisation,
    perturbation_curve,
    pointing_game,
)
from ppl_med.testing import assert_mean

FALSE_ALARM = 1e-4
DIMS = ("case", "channel", "row", "col")


def maps(values: Any) -> xr.DataArray:
    return xr.DataArray(np.asarray(values, dtype=float), dims=DIMS)


def linear(weight: Tensor):
    return lambda x: x.flatten(1) @ weight.flatten(1).T


# --- perturbation curves


@pytest.mark.parametrize("insert", [False, True])
def test_curve_of_a_linear_function(insert: bool) -> None:
    """Replaced in the order of their terms, pixels take exactly those terms away."""
    weight = torch.randn(2, 2, 4, 5).double()
    x, baseline = torch.randn(3, 2, 4, 5).double(), torch.randn(3, 2, 4, 5).double()
    terms = weight[1] * (x - baseline)
    result = perturbation_curve(
        [linear(weight)],
        x,
        1,
        maps(terms),
        output="logit",
        baseline=baseline,
        insert=insert,
        steps=20,
        batch_size=2,
    )
    ordered = np.sort(terms.sum(1).flatten(1).numpy(), 1)[:, ::-1]
    taken = np.concatenate([np.zeros((3, 1)), np.cumsum(ordered, 1)], 1)
    ends = [linear(weight)(v)[:, 1].numpy()[:, None] for v in (x, baseline)]
    expected = ends[1] + taken if insert else ends[0] - taken
    np.testing.assert_allclose(result.score[0, 0], expected, atol=1e-9)
    np.testing.assert_allclose(result.area[0, 0], np.trapezoid(expected, dx=1 / 20), atol=1e-9)
    # No order can be better than the terms' own.
    assert (result.gain > 0).all()
    worst = perturbation_curve(
        [linear(weight)], x, 1, maps(-terms), output="logit", baseline=baseline, insert=insert
    )
    assert (worst.gain < 0).all()
    # The last step has replaced everything, whatever the order.
    np.testing.assert_allclose(result.score[..., -1], result.score_random[..., -1], atol=1e-9)


def test_least_relevant_first_keeps_the_output() -> None:
    weight, x = torch.rand(2, 2, 8, 8).double(), torch.rand(4, 2, 8, 8).double()
    result = perturbation_curve(
        [linear(weight)], x, 1, maps(weight[1] * x), output="logit", order="lowest_first"
    )
    assert (result.gain > 0).all() and (result.score.diff("share") < 0).all()


@pytest.mark.parametrize("insert", [False, True])
@pytest.mark.parametrize("order", ["highest_first", "lowest_first"])
def test_a_perfect_map_gains_and_its_opposite_loses(insert: bool, order: Any) -> None:
    weight, x = torch.rand(2, 2, 8, 8).double(), torch.rand(4, 2, 8, 8).double()
    terms = weight[1] * x
    settings: dict[str, Any] = {"output": "logit", "insert": insert, "order": order}
    for sign in (1, -1):
        found = perturbation_curve([linear(weight)], x, 1, maps(sign * terms), **settings)
        assert (sign * found.gain > 0).all()


def test_random_maps_gain_nothing() -> None:
    weight, x = torch.randn(2, 1, 5, 5).double(), torch.randn(300, 1, 5, 5).double()
    noise = maps(np.random.default_rng(3).random(x.shape))
    for settings in ({}, {"insert": True}, {"order": "lowest_first"}):
        result = perturbation_curve([linear(weight)], x, 1, noise, steps=5, **settings)
        assert_mean(result.gain.values.ravel(), 0.0, FALSE_ALARM)
        assert abs(float(result.mean_gain[0, 0])) < 5 * float(result.mean_gain_se[0, 0])


def test_segmentations_and_road() -> None:
    net, x = segmenter(), images()
    region = torch.zeros(3, 8, 8)
    region[:, 2:4, 2:4] = 1
    found = attribute([net], x, 0, region=region, tolerance=1)
    for imputation in ("baseline", "road"):
        result = perturbation_curve(
            [net, net], x, 0, found, region=region, imputation=imputation, steps=4
        )
        assert result.score.dims == ("chain", "draw", "case", "share")
        assert float(result.score.std("draw").max()) < 1e-12
        probs = net(x).softmax(1)[:, 0, 2:4, 2:4].mean((1, 2))
        np.testing.assert_allclose(result.score[0, 0, :, 0], probs, atol=1e-9)


def test_road_fills_a_plane_exactly() -> None:
    """Inside, each neighbour's mirror image is a neighbour too: linear images solve the system."""
    row, col = np.mgrid[:9, :9]
    image = np.stack([2.0 * row - col, 3.0 + 0.5 * col])
    gone = np.zeros((9, 9), bool)
    gone[2:6, 3:7] = True
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(linear_imputation(image, gone, rng, 0.0), image, atol=1e-9)
    all_gone = linear_imputation(image, np.ones((9, 9), bool), rng, 0.0)
    np.testing.assert_allclose(all_gone - image.mean((1, 2))[:, None, None], 0, atol=1e-12)
    noisy = linear_imputation(image, gone, rng, 0.1)
    assert (noisy[:, ~gone] == image[:, ~gone]).all() and (noisy[:, gone] != image[:, gone]).all()


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attribution": maps(np.ones((3, 2, 8, 7)))}, "attribution must be of shape"),
        ({"attribution": maps(np.ones((3, 2, 8, 8))).isel(channel=0)}, "lacks the axes"),
        ({"imputation": "road", "insert": True}, "road replaces"),
        ({"imputation": "blur"}, "imputation must"),
        ({"steps": 0}, "steps must"),
        ({"target": 5}, "classes 0 to 2"),
    ],
)
def test_curve_refuses(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "functions": [conv_net()],
        "image": images(),
        "target": 0,
        "attribution": maps(np.ones((3, 2, 8, 8))),
    } | change
    with pytest.raises(Exception, match=message):
        perturbation_curve(**arguments)


# --- pointing game and rank share


def test_pointing_game_by_hand() -> None:
    values = np.zeros((4, 2, 2, 2))
    values[0, :, 0, 1] = [3, -1]  # highest after summing channels: inside
    values[0, 0, 1, 1] = 1
    values[1, 0, 1, 0] = 5  # outside
    mask = np.zeros((4, 2, 2))
    mask[0, 0, 1] = mask[1, 0, 0] = mask[1, 0, 1] = mask[2, 0, 0] = 1  # case 2 flat, case 3 empty
    mask_array = xr.DataArray(mask, dims=("case", "row", "col"))
    result = pointing_game(maps(values), mask_array)
    np.testing.assert_allclose(result.hit, [1, 0, 0.25, np.nan])
    # Case 1: the second of its two places goes by lot to one of three equal pixels, two of them in.
    np.testing.assert_allclose(result.rank_share, [1, 1 / 3, 0.25, np.nan])
    np.testing.assert_allclose(result.chance, [0.25, 0.5, 0.25, np.nan])
    np.testing.assert_allclose(result.mean_hit, 1.25 / 3)
    near = pointing_game(maps(values), mask_array, tolerance=1)
    np.testing.assert_allclose(near.hit, [1, 1, 1, np.nan])


def test_random_maps_have_the_share_of_the_mask() -> None:
    rng = np.random.default_rng(5)
    mask = xr.DataArray(rng.random((600, 5, 5)) < 0.3, dims=("case", "row", "col"))
    result = pointing_game(maps(rng.normal(size=(600, 1, 5, 5))), mask)
    for name in ("hit", "rank_share"):
        assert_mean((result[name] - result.chance).values, 0.0, FALSE_ALARM)
    near = pointing_game(maps(rng.normal(size=(600, 1, 5, 5))), mask, tolerance=1)
    assert float(near.mean_hit_chance) > 2 * float(near.mean_chance)
    assert_mean((near.hit - near.hit_chance).values, 0.0, FALSE_ALARM)
    assert_mean((near.rank_share - near.chance).values, 0.0, FALSE_ALARM)


def test_pointing_game_takes_draws() -> None:
    values = np.random.default_rng(0).random((2, 3, 4, 1, 5, 6, 7))
    draws = xr.DataArray(values, dims=("chain", "draw", "case", "channel", "depth", "row", "col"))
    first = draws[0, 0, :, 0]
    mask = first == first.max(("depth", "row", "col"))
    result = pointing_game(draws, mask)
    assert result.hit.dims == ("chain", "draw", "case")
    assert (result.hit[0, 0] == 1).all() and (result.hit[1] == 0).all()
    with pytest.raises(ValueError, match="tolerance"):
        pointing_game(draws, mask, tolerance=-1)


# --- sensitivity and randomisation


def test_max_sensitivity_of_a_linear_and_a_quadratic_function() -> None:
    weight, x = torch.randn(2, 1, 6, 6).double(), images(2, 1, 6)
    explain = lambda v: attribute([linear(weight)], v, 1, method="saliency")  # noqa: E731
    assert float(max_sensitivity(explain, x).max_sensitivity.max()) < 1e-9

    def half_square(v: Tensor) -> Tensor:
        return torch.stack([(v**2 / 2).flatten(1).sum(1)] * 2, 1)

    # The gradient is x itself, so its relative change is ‖u‖ / ‖x‖, at most radius · range · √36.
    explain = lambda v: attribute([half_square], v, 1, method="saliency", keep_draws=True)  # noqa: E731
    result = max_sensitivity(explain, x, radius=0.1, samples=5)
    flat = x.flatten(1)
    span = (flat.max(1).values - flat.min(1).values) * 0.1
    assert (result.max_sensitivity[0, 0].values < (span * 6 / flat.norm(dim=1)).numpy()).all()
    expected = (span**2 / 3 * 36).sqrt() / flat.norm(dim=1)  # root mean square of ‖u‖
    np.testing.assert_allclose(result.sensitivity.mean("sample")[0, 0], expected, rtol=0.15)
    assert (result.max_sensitivity == result.sensitivity.max("sample")).all()
    with pytest.raises(ValueError, match="radius"):
        max_sensitivity(explain, x, radius=0.0)


def test_map_similarity_by_hand() -> None:
    one = np.arange(12.0).reshape(2, 1, 2, 3) - 2.5
    result = map_similarity(maps(one), maps(-(one**3)))
    np.testing.assert_allclose(result.correlation, -1)
    np.testing.assert_allclose(result.correlation_absolute, 1)
    assert np.isnan(map_similarity(maps(one), maps(np.ones_like(one))).correlation).all()
    with pytest.raises(ValueError, match="differ in shape"):
        map_similarity(maps(one), maps(one[:1]))


def test_randomisation_tells_the_net_from_the_image() -> None:
    net, x = conv_net(), images(6)
    before = [p.clone() for p in net.parameters()]
    explain = lambda n: attribute([n], x, 0, method="saliency")  # noqa: E731
    result = parameter_randomisation(net, explain)
    assert result.correlation.dims == ("layer", "case")
    assert result.layer.values.tolist() == ["7", "4", "1", "0"]
    assert float(np.abs(result.correlation[-1]).mean()) < 0.3
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    # A map of the image alone does not move.
    edges = lambda n: xr.Dataset({"mean": (DIMS, x.abs().numpy())})  # noqa: E731
    np.testing.assert_allclose(parameter_randomisation(net, edges).correlation, 1)
    with pytest.raises(ValueError, match="no layer"):
        parameter_randomisation(nn.ReLU(), explain)


def test_the_old_name_of_the_similarity_still_works() -> None:
    from ppl_med.explain import quality

    with pytest.warns(DeprecationWarning, match="likeness is now .*map_similarity"):
        assert quality.likeness is map_similarity
