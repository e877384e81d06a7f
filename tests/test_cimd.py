"""CIMD: the joint bound of chain and code against exact values, and what the code does."""

import copy
import math
from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor, nn

from ppl_med.data import Batches
from ppl_med.inference import (
    ConditionalNormal,
    Guides,
    Noising,
    PointEstimate,
    fit,
)
from ppl_med.models import CollectiveInsightDiffusion
from ppl_med.networks import DenoisingUNet
from ppl_med.programs.elbo import bound_by_case

CLASSES = ("background", "lesion")


class OfCode(nn.Module):
    """A net of one pixel whose mean of x_0 is tanh(a z + b x_t), and whose variance is a number."""

    num_code = 1

    def __init__(self, of_code: float, of_state: float, share: float = 0.0) -> None:
        super().__init__()
        self.numbers = nn.Parameter(torch.tensor([of_code, of_state, share]))

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
        mean = (self.numbers[0] * features[:, 1:] + self.numbers[1] * noised).tanh()
        return torch.cat([mean, self.numbers[2].expand_as(mean)], 1)


class Normals(nn.Module):
    """A code's law that does not look: a mixture of equal shares, or one normal by class."""

    def __init__(self, loc: list[float], scale: float) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(loc))
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Any:
        scale = self.log_scale.exp()
        if mask is not None:  # one pixel
            return dist.Normal(self.loc[mask.flatten()].unsqueeze(-1), scale).to_event(1)
        loc = self.loc.view(1, -1, 1).expand(len(image), -1, -1)
        parts = dist.Normal(loc, scale.expand_as(loc)).to_event(1)
        weights = torch.zeros(len(image), len(self.loc))
        return dist.MixtureSameFamily(dist.Categorical(logits=weights), parts)


def one_pixel(
    net: nn.Module, prior: Normals, posterior: Normals, form: Any = "slow", sharpness: float = 0.0
) -> tuple[CollectiveInsightDiffusion, Guides]:
    """Two steps over one pixel."""
    model = CollectiveInsightDiffusion(net, CLASSES, 1, latent_dim=1, num_steps=2, form=form)
    model.code_prior = prior  # type: ignore[assignment]
    nn.init.constant_(model.log_sharpness, sharpness)
    code = ConditionalNormal(posterior, observation="mask")
    guide = Guides(PointEstimate(model, use_prior=False), code, Noising(model.noising))
    return model.eval(), guide.eval()


def bounds(model: Any, guide: Any, mask: Tensor) -> Tensor:
    """One estimate of the bound a case."""
    with torch.no_grad():
        given = (torch.zeros(len(mask), 1, 1, 1), mask)
        proposed = poutine.trace(guide).get_trace(*given)
        replayed = poutine.replay(model, trace=proposed)
        return bound_by_case(poutine.trace(replayed).get_trace(*given), proposed)


@torch.no_grad()
def log_evidence(model: Any, klass: int) -> float:
    """Log p(mask = klass) of one pixel by quadrature over z, x_2 and x_1."""
    z, x2, x1 = (torch.linspace(-low, low, 141, dtype=torch.float64) for low in (6.0, 6.0, 7.0))
    step = [float(grid[1] - grid[0]) for grid in (z, x2, x1)]
    net = model.network.net
    a, b, share = net.numbers.double()
    prior = model.code_prior(torch.zeros(1, 1, 1, 1)).log_prob(z.float()[:, None]).double().exp()
    kept = model.noising.kept
    at = [kept[t] for t in (0, 1, 2)]
    beta, rest = 1 - at[2] / at[1], 1 - at[2]
    mean = (a * z[:, None] + b * x2).tanh()
    loc = at[1].sqrt() * beta / rest * mean + (at[2] / at[1]).sqrt() * (1 - at[1]) / rest * x2
    part = share.sigmoid()
    variance = beta**part * ((1 - at[1]) / rest * beta) ** (1 - part)
    of_x1 = dist.Normal(loc[..., None], variance.sqrt()).log_prob(x1).exp()  # (z, x2, x1)
    of_x2 = dist.Normal(0.0, 1.0).log_prob(x2).exp()
    score = 2 * model.log_sharpness.double().exp() * (a * z[:, None] + b * x1).tanh()
    of_mask = (score if klass else -score).sigmoid()
    inner = torch.einsum("q,zqr,zr->z", of_x2, of_x1, of_mask) * step[1] * step[2]
    return float((prior * inner).sum().log() + math.log(step[0]))


