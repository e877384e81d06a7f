"""Bayesian neural networks for medical images: Pyro models, named posteriors."""

from ppl_med import moved

__version__ = "0.1.0"

moved.install()
