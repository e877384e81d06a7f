"""Bayesian neural networks for medical images: Pyro models, named posteriors."""

__version__ = "0.1.0"
