"""Several findings per case from any network, with its weights drawn from a prior.

Program:

    weights             ~  prior                                       one vector for all cases
    findings_f | image  ~  Bernoulli(sigmoid(net(image; weights)_f))   for every case and finding

Sites and their dimensions: weights (weight), no unit; findings (case, finding), 1 where it is
there, 0 where it is not, -1 or NaN where it is not known.

Input: ``image`` (case, channel, row, col) or (case, channel, depth, row, col), float, standardised
the way the network was or will be trained.

Reference: Wang et al., "ChestX-ray8", CVPR 2017, section 3: independent findings by one logit each.
Departs from it in the weights, which are random, and in that classes are not weighted.
"""

from collections.abc import Sequence
from typing import Literal

import pyro
from torch import Tensor, nn

from ppl_med.likelihoods import Findings
from ppl_med.weights import Prior, RandomWeights, Where


class FindingsClassifier(nn.Module):
    """The joint p(findings, weights | image) of a network.

    Findings do not exclude each other; where exactly one of several is there, use
    ``BayesianClassifier``.

    Args:
        net: Any network from images to (case, finding), one logit a finding.
        findings: Names, in the order of the outputs; or a ``Findings`` with settings.
        prior: Prior over the random weights; He-scaled normals by default.
        where: Which parameters are random; see ``RandomWeights``.
        batch_norm: Whether running statistics follow training; see ``RandomWeights``.

    Raises:
        ValueError: If two findings share a name, or the likelihood is of another site; on a run, if
            the network's output does not fit the findings.
    """

    def __init__(
        self,
        net: nn.Module,
        findings: Sequence[str] | Findings,
        prior: Prior | None = None,
        where: Where = None,
        batch_norm: Literal["update", "frozen"] = "update",
    ) -> None:
        super().__init__()
        self.likelihood = findings if isinstance(findings, Findings) else Findings(findings)
        self.likelihood.check_fits("findings", ("finding",))
        self.network = RandomWeights(net, prior, where, batch_norm=batch_norm)
        self.coords = self.likelihood.coords

    def forward(
        self, image: Tensor, findings: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        """Run once, conditioned on ``findings`` if given: logits, dims (case, finding).

        Args:
            image: A batch of images, dims (case, channel, row, col) or (…, depth, row, col).
            findings: What was found, dims (case, finding); None draws it.
            num_cases: Size of the whole data set when ``image`` is a mini-batch of it.
        """
        output = self.network(image)
        self.likelihood.check_output(output, image)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            self.likelihood(output, findings)
        return output
