"""From a network's output to the observed site.

A ``Likelihood`` owns the sample statement, the number of network outputs, the distribution (with
its log-density in float64 at prediction, because float32 log-probabilities tie and break PSIS, what
``predict`` stores of it, and its quantiles), and the settings that a resumed run must share.

Most are densities. What is trained by a loss in the place of a density gives a generalised
posterior and says so: ``Gaussian`` with ``beta``, ``Quantiles`` of several levels, and of classes

    density   Categorical, Bernoulli, Ordinal, LogitNormal, LabelNoise, Findings
    loss      LabelSmoothing, MarginSmoothing, FocalLoss; of masks SpatialSmoothing, NeighbourAware

``DividedLogits`` (a density) and ``KernelClasses`` (a loss) are those of models that know what they
have never seen; ``predict`` stores what they are made of beside the probabilities. ``Boxes`` are
sets of boxes around objects, from a detector's output at its anchors.
"""

from ppl_med.likelihoods.box_field import NOT_READ, BoxField, pack_boxes
from ppl_med.likelihoods.boxes import Boxes
from ppl_med.likelihoods.choices import OF_CASES, OF_PIXELS, class_likelihood
from ppl_med.likelihoods.class_loss import LossLikelihood
from ppl_med.likelihoods.classes import (
    Bernoulli,
    Categorical,
    ClassLikelihood,
    PartialCategorical,
    balanced_weights,
)
from ppl_med.likelihoods.continuous import Gaussian, LaplaceNoise, StudentT
from ppl_med.likelihoods.divided_logits import DividedLogits
from ppl_med.likelihoods.findings import Findings
from ppl_med.likelihoods.focal import FLSD_53, FocalLoss
from ppl_med.likelihoods.interface import Likelihood, check_tensor, observe
from ppl_med.likelihoods.kernel_classes import KernelClasses
from ppl_med.likelihoods.logit_normal import LogitNormal
from ppl_med.likelihoods.loss_distribution import ClassLoss
from ppl_med.likelihoods.neighbourhood import NeighbourAware, SpatialSmoothing
from ppl_med.likelihoods.ordinal import Ordinal
from ppl_med.likelihoods.quantiles import Quantiles
from ppl_med.likelihoods.smoothing import LabelNoise, LabelSmoothing, MarginSmoothing
from ppl_med.likelihoods.stored import (
    class_probs,
    in_double,
    log_prob_in_double,
    site_logits,
    stored_parameters,
    stored_values,
)
from ppl_med.moved import renamed

__all__ = [
    "FLSD_53",
    "NOT_READ",
    "OF_CASES",
    "OF_PIXELS",
    "Bernoulli",
    "BoxField",
    "Boxes",
    "Categorical",
    "ClassLikelihood",
    "ClassLoss",
    "DividedLogits",
    "Findings",
    "FocalLoss",
    "Gaussian",
    "KernelClasses",
    "LabelNoise",
    "LabelSmoothing",
    "LaplaceNoise",
    "Likelihood",
    "LogitNormal",
    "LossLikelihood",
    "MarginSmoothing",
    "NeighbourAware",
    "Ordinal",
    "PartialCategorical",
    "Quantiles",
    "SpatialSmoothing",
    "StudentT",
    "balanced_weights",
    "check_tensor",
    "class_likelihood",
    "class_probs",
    "in_double",
    "log_prob_in_double",
    "observe",
    "pack_boxes",
    "site_logits",
    "stored_parameters",
    "stored_values",
]

__getattr__ = renamed(__name__, {"LossOfClasses": "LossLikelihood"})
