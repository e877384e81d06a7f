"""Rectified flows in training and prediction: weights, pairs, low-rank starts, wrong input."""

from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
from known_flows import CLASSES, SHARE, flow, mask_mean
from torch import Tensor, nn

from ppl_med.analysis.scoring import elpd_heldout, elpd_loo
from ppl_med.data import Batches
from ppl_med.inference import PointEstimate, fit, predict
from ppl_med.models import RectifiedFlow
from ppl_med.networks import DenoisingUNet
from ppl_med.programs.low_rank_field import LowRankField
from ppl_med.testing import assert_mean


def test_pixels_that_nobody_annotated_are_noise_and_have_no_loss() -> None:
    model, mask = flow(lambda state, time: 0 * state), torch.randint(2, (6, 4, 4))
    mask[:, 1] = -1
    trace = poutine.trace(model).get_trace(torch.zeros(6, 1, 4, 4), mask)
    nodes: Any = trace.nodes
    net: Any = model.network.net
    shown = net.seen[-1][0]
    assert torch.equal(shown[:, :, 1], nodes["start"]["value"][:, :, 1])
    assert not torch.isclose(shown[:, :, 2], nodes["start"]["value"][:, :, 2]).any()
    by_pixel = nodes["mask"]["fn"].base_dist.log_prob(mask)
    assert (by_pixel[:, 1] == 0).all() and (by_pixel[:, 2] == -0.5).all()


def test_one_draw_of_the_weights_serves_the_whole_path() -> None:
    model = flow(lambda state, time: 0 * state, sampling_steps=6)
    net: Any = model.network.net
    used = []
    for _ in range(3):
        net.seen.clear()
        model(torch.zeros(2, 1, 2, 2))
        assert len(net.seen) == 6
        assert len({weight for *_, weight in net.seen}) == 1
        used.append(net.seen[0][2])
    assert len(set(used)) == 3


def small_flow(**settings: Any) -> RectifiedFlow:
    net = DenoisingUNet(1, 1, 1, (4, 4), (4, 4), norm_groups=2)
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return RectifiedFlow(net, CLASSES, sampling_steps=2, **settings)


def test_predictions_do_not_depend_on_batches_and_have_no_log_likelihood() -> None:
    model = small_flow(start=nn.Conv2d(1, 3, 1), rank=1)
    guide = PointEstimate(model)
    data = {"image": torch.randn(7, 1, 4, 4), "mask": torch.randint(2, (7, 4, 4))}
    trees: list[Any] = [
        predict(model, guide, Batches(data, batch_size=size), draws=2, seed=3, progress=False)
        for size in (7, 3)
    ]
    one, other = (tree["posterior/probs"].values for tree in trees)
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert (one[:, 0] != one[:, 1]).mean() > 0.5  # where no probability is cut
    assert "log_likelihood" not in trees[0]
    with pytest.raises(ValueError, match="squared error of the mask on its path"):
        elpd_heldout(trees[0])
    with pytest.raises(ValueError, match="squared error of the mask on its path"):
        elpd_loo(trees[0])


def test_held_out_cases_are_judged_by_the_loss() -> None:
    """Where the net always gives 0, half the squared error of every pixel is 1/2."""
    model = flow(lambda state, time: 0 * state)
    data = {"image": torch.randn(8, 1, 4, 4), "mask": torch.randint(2, (8, 4, 4))}
    batches = Batches(data, batch_size=4)
    history = fit(
        model, PointEstimate(model, use_prior=False), batches, epochs=1, validation=batches,
        progress=False,
    )  # fmt: skip
    np.testing.assert_allclose(history["validation_nll"], 8.0)
    np.testing.assert_allclose(history["nll"], 8.0)


