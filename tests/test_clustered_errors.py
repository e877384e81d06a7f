"""Standard errors of a mean whose cases come in groups, such as the films of one patient."""

import numpy as np
import xarray as xr

from ppl_med.analysis.statistics.case_means import over_cases


def drawn(rng: np.random.Generator, groups: int, cases: int) -> tuple[xr.DataArray, np.ndarray]:
    """Figures whose groups differ as much as their cases do."""
    index = np.repeat(np.arange(groups), cases)
    values = rng.normal(size=groups)[index] + rng.normal(size=groups * cases)
    return xr.DataArray(values, dims="case"), index


def test_equal_groups_give_the_error_of_their_means() -> None:
    values, index = drawn(np.random.default_rng(0), 12, 5)
    means = values.values.reshape(12, 5).mean(1)
    expected = means.std(ddof=1) / np.sqrt(12)
    np.testing.assert_allclose(over_cases(values, index), expected, rtol=1e-12)
    np.testing.assert_allclose(over_cases(values, np.arange(60)), over_cases(values), rtol=1e-12)


def test_cases_without_a_figure_are_left_out() -> None:
    values, index = drawn(np.random.default_rng(1), 12, 5)
    gaps = values.where(np.arange(60) % 7 > 0)
    kept = gaps.notnull().values
    found = over_cases(xr.concat([gaps, values], "draw"), index)
    np.testing.assert_allclose(found[0], over_cases(values[kept], index[kept]), rtol=1e-12)
    np.testing.assert_allclose(found[1], over_cases(values, index), rtol=1e-12)
    assert np.isnan(over_cases(values, np.zeros(60)))


def test_the_error_is_that_of_repeated_studies() -> None:
    """The sd of the mean over 2000 studies is 1 / sqrt(30) sqrt(1 + 1/4); cases alone say half."""
    rng = np.random.default_rng(2)
    studies = [drawn(rng, 30, 4) for _ in range(2000)]
    squares = [float(over_cases(values, index)) ** 2 for values, index in studies]
    truth = (1 + 1 / 4) / 30
    z = (np.mean(squares) - truth) / (np.std(squares) / np.sqrt(len(squares)))
    assert abs(z) < 4.5
    naive = np.mean([float(over_cases(values)) ** 2 for values, _ in studies])
    assert naive < 0.5 * truth
