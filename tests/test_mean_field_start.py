"""A mean-field guide that starts at another guide's mean."""

import pytest
import torch
from torch import nn

from ppl_med.inference import BernoulliDropout, MeanFieldNormal, PointEstimate, fit
from ppl_med.models import BayesianClassifier
from ppl_med.networks import LeNet

CLASSES = ("healthy", "ill")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return BayesianClassifier(LeNet(1, 2, size=16), CLASSES)


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(16, 1, 16, 16, generator=generator)
    return [{"image": image, "label": torch.arange(16) % 2}]


def test_it_starts_at_the_trained_values_and_leaves_them_alone(model, batches):
    point = PointEstimate(model, use_prior=False)
    fit(model, point, batches, num_cases=16, epochs=3, progress=False)
    trained = point.center()
    assert not torch.equal(trained, PointEstimate(model).center())
    guide = MeanFieldNormal(model, start=point)
    torch.testing.assert_close(guide.center(), trained, rtol=0, atol=0)
    with pytest.warns(UserWarning, match="the KL is"):
        fit(model, guide, batches, num_cases=16, epochs=1, progress=False)
    torch.testing.assert_close(point.center(), trained, rtol=0, atol=0)


def test_dropout_starts_it_at_the_mean_of_its_masks(model):
    dropout = BernoulliDropout(model, rate=0.5)
    guide = MeanFieldNormal(model, start=dropout)
    draws = dropout.eval().distribution().rsample(torch.Size([500])).mean(0)
    standard_error = guide.center().abs() / 500**0.5
    assert not torch.equal(draws, guide.center())
    # 6 standard errors: a false alarm in less than one of a million seeds
    assert ((draws - guide.center()).abs() <= 6 * standard_error + 1e-7).all()


def test_what_is_no_guide_over_these_weights_is_refused(model):
    with pytest.raises(TypeError, match="start"):
        MeanFieldNormal(model, start=nn.Linear(2, 2))  # type: ignore[arg-type]
    other = PointEstimate(BayesianClassifier(LeNet(1, 2, size=20), CLASSES))
    with pytest.raises(ValueError, match="other weights at the site 'weights'"):
        MeanFieldNormal(model, start=other)


def test_weights_that_are_not_finite_are_refused(model):
    point = PointEstimate(model)
    with torch.no_grad():
        next(point.parameters())[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        MeanFieldNormal(model, start=point)
