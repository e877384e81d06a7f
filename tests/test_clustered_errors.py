"""Standard errors of a mean whose cases come in groups, such as the films of one patient."""

import numpy as np
import pytest
import xarray as xr

from ppl_med.analysis import case_groups, scoring
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
    studies, indices = zip(*(drawn(rng, 30, 4) for _ in range(2000)), strict=True)
    values = xr.DataArray(np.stack(studies), dims=("draw", "case"))
    squares = over_cases(values, indices[0]) ** 2
    truth = (1 + 1 / 4) / 30
    z = (np.mean(squares) - truth) / (np.std(squares) / np.sqrt(2000))
    assert abs(z) < 4.5
    assert (over_cases(values) ** 2).mean() < 0.5 * truth


def patients(number: int, films: int, rng: np.random.Generator) -> xr.DataTree:
    """Films of which all of a patient are right or all are wrong."""
    right = np.repeat(rng.random(number) < 0.7, films)
    cases = {"case": [f"c{index}" for index in range(len(right))]}
    probs = np.where(right, 0.9, 0.1)
    return xr.DataTree.from_dict(
        {
            "/posterior": xr.Dataset(
                {
                    "probs": (
                        ("chain", "draw", "case", "class"),
                        np.stack([probs, 1 - probs], 1)[None, None],
                    )
                },
                coords=cases,
            ),
            "/observed_data": xr.Dataset({"label": ("case", np.zeros(len(right), int))}, cases),
            "/constant_data": xr.Dataset(
                {"patient": ("case", np.repeat([f"p{i}" for i in range(number)], films))}, cases
            ),
        }
    )


def test_bootstrap_has_the_error_over_patients() -> None:
    """Accuracy: sd over patients / sqrt(patients); the error over films is a third of it."""
    tree = patients(50, 9, np.random.default_rng(3))
    found = case_groups.bootstrap(scoring.score, tree, "patient", resamples=60)
    share = float(found["accuracy"])
    expected = np.sqrt(share * (1 - share) / 50)
    # The sd of 60 resamples is known to 1 / sqrt(120) of itself; 4.5 of these, 0.41, are fewer than
    # the 0.67 by which the error over films is off.
    assert abs(float(found["accuracy_se"]) / expected - 1) < 4.5 / np.sqrt(120)
    assert float(scoring.score(tree)["accuracy_se"]) < 0.4 * expected
    assert found["accuracy_lower"] < share < found["accuracy_upper"]
    assert found.attrs["num_groups"] == 50
    first, again = (
        case_groups.bootstrap(scoring.score, tree, "patient", resamples=20, seed=7)["nll_se"]
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, again)


def test_too_few_patients_and_unknown_columns_are_refused() -> None:
    tree = patients(4, 3, np.random.default_rng(4))
    with pytest.raises(ValueError, match="group has 4 different values"):
        case_groups.bootstrap(scoring.score, tree, "patient")
    with pytest.raises(ValueError, match="group='site' is no column"):
        case_groups.bootstrap(scoring.score, tree, "site")
    with pytest.raises(ValueError, match="resamples must be"):
        case_groups.bootstrap(scoring.score, tree, "patient", resamples=1)
