"""Attribution against closed forms (linear, quadratic, Bayesian linear) and captum itself."""

import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import xarray as xr
from captum.attr import IntegratedGradients, Saliency
from scipy import stats
from torch import Tensor, nn

from ppl_med.explain.attribution import Output, attribute
from ppl_med.explain.quality import mass_inside
from ppl_med.testing import assert_mean

FALSE_ALARM = 1e-6
SHAPE = (3, 2, 4, 5)


@dataclass
class Linear:
    """f_c(x) = Σ_p w_cp x_p, labelled as a posterior draw."""

    weight: Tensor  # class channel row col
    chain: int = 0
    draw: int | None = 0

    def __call__(self, image: Tensor) -> Tensor:
        return image.flatten(1) @ self.weight.flatten(1).T


def random_linear(num: int, num_classes: int = 3) -> list[Linear]:
    return [
        Linear(torch.randn(num_classes, *SHAPE[1:], dtype=torch.float64), 0, d) for d in range(num)
    ]


def image(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(SHAPE, dtype=dtype)


class SmallNet(nn.Module):
    """In-place ReLUs, one of them on the input, and one max-pool module used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.pool = nn.ReLU(inplace=True), nn.MaxPool2d(2, 1)
        self.head = nn.Linear(4 * 2 * 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv(self.first(x))))
        return self.head(self.pool(self.relu(self.again(x))).flatten(1))


# --- closed forms


@pytest.mark.parametrize("batch_size", [1, 7, 32, 1000])
def test_linear_function_is_attributed_exactly(batch_size: int) -> None:
    functions, x, baseline = random_linear(2), image(), image()
    target = torch.tensor([2, 0, 1])
    result = attribute(
        functions, x, target, baseline=baseline, keep_draws=True, batch_size=batch_size
    )
    for draw, function in enumerate(functions):
        exact = function.weight[target] * (x - baseline)
        np.testing.assert_allclose(result.attribution[0, draw], exact, rtol=1e-5, atol=1e-6)
    both = np.stack([f.weight[target] * (x - baseline) for f in functions])
    np.testing.assert_allclose(result["mean"], both.mean(0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(result["sd"], both.std(0, ddof=1), rtol=1e-5, atol=1e-6)
    assert np.abs(result.completeness_delta).max() < 1e-6
    assert result["mean"].dims == ("case", "channel", "row", "col")
    assert result.attribution.dims == ("chain", "draw", "case", "channel", "row", "col")
    assert result.target.values.tolist() == [2, 0, 1]


def test_quadratic_function_is_attributed_exactly() -> None:
    # f(x) = x'Ax: the path integral of (x-b) * (A + A')(b + t(x-b)) is (x-b) * (A + A')(x+b)/2.
    matrix, x, baseline = torch.randn(40, 40, dtype=torch.float64), image(), image()

    def quadratic(where: Tensor) -> Tensor:
        flat = where.flatten(1)
        return torch.stack([torch.einsum("ni,ij,nj->n", flat, matrix, flat)] * 2, 1)

    result = attribute([quadratic], x, 1, baseline=baseline, steps=2)
    middle = ((x + baseline) / 2).flatten(1) @ (matrix + matrix.T)
    exact = ((x - baseline).flatten(1) * middle).reshape(SHAPE)
    np.testing.assert_allclose(result["mean"], exact, rtol=1e-5, atol=1e-5)


def test_saliency_is_the_signed_gradient() -> None:
    functions = random_linear(1)
    result = attribute(functions, image(), 1, method="saliency")
    np.testing.assert_allclose(result["mean"], functions[0].weight[1].expand(SHAPE))
    assert (result["mean"] < 0).any() and "completeness_delta" not in result


@pytest.mark.parametrize("output", ["logit", "log_probability", "probability"])
def test_outputs_complete_to_their_own_difference(output: Output) -> None:
    functions, x = random_linear(3), image() / 4
    result = attribute(functions, x, 0, output=output, steps=64, keep_draws=True)
    for draw, function in enumerate(functions):
        logits = [function(x), function(torch.zeros_like(x))]
        if output != "logit":
            logits = [
                value.softmax(1) if output == "probability" else value.log_softmax(1)
                for value in logits
            ]
        total = result.attribution[0, draw].sum(("channel", "row", "col"))
        np.testing.assert_allclose(total, (logits[0] - logits[1])[:, 0], rtol=1e-4, atol=1e-5)


def test_one_logit_means_two_classes() -> None:
    function, x = random_linear(1, num_classes=1)[0], image() / 4
    positive, negative = (attribute([function], x, c, output="probability")["mean"] for c in (1, 0))
    np.testing.assert_allclose(positive, -negative, atol=1e-12)
    total = positive.sum(("channel", "row", "col"))
    np.testing.assert_allclose(total, torch.sigmoid(function(x))[:, 0] - 0.5, rtol=1e-5)
    log_odds = attribute([function], x, 1)["mean"]
    np.testing.assert_allclose(log_odds, function.weight * x, rtol=1e-6)


def test_bayesian_linear_regression_has_the_normal_law_of_attributions() -> None:
    # w ~ Normal(m, s²) gives attributions Normal(m d, (s d)²) with d = x - b, pixel by pixel.
    num, loc = 500, torch.randn(1, *SHAPE[1:], dtype=torch.float64)
    scale = torch.rand_like(loc) + 0.5
    draws = [Linear(loc + scale * torch.randn_like(loc), d % 4, d // 4) for d in range(num)]
    x = image()[:1]
    result = attribute([Pair(d) for d in draws], x, 0, baseline=0.5, steps=1, keep_draws=True)
    difference = (x - 0.5).numpy()
    law = stats.norm(loc.numpy() * difference, np.abs(scale.numpy() * difference))
    samples = result.attribution.values.reshape(num, *difference.shape)
    assert_mean(samples, law.mean(), FALSE_ALARM)
    per_pixel = FALSE_ALARM / difference.size
    z = (result["mean"].values - law.mean()) / (law.std() / np.sqrt(num))
    assert np.abs(z).max() < stats.norm.isf(per_pixel / 2)
    chi2 = stats.chi2(num - 1).cdf((num - 1) * result["sd"].values ** 2 / law.var())
    assert np.minimum(chi2, 1 - chi2).min() > per_pixel / 2
    count = np.rint(result.probability_positive.values * num).astype(int)
    tests = [
        stats.binomtest(k, num, p).pvalue for k, p in zip(count.flat, law.sf(0).flat, strict=True)
    ]
    assert min(tests) > per_pixel
    assert result.sizes["chain"] == 4 and result.sizes["draw"] == 125


@dataclass
class Pair:
    """A linear function with a second, constant class."""

    inner: Linear

    @property
    def chain(self) -> int:
        return self.inner.chain

    @property
    def draw(self) -> int | None:
        return self.inner.draw

    def __call__(self, x: Tensor) -> Tensor:
        first = self.inner(x)
        return torch.cat([first, torch.zeros_like(first)], 1)


# --- networks


def test_relu_network_agrees_with_captum_and_completes() -> None:
    nets = [SmallNet().eval() for _ in range(3)]
    x, target = image(torch.float32), torch.tensor([0, 1, 2])
    result = attribute(nets, x, target, steps=150, batch_size=64, keep_draws=True)
    for draw, net in enumerate(nets):
        oracle = IntegratedGradients(lambda v, net=net: net(v.clone()))
        exact = oracle.attribute(x, 0.0, target, n_steps=150).detach()
        np.testing.assert_allclose(result.attribution[0, draw], exact, atol=1e-5)
    assert np.abs(result.completeness_delta).max() < 0.02
    assert result.attrs["completeness_beyond_tolerance"] == 0
    saliency = attribute(nets[:1], x, target, method="saliency", batch_size=2)
    oracle = Saliency(lambda v: nets[0](v.clone())).attribute(
        x.clone().requires_grad_(), target, abs=False
    )
    np.testing.assert_allclose(saliency["mean"], oracle, atol=1e-6)


def test_volumes_keep_their_depth() -> None:
    net = nn.Sequential(
        nn.Conv3d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(2 * 2**3, 2)
    )
    result = attribute([net], torch.randn(2, 1, 4, 4, 4), 0, steps=200)
    assert result["mean"].dims == ("case", "channel", "depth", "row", "col")


def test_warns_when_the_rule_is_too_coarse() -> None:
    def steep(x: Tensor) -> Tensor:
        return torch.stack([torch.relu(x.flatten(1).sum(1) - 0.9) * 10, x.flatten(1).sum(1)], 1)

    x = torch.full((2, 1, 1, 1), 1.0)
    with pytest.warns(UserWarning, match=r"2 of 2 \(draw, case\) pairs, by .* raise steps"):
        result = attribute([steep], x, 0, steps=2)
    assert result.attrs["completeness_beyond_tolerance"] == 2
    # f(x) - f(0) = 1; the delta is what the sum misses, in logits.
    np.testing.assert_allclose(result.completeness_delta, result["mean"].sum() / 2 - 1, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attribute([steep], x, 1, steps=2)


def test_leaves_network_and_image_alone() -> None:
    net, x = SmallNet().eval(), image(torch.float32)
    before = x.clone()
    attribute([net], x, 0, steps=200)
    assert torch.equal(x, before) and not x.requires_grad
    assert all(p.grad is None for p in net.parameters())


# --- moments and labels


def test_pixels_at_the_baseline_have_no_sign() -> None:
    x = image()
    x[:, :, 0] = 0.0
    result = attribute(random_linear(4), x, 0)
    assert (result.probability_positive[:, :, 0] == 0).all()
    assert (result.probability_negative[:, :, 0] == 0).all()
    rest = (result.probability_positive + result.probability_negative)[:, :, 1:]
    np.testing.assert_allclose(rest, 1)
    assert result.attrs["probability_mcse_max"] == 0.25


def test_a_single_function_has_no_spread() -> None:
    result = attribute(random_linear(1), image(), 0)
    assert np.isnan(result["sd"]).all() and np.isnan(result.probability_positive).all()
    assert "two or more" in result.attrs["note"]


def test_labels_follow_chain_and_draw_not_the_order() -> None:
    functions = [
        Linear(torch.full((2, *SHAPE[1:]), float(10 * c + d)), c, d) for c in (1, 0) for d in (2, 1)
    ]
    x = torch.ones(SHAPE)
    result = attribute(functions, x, 0, keep_draws=True, case=["a", "b", "c"])
    assert result.chain.values.tolist() == [0, 1] and result.draw.values.tolist() == [1, 2]
    first = result.attribution.sel(case="b").isel(channel=0, row=0, col=0)
    np.testing.assert_allclose(first, [[1, 2], [11, 12]])
    np.testing.assert_allclose(result.completeness_delta, 0, atol=1e-4)


def test_result_survives_netcdf(tmp_path) -> None:
    result = attribute(random_linear(2), image(), 0, keep_draws=True)
    result.to_netcdf(tmp_path / "attribution.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "attribution.nc", engine="h5netcdf") as again:
        xr.testing.assert_identical(again.load(), result)


# --- refusals


def dropout(x: Tensor) -> Tensor:
    return torch.nn.functional.dropout(x.flatten(1), 0.5)


def mixing(x: Tensor) -> Tensor:
    return x.flatten(1) - x.flatten(1).mean(0)


def numbering(x: Tensor) -> Tensor:
    return x.flatten(1) + torch.arange(len(x))[:, None]


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"functions": []}, ValueError, "functions is empty"),
        ({"functions": iter([])}, TypeError, "give a list"),
        ({"functions": [dropout]}, ValueError, "draws random numbers inside"),
        ({"functions": [mixing]}, ValueError, "mixes the cases"),
        ({"functions": [numbering]}, ValueError, "or numbers them"),
        ({"functions": [lambda x: x]}, ValueError, r"returned \(2, 2, 4, 5\) for 2 images"),
        ({"functions": [lambda x: x.detach().flatten(1)]}, ValueError, "no gradient"),
        ({"functions": [lambda x: x.flatten(1) / 0]}, ValueError, "NaN or infinite logits"),
        (
            {"functions": [Linear(torch.ones(2, *SHAPE[1:]).double())] * 2},
            ValueError,
            "exactly once",
        ),
        (
            {"functions": [Linear(torch.ones(2, *SHAPE[1:]).double(), 0, d) for d in (None, 1)]},
            ValueError,
            "integers",
        ),
        ({"image": torch.ones(4, 5)}, ValueError, "image must be"),
        ({"image": torch.ones(SHAPE, dtype=torch.int64)}, TypeError, "floating-point"),
        ({"image": torch.full(SHAPE, torch.nan)}, ValueError, "NaN"),
        ({"target": 3}, ValueError, "classes 0 to 2"),
        ({"target": -1}, ValueError, "classes 0 to 2"),
        (
            {"target": torch.zeros(2, dtype=torch.int64)},
            ValueError,
            "one class for all or one each",
        ),
        ({"target": torch.zeros(3)}, TypeError, "integer classes"),
        ({"baseline": torch.zeros(1, 2, 4, 5)}, ValueError, "baseline must"),
        ({"baseline": torch.nan}, ValueError, "baseline holds NaN"),
        ({"baseline": "black"}, TypeError, "number or a tensor"),
        ({"method": "gradcam"}, ValueError, "method must be .* got 'gradcam'"),
        ({"output": "entropy"}, ValueError, "output must be .* got 'entropy'"),
        ({"steps": 0}, ValueError, "steps must"),
        ({"batch_size": 1.5}, ValueError, "batch_size must"),
        ({"tolerance": 0.0}, ValueError, "tolerance"),
        ({"case": ["a", "a", "b"]}, ValueError, "an id twice"),
        ({"case": [1]}, ValueError, "one id per image"),
    ],
)
def test_refuses(change: dict, error: type, message: str) -> None:
    arguments = {"functions": random_linear(1), "image": image(), "target": 0} | change
    with pytest.raises((error, TypeError), match=message):
        attribute(**arguments)


def test_refuses_a_network_left_in_training_mode() -> None:
    net = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(40, 2))
    with pytest.raises(ValueError, match="mixes the cases"):
        attribute([net], image(torch.float32), 0)
    attribute([net.eval()], image(torch.float32), 0)


# --- localisation


def maps(values: np.ndarray) -> xr.DataArray:
    return xr.DataArray(values, dims=("case", "channel", "row", "col"))


def test_mass_inside_by_hand() -> None:
    values = np.zeros((3, 2, 2, 2))
    values[0] = [[[3, -5], [0, 1]], [[1, 0], [0, 0]]]  # 4 of 5 inside
    values[1] = 1.0  # follows the area
    values[2] = -1.0  # nothing positive
    mask = xr.DataArray(
        [[[1, 0], [0, 0]], [[1, 1], [0, 0]], [[1, 0], [0, 0]]], dims=("case", "row", "col")
    )
    result = mass_inside(maps(values), mask)
    np.testing.assert_allclose(result.mass_share, [0.8, 0.5, np.nan])
    np.testing.assert_allclose(result.area_share, [0.25, 0.5, 0.25])
    np.testing.assert_allclose(result.ratio, [3.2, 1.0, np.nan])
    np.testing.assert_allclose(result.mean_ratio, 2.1)
    np.testing.assert_allclose(result.mean_ratio_se, np.std([3.2, 1.0], ddof=1) / np.sqrt(2))
    assert int(result.num_without_positive) == 1 and int(result.num_empty_masks) == 0


def test_mass_of_noise_follows_the_area() -> None:
    num = 400
    rng = np.random.default_rng(1)
    mask = xr.DataArray(rng.random((num, 6, 6)) < 0.4, dims=("case", "row", "col"))
    result = mass_inside(maps(rng.normal(size=(num, 2, 6, 6))), mask)
    assert_mean(result.ratio.values, 1.0, FALSE_ALARM)


def test_mass_inside_takes_draws_and_counts_empty_masks() -> None:
    values = xr.DataArray(
        np.ones((2, 3, 2, 1, 2, 2)), dims=("chain", "draw", "case", "channel", "row", "col")
    )
    mask = xr.DataArray([[[0, 0], [0, 0]], [[1, 0], [0, 1]]], dims=("case", "row", "col"))
    result = mass_inside(
        xr.Dataset({"attribution": values, "mean": values.mean(("chain", "draw"))}), mask
    )
    assert result.mass_share.dims == ("chain", "draw", "case")
    np.testing.assert_allclose(result.mean_ratio, 1.0)
    assert np.isnan(result.ratio[..., 0]).all() and np.isnan(result.mean_ratio_se).all()
    assert int(result.num_empty_masks) == 1


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((2, 2, 2)), "empty in every case"),
        (np.full((2, 2, 2), 2), "other than 0 and 1"),
        (np.full((2, 2, 2), np.nan), "other than 0 and 1"),
        (np.ones((3, 2, 2)), "differ in size"),
    ],
)
def test_mass_inside_refuses(mask: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mass_inside(maps(np.ones((2, 1, 2, 2))), xr.DataArray(mask, dims=("case", "row", "col")))


def test_mass_inside_refuses_other_cases() -> None:
    attribution = maps(np.ones((2, 1, 2, 2))).assign_coords(case=["a", "b"])
    mask = xr.DataArray(
        np.ones((2, 2, 2)), dims=("case", "row", "col"), coords={"case": ["b", "a"]}
    )
    with pytest.raises(ValueError, match="case coordinate"):
        mass_inside(attribution, mask)


def test_attribution_finds_a_planted_square() -> None:
    weight = torch.zeros(2, 1, 8, 8)
    weight[1, :, 2:5, 2:5] = 1.0
    x = torch.rand(4, 1, 8, 8)
    result = attribute([Linear(weight)], x, 1, steps=1)
    mask = xr.DataArray((weight[1] > 0).expand(4, 8, 8).numpy(), dims=("case", "row", "col"))
    np.testing.assert_allclose(mass_inside(result, mask).ratio, 64 / 9, rtol=1e-6)
