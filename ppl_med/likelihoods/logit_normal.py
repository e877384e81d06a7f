"""Classes under logits with noise of their own, which the network learns.

    noise_t  ~  Normal(0, I),  t = 1..T                     not stored, left to the prior
    label    ~  mean over t of Categorical(softmax(logits + scale(x) * noise_t))

Kendall and Gal, NeurIPS 2017, eq. 10 and 12: the likelihood is the mean over T noise samples, whose
logarithm is a log-mean-exp. A larger scale flattens the probabilities of an ambiguous input, and
attenuates its loss.
"""

import math
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor

from ppl_med.axes import dims
from ppl_med.checks import different_names, whole
from ppl_med.likelihoods.classes import ClassLikelihood

LOG_VARIANCE_RANGE = (-20.0, 10.0)


class LogitNormal(ClassLikelihood):
    """One of K classes, from a mean and a log-variance of every logit.

    The noise is a local latent of the model, named ``<site>_noise``; guides need not propose it.
    One run uses T samples, so ``probs`` of one draw have a Monte Carlo error of their own.

    Args:
        samples: T.
        classes, event, site, partial: As in ``Categorical``.
    """

    def __init__(
        self,
        classes: Sequence[str],
        samples: int = 16,
        event: Sequence[str] = (),
        site: str = "label",
        *,
        partial: bool = False,
    ) -> None:
        super().__init__()
        self.classes = different_names("classes", classes, least=2)
        self.samples = whole("samples", samples)
        self.event, self.site, self.partial = tuple(event), site, partial

    @property
    def num_outputs(self) -> int:
        """Channels that the network must have: means, then log-variances."""
        return 2 * len(self.classes)

    def distribution(self, output: Tensor) -> Any:
        """Draw the noise, and give the categorical of the mean probabilities over it."""
        mean, log_variance = output.chunk(2, 1)
        scale = (0.5 * log_variance.clamp(*LOG_VARIANCE_RANGE)).exp()
        shape = (len(mean), self.samples, *mean.shape[1:])
        of_noise = dist.Normal(mean.new_zeros(()), 1.0).expand(shape).to_event(len(shape) - 1)
        infer = dims("step", "class", *self.event, stored=False, proposed=False)
        noise = pyro.sample(f"{self.site}_noise", of_noise, infer=infer)
        # Classes before pixels: a softmax over a last axis of few entries is several times slower.
        log_probs = (mean.unsqueeze(1) + scale.unsqueeze(1) * noise).log_softmax(2)
        return self.categorical((log_probs.logsumexp(1) - math.log(self.samples)).movedim(1, -1))
