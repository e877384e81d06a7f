"""Likelihoods of numbers: one or several per case (an age, a volume), or one per pixel (depth).

The network gives the location and, where the noise depends on the input (heteroscedastic), the
logarithm of its variance or scale: no output can then ask for a scale of 0, and an outlier is
attenuated by a large one (Kendall and Gal, "What uncertainties do we need in Bayesian deep
learning for computer vision?", NeurIPS 2017, eq. 5 and 8).
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_med.checks import finite, positive, reject
from ppl_med.likelihoods.distributions import (
    BetaNormal,
    PartialLaplace,
    PartialNormal,
    PartialStudentT,
)
from ppl_med.likelihoods.number_units import NumberLikelihood, Numbers

LOG_SCALE_RANGE = (-10.0, 10.0)
_START_DF = 5.0  # degrees of freedom


class _Settings(TypedDict, total=False):
    heteroscedastic: bool
    site: str
    partial: bool
    init_scale: float
    loc: Numbers | None
    scale: Numbers | None
    findings: Sequence[str] | None


class _LocationScale(NumberLikelihood):
    """Location and scale, of the input or learned as one number; see ``LaplaceNoise``."""

    def __init__(
        self,
        event: Sequence[str] = (),
        *,
        heteroscedastic: bool = True,
        site: str = "value",
        partial: bool = False,
        init_scale: float = 1.0,
        loc: Numbers | None = None,
        scale: Numbers | None = None,
        findings: Sequence[str] | None = None,
    ) -> None:
        super().__init__(event, site, partial, loc, scale, findings)
        positive("init_scale", init_scale)
        self.heteroscedastic, self.init_scale = heteroscedastic, init_scale
        if not heteroscedastic:
            self.log_scale = nn.Parameter(torch.full(self.loc.shape, math.log(init_scale)))

    def reset_parameters(self) -> None:
        """Reset what is learned to its initial value, as an ensemble does for every member."""
        if not self.heteroscedastic:
            nn.init.constant_(self.log_scale, math.log(self.init_scale))

    @property
    def num_outputs(self) -> int:
        """Channels that the network must have: the location, and the scale if it gives that.

        Of several findings, all locations first.
        """
        return (2 if self.heteroscedastic else 1) * max(1, len(self.findings))

    def distribution(self, output: Tensor) -> Any:
        """Of location, and of the logarithm of the squared scale where heteroscedastic."""
        number, *rest = self.by_output(output)
        log_scale = 0.5 * rest[0] if self.heteroscedastic else self.log_scale.to(number)
        noise = log_scale.clamp(*LOG_SCALE_RANGE).exp()
        loc, scale = self.unit(number)
        return self.located(loc + scale * number, (scale * noise).expand(number.shape))

    def prediction(self, output: Tensor) -> Tensor:
        """Location, and the logarithm of the squared scale where heteroscedastic, in the unit."""
        number, *rest = self.by_output(output)
        loc, scale = self.unit(number)
        return torch.stack([loc + scale * number, *(one + 2 * scale.log() for one in rest)], 1)

    @abstractmethod
    def located(self, loc: Tensor, scale: Tensor) -> Any:
        """The distribution of a location and a scale, dims (..., case, *event)."""


class Gaussian(_LocationScale):
    """``value ~ Normal(loc, scale^2)``: the loss attenuation of Kendall and Gal.

    Plain heteroscedastic training can stop fitting the mean where it has made the variance large.
    ``beta`` weighs every entry's gradient by ``s^(2 beta)``, held fixed, s the noise in units of
    ``scale`` (Seitzer et al., "On the pitfalls of heteroscedastic uncertainty estimation", ICLR
    2022; they advise 0.5). With
    ``beta`` above 0, what is trained is a loss, no density: the ELBO of the history is not one, and
    under a prior over weights the result is no posterior of the stated model. Prediction and
    log-likelihoods are those of the normal.

    Args:
        event, heteroscedastic, site, partial, init_scale, loc, scale, findings: As in
            ``LaplaceNoise``.
        beta: In [0, 1]; 0 is the likelihood.
    """

    def __init__(
        self,
        event: Sequence[str] = (),
        *,
        beta: float = 0.0,
        **settings: Unpack[_Settings],
    ) -> None:
        super().__init__(event, **settings)
        finite("beta", beta, 0, 1)
        self.beta = beta
        if beta:
            self.training_loss = f"beta-NLL, beta {beta:g}"

    def located(self, loc: Tensor, scale: Tensor) -> Any:
        """Normal; in training, weighted by ``beta``."""
        if self.beta and self.training:
            return BetaNormal(loc, scale, self.beta, self.unit(loc)[1])
        return PartialNormal(loc, scale) if self.partial else dist.Normal(loc, scale)


class LaplaceNoise(_LocationScale):
    """``value ~ Laplace(loc, scale)``: an absolute error, which outliers move less than a square.

    Kendall and Gal use it for depth (their section 5.1).

    Args:
        event: Names of the axes after the case, such as ("row", "col") for one value per pixel.
        heteroscedastic: Whether the network gives the scale; False learns one for all.
        site: Name of the observed site.
        partial: Whether a value of NaN says that an entry was not observed; it then has no
            influence.
        init_scale: Where the one scale starts, in units of ``scale``; of no effect where the
            network gives it.
        loc: Where the network's 0 lies, in the unit of the values; one number, or one per finding.
            None takes the mean of the training values at the first ``fit``; 0 with a ``scale`` of 1
            leaves values as they are.
        scale: What the network's 1 spans, likewise; None takes the standard deviation.
        findings: Names of several numbers per case, such as ("age", "weight"), each with location
            and scale of its own; the value then has dims (case, finding). None for one number.
    """

    def located(self, loc: Tensor, scale: Tensor) -> Any:
        """Laplace."""
        return PartialLaplace(loc, scale) if self.partial else dist.Laplace(loc, scale)


class StudentT(_LocationScale):
    """``value ~ StudentT(df, loc, scale)``: heavy tails whose weight is learned.

    Args:
        event, heteroscedastic, site, partial, init_scale, loc, scale, findings: As in
            ``LaplaceNoise``.
        df: Degrees of freedom above 2, so that there is a variance; None learns them, from 5 on.
    """

    def __init__(
        self,
        event: Sequence[str] = (),
        *,
        df: float | None = None,
        **settings: Unpack[_Settings],
    ) -> None:
        super().__init__(event, **settings)
        if df is not None and not df > 2:
            reject("df", "above 2, so that there is a variance", df)
        self.given_df = df
        above = (_START_DF if df is None else df) - 2
        start = torch.tensor(above + math.log(-math.expm1(-above)))  # softplus of it is above
        if df is None:
            self.raw_df = nn.Parameter(start)
        else:
            self.register_buffer("raw_df", start)

    def reset_parameters(self) -> None:
        """Reset what is learned to its initial value."""
        super().reset_parameters()
        if isinstance(self.raw_df, nn.Parameter):
            nn.init.constant_(self.raw_df, math.log(math.expm1(_START_DF - 2)))

    @property
    def df(self) -> Tensor:
        """Degrees of freedom."""
        return 2 + softplus(self.raw_df)

    def located(self, loc: Tensor, scale: Tensor) -> Any:
        """Student's t."""
        kind = PartialStudentT if self.partial else dist.StudentT
        return kind(self.df.to(loc).expand(loc.shape), loc, scale)
