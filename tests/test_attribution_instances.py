"""Maps of additive and attention nets: exact sums, known instances, and nets that have none."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from attribution_nets import PooledNet, conv_net, images
from torch import nn

from ppl_med.explain.attribution import attribute
from ppl_med.explain.attribution.instance_maps import spread
from ppl_med.explain.quality import evidence_inside, mass_inside, pointing_game
from ppl_med.inference import Ensemble, MeanFieldNormal, PointEstimate, functions
from ppl_med.models import BayesianClassifier
from ppl_med.networks import AdditiveCNN, AdditiveMIL, AttentionMIL, PooledCNN

SPACE = pytest.mark.parametrize("space", [2, 3])
TARGET = torch.tensor([2, 0, 1])


def additive(space: int, outputs: int = 3) -> Any:
    net = AdditiveMIL(space, 2, outputs).double().eval()
    nn.init.normal_(net.bias)
    return net


def sums(maps: xr.DataArray) -> Any:
    return maps.sum([d for d in maps.dims if d not in ("chain", "draw", "case")]).values


@SPACE
def test_contributions_sum_to_the_logit_without_its_bias(space: int) -> None:
    net, x = additive(space), images(space=space)
    result = attribute([net], x, TARGET, method="additive")
    assert result["mean"].dims == ("case", "channel", *("depth", "row", "col")[3 - space :])
    logit = net(x)[range(3), TARGET].detach()
    np.testing.assert_allclose(sums(result["mean"]), logit - net.bias.detach()[TARGET], atol=1e-10)
    np.testing.assert_allclose(result["bias_attribution"][0, 0], net.bias.detach()[TARGET])
    np.testing.assert_allclose(result["completeness_delta"], 0, atol=1e-10)


@SPACE
def test_a_net_of_places_adds_up_and_needs_its_size(space: int) -> None:
    net: Any = AdditiveCNN((8,) * space, 2, 3, channels=(3, 4), strides=(2, 1)).double().eval()
    nn.init.normal_(net.contributions.weight)
    nn.init.normal_(net.bias)
    x = images(space=space)
    flat = net.features(x).flatten(1) @ net.contributions.weight.flatten(1).T + net.bias
    torch.testing.assert_close(net(x), flat)
    result = attribute([net], x, TARGET, method="additive")
    found = sums(result["mean"]) + result["bias_attribution"].values[0, 0]
    np.testing.assert_allclose(found, flat[range(3), TARGET].detach(), atol=1e-10)
    with pytest.raises(ValueError, match="give images of the size"):
        net(images(size=12, space=space))


@SPACE
def test_a_patch_adds_what_it_adds_whatever_the_others_are(space: int) -> None:
    # With attention held even, a patch's contribution is a function of that patch alone.
    net, x = additive(space), images(space=space)
    nn.init.zeros_(net.attention.score.weight)
    other = x.clone()
    other[..., 4:] = torch.randn_like(other[..., 4:])
    one, two = (attribute([net], v, 1, method="additive")["mean"] for v in (x, other))
    np.testing.assert_allclose(one[..., :4], two[..., :4], atol=1e-12)
    change = (net(other) - net(x))[:, 1].detach()
    np.testing.assert_allclose(sums(two[..., 4:]) - sums(one[..., 4:]), change, atol=1e-10)


def test_contributions_relative_to_a_reference_are_shapley_values() -> None:
    """By their definition: all subsets of four places, absent ones as in each reference image."""
    net: Any = AdditiveCNN((2, 2), 1, 3, channels=(3,), strides=(1,)).double().eval()
    net.features[0] = nn.Conv2d(1, 3, 1).double()  # a place knows itself alone
    nn.init.normal_(net.contributions.weight)
    x, usual = (torch.randn(3, 1, 2, 2, dtype=torch.float64) for _ in range(2))
    result = attribute([net], x, TARGET, method="additive", reference=usual)

    def value(case: int, present: set[int]) -> float:
        here = torch.tensor([place in present for place in range(4)]).view(1, 1, 2, 2)
        output = net(torch.where(here, x[case], usual)).detach()
        return float(output[:, TARGET[case]].mean())

    expected = np.zeros((3, 4))
    for case, place in itertools.product(range(3), range(4)):
        others = [one for one in range(4) if one != place]
        for size in range(4):
            weight = 1 / (4 * math.comb(3, size))
            for chosen in map(set, itertools.combinations(others, size)):
                gain = value(case, chosen | {place}) - value(case, chosen)
                expected[case, place] += weight * gain
    np.testing.assert_allclose(result["mean"].values.reshape(3, 4), expected, atol=1e-10)
    np.testing.assert_allclose(result["completeness_delta"], 0, atol=1e-10)
    rest = net(usual).mean(0)[TARGET].detach()
    np.testing.assert_allclose(result["bias_attribution"][0, 0], rest, atol=1e-10)
    with pytest.raises(ValueError, match="reference has shape"):
        attribute([net], x, TARGET, method="additive", reference=usual[..., :1])


def test_one_logit_changes_sign_with_the_class() -> None:
    net, x = additive(3, outputs=1), images(space=3)
    maps = [attribute([net], x, target, method="additive")["mean"] for target in (0, 1)]
    np.testing.assert_allclose(maps[0], -maps[1], atol=1e-12)
    logit = (net(x) - net.bias)[:, 0].detach()
    np.testing.assert_allclose(sums(maps[1]), logit, atol=1e-10)


@SPACE
def test_attention_is_that_of_the_paper_and_sums_to_1(space: int) -> None:
    net, x = AttentionMIL(space, 2, 3).double().eval(), images(space=space)
    result = attribute([net], x, 1, method="attention")["mean"]
    np.testing.assert_allclose(sums(result), 1)
    h = net.features(x).flatten(2).transpose(1, 2)  # (case, instance, feature)
    v, u, w = (layer.weight.flatten(1) for layer in (net.attention.value, net.attention.gate,
                                                     net.attention.score))  # fmt: skip
    gate = torch.sigmoid(h @ u.T + net.attention.gate.bias)
    score = (torch.tanh(h @ v.T + net.attention.value.bias) * gate) @ w.T
    a = score.softmax(1)[..., 0]
    np.testing.assert_allclose(net(x).detach(), net.classifier((a[..., None] * h).sum(1)).detach())
    cells = a.reshape(3, 1, *[2] * space).detach()
    for axis in range(2, 2 + space):
        cells = cells.repeat_interleave(4, axis) / 4
    np.testing.assert_allclose(result, cells, rtol=1e-10)


def test_attention_knows_no_class_and_is_there_in_a_healthy_image_too() -> None:
    net, x = AttentionMIL(2, 2, 3).double().eval(), torch.zeros(3, 2, 8, 8, dtype=torch.float64)
    first, other = (attribute([net], x, t, method="attention")["mean"] for t in (0, 1))
    np.testing.assert_array_equal(first, other)
    np.testing.assert_allclose(sums(first), 1)


@SPACE
def test_cam_of_a_pooled_net_averages_to_the_logit_without_its_bias(space: int) -> None:
    net, x = (
        PooledCNN(space, 2, 3, channels=(4, 5), strides=(2, 1)).double().eval(),
        images(space=space),
    )
    result = attribute([net], x, TARGET, method="cam")["mean"]
    logit = (net(x) - net.classifier.bias)[range(3), TARGET].detach()
    # Linear interpolation by a whole factor keeps the mean.
    np.testing.assert_allclose(sums(result) / 8**space, logit, atol=1e-10)


def test_every_draw_of_a_posterior_is_exact() -> None:
    net = AdditiveMIL(3, 1, 2)
    model = BayesianClassifier(net, ["no", "yes"])
    made = functions(model, MeanFieldNormal(model, init_scale=0.3), draws=4)
    x = images(channels=1, space=3).float()
    result = attribute(made, x, 1, method="additive", keep_draws=True)
    logits = np.array([[f(x)[:, 1].numpy() for f in made]])
    found = sums(result["attribution"]) + result["bias_attribution"].values
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4)
    assert float(result["sd"].max()) > 0


@pytest.mark.parametrize("size", [8, 10, 11])
def test_spreading_keeps_the_sum_on_any_grid(size: int) -> None:
    cells, image = torch.rand(2, 1, 4, 4, 4).double(), torch.zeros(2, 1, size, size, size)
    out = spread(cells, image, "additive")
    torch.testing.assert_close(out.flatten(1).sum(1), cells.flatten(1).sum(1))
    assert out.shape == (2, 1, size, size, size)
    with pytest.raises(ValueError, match=r"finer than the image"):
        spread(cells, torch.zeros(2, 1, 3, 8, 8), "additive")


@pytest.mark.parametrize(
    ("method", "net", "message"),
    [
        ("additive", PooledNet(), "not the sum over space.*integrated_gradients"),
        ("additive", conv_net(), "not the sum over space.*integrated_gradients"),
        ("attention", conv_net(), "0 layers that return shares.*integrated_gradients"),
        ("attention", AttentionMIL(2, 2, 3).double(), "layer must be one of"),
    ],
)
def test_refuses_nets_that_have_no_such_layer(method: str, net: nn.Module, message: str) -> None:
    options: dict[str, Any] = {"layer": "nowhere"} if "layer must" in message else {}
    with pytest.raises(ValueError, match=message):
        attribute([net], images(), 1, method=method, **options)


def test_refuses_images_that_are_no_multiple_of_the_patch() -> None:
    for kind in (AdditiveMIL, AttentionMIL):
        with pytest.raises(ValueError, match=r"no multiples of patch=4"):
            kind(2)(torch.zeros(1, 1, 9, 8))
        own = kind(2, encoder=nn.Conv2d(1, 16, 3))
        assert own(torch.zeros(1, 1, 9, 8)).shape == (1, 2)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (AdditiveMIL, {"spatial_dims": 1}),
        (AttentionMIL, {"patch": 0}),
        (AttentionMIL, {"hidden": 0}),
        (PooledCNN, {"spatial_dims": 4}),
        (PooledCNN, {"strides": (1,)}),
        (AdditiveCNN, {"size": (0, 3)}),
    ],
)
def test_bad_sizes_are_named(kind: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        kind(**wrong)


# --- how much of the evidence lies inside, under the posterior


def draws(values: Any) -> xr.DataArray:
    dims = ("chain", "draw", "case", "channel", "row", "col")
    return xr.DataArray(np.asarray(values, float), dims=dims)


def test_evidence_inside_by_hand() -> None:
    # One case, four pixels, the first inside: shares 0.25, 0.5 and 0.75 of the mass.
    values = [[[1, 1], [1, 1]], [[3, 1], [1, 1]], [[9, 1], [1, 1]]]
    maps = draws(np.reshape(values, (1, 3, 1, 1, 2, 2)))
    mask = xr.DataArray([[[1, 0], [0, 0]]], dims=("case", "row", "col"))
    found = evidence_inside(maps, mask, level=0.5)
    np.testing.assert_allclose(found.mass_share[0, :, 0], [0.25, 0.5, 0.75])
    assert found.expected_mass_share.item() == 0.5 and found.sd_mass_share.item() == 0.25
    # The ends of 0.5 lie at the ranks 1 and 3 of three draws.
    assert found.expected_mass_share_lower.item() == 0.25
    assert found.expected_mass_share_upper.item() == 0.75
    assert found.expected_mean_ratio.item() == 2.0
    # Of the flat map a quarter of the tied pixels lies inside.
    np.testing.assert_allclose(found.probability_top_inside, (0.25 + 1 + 1) / 3)
    assert found.hit_chance.item() == 0.25 and found.attrs["num_draws"] == 3


def test_evidence_inside_is_what_each_draw_says_and_takes_volumes() -> None:
    rng = np.random.default_rng(0)
    dims = ("chain", "draw", "case", "channel", "depth", "row", "col")
    maps = xr.DataArray(rng.normal(size=(2, 3, 4, 1, 3, 4, 5)), dims=dims)
    mask = xr.DataArray(rng.random((4, 3, 4, 5)) < 0.3, dims=("case", *dims[4:]))
    found = evidence_inside(maps, mask)
    mass, pointing = mass_inside(maps, mask), pointing_game(maps, mask)
    np.testing.assert_allclose(found.ratio, mass.ratio)
    np.testing.assert_allclose(found.expected_mean_ratio, mass.mean_ratio.mean())
    np.testing.assert_allclose(found.probability_top_inside, pointing.hit.mean(("chain", "draw")))
    assert found.expected_ratio.dims == ("case",)


def test_copies_of_a_point_net_are_one_draw() -> None:
    net = PooledCNN(2, 1, 2, channels=(3,), strides=(1,))
    model = BayesianClassifier(net, ["no", "yes"])
    guide = Ensemble(model, PointEstimate, 2)
    made = functions(model, guide, draws=3)
    maps = attribute(made, torch.rand(2, 1, 8, 8), 1, method="cam", keep_draws=True)
    mask = xr.DataArray(np.tri(8, dtype=bool)[None].repeat(2, 0), dims=("case", "row", "col"))
    assert evidence_inside(maps, mask).attrs["num_draws"] <= 2


def test_evidence_inside_refuses_maps_without_draws() -> None:
    maps = xr.DataArray(np.ones((1, 1, 2, 2)), dims=("case", "channel", "row", "col"))
    mask = xr.DataArray([[[1, 0], [0, 0]]], dims=("case", "row", "col"))
    with pytest.raises(ValueError, match="keep_draws=True"):
        evidence_inside(maps, mask)
    with pytest.raises(ValueError, match="level must be"):
        evidence_inside(maps, mask, level=1.0)
