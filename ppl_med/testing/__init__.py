"""Tests for stochastic code and for Pyro programs, for ppl_med's own suite and for its users'.

A stochastic test has a false-alarm rate, not a tolerance: ``assert_mean`` and ``assert_uniform``
fail a correct program once in a million runs, and a wrong one the more surely the more samples it
gets. ``check_program`` and ``check_guide`` run a program in every way that ``fit`` and ``predict``
do, and name everything that would go wrong there; ``check_device`` does so for a GPU that need not
be there.
``simulation_based_calibration`` tells whether an inference finds the posterior of a model, and how
far off it is where it does not.
"""

from ppl_med.testing.calibration_by_simulation import simulation_based_calibration
from ppl_med.testing.contract import check_device, check_guide, check_program
from ppl_med.testing.statistics import assert_mean, assert_uniform

__all__ = [
    "assert_mean",
    "assert_uniform",
    "check_device",
    "check_guide",
    "check_program",
    "simulation_based_calibration",
]
