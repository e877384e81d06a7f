"""The share of the source in the statistics, from its prior or from what predictions tell.

    share w      ~  Beta(a, b)
    w | images   ~  Beta(w; a, b) (I(w) / J(w))^(evidence * cases) / constant     of every draw

I(w) is what predictions under the statistics of w tell of the class, from place to place, and J(w)
what they tell by the view alone, such as of an image and its mirror image (`Domain.information`).
As in an analysis of variance, the first is signal and the second noise; neither needs labels. It is
a Gibbs posterior: the loss log J - log I stands where a log-likelihood would, and ``evidence`` is
its weight, how many observations a case counts as. I alone prefers statistics under which the net
is confident of the wrong class, J alone those under which all is background; both failed on cells
made worse on purpose (examples/unknown_inputs/LABORATORIES.md). Where a domain truly has one class
only, both mislead.

The ratio is computed at some shares and interpolated; the draw is by inversion, so that no sampler
has to converge.

Source: Bissiri, Holmes and Walker, JRSS B 78, 2016 (Gibbs posteriors).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import interpolate, stats
from torch import Tensor

from ppl_med.data.reversible import Augmentation
from ppl_med.inference.adaptation.domain import Domain

KNOTS = (1 - np.cos(np.pi * np.arange(9) / 8)) / 2  # dense where statistics change most
LEAST = 1e-9  # nats
_QUANTILES = (np.arange(4000) + 0.5) / 4000


class Beta(NamedTuple):
    """Prior of the source share: 1 keeps the source, 0 takes the domain.

    Attributes:
        a: Towards the source.
        b: Towards the domain.
    """

    a: float = 1.0
    b: float = 1.0


def knot_passes(layers: int) -> int:
    """Passes over the domain that the information at all knots takes."""
    return len(KNOTS) * (layers + 1)


class ShareDraws:
    """Draws of the source share of one pair.

    Args:
        domain: The images, seen by the pair.
        prior: Of the share.
        evidence: Observations that a case counts as; 0 draws from the prior.
        views: Augmentations of the images.
    """

    def __init__(
        self, domain: Domain, prior: Beta, evidence: float, views: Sequence[Augmentation]
    ) -> None:
        self.domain, self.prior, self.evidence, self.views = domain, prior, evidence, views
        self.shares = stats.beta.ppf(_QUANTILES, *prior)
        self._known: tuple[Mapping[str, Tensor], NDArray[np.float64]] | None = None

    def share(self, draw: int, random: np.random.Generator) -> float:
        """The share of one draw of the weights."""
        if not self.evidence:
            return float(random.beta(*self.prior))
        return float(self.shares[np.searchsorted(self._below(draw), random.random())])

    def _below(self, draw: int) -> NDArray[np.float64]:
        """Posterior probability of shares up to each; once for draws with the same weights."""
        domain = self.domain
        values = domain.sampler.draw(draw)
        if self._known is not None and _same(values, self._known[0]):
            domain.bar.update(knot_passes(len(domain.layers)) * domain.num_batches)
            return self._known[1]
        told = np.array([self._ratio(draw, float(share)) for share in KNOTS])
        loss = interpolate.PchipInterpolator(KNOTS, told)(self.shares)
        weight = np.exp(self.evidence * domain.num_cases * (loss.min() - loss))
        below = np.cumsum(weight) / weight.sum()
        self._known = values, below
        return below

    def _ratio(self, draw: int, share: float) -> float:
        """Log J - log I at one share."""
        statistics = self.domain.statistics(draw, share)
        told, apart = self.domain.information(draw, statistics, self.views)
        if apart < LEAST:
            raise ValueError(
                f"predictions agree under all of {[one.name for one in self.views]} whatever the "
                "statistics, so they tell nothing of the source share: give other views, or leave "
                "evidence at 0"
            )
        return float(np.log(apart) - np.log(max(told, LEAST)))


def _same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)
