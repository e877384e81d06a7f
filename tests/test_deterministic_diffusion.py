"""Gaussian diffusion whose masks are drawn without noise: the same steps, equal masks."""

from typing import Any

import numpy as np
import pyro.poutine as poutine
import pytest
import torch
import xarray as xr
from monai.networks.schedulers import DDIMScheduler
from torch import Tensor, nn

from ppl_med.data import Batches
from ppl_med.inference import Guides, Noising, PointEstimate, predict
from ppl_med.models import GaussianDiffusion

CLASSES = ("background", "lesion")


class OfState(nn.Module):
    """A net whose mean of x_0 is a x_t + b image, pixel by pixel."""

    def __init__(self, of_state: float, of_image: float) -> None:
        super().__init__()
        self.numbers = nn.Parameter(torch.tensor([of_state, of_image]))

    def forward(
        self,
        image: Tensor | None = None,
        *,
        features: Tensor | None = None,
        noised: Tensor | None = None,
        step: Tensor | None = None,
    ) -> Tensor:
        if image is not None:
            return image
        assert features is not None and noised is not None
        return self.numbers[0] * noised + self.numbers[1] * features


def deterministic(**settings: Any) -> tuple[Any, Any]:
    """Gaussian diffusion whose masks are drawn without noise, its mean pulled to either side."""
    torch.manual_seed(5)
    net = OfState(0.9, 0.1)
    model = GaussianDiffusion(net, CLASSES, 6, variance="least", **settings)
    return model, Guides(PointEstimate(model, use_prior=False), Noising(model.noising))


@pytest.mark.parametrize("target", ["x", "v"])
def test_masks_without_noise_are_those_of_another_library(target: Any) -> None:
    """MONAI's scheduler of implicit models takes the same steps; 4096 pixels of either class."""
    model, _ = deterministic(sampling="deterministic", target=target)
    image = torch.randn(1, 1, 64, 64)
    known = poutine.condition(model, {"weights": model.network.initial()})
    with torch.no_grad():
        trace: Any = poutine.trace(known).get_trace(image)
    scheduler = DDIMScheduler(
        6, clip_sample=False, prediction_type="sample" if target == "x" else "v_prediction"
    )
    scheduler.alphas_cumprod = model.noising.kept[1:].float()
    scheduler.set_timesteps(6)
    state = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0))[None]
    for step in scheduler.timesteps:
        with torch.no_grad():
            output = model.network.net(features=image, noised=state)
        state, _ = scheduler.step(output, int(step), state)
    mask = trace.nodes["mask"]["value"]
    assert 0.2 < mask.float().mean() < 0.8
    assert (mask == (state[:, 0] > 0)).float().mean() > 0.999  # a mean of 0 rounds to either side


def test_masks_without_noise_are_equal_and_their_tree_says_what_was_trained() -> None:
    image = torch.randn(2, 1, 8, 8)[[0, 0, 1]]
    batch = {"image": image, "mask": torch.arange(192).view(3, 8, 8) % 2}
    batches = Batches(batch, batch_size=2)
    trees = {
        sampling: predict(*deterministic(sampling=sampling), batches, draws=3, progress=False)
        for sampling in ("stochastic", "deterministic")
    }
    masks = {key: tree["posterior_predictive/mask"] for key, tree in trees.items()}
    for mask, equal in ((masks["deterministic"], True), (masks["stochastic"], False)):
        assert bool((mask == mask.isel(draw=0)).all()) == equal
        assert bool((mask.isel(case=0) == mask.isel(case=1)).all()) == equal
    assert set(np.unique(trees["deterministic"]["posterior/probs"])) == {0.0, 1.0}
    bounds = [tree["evidence_bound/mask"] for tree in trees.values()]
    xr.testing.assert_equal(*bounds)  # of the chain with noise, which is what is trained
    assert "training_loss" not in trees["stochastic"].attrs
    assert "chain with noise" in trees["deterministic"].attrs["training_loss"]
    assert "no density" in trees["deterministic"].attrs["log_likelihood_of"]
