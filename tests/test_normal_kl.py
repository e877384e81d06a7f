"""The blocked KL against torch's closed form, its gradients against finite differences."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ppl_med.weights import FlatNormal, distributions


def vectors(size: int, *, scalar_prior: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    prior = () if scalar_prior else (size,)
    loc = torch.randn(size, dtype=torch.float64, requires_grad=True)
    scale = (0.1 + torch.rand(size, dtype=torch.float64)).requires_grad_()
    return (
        loc,
        scale,
        torch.randn(prior, dtype=torch.float64),
        0.5 + torch.rand(prior, dtype=torch.float64),
    )


@pytest.mark.parametrize("scalar_prior", [True, False])
@pytest.mark.parametrize("size", [1, 7, 8, 9, 50])
def test_blocks_change_nothing(
    size: int, scalar_prior: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributions, "BLOCK", 8)
    loc, scale, prior_loc, prior_scale = vectors(size, scalar_prior=scalar_prior)
    value = distributions.normal_kl(loc, scale, prior_loc, prior_scale)
    expected = kl_divergence(Normal(loc, scale), Normal(prior_loc, prior_scale)).sum()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    got = torch.autograd.grad(3 * value, (loc, scale))
    torch.testing.assert_close(got, torch.autograd.grad(3 * expected, (loc, scale)))


@pytest.mark.parametrize("scalar_prior", [True, False])
def test_both_derivatives(scalar_prior: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributions, "BLOCK", 2)
    loc, scale, *prior = vectors(5, scalar_prior=scalar_prior)

    def function(loc: Tensor, scale: Tensor) -> Tensor:
        return distributions.normal_kl(loc, scale, *prior)

    assert torch.autograd.gradcheck(function, (loc, scale))
    assert torch.autograd.gradgradcheck(function, (loc, scale))


def test_a_learnt_prior_gets_its_gradient() -> None:
    loc, scale, prior_loc, prior_scale = vectors(5, scalar_prior=True)
    prior_loc.requires_grad_()
    prior_scale.requires_grad_()
    inputs = (loc, scale, prior_loc, prior_scale)
    value = distributions.normal_kl(*inputs)
    expected = kl_divergence(Normal(loc, scale), Normal(prior_loc, prior_scale)).sum()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs)
    )


def test_float32_keeps_its_digits_over_many_weights() -> None:
    """Blocks of partial sums: the KL of a million weights is right to seven digits."""
    generator = torch.Generator().manual_seed(0)
    loc = 0.02 * torch.randn(10**6, generator=generator)
    scale = 1e-3 * (0.5 + torch.rand(10**6, generator=generator))
    prior = (torch.tensor(0.0), torch.tensor(0.05))
    exact = kl_divergence(
        Normal(loc.double(), scale.double()), Normal(prior[0].double(), prior[1].double())
    ).sum()
    value = distributions.normal_kl(loc, scale, *prior)
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=0)


def test_scalars_of_q_hold_for_all_weights() -> None:
    q = FlatNormal(torch.tensor(0.3), torch.tensor(0.2), 4)
    p = FlatNormal(torch.tensor(0.0), torch.ones(4))
    expected = 4 * kl_divergence(Normal(0.3, 0.2), Normal(0.0, 1.0))
    torch.testing.assert_close(kl_divergence(q, p), expected)
