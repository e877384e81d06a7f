"""Class probabilities in any memory layout against torch's softmax."""

import pyro.distributions as dist
import pytest
import torch

from ppl_med.likelihoods import Categorical, class_probs


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