def test_the_joint_bound_is_below_the_log_evidence() -> None:
    """A mean of 20,000 estimates; false alarm: 6 standard errors, below 1e-8."""
    torch.manual_seed(0)
    net = OfCode(0.8, 0.6, 0.4)
    made = one_pixel(net, Normals([0.3], 1.0), Normals([-0.4, 0.9], 0.7))
    total = 0.0
    for klass in (0, 1):
        found = bounds(*made, torch.full((20_000, 1, 1), klass))
        error = float(found.std()) / len(found) ** 0.5
        exact = log_evidence(made[0], klass)
        assert found.mean() + 6 * error < exact, (klass, found.mean(), exact)
        assert found.mean() > exact - 2  # and no loose one
        total += math.exp(exact)
    assert total == pytest.approx(1, abs=1e-5)  # the quadrature's own check


@pytest.mark.parametrize("form", ["slow", "fast"])
def test_the_joint_bound_is_the_log_evidence_under_the_exact_guide(form: Any) -> None:
    """Where the code tells the class, q(z | mask) is one part of the prior, and nothing is lost.

    What is left is the KL of the last state, which every noising process has. A mean over equal
    shares of both steps, so its only error is that of the draws of the states.
    """
    torch.manual_seed(1)
    far, narrow = [-3.0, 3.0], 0.2
    made = one_pixel(
        OfCode(50.0, 0.0, -40.0), Normals(far, narrow), Normals(far, narrow), form, sharpness=4.0
    )
    last = -0.5 * float(torch.log1p(-made[0].noising.kept[-1]))  # KL of two normals
    for klass in (0, 1):
        found = bounds(*made, torch.full((4000, 1, 1), klass))
        assert found.mean() == pytest.approx(math.log(0.5) - last, abs=2e-4)
        assert log_evidence(made[0], klass) == pytest.approx(math.log(0.5), abs=1e-4)
    wide = one_pixel(
        OfCode(50.0, 0.0, -40.0), Normals(far, narrow), Normals(far, 0.3), form, sharpness=4.0
    )
    lost = math.log(narrow / 0.3) + (0.3**2 / narrow**2 - 1) / 2  # KL of two normals
    found = bounds(*wide, torch.full((40_000, 1, 1), 1))
    error = 6 * float(found.std()) / len(found) ** 0.5
    assert abs(float(found.mean()) - (math.log(0.5) - last - lost)) < error + 2e-4


def unet(latent_dim: int = 2, **sizes: Any) -> DenoisingUNet:
    return DenoisingUNet(1, 1, 2, (8, 8), (8, 8), num_code=latent_dim, **sizes)


def program(latent_dim: int = 2, num_steps: int = 4, **settings: Any) -> tuple[Any, Any]:
    torch.manual_seed(2)
    model = CollectiveInsightDiffusion(
        unet(latent_dim), CLASSES, 1, latent_dim, (4, 6), 1, num_steps=num_steps, **settings
    )
    code = ConditionalNormal(model.posterior_net(), observation="mask")
    return model, Guides(PointEstimate(model, use_prior=False), code, Noising(model.noising))


def whole_masks(number: int = 32, size: int = 8) -> dict[str, Any]:
    """Images that tell nothing, and masks that are all lesion or all background: two modes."""
    mask = (torch.arange(number) % 2).view(-1, 1, 1).expand(-1, size, size).clone()
    ids = [f"case {index}" for index in range(number)]
    return {"image": torch.zeros(number, 1, size, size), "mask": mask, "id": ids}


@pytest.mark.filterwarnings("ignore:posterior collapse")  # after one step
def test_one_step_trains_every_net() -> None:
    """In the code released with the paper, neither net of the code is."""
    model, guide = program()
    torch.manual_seed(3)
    batch = whole_masks(8) | {"image": torch.randn(8, 1, 8, 8)}
    nets = {"prior": model.code_prior, "posterior": guide.guides[1], "denoiser": guide.guides[0]}
    start = {name: copy.deepcopy(net.state_dict()) for name, net in nets.items()}
    fit(model, guide, Batches(batch, batch_size=8), epochs=1, progress=False)
    for name, net in nets.items():
        still = [n for n, p in net.named_parameters() if torch.equal(p, start[name][n])]
        assert start[name] and still == [], name