class PixelNet(nn.Module):
    """A net that sees each pixel alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 1)
        )

    def forward(
        self,
        image: Tensor | None = None,
        *,
        features: Tensor | None = None,
        noised: Any = None,
        step: Any = None,
    ) -> Tensor:
        if image is not None:
            return image
        both = torch.stack([noised, step.view(-1, 1, 1, 1).expand_as(noised)], -1)
        return self.layers(both).squeeze(-1)


def test_a_second_flow_on_the_pairs_of_the_first_takes_one_step() -> None:
    """Share of 2000 masks, false-alarm rate 1e-6 and room for what the net has not learnt.

    Without pairs, the best one step is to the mean of all masks: every pixel is off.
    """
    first = flow(mask_mean, sampling_steps=50, solver="heun", hardening=0.5, store_start=True)
    images = Batches({"image": torch.zeros(2000, 1, 1, 1)}, batch_size=2000)
    tree = predict(first, PointEstimate(first), images, draws=1, progress=False)
    posterior: Any = tree["posterior"]
    assert posterior["path_start"].dims[2:] == ("case", "channel", "row", "col")
    pairs = {
        "image": torch.zeros(2000, 1, 1, 1),
        "mask": torch.from_numpy(posterior["probs"].values[0, 0].argmax(1)),
        "paired_start": torch.from_numpy(posterior["path_start"].values[0, 0]),
    }
    pyro.set_rng_seed(0)
    model = RectifiedFlow(PixelNet(), CLASSES, sampling_steps=1)
    guide = PointEstimate(model, use_prior=False)
    batches = Batches(pairs, batch_size=500, shuffle=True)
    fit(model, guide, batches, epochs=40, learning_rate=0.02, progress=False)
    probs: Any = predict(model, guide, images, draws=1, seed=9, progress=False)["posterior/probs"]
    on = probs.values[0, 0, :, 1, 0, 0]
    assert np.abs(2 * on - 1).mean() > 0.8
    assert abs((on > 0.5).mean() - SHARE) < 0.07


@pytest.mark.parametrize("rank", [0, 2])
def test_a_low_rank_field_has_the_density_and_the_moments_of_its_normal(rank: int) -> None:
    """torch's dense normal is the oracle; of unseen entries, its marginal. False alarms 1e-6."""
    torch.manual_seed(2)
    output = torch.randn(3, (2 + rank) * 2, 1, 3)
    law = LowRankField(output, rank, 2, least_variance=0.01)
    parts = output.view(3, 2 + rank, 6).double()
    factor = parts[:, 2:].mT
    covariance = factor @ factor.mT + torch.diag_embed(parts[:, 1].exp() + 0.01)
    value, seen = torch.randn(3, 2, 1, 3), torch.ones(3, 1, 1, 3, dtype=torch.bool)
    seen[:, ..., 1] = False
    for known, kept in ((seen | True, [0, 1, 2, 3, 4, 5]), (seen, [0, 2, 3, 5])):
        dense = torch.distributions.MultivariateNormal(
            parts[:, 0, kept], covariance[:, kept][:, :, kept]
        )
        expected = dense.log_prob(value.flatten(1)[:, kept].double())
        torch.testing.assert_close(law.log_prob(value, known), expected.float())
    many = LowRankField(output[:1].expand(20_000, *output.shape[1:]), rank, 2, 0.01)
    with pyro.plate("case", 20_000):
        away = many.draw(("class", "row", "col")).flatten(1).double() - parts[0, 0]
    assert_mean(away, 0.0)
    assert_mean(away.unsqueeze(2) * away.unsqueeze(1), covariance[0])


def test_the_low_rank_start_learns_by_its_own_density_alone() -> None:
    """The loss of the flow is least where the start has no spread; it must not move it there."""
    model = small_flow(start=nn.Conv2d(1, 3, 1), rank=1)
    guide = PointEstimate(model)
    image, mask = torch.randn(3, 1, 4, 4), torch.randint(2, (3, 4, 4))
    proposed = poutine.trace(guide).get_trace(image, mask)
    trace = poutine.trace(poutine.replay(model, trace=proposed)).get_trace(image, mask)
    nodes: Any = trace.nodes
    weights = [nodes["weights"]["value"], nodes["start_weights"]["value"]]
    of_flow, none = torch.autograd.grad(
        nodes["mask"]["fn"].log_prob(mask).sum(), weights, retain_graph=True, allow_unused=True
    )
    assert of_flow.abs().sum() > 0 and none is None
    law = nodes["start_law"]["fn"].log_prob(nodes["start_law"]["value"]).sum()
    none, of_start = torch.autograd.grad(law, weights, allow_unused=True)
    assert none is None and of_start.abs().sum() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling_steps": 0}, "sampling_steps must be a whole number"),
        ({"hardening": 0.0}, "hardening must be a finite number above 0"),
        ({"rank": -1}, "rank must be a whole number"),
        ({"spatial_dims": 4}, "spatial_dims must be 2 or 3"),
    ],
)
def test_settings_that_mean_nothing_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flow(mask_mean, **settings)


def test_outputs_that_do_not_fit_are_named() -> None:
    image = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match="a net of 1 noised channels and 1 outputs"):
        flow(lambda state, time: state.expand(-1, 3, -1, -1))(image)
    with pytest.raises(ValueError, match=r"\(2 \+ rank\) \* 1 maps of the size of the image"):
        flow(mask_mean, start=nn.Conv2d(1, 5, 1), rank=2)(image)


def test_starts_that_do_not_fit_are_named() -> None:
    image, mask = torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"paired_start has shape \(2, 4, 4\)"):
        flow(mask_mean)(image, mask, torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match="a net for its start, which would not learn"):
        flow(mask_mean, start=nn.Conv2d(1, 3, 1), rank=1)(image, mask, torch.zeros(2, 1, 4, 4))
