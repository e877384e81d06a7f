"""What is proposed for a model's latents: one guide per file."""

from ppl_med.inference.guides.bernoulli_dropout import BernoulliDropout
from ppl_med.inference.guides.best_head import BestHead
from ppl_med.inference.guides.concrete_dropout import ConcreteDropout
from ppl_med.inference.guides.conditional_hierarchy import ConditionalHierarchy
from ppl_med.inference.guides.conditional_normal import ConditionalNormal
from ppl_med.inference.guides.ensemble import Ensemble
from ppl_med.inference.guides.from_prior import FromPrior
from ppl_med.inference.guides.joined import Guides
from ppl_med.inference.guides.laplace import Laplace
from ppl_med.inference.guides.low_rank_normal import LowRankNormal
from ppl_med.inference.guides.mean_field import MeanFieldNormal
from ppl_med.inference.guides.noising import Noising
from ppl_med.inference.guides.point_estimate import PointEstimate
from ppl_med.inference.guides.radial_normal import RadialNormal
from ppl_med.inference.guides.swag import SWAG

__all__ = [
    "SWAG",
    "BernoulliDropout",
    "BestHead",
    "ConcreteDropout",
    "ConditionalHierarchy",
    "ConditionalNormal",
    "Ensemble",
    "FromPrior",
    "Guides",
    "Laplace",
    "LowRankNormal",
    "MeanFieldNormal",
    "Noising",
    "PointEstimate",
    "RadialNormal",
]
