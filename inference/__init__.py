"""One guide per file, and the verbs ``fit``, ``predict``, ``functions``, ``save``, ``load``."""

from ppl_med.inference.bernoulli_dropout import BernoulliDropout
from ppl_med.inference.best_head import BestHead
from ppl_med.inference.checkpoint import load, save
from ppl_med.inference.conditional_hierarchy import ConditionalHierarchy
from ppl_med.inference.conditional_normal import ConditionalNormal
from ppl_med.inference.elbo import elbo_terms
from ppl_med.inference.ensemble import Ensemble
from ppl_med.inference.from_prior import FromPrior
from ppl_med.inference.functions import functions
from ppl_med.inference.guides import Guides
from ppl_med.inference.mean_field import MeanFieldNormal
from ppl_med.inference.objectives import Elbo, Geco, ImportanceWeighted
from ppl_med.inference.point_estimate import PointEstimate
from ppl_med.inference.predictive import predict
from ppl_med.inference.svi import cooldown, fit, warm_up

__all__ = [
    "BernoulliDropout",
    "BestHead",
    "ConditionalHierarchy",
    "ConditionalNormal",
    "Elbo",
    "Ensemble",
    "FromPrior",
    "Geco",
    "Guides",
    "ImportanceWeighted",
    "MeanFieldNormal",
    "PointEstimate",
    "cooldown",
    "elbo_terms",
    "fit",
    "functions",
    "load",
    "predict",
    "save",
    "warm_up",
]
