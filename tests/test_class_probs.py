"""Class probabilities in any memory layout against torch's softmax."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from ppl_med.likelihoods import Categorical, class_probs
from ppl_med.likelihoods.inverse_transform import quantile


def test_equals_softmax_and_is_kept() -> None:
    logits = 5 * torch.randn(3, 4, 2, 2, dtype=torch.float64).movedim(1, -1)
    fn = dist.Categorical(logits=logits)
    probs = class_probs(fn)
    torch.testing.assert_close(probs, logits.softmax(-1), rtol=1e-12, atol=0)
    assert class_probs(fn) is probs
    assert fn.probs is probs


def test_given_probabilities_stay_as_they_are() -> None:
    given = torch.tensor([[0.0, 1.0], [0.25, 0.75]])
    assert torch.equal(class_probs(dist.Categorical(probs=given)), given)


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("lead", [(), (3,)], ids=["maps", "particles of maps"])
def test_the_density_of_a_map_is_that_of_its_pixels(lead: tuple[int, ...], partial: bool) -> None:
    output = 5 * torch.randn(*lead, 4, 3, 8, 6, dtype=torch.float64)
    likelihood = Categorical(["a", "b", "c"], event=("row", "col"), partial=partial)
    fn = likelihood.distribution(output)
    own = dist.Categorical(logits=output.movedim(-3, -1))
    mask = torch.randint(0, 3, (*lead, 4, 8, 6))
    for value in (mask, mask[..., :1, :, :]):  # of every map, and one for all
        torch.testing.assert_close(fn.log_prob(value), own.log_prob(value), rtol=1e-12, atol=1e-14)
    if not partial:
        with pytest.raises(ValueError, match="support"):
            fn.log_prob(mask + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_classes", [1, 2, 3, 4])
def test_a_class_without_probability_is_never_drawn(num_classes: int, dtype: torch.dtype) -> None:
    """Also where the probabilities of the others, rounded, sum up to less than 1."""
    largest, least = 1 - 2.0**-53, 2.0**-53
    given = torch.rand(20_000, num_classes, dtype=dtype) + 0.01
    if num_classes > 1:
        given[:, -1] = 0
    fn = dist.Categorical(probs=given)
    short = fn.probs.double().sum(-1) < largest
    assert short.any() or num_classes < 3 or dtype == torch.float64
    ends = (torch.full((20_000,), end, dtype=torch.float64) for end in (least, largest))
    low, high = (quantile(fn, end) for end in ends)
    assert (low == 0).all() and (high == max(num_classes - 2, 0)).all()


def test_draws_have_the_probabilities() -> None:
    """Chi-squared, false alarms 1e-6 a row."""
    probs = torch.tensor([[0.5, 0.5, 0, 0], [0.1, 0.2, 0.3, 0.4], [0, 0, 0.05, 0.95]])
    u = torch.rand(3, 20_000, dtype=torch.float64).T
    drawn = quantile(dist.Categorical(probs=probs.expand(20_000, 3, 4)), u)
    for row, law in enumerate((probs.double() / probs.double().sum(1, keepdim=True)).numpy()):
        counts = np.bincount(drawn[:, row].numpy(), minlength=4)
        assert (counts[law == 0] == 0).all()
        assert stats.chisquare(counts[law > 0], 20_000 * law[law > 0]).pvalue > 1e-6
