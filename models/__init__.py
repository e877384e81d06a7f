"""One Pyro program per file: what is believed before data."""

from ppl_med.models.classifier import BayesianClassifier
from ppl_med.models.latent_classifier import LatentClassifier

__all__ = ["BayesianClassifier", "LatentClassifier"]
