"""Draws that are copies of each other: what counts is how many functions there are."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats

from ppl_med.analysis import segmentation, uncertainty
from ppl_med.analysis.statistics.copies import num_copies
from ppl_med.analysis.tree import drop_copies
from ppl_med.explain import attribution, confounding
from ppl_med.testing import assert_mean

MEMBERS, COPIES = 4, 8


def samples(values: np.ndarray) -> xr.DataArray:
    """An array (chain, draw, case)."""
    return xr.DataArray(values, dims=("chain", "draw", "case"))


def masks(sizes: np.ndarray, axis: int) -> np.ndarray:
    """Masks (..., 8, 8) of so many pixels, each repeated along a new axis."""
    filled = (np.arange(64) < sizes[..., None]).reshape(*sizes.shape, 8, 8).astype(int)
    return np.repeat(np.expand_dims(filled, axis), COPIES, axis)


@pytest.mark.parametrize(
    ("kind", "copies"),
    [
        ([[1, 1, 1, 1]], 4),
        ([[1, 2, 1, 2], [5, 5, 1, 1]], 2),
        ([[1, 2, 3]], 1),
        ([[1, 1, 1, 2]], 1),  # a discrete distribution
        ([[1, 1, 2, 2], [1, 1, 1, 1]], 1),
    ],
)
def test_copies_are_functions_that_stand_equally_often(kind: list[list[int]], copies: int) -> None:
    assert num_copies(np.array(kind)) == copies


def test_the_first_of_all_copies_stay() -> None:
    rng = np.random.default_rng(0)
    values = samples(rng.normal(size=(2, 2, 3)))
    order = xr.DataArray([[0, 1, 1, 0], [1, 0, 1, 0]], dims=("chain", "draw"))
    copied = values.isel(draw=order).transpose(*values.dims).assign_coords(chain=[5, 7])
    found = drop_copies(copied)
    assert found["chain"].values.tolist() == [5, 7]
    np.testing.assert_array_equal(found[0], values[0])
    np.testing.assert_array_equal(found[1], values[1, ::-1])
    noise = samples(rng.normal(size=(2, 4, 3)))
    xr.testing.assert_identical(drop_copies(noise), noise)
    both = xr.Dataset({"loc": copied, "noise": noise.assign_coords(chain=[5, 7])})
    xr.testing.assert_identical(drop_copies(both), both)
    scale = copied.isel(case=0, drop=True)
    assert drop_copies(xr.Dataset({"loc": copied, "scale": scale})).sizes["draw"] == 2


def test_draws_that_differ_in_the_last_case_alone_are_no_copies() -> None:
    values = np.zeros((1, 4, 5))
    values[0, 0, -1] = 1
    array = samples(values)
    xr.testing.assert_identical(drop_copies(array), array)


def test_of_draws_that_differ_only_the_first_case_is_read() -> None:
    dask = pytest.importorskip("dask.array", reason="lazy trees")
    read: list[int] = []

    def chunk(block_info: dict | None = None) -> np.ndarray:
        assert block_info is not None
        case = block_info[None]["chunk-location"][2]
        read.append(case)
        return np.random.default_rng(case).normal(size=(2, 4, 1))

    lazy = dask.map_blocks(chunk, chunks=((2,), (4,), (1,) * 6), dtype=float)
    drop_copies(samples(lazy))
    assert set(read) == {0}


def test_intervals_of_four_members_hold_a_fifth_as_often_as_they_say() -> None:
    """Between the outermost of four: 3 in 5."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(5, 60, (MEMBERS, 1000))
    members = xr.DataArray(masks(sizes, 1), dims=("chain", "draw", "case", "row", "col"))
    found = segmentation.sizes(members, classes=[1])
    assert found.attrs["attained_level"] == pytest.approx(0.6)
    fifth = rng.integers(5, 60, 1000)
    inside = (found["lower"][:, 0] <= fifth) & (fifth <= found["upper"][:, 0])
    # Sizes that are equal count as inside, so that the interval may hold more.
    assert stats.binomtest(int(inside.sum()), 1000, 0.6, alternative="less").pvalue > 1e-6
    assert stats.binomtest(int(inside.sum()), 1000, 0.66, alternative="greater").pvalue > 1e-6


