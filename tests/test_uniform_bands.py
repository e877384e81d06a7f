"""The simultaneous band of uniform values against simulation, and against ArviZ's."""

import numpy as np
import pytest
from arviz_stats.ecdf_utils import ecdf_pit
from scipy import stats

from ppl_med.analysis.statistics.uniform_bands import (
    _probability_inside,
    ecdf,
    ecdf_points,
    uniform_band,
    uniformity_p_value,
)

FALSE_ALARM = 1e-6


def uniforms(num: int, repeats: int) -> np.ndarray:
    return np.random.default_rng(num).uniform(size=(repeats, num))


@pytest.mark.parametrize("num", [5, 40, 300])
def test_the_band_holds_as_many_ecdfs_as_it_says(num):
    """Its own probability, not below the level, is met by simulation; two-sided binomial test."""
    band, repeats = uniform_band(num, 0.9), 4000
    found = np.stack([ecdf(values) for values in uniforms(num, repeats)])
    inside = ((found >= band.lower - 1e-9) & (found <= band.upper + 1e-9)).all(1)
    probability = _probability_inside(num, band.pointwise)
    assert probability >= 0.9
    assert stats.binomtest(int(inside.sum()), repeats, probability).pvalue > FALSE_ALARM
    assert uniform_band(num, 0.99).pointwise < band.pointwise


def test_the_band_is_that_of_arviz_up_to_its_simulation():
    band = uniform_band(100, 0.95)
    points, _, lower, upper = ecdf_pit(np.linspace(0, 1, 100), 0.95, 4000)
    np.testing.assert_allclose(points, ecdf_points(100))
    np.testing.assert_allclose(lower, band.lower, atol=0.0101)  # one count
    np.testing.assert_allclose(upper, band.upper, atol=0.0101)


def test_p_values_of_uniform_values_are_uniform_from_above():
    """P(p <= a) <= a for every a, since counts are whole: one-sided binomial tests."""
    found = np.array([uniformity_p_value(values) for values in uniforms(60, 1500)])
    for level in (0.01, 0.05, 0.2, 0.5):
        seen = int((found <= level).sum())
        assert stats.binomtest(seen, len(found), level, "greater").pvalue > FALSE_ALARM
        assert seen > level * len(found) / 2, "far too conservative"


def test_a_p_value_below_one_minus_level_is_an_ecdf_outside_the_band():
    rng = np.random.default_rng(2)
    band, inside = uniform_band(80, 0.8), []
    for slope in rng.uniform(0.7, 1.3, 60):
        values = rng.uniform(size=80) ** slope
        found = ecdf(values)
        fits = bool(((found > band.lower - 1e-9) & (found < band.upper + 1e-9)).all())
        assert fits == (uniformity_p_value(values) > 1 - _probability_inside(80, band.pointwise))
        inside.append(fits)
    assert 5 < sum(inside) < 55


@pytest.mark.parametrize("power", [0.4, 1.6])
def test_values_that_are_not_uniform_are_found(power):
    assert uniformity_p_value(np.linspace(0.001, 0.999, 300) ** power) < FALSE_ALARM


@pytest.mark.parametrize("values", [[0.2], [0.1, 1.2], [0.1, np.nan], [[0.1, 0.2]]])
def test_what_cannot_be_uniform_is_refused(values):
    with pytest.raises(ValueError, match="must be"):
        uniformity_p_value(np.array(values))
