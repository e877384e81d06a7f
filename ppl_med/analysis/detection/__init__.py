"""Boxes: a posterior over sets of objects, and how good it is."""

from ppl_med.analysis.detection.draws_to_objects import objects

__all__ = ["objects"]
