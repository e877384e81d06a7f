"""Site temperature: hospitals share what is known of how over-confident a network is.

A network is calibrated at each site by a temperature; the temperatures come from one distribution,
so that a site with few labelled cases borrows from the others, and a new one starts from it.

Program, for a case of site s with log-probabilities l from a trained network:

    log_temperature_mean    ~  Normal(0, 1)                the centre of the sites
    log_temperature_scale   ~  HalfNormal(0.5)             how much they differ
    log_temperature_s       ~  Normal(log_temperature_mean, log_temperature_scale^2)    one per site
    label | l, s            ~  Categorical(softmax(l / exp(log_temperature_s)))

Sites and their dimensions: log_temperature (site), no unit, 0 where the network is calibrated, its
mean and scale; label (case), integer in 0..K-1.

Input: ``image`` (case, channel, row, col) with one channel per class and one pixel: the
log-probabilities of held-out cases stand where other models have an image; ``site`` (case), integer
in 0..S-1; a site may have no case.

Guide: a normal on the unconstrained scale, such as ``pyro.infer.autoguide.AutoNormal``. For one
temperature without a hierarchy over sites: ``ppl_med.analysis.calibration.fit``.

Reference: Guo et al., ICML 2017, arXiv:1706.04599 (temperature); Gelman, Bayesian Analysis 1, 2006
(half-normal and half-t priors for the scale of a hierarchy). The joining of both is ours.
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_med.checks import different_names, positive, reject
from ppl_med.likelihoods import Categorical


class SiteTemperature(nn.Module):
    """The joint p(label, temperatures | log-probabilities, site).

    Args:
        sites: Names of the sites.
        classes: Class names.
        centre_scale: Prior standard deviation of the centre of log temperature.
        spread_scale: Scale of the half-normal prior on the spread of log temperatures.

    Raises:
        ValueError: If sites or classes share a name, or a scale is not positive; on a run, if there
            is not one site per case, or, on the CPU, if one is out of range.
    """

    def __init__(
        self,
        sites: Sequence[str],
        classes: Sequence[str],
        centre_scale: float = 1.0,
        spread_scale: float = 0.5,
    ) -> None:
        super().__init__()
        different_names("sites", sites)
        self.centre_scale = positive("centre_scale", centre_scale)
        self.spread_scale = positive("spread_scale", spread_scale)
        self.num_sites, self.in_channels = len(sites), len(classes)
        self.likelihood = Categorical(classes)
        self.coords = {"site": list(sites), "class": list(classes)}

    def forward(
        self,
        image: Tensor,
        site: Tensor,
        label: Tensor | None = None,
        *,
        num_cases: int | None = None,
    ) -> Tensor:
        """Run the program once, conditioned on ``label`` if given: calibrated logits (case, class).

        Args:
            image: Log-probabilities, dims (case, channel, row, col), a channel for each class.
            site: Index of the site, dims (case,), 0 to the number of sites less 1.
            label: Observed classes, dims (case,); None draws them.
            num_cases: Size of the whole data set when ``image`` is a mini-batch of it.
        """
        self._check_sites(site, len(image))
        zero, width = image.new_zeros(()), image.new_full((), self.spread_scale)
        sd = image.new_full((), self.centre_scale)
        centre = pyro.sample("log_temperature_mean", dist.Normal(zero, sd))
        spread = pyro.sample("log_temperature_scale", dist.HalfNormal(width))
        with pyro.plate("site", self.num_sites):
            log_temperature = pyro.sample("log_temperature", dist.Normal(centre, spread))
        logits = image.flatten(1) / log_temperature.exp()[site, None]
        with pyro.plate("case", num_cases or len(image), subsample=image):
            self.likelihood(logits, label)
        return logits

    def _check_sites(self, site: Tensor, cases: int) -> None:
        if tuple(site.shape) != (cases,):
            reject("site", f"of shape ({cases},), one index per case", tuple(site.shape))
        # On a GPU reading a value would stop the stream, and an index above the last raises there.
        if site.device.type == "cpu" and not ((site >= 0) & (site < self.num_sites)).all():
            wrong = site[(site < 0) | (site >= self.num_sites)][0]
            raise ValueError(
                f"site holds {int(wrong)}; sites are numbered 0 to {self.num_sites - 1}, in the "
                "order in which they were named"
            )
