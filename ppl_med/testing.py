"""Tests for stochastic code and for Pyro programs, for ppl_med's own suite and for its users'.

A stochastic test has a false-alarm rate, not a tolerance: ``assert_mean`` and ``assert_uniform``
fail a correct program once in a million runs, and a wrong one the more surely the more samples it
gets. ``check_program`` and ``check_guide`` run a program in every way that ``fit`` and ``predict``
do, and name everything that would go wrong there.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
from scipy import stats
from torch import Tensor

from ppl_med.guide_rules import guide_violations
from ppl_med.program_rules import program_violations
from ppl_med.program_runs import bind
from ppl_med.untouched import untouched

SMALLEST_SAMPLE = 10


def assert_mean(samples: Any, expected: Any, false_alarm: float = 1e-6) -> None:
    """Assert that independent samples have an expected mean.

    A two-sided z-test of each entry with its estimated standard error, so the normal law is
    replaced by Student's t; the false-alarm rate is shared among the entries (Bonferroni).

    Args:
        samples: Array or tensor (sample, ...), at least 10 samples.
        expected: Its mean, a number or an array of the other axes' shape.
        false_alarm: Probability that samples with this mean fail.

    Raises:
        AssertionError: If the mean is another one; the message gives the entry furthest off.
        ValueError: If there are too few samples, shapes do not fit, or a value is not finite.
    """
    values, wanted = _array(samples, "samples"), _array(expected, "expected")
    _check_rate(false_alarm)
    if values.ndim == 0 or len(values) < SMALLEST_SAMPLE:
        raise ValueError(
            f"samples has shape {values.shape}; give {SMALLEST_SAMPLE} or more samples"
        )
    if wanted.ndim and wanted.shape != values.shape[1:]:
        raise ValueError(f"expected has shape {wanted.shape}; a sample has {values.shape[1:]}")
    difference = values.mean(0) - wanted
    standard_error = values.std(0, ddof=1) / np.sqrt(len(values))
    # Equal samples have no standard error; what rounding leaves is not evidence.
    rounding = 8 * np.finfo(np.float64).eps * np.abs(values).max(0)
    excess = np.maximum(np.abs(difference) - rounding, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.where(excess > 0, excess / standard_error, 0.0)
    limit = stats.t.isf(false_alarm / 2 / score.size, len(values) - 1)
    if (score > limit).any():
        at = np.unravel_index(score.argmax(), score.shape)
        where = f" at {tuple(map(int, at))}" if score.ndim else ""
        raise AssertionError(
            f"the mean of {len(values)} samples{where} is {values.mean(0)[at]:.6g}, expected "
            f"{np.broadcast_to(wanted, score.shape)[at]:.6g}: {score[at]:.1f} standard errors off, "
            f"limit {limit:.1f} (false-alarm rate {false_alarm:g})"
        )


def assert_uniform(pvalues: Any, false_alarm: float = 1e-6) -> None:
    """Assert that independent p-values, PIT values or scaled ranks are uniform on 0 to 1.

    The Kolmogorov-Smirnov test, two-sided; conservative for discrete values.

    Args:
        pvalues: Array or tensor (sample,), at least 10 values from 0 to 1.
        false_alarm: Probability that uniform values fail.

    Raises:
        AssertionError: If they are not uniform; the message gives the largest distance.
        ValueError: If there are too few values, or one is not finite or outside 0 to 1.
    """
    values = _array(pvalues, "pvalues")
    _check_rate(false_alarm)
    if values.ndim != 1 or len(values) < SMALLEST_SAMPLE:
        raise ValueError(
            f"pvalues has shape {values.shape}; give {SMALLEST_SAMPLE} or more in one axis"
        )
    if values.min() < 0 or values.max() > 1:
        raise ValueError(
            f"pvalues runs from {values.min():.6g} to {values.max():.6g}; it must stay in 0 to 1"
        )
    test = stats.kstest(values, "uniform")
    if test.pvalue < false_alarm:
        raise AssertionError(
            f"{len(values)} values are not uniform: their distribution function is "
            f"{test.statistic:.4f} off at {test.statistic_location:.4g}, p = {test.pvalue:.2g} "
            f"(false-alarm rate {false_alarm:g})"
        )


def check_program(model: Callable[..., Any], batch: Mapping[str, Any]) -> None:
    """Assert that a model keeps the contract ``model(image, label=None, *, num_cases=None)``.

    The model is run with and without observations, on the batch and on a part of it, as if it were
    the whole data set and a third of it, in training and in evaluation mode. Reported are:
    observation sites not named after their argument; observations and local latents outside
    ``plate("case")`` or with another scale than num_cases / len(image); global latents inside it;
    event axes without names; log-densities that are not finite; parameters that get no gradient,
    or appear only after a first call; random numbers outside sample sites, such as an active
    ``nn.Dropout``; buffers that move at prediction, such as BatchNorm's running statistics.

    A model whose factors read more of a batch in training, such as a mask of a constraint, names
    those arguments in ``training_inputs``; they condition no site.

    Afterwards parameters, gradients, buffers, modes, the parameter store and the random number
    generators are what they were. A plain function has no ``train`` and ``eval``: networks of its
    closure run in the mode they are in.

    Args:
        model: A Pyro program, function or module.
        batch: Arguments of the model by name: ``image`` (case, channel, row, col), observations
            such as ``label`` (case,), two cases or more. Entries that are no argument of the model
            are ignored, as ids and metadata are.

    Raises:
        AssertionError: If the contract is broken; the message lists every violation and its fix.
        ValueError: If the batch cannot be used.
    """
    with untouched(model) as modules, pyro.validation_enabled(True):
        _assert_none("model", program_violations(model, bind(model, batch), modules))


def check_guide(
    model: Callable[..., Any], guide: Callable[..., Any], batch: Mapping[str, Any]
) -> None:
    """Assert that a guide proposes exactly a model's latents, and that the pair can be trained.

    Reported are: latents that the guide leaves out, adds, or proposes with another shape, plate or
    scale, or outside the model's support; log-densities that are not finite; parameters of either
    program without a finite, somewhere non-zero gradient of the ELBO, or that appear only after a
    first call; random numbers outside sample sites; buffers that move at prediction. A guide may
    stay silent about local latents when there are no observations: they then follow the model's
    conditional prior. Log-densities are skipped where a distribution declares none.

    Afterwards everything is as before, see ``check_program``.

    Args:
        model: A Pyro program that passes ``check_program``.
        guide: A Pyro program with the model's arguments.
        batch: As for ``check_program``.

    Raises:
        AssertionError: If the contract is broken; the message lists every violation and its fix.
        ValueError: If the batch cannot be used.
    """
    with untouched(model, guide) as modules, pyro.validation_enabled(True):
        _assert_none("guide", guide_violations(model, guide, bind(model, batch), modules))


def _assert_none(kind: str, violations: list[str]) -> None:
    if violations:
        lines = [f"  {number}. {text}" for number, text in enumerate(violations, 1)]
        raise AssertionError(
            "\n".join([f"the {kind} breaks its contract {len(lines)} times:", *lines])
        )


def _array(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinite values")
    return array


def _check_rate(false_alarm: float) -> None:
    if not 0 < false_alarm < 1:
        raise ValueError(f"false_alarm is {false_alarm}; it is a probability between 0 and 1")
