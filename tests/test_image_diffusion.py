"""The bound of a diffusion of images, where its density is known."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppl_med.analysis import scoring
from ppl_med.data import Batches
from ppl_med.inference import Guides, Noising, PointEstimate, predict
from ppl_med.models import ImageDiffusion
from ppl_med.testing import assert_mean

SHAPE, STEPS = (1, 2, 3), 4


class StandardNormal(nn.Module):
    """The velocity of standard normal images, whose mean given x_t is sqrt(kept_t) x_t: 0."""

    def __init__(self, gain: float = 0.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(
        self,
        image: Tensor | None = None,
        *,
        features: Tensor | None = None,
        noised: Tensor | None = None,
        step: Tensor | None = None,
    ) -> Tensor:
        if image is not None:
            assert image.shape[1] == 0, "nothing of the image but its noised state"
            return image
        assert noised is not None
        return self.gain * noised


def pair(form: Any, **settings: Any) -> tuple[ImageDiffusion, Guides]:
    settings = {"variance": "most", "bound_steps": STEPS, **settings}
    model = ImageDiffusion(StandardNormal(), 1, num_steps=STEPS, form=form, **settings)
    with torch.no_grad():  # x_0 given x_1 has the variance 1 - kept_1
        model.log_scale.copy_(0.5 * (1 - model.noising.kept[1]).log())
    weights = PointEstimate(model, use_prior=False)
    return model, Guides(weights, Noising(model.noising, observation="image"))


def bounds(form: Any, **settings: Any) -> tuple[Tensor, Tensor]:
    """Bounds (case, draw), and the log-density of each case."""
    image = torch.randn(48, *SHAPE)
    batches = Batches({"image": image, "id": list(range(48))}, batch_size=48)
    tree = predict(*pair(form, **settings), batches, draws=12, progress=False)
    assert "log_likelihood" not in tree
    found = tree["evidence_bound/image"].transpose("chain", "draw", "case").values[0].T
    density = torch.distributions.Normal(0, 1).log_prob(image).flatten(1).sum(1)
    averaged = scoring.evidence_bound(tree)
    assert float(averaged["bound_mean"]) == pytest.approx(found.mean(), rel=1e-6)
    assert float(averaged["bound_per_pixel"]) == pytest.approx(found.mean() / 6, rel=1e-6)
    return torch.from_numpy(found).double(), density.double()


@pytest.mark.parametrize("form", ["fast", "slow"])
def test_the_bound_of_an_exact_chain_is_the_density(form: Any) -> None:
    """The reverse of the process is known for these images: its bound has no gap.

    The smaller variance of a step would lose 6 pixels times a good part of a nat.
    """
    found, density = bounds(form)
    assert_mean((found - density[:, None]).flatten(), 0.0)
    least, density = bounds(form, variance="least")
    assert float((least - density[:, None]).mean()) < -0.5


def test_the_scale_of_the_last_step_starts_at_its_noise() -> None:
    model = ImageDiffusion(StandardNormal(), 1, num_steps=50)
    kept = float(model.noising.kept[1])
    assert float(model.log_scale.detach().exp()) == pytest.approx(((1 - kept) / kept) ** 0.5)
    model.log_scale.data.add_(1.0)
    model.reset_parameters()
    assert float(model.log_scale.detach().exp()) == pytest.approx(((1 - kept) / kept) ** 0.5)
