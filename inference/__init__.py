"""One guide per file, and the verbs.

``fit``, ``sample``, ``predict``, ``predict_augmented``, ``from_mcmc``, ``functions``, ``save``,
``load``, ``load_chains``.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ppl_med.inference.active.learning import active_learn
    from ppl_med.inference.active.stopping import Reached
    from ppl_med.inference.augmented import predict_augmented
    from ppl_med.inference.checkpoint import load, save
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
    from ppl_med.inference.prediction.lossy import Lossy
    from ppl_med.inference.prediction.plain_functions import functions
    from ppl_med.inference.predictive import predict
    from ppl_med.inference.sampler_draws import from_mcmc
    from ppl_med.inference.sampling.hamiltonian import HMC, NUTS
    from ppl_med.inference.sampling.markov_chains import sample
    from ppl_med.inference.sampling.stochastic_gradient import SGHMC, SGLD
    from ppl_med.inference.sampling.stored_chains import load_chains
    from ppl_med.inference.svi import fit
    from ppl_med.inference.training.callbacks import StopTraining
    from ppl_med.inference.training.loggers import (
        CsvLogger,
        MLflowLogger,
        TensorBoardLogger,
        WandbLogger,
    )
    from ppl_med.inference.training.natural_gradient import VariationalOnlineNewton
    from ppl_med.inference.training.objectives import Elbo, Geco, ImportanceWeighted
    from ppl_med.inference.training.schedules import cooldown, one_cycle, warm_up
    from ppl_med.inference.training.selection import EarlyStopping, Plateau
    from ppl_med.programs.elbo import elbo_terms
else:
    from ppl_med.moved import on_demand

    __getattr__, __dir__ = on_demand(__name__, __file__)

__all__ = [
    "HMC",
    "NUTS",
    "SGHMC",
    "SGLD",
    "SWAG",
    "BernoulliDropout",
    "BestHead",
    "ConcreteDropout",
    "ConditionalHierarchy",
    "ConditionalNormal",
    "CsvLogger",
    "EarlyStopping",
    "Elbo",
    "Ensemble",
    "FromPrior",
    "Geco",
    "Guides",
    "ImportanceWeighted",
    "Laplace",
    "Lossy",
    "LowRankNormal",
    "MLflowLogger",
    "MeanFieldNormal",
    "Noising",
    "Plateau",
    "PointEstimate",
    "RadialNormal",
    "Reached",
    "StopTraining",
    "TensorBoardLogger",
    "VariationalOnlineNewton",
    "WandbLogger",
    "active_learn",
    "cooldown",
    "elbo_terms",
    "fit",
    "from_mcmc",
    "functions",
    "load",
    "load_chains",
    "one_cycle",
    "predict",
    "predict_augmented",
    "sample",
    "save",
    "warm_up",
]
