"""Class probabilities in any memory layout against torch's softmax."""

import pyro.distributions as dist
import torch

from ppl_med.likelihoods import class_probs


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
