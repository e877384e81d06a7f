"""Loops that numba compiles give what numpy gives, and refuse what numpy refuses."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import xarray as xr

from ppl_med.analysis import calibration, conformal, scoring, uncertainty
from ppl_med.analysis.statistics import compiled
from ppl_med.analysis.tree import blocks, open_classes

CASES = 500


def made(dtype: str = "float64", cases: int = CASES) -> xr.DataTree:
    """Two chains of five draws of four classes: some sure, some tied, some without a label."""
    rng = np.random.default_rng(0)
    centre = 2 * rng.normal(size=(cases, 4))
    probs = np.exp(centre + rng.normal(size=(2, 5, cases, 4)))
    probs /= probs.sum(-1, keepdims=True)
    probs[..., :20, :] = [0, 1, 0, 0]
    probs[..., 20:40, :] = 0.25
    probs[:, 1:, 40:60, :] = [0.5, 0.5, 0, 0]
    probs[..., 60:80, :] = [0.2, 0.6, 0.1, 0.1]  # 9 / 15: the edge of a bin
    label = centre.argmax(1)
    label[:40] = [1, 0] * 20
    label[-30:] = -1
    case = [f"c{index}" for index in range(cases)]
    dims = ("chain", "draw", "case", "class")
    names = {"case": case, "class": ["a", "b", "c", "d"]}
    posterior = xr.Dataset({"probs": (dims, probs.astype(dtype), {"of": "a test"})}, names)
    return xr.DataTree.from_dict(
        {
            "/posterior": posterior,
            "/observed_data": xr.Dataset({"label": ("case", label)}, {"case": case}),
        }
    )


ANALYSES: dict[str, Callable[[xr.DataTree], Any]] = {
    "scores": scoring.score,
    "reliability": scoring.reliability,
    "mixture": lambda tree: open_classes(tree).mixture(),
    "sets": conformal.calibrate,
    "errors": lambda tree: calibration.errors(tree, replicates=0),
    "entropies": uncertainty.entropy,
    "variances": uncertainty.summary,
}


@pytest.fixture
def numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled loops for trees of any size, read in several runs."""
    pytest.importorskip("numba")
    monkeypatch.setattr(compiled, "LEAST", 0)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2**17)


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Hides numba from now on."""

    def hide() -> None:
        monkeypatch.setitem(sys.modules, "numba", None)
        compiled._numba.cache_clear()

    yield hide
    monkeypatch.undo()
    compiled._numba.cache_clear()


@pytest.mark.filterwarnings("ignore:.*probability exactly 0")
@pytest.mark.parametrize("name", ANALYSES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.usefixtures("numba")
def test_both_paths_agree(name: str, dtype: str, hidden: Callable[[], None]) -> None:
    tree = made(dtype)
    assert open_classes(tree).compiles
    found = [ANALYSES[name](tree), ANALYSES[name](tree.chunk(case=70))]
    hidden()
    assert not open_classes(tree).compiles
    expected = ANALYSES[name](tree)
    for one in found:
        xr.testing.assert_allclose(one, expected, rtol=1e-12, atol=1e-14)
        assert one.attrs == expected.attrs and set(one.coords) == set(expected.coords)
        for variable in one.data_vars if isinstance(one, xr.Dataset) else ():
            assert one[variable].attrs == expected[variable].attrs, variable
            assert one[variable].dims == expected[variable].dims, variable


@pytest.mark.usefixtures("numba")
def test_equal_draws_have_their_own_mean() -> None:
    tree = made()
    probs = open_classes(tree).array
    probs.values[:] = probs.values[:1, :1]
    np.testing.assert_array_equal(open_classes(tree).mixture(), probs[0, 0])
    for found in (uncertainty.entropy(tree), uncertainty.summary(tree)):
        assert found.attrs["note"].startswith("epistemic parts are 0")
        for name in ("mutual_information", "epistemic", "epistemic_mcse"):
            assert name not in found or (found[name] == 0).all(), name
    probs.values[1, 4, CASES - 1] = [0.25, 0.25, 0.5, 0]
    assert "note" not in uncertainty.entropy(tree).attrs | uncertainty.summary(tree).attrs


@pytest.mark.usefixtures("numba")
def test_draws_that_share_weights_count_once(hidden: Callable[[], None]) -> None:
    tree = made()
    posterior = tree["posterior"].to_dataset().assign_coords(weights=("draw", [0, 0, 1, 1, 1]))
    tree["posterior"] = xr.DataTree(posterior)
    found = [uncertainty.entropy(tree), uncertainty.summary(tree)]
    hidden()
    for one, expected in zip(
        found, [uncertainty.entropy(tree), uncertainty.summary(tree)], strict=True
    ):
        xr.testing.assert_allclose(one, expected, rtol=1e-12, atol=1e-14)
        assert one.attrs == expected.attrs and "num_functions" in one.attrs


@pytest.mark.parametrize(
    "analysis", [scoring.score, scoring.reliability, uncertainty.entropy, uncertainty.summary]
)
@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "1 NaN or infinite"), (-0.5, "negative values"), (0.9, "must sum to one")],
)
@pytest.mark.usefixtures("numba")
def test_what_is_no_probability_is_refused(
    analysis: Callable[[xr.DataTree], Any], value: float, message: str
) -> None:
    tree = made()
    open_classes(tree).array.values[1, 3, CASES - 5, 2] = value  # of a case without a label
    with pytest.raises(ValueError, match=message):
        analysis(tree)


@pytest.mark.usefixtures("numba")
def test_sums_just_outside_are_refused_in_half_the_digits_too() -> None:
    """Sums off by 1.001e-5 in float64, which a sum of 1000 classes in float32 often rounds away."""
    rng = np.random.default_rng(0)
    refused = 0
    for sign in [1, -1] * 100:
        probs = rng.dirichlet(np.ones(1000), (1, 2, 3))
        probs[0, 1, 1] *= 1 + sign * 1.001e-5
        tree = xr.DataTree.from_dict(
            {
                "/posterior": xr.Dataset(
                    {"probs": (("chain", "draw", "case", "class"), probs.astype(np.float32))}
                ),
                "/observed_data": xr.Dataset({"label": ("case", [0, 1, 2])}),
            }
        )
        off = abs(float(probs.astype(np.float32)[0, 1, 1].astype(float).sum()) - 1)
        if off > 1.0005e-5:
            refused += 1
            with pytest.raises(ValueError, match="must sum to one"):
                scoring.score(tree)
    assert refused > 100


def test_small_trees_are_not_compiled() -> None:
    assert not open_classes(made()).compiles
    assert not compiled.pays(compiled.LEAST, np.dtype(np.float16))
