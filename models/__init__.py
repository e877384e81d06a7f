"""One Pyro program per file: what is believed before data."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ppl_med.models.categorical_diffusion import CategoricalDiffusion
    from ppl_med.models.classifier import BayesianClassifier
    from ppl_med.models.collective_insight_diffusion import CollectiveInsightDiffusion
    from ppl_med.models.conditional_vae import ConditionalVAE
    from ppl_med.models.confounder_free import ConfounderFreeClassifier
    from ppl_med.models.dense_regressor import DenseRegressor
    from ppl_med.models.detector import BayesianDetector
    from ppl_med.models.duq_classifier import DUQClassifier
    from ppl_med.models.findings_classifier import FindingsClassifier
    from ppl_med.models.gaussian_diffusion import GaussianDiffusion
    from ppl_med.models.generalized_odin_classifier import GeneralizedODINClassifier
    from ppl_med.models.hierarchical_probabilistic_unet import HierarchicalProbabilisticUNet
    from ppl_med.models.image_diffusion import ImageDiffusion
    from ppl_med.models.image_to_image_vae import ImageToImageVAE
    from ppl_med.models.image_vae import ImageVAE
    from ppl_med.models.latent_classifier import LatentClassifier
    from ppl_med.models.multi_head_unet import MultiHeadUNet
    from ppl_med.models.probabilistic_unet import ProbabilisticUNet
    from ppl_med.models.rectified_flow import RectifiedFlow
    from ppl_med.models.regressor import BayesianRegressor
    from ppl_med.models.segmenter import BayesianSegmenter
    from ppl_med.models.site_temperature import SiteTemperature
    from ppl_med.models.stochastic_segmentation import StochasticSegmentationNetwork
else:
    from ppl_med.moved import on_demand

    __getattr__, __dir__ = on_demand(__name__, __file__)

__all__ = [
    "BayesianClassifier",
    "BayesianDetector",
    "BayesianRegressor",
    "BayesianSegmenter",
    "CategoricalDiffusion",
    "CollectiveInsightDiffusion",
    "ConditionalVAE",
    "ConfounderFreeClassifier",
    "DUQClassifier",
    "DenseRegressor",
    "FindingsClassifier",
    "GaussianDiffusion",
    "GeneralizedODINClassifier",
    "HierarchicalProbabilisticUNet",
    "ImageDiffusion",
    "ImageToImageVAE",
    "ImageVAE",
    "LatentClassifier",
    "MultiHeadUNet",
    "ProbabilisticUNet",
    "RectifiedFlow",
    "SiteTemperature",
    "StochasticSegmentationNetwork",
]
