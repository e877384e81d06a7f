"""The Probabilistic U-Net and its rivals: their losses by hand, and what they can express."""

import math
from typing import Any

import numpy as np
import pyro.poutine as poutine
import pytest
import torch
import xarray as xr
from torch import Tensor
from torch.nn import functional

from ppl_med.inference import (
    BestHead,
    ConditionalHierarchy,
    ConditionalNormal,
    Elbo,
    FromPrior,
    ImportanceWeighted,
    elbo_terms,
    fit,
    predict,
)
from ppl_med.models import (
    HierarchicalProbabilisticUNet,
    ImageToImageVAE,
    MultiHeadUNet,
    ProbabilisticUNet,
    StochasticSegmentationNetwork,
)
from ppl_med.networks import ConvGaussian, UNet
from ppl_med.networks.encoder import LOG_SCALE_RANGE

CLASSES = ("background", "lesion", "vessel")
SMALL: dict[str, Any] = {"channels": (4, 6), "num_convolutions": 1}
CASES, SIZE = 5, 8


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(CASES, 1, SIZE, SIZE, generator=generator)
    mask = torch.randint(-1, len(CLASSES), (CASES, SIZE, SIZE), generator=generator)
    return {"image": image, "mask": mask}


def cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Summed over the annotated pixels of each case, dims (case,)."""
    per_pixel = functional.cross_entropy(logits, mask, ignore_index=-1, reduction="none")
    return per_pixel.flatten(1).sum(1)


@pytest.mark.parametrize("kind", [ProbabilisticUNet, ImageToImageVAE])
def test_the_loss_is_cross_entropy_summed_over_pixels_plus_kl(kind: Any) -> None:
    model = kind(1, CLASSES, latent_dim=3, **SMALL)
    encoder = model.posterior_net()
    guide, given = ConditionalNormal(encoder, observation="mask"), batch()
    torch.manual_seed(5)
    nll, kl = elbo_terms(model, guide, **given)
    torch.manual_seed(5)
    q = encoder(given["image"], given["mask"])
    z = q.rsample()
    replayed = poutine.condition(model, data={"z": z})
    logits = replayed(given["image"])
    assert nll["mask"].item() == pytest.approx(
        cross_entropy(logits, given["mask"]).sum().item(), rel=1e-5
    )
    loc, scale = q.base_dist.loc, q.base_dist.scale
    if kind is ProbabilisticUNet:
        prior = model.prior(given["image"]).base_dist
        m, s = prior.loc, prior.scale
    else:
        m, s = torch.zeros_like(loc), torch.ones_like(scale)
    by_hand = (torch.log(s / scale) + (scale**2 + (loc - m) ** 2) / (2 * s**2) - 0.5).sum()
    assert kl["z"].item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_the_official_sizes_are_the_default() -> None:
    """17.95 million parameters, 9.23 of them the U-Net (segmentation of 24 classes)."""

    def millions(module: torch.nn.Module) -> float:
        return sum(p.numel() for p in module.parameters()) / 1e6

    classes = [f"class {index}" for index in range(24)]
    model = ProbabilisticUNet(3, classes)
    everything = millions(model) + millions(model.posterior_net())
    assert everything == pytest.approx(17.95, abs=0.05)
    assert millions(model.backbone) == pytest.approx(9.23, abs=0.03)


@pytest.mark.filterwarnings("ignore:posterior collapse")
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_volumes_run_like_images(spatial_dims: int) -> None:
    space = (4,) * spatial_dims
    image, mask = torch.randn(2, 1, *space), torch.zeros(2, *space, dtype=torch.int64)
    mask[1] = 1
    model = ProbabilisticUNet(1, CLASSES, spatial_dims=spatial_dims, latent_dim=2, **SMALL)
    guide = ConditionalNormal(model.posterior_net(), observation="mask")
    given = [{"image": image, "mask": mask}]
    fit(model, guide, given, epochs=3, kl_weight=1e-6, learning_rate=0.01, progress=False)
    tree = predict(model, guide, given, draws=2, progress=False)
    names = ("depth", "row", "col")[-spatial_dims:]
    assert tree["posterior/probs"].dims == ("chain", "draw", "case", "class", *names)


def test_log_scales_stay_finite_whatever_the_image() -> None:
    encoder = ConvGaussian(1, 2, **SMALL)
    with torch.no_grad():
        law = encoder(1e6 * torch.randn(3, 1, SIZE, SIZE))
    low, high = (math.exp(limit) for limit in LOG_SCALE_RANGE)
    scale = law.base_dist.scale
    assert (scale >= 0.999 * low).all() and (scale <= 1.001 * high).all()


def test_pixels_that_nobody_annotated_have_no_influence() -> None:
    """On the loss, on its gradient, and on the posterior net beyond "not annotated"."""
    model = ProbabilisticUNet(1, CLASSES, latent_dim=2, **SMALL).eval()
    image = batch()["image"]
    mask = torch.full((CASES, SIZE, SIZE), -1)
    trace = poutine.trace(model).get_trace(image, mask)
    fn: Any = trace.nodes["mask"]["fn"]
    assert fn.log_prob(mask).tolist() == [0.0] * CASES
    mask[:, 0, 0] = 2
    logits: Any = trace.nodes["_RETURN"]["value"]
    expected = logits.log_softmax(1)[:, 2, 0, 0].double()
    torch.testing.assert_close(fn.log_prob(mask), expected, rtol=1e-5, atol=1e-5)


# --- M-Heads


def test_the_elbo_under_best_head_is_rupprechts_loss() -> None:
    model, given = MultiHeadUNet(1, CLASSES, heads=4, **SMALL), batch()
    with torch.no_grad():
        model.network[-1].weight.mul_(3)  # type: ignore[operator]
    logits = model.all_heads(given["image"])
    each = torch.stack([cross_entropy(logits[:, head], given["mask"]) for head in range(4)], 1)
    epsilon = 0.2
    best = each.min(1).values
    share = epsilon / 3
    rupprecht = ((1 - epsilon) * best + share * (each.sum(1) - best)).sum()
    guide = BestHead(model, epsilon)
    trace = poutine.trace(guide).get_trace(**given)
    fn: Any = trace.nodes["head"]["fn"]
    own = (fn.probs * each).sum()
    assert own.item() == pytest.approx(rupprecht.item(), rel=1e-5)
    entropy = -(1 - epsilon) * math.log(1 - epsilon) - epsilon * math.log(share)
    _, kl = elbo_terms(model, guide, **given)
    assert kl["head"].item() == pytest.approx(CASES * (math.log(4) - entropy), rel=1e-4)
    draws = torch.stack([elbo_terms(model, guide, **given)[0]["mask"].detach() for _ in range(800)])
    error = draws.std() / math.sqrt(len(draws))
    assert abs(draws.mean() - rupprecht) < 5 * error  # false alarm 6e-7


def test_idle_heads_learn_nothing_without_epsilon() -> None:
    model, given = MultiHeadUNet(1, CLASSES, heads=3, **SMALL), batch()
    best = BestHead(model, 0.0)
    trace = poutine.trace(best).get_trace(**given)
    head: Any = trace.nodes["head"]["value"]
    used = set(head.tolist())
    nll, _ = elbo_terms(model, best, **given)
    nll["mask"].backward()
    gradient = model.network[-1].weight.grad.view(3, -1)  # type: ignore[union-attr, operator]
    assert {head for head in range(3) if gradient[head].any()} == used


def test_heads_are_equally_likely_at_predict() -> None:
    model = MultiHeadUNet(1, CLASSES, heads=4, **SMALL)
    images = [{"image": batch()["image"]}]
    tree = predict(model, BestHead(model), images, draws=400, progress=False)
    head: Any = tree["posterior/head"]
    counts = np.bincount(head.values.ravel(), minlength=4)
    expected = counts.sum() / 4
    assert ((counts - expected) ** 2 / expected).sum() < 30.7  # chi-square(3) at 1e-6


# --- stochastic segmentation: the authors' toy problem


def toy(rank: int) -> float:
    """Best log-likelihood in nats of two equally likely rows of 21 pixels that differ in 7.

    No model can exceed -log 2 = -0.693; with independent pixels none can exceed -7 log 2 = -4.85.
    """
    mask = torch.zeros(2, 1, 21, dtype=torch.int64)
    mask[1, :, 7:14] = 1
    image = torch.zeros(2, 1, 1, 21)
    image[..., :7], image[..., 14:] = -1.0, 1.0
    model = StochasticSegmentationNetwork(1, ("a", "b"), rank, channels=(16,), num_convolutions=2)
    return best(model, image, mask)


def best(model: Any, image: Tensor, mask: Tensor) -> float:
    objective = ImportanceWeighted(40)
    history = fit(
        model,
        FromPrior("z", "noise"),
        [{"image": image, "mask": mask}],
        epochs=600,
        learning_rate=0.01,
        schedule="cosine",
        objective=objective,
        progress=False,
    )
    return float(history["bound"].values[-100:].mean())


@pytest.mark.parametrize(("rank", "low", "high"), [(2, -0.80, -0.65), (0, -5.2, -4.8)])
def test_low_rank_logits_hold_two_modes_and_independent_ones_do_not(
    rank: int, low: float, high: float
) -> None:
    assert low < toy(rank) < high


def test_the_logits_have_the_stated_covariance() -> None:
    model = StochasticSegmentationNetwork(1, CLASSES, rank=2, **SMALL).eval()
    image = torch.randn(1, 1, 4, 4)
    with torch.no_grad():
        parts = model.network(image).view(4, -1)
        copies = image.expand(2000, -1, -1, -1)
        draws = torch.cat([model(copies).flatten(1) for _ in range(10)])
    mean, diagonal, factor = parts[0], parts[1].exp(), parts[2:]
    covariance = factor.T @ factor + diagonal.diag()
    sd = covariance.diag().sqrt()
    assert ((draws.mean(0) - mean).abs() / sd).max() < 6 / math.sqrt(20000)
    correlation = covariance / (sd[:, None] * sd)
    torch.testing.assert_close(torch.corrcoef(draws.T), correlation, rtol=0, atol=0.05)


# --- several graders, and what is refused


def graded() -> dict[str, Tensor]:
    given = batch()
    mask = torch.stack([given["mask"], given["mask"].roll(1, 1), given["mask"].flip(1)], 1)
    mask[2, 1] = -1
    return {"image": given["image"], "mask": mask}


def test_each_grader_is_scored_under_the_draw_of_its_case() -> None:
    model = ProbabilisticUNet(1, CLASSES, latent_dim=2, **SMALL)
    guide = ConditionalNormal(model.posterior_net(), observation="mask")
    together = predict(model, guide, [graded()], draws=3, progress=False)
    assert together["log_likelihood/mask"].dims == ("chain", "draw", "case", "grader")
    assert together["observed_data/mask"].dims == ("case", "grader", "row", "col")
    assert (together["observed_data/mask"].values == graded()["mask"].numpy()).all()
    missing = together["log_likelihood/mask"].isel(case=2, grader=1)
    assert np.isnan(missing).all()
    for grader in range(3):
        mask = graded()["mask"][:, grader]
        mask[2] = mask[2].clamp(min=0)  # one grader alone cannot be absent
        one = {**graded(), "mask": mask}
        alone = predict(model, guide, [one], draws=3, progress=False)
        xr.testing.assert_equal(alone["posterior/probs"], together["posterior/probs"])
        ours: Any = together["log_likelihood/mask"]
        alone_log: Any = alone["log_likelihood/mask"]
        mine = ours.isel(grader=grader).values
        here = np.arange(CASES) != 2
        np.testing.assert_allclose(mine[..., here], alone_log.values[..., here], rtol=1e-12)


def test_the_prior_predictive_comes_before_training() -> None:
    model = ProbabilisticUNet(1, CLASSES, latent_dim=2, **SMALL)
    tree = predict(model, None, [graded()], draws=4, progress=False)
    assert tree["prior/probs"].sizes["draw"] == 4
    assert set(np.unique(tree["prior_predictive/mask"])) <= {0, 1, 2}


def bad(**changes: Tensor) -> dict[str, Tensor]:
    return {**batch(), **changes}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (graded(), "an axis of graders; to train"),
        (bad(mask=torch.zeros(CASES, SIZE, SIZE + 2, dtype=torch.int64)), "mask has shape"),
        (bad(mask=torch.full((CASES, SIZE, SIZE), 3)), "mask holds 3 in case 0"),
        (bad(mask=torch.full((CASES, SIZE, SIZE), -1)), "nobody annotated it"),
        (
            {
                "image": torch.zeros(2, 1, 7, 8),
                "mask": torch.zeros(2, 7, 8, dtype=torch.int64),
            },
            "halvings need sizes divisible by 2",
        ),
    ],
)
def test_masks_that_do_not_fit_are_named_before_training(
    given: dict[str, Tensor], message: str
) -> None:
    model = ProbabilisticUNet(1, CLASSES, latent_dim=2, **SMALL)
    guide = ConditionalNormal(model.posterior_net(), observation="mask")
    with pytest.raises(ValueError, match=message):
        fit(model, guide, [given], objective=Elbo(), progress=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiHeadUNet(1, CLASSES, heads=1), "heads must .* 2 or more"),
        (lambda: StochasticSegmentationNetwork(1, CLASSES, rank=-1), "rank must be"),
        (lambda: UNet(1, channels=()), "channels must be widths"),
        (lambda: UNet(1, spatial_dims=4), "spatial_dims must be 2 or 3"),
        (lambda: ConvGaussian(1, 2, sees_image=False), "leaves nothing to see"),
        (
            lambda: ProbabilisticUNet(1, CLASSES, backbone=torch.nn.Conv2d(1, 2, 1)),
            "must have the attribute num_features",
        ),
        (lambda: BestHead(MultiHeadUNet(1, CLASSES), 1.0), "epsilon must be"),
    ],
)
def test_arguments_that_make_no_sense_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_hierarchy_starts_close_to_standard_normals() -> None:
    """At the published sizes; on features without norm, He weights gave a KL of 1e9 nats."""
    model = HierarchicalProbabilisticUNet(1, CLASSES, channels=(24, 48, 96, 192, 192, 192))
    guide = ConditionalHierarchy(model.posterior_net())
    mask = torch.zeros(2, 32, 32, dtype=torch.int64)
    with torch.no_grad():
        _, kl = elbo_terms(model, guide, torch.randn(2, 1, 32, 32), mask)
    assert all(value.item() < 5 for value in kl.values()), kl


@pytest.mark.parametrize("kind", [ProbabilisticUNet, HierarchicalProbabilisticUNet])
def test_reset_draws_the_start_values_anew(kind: Any) -> None:
    """So that members of an ensemble differ, and start at the scale of the first."""
    model = kind(1, CLASSES)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for name, value in model.named_parameters():
        assert not torch.equal(value, before[name]), name
        if value.numel() > 2000:
            assert value.std().item() == pytest.approx(before[name].std().item(), rel=0.1), name
