"""Spectral relevance analysis: groups of cases that a model looks at in the same way."""

from ppl_med.analysis.spray.arguments import Embedding, Part
from ppl_med.analysis.spray.clustering import clusters, unit_maps

__all__ = ["Embedding", "Part", "clusters", "unit_maps"]