def test_the_energy_distance_of_a_perfect_ensemble_is_zero_and_its_floor_right() -> None:
    rng = np.random.default_rng(2)
    sizes = rng.integers(5, 60, (2, 400, MEMBERS))
    members = xr.DataArray(masks(sizes[0].T, 1), dims=("chain", "draw", "case", "row", "col"))
    graders = xr.DataArray(masks(sizes[1], 2)[:, :, 0], dims=("case", "grader", "row", "col"))
    found = segmentation.ged(members, graders, classes=[1])
    assert_mean(found["unbiased"].values, np.array(0.0))
    assert_mean((found["biased"] - found["floor"]).values, np.array(0.0))


def test_the_variance_between_five_members_is_that_of_their_distribution() -> None:
    """Beta(2, 2) has the variance 1 / 20."""
    first = np.random.default_rng(3).beta(2, 2, size=(5, 1, 2000))
    probs = np.repeat(np.stack([first, 1 - first], -1), COPIES, 1)
    found = uncertainty.variance(xr.DataArray(probs, dims=("chain", "draw", "case", "class")))
    assert_mean(found["epistemic"][:, 0].values, np.array(1 / 20))
    # the mean of p is known to be 1/2, so that the variance of a label is 1/4
    assert_mean(found["total"][:, 0].values, np.array(1 / 4))


def ensemble(copies: int) -> Sequence[Callable[[torch.Tensor], torch.Tensor]]:
    """Linear functions of members that differ, each drawn several times."""
    weights = torch.randn(MEMBERS, 2, 9, generator=torch.Generator().manual_seed(0)).double()
    functions = []
    for chain in range(MEMBERS):
        for draw in range(copies):

            def function(image: torch.Tensor, chain: int = chain) -> torch.Tensor:
                return image.flatten(1) @ weights[chain].T

            function.chain, function.draw = chain, draw  # type: ignore[attr-defined]
            functions.append(function)
    return functions


def test_the_error_of_an_attribution_is_that_of_its_members() -> None:
    image = torch.randn(3, 1, 3, 3, generator=torch.Generator().manual_seed(1)).double()
    found, once = (
        attribution.attribute(ensemble(copies), image, 1, method="saliency", keep_draws=True)
        for copies in (COPIES, 1)
    )
    members = found["attribution"].mean("draw").std("chain", ddof=1)
    np.testing.assert_allclose(found["mcse"], members / MEMBERS**0.5, rtol=1e-6)
    np.testing.assert_allclose(found["sd"], members, rtol=1e-6)
    xr.testing.assert_allclose(found.drop_dims("draw"), once.drop_dims("draw"))
    assert found.attrs["probability_mcse_max"] == once.attrs["probability_mcse_max"] == 0.25


def test_chains_are_random_effects_of_an_attribution() -> None:
    """The error is that of `monte_carlo.standard_error` of all draws."""
    from ppl_med.analysis.statistics import monte_carlo

    weights = torch.randn(6, 2, 9, generator=torch.Generator().manual_seed(2)).double()
    weights += 2 * torch.arange(6).div(3, rounding_mode="floor")[:, None, None]
    functions = []
    for number in range(6):

        def function(image: torch.Tensor, number: int = number) -> torch.Tensor:
            return image.flatten(1) @ weights[number].T

        function.chain, function.draw = divmod(number, 3)  # type: ignore[attr-defined]
        functions.append(function)
    image = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(1)).double()
    found = attribution.attribute(functions, image, 1, method="saliency", keep_draws=True)
    each = found["attribution"].astype(float)
    np.testing.assert_allclose(found["mcse"], monte_carlo.standard_error(each), rtol=1e-6)
    np.testing.assert_allclose(found["sd"], each.std(("chain", "draw"), ddof=1), rtol=1e-6)


def test_the_interval_of_a_swap_is_that_of_its_members() -> None:
    image = torch.randn(3, 1, 3, 3, generator=torch.Generator().manual_seed(1)).double()
    found, once = (
        confounding.swap_test(ensemble(copies), image, lambda x: x + 1, 1, level=0.5)
        for copies in (COPIES, 1)
    )
    xr.testing.assert_allclose(found.drop_dims("draw"), once.drop_dims("draw"))
    wide = confounding.swap_test(ensemble(COPIES), image, lambda x: x + 1, 1)
    assert wide["expected_effect_lower"].attrs["attained_level"] == pytest.approx(0.6)
