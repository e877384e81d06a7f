"""Uncertainty against identities, closed forms, scipy, and replicated draws."""

from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr
from posterior_trees import classification_tree, random_probs
from scipy import stats

from ppl_med.analysis import uncertainty
from ppl_med.analysis.statistics import monte_carlo

Z = stats.norm.isf(1e-6 / 2)


def array(values: object) -> xr.DataArray:
    return xr.DataArray(np.asarray(values, float), dims=("chain", "draw", "case", "class"))


def test_variance_adds_up() -> None:
    result = uncertainty.variance(random_probs(extra={"row": 3, "col": 2}))
    assert result["total"].dims == ("case", "class", "row", "col")
    gap = result["total"] - result["aleatoric"] - result["epistemic"]
    assert float(np.abs(gap).max()) < 1e-12
    assert float(result["epistemic"].min()) > 0


def test_variance_is_the_diagonal_of_the_two_covariances() -> None:
    probs = random_probs(cases=4)
    flat = probs.stack(sample=("chain", "draw")).transpose("case", "sample", "class").values
    result = uncertainty.variance(probs)
    for index, draws in enumerate(flat):
        aleatoric = np.mean([np.diag(p) - np.outer(p, p) for p in draws], axis=0)
        epistemic = np.cov(draws.T)
        np.testing.assert_allclose(result["aleatoric"][index], np.diag(aleatoric), atol=1e-14)
        np.testing.assert_allclose(result["epistemic"][index], np.diag(epistemic), atol=1e-14)


def test_entropy_matches_scipy_and_adds_up() -> None:
    probs = random_probs(extra={"row": 2})
    result = uncertainty.entropy(probs)
    axis = probs.dims.index("class")
    pooled = probs.mean(("chain", "draw"))
    np.testing.assert_allclose(
        result["predictive_entropy"], stats.entropy(pooled.values, axis=1), atol=1e-13
    )
    np.testing.assert_allclose(
        result["expected_entropy"], stats.entropy(probs.values, axis=axis).mean((0, 1)), atol=1e-13
    )
    gap = result["predictive_entropy"] - result["expected_entropy"] - result["mutual_information"]
    assert float(np.abs(gap).max()) < 1e-12
    bound = np.minimum(result["predictive_entropy"], np.log(3)) + 1e-12
    assert bool((result["mutual_information"] <= bound).all())


def test_one_hot_draws_spread_evenly_are_all_epistemic() -> None:
    result = uncertainty.entropy(array(np.eye(4)[None, :, None, :]))
    assert float(result["mutual_information"][0]) == pytest.approx(np.log(4), abs=1e-15)
    assert float(result["expected_entropy"][0]) == 0
    assert float(result["variation_ratio"][0]) == 0.75


def test_variation_ratio_counts_the_mode_not_the_mean() -> None:
    draws = [[0.51, 0.49], [0.51, 0.49], [0.0, 1.0]]  # the mean votes for the other class
    result = uncertainty.entropy(array([[[draw] for draw in draws]]))
    assert float(result["variation_ratio"][0]) == pytest.approx(1 / 3)


def test_equal_draws_are_exactly_zero_and_say_so() -> None:
    probs = random_probs(chains=1, draws=1)
    copies = xr.concat([probs.isel(draw=0, drop=True)] * 7, dim="draw").transpose("chain", ...)
    for result in (uncertainty.variance(copies), uncertainty.summary(copies)):
        assert float(result["epistemic"].max()) == 0
        assert float(result["total_mcse"].max()) == 0
        assert "0 by construction" in result.attrs["note"]
    assert float(uncertainty.entropy(copies)["mutual_information"].max()) == 0


def test_a_single_draw_needs_to_be_asked_for() -> None:
    probs = random_probs(chains=1, draws=1)
    for analysis in (uncertainty.entropy, uncertainty.variance, uncertainty.summary):
        with pytest.raises(ValueError, match="at least two draws"):
            analysis(probs)
        result = analysis(probs, mcse=False)
        assert not [name for name in result if str(name).endswith("_mcse")]
        assert "0 by construction" in result.attrs["note"]
    assert "note" not in uncertainty.variance(random_probs()).attrs


def figures(probs: xr.DataArray) -> xr.Dataset:
    return xr.merge(
        [uncertainty.entropy(probs), uncertainty.variance(probs).isel({"class": 2})],
        combine_attrs="drop",
        compat="override",
    )


@pytest.mark.parametrize("chains", [1, 6])
def test_mcse_is_the_spread_over_replications(chains: int) -> None:
    """Every replication is one `case`: 3000 independent sets of draws of one posterior.

    Six chains have modes of their own, so the members are what is drawn. The delta method is
    off by a share of order 1 / sample size, hence 5 % (60 draws) and 25 % (6 members).
    """
    rng = np.random.default_rng(5)
    draws, cases, centre = 60, 3000, np.array([1.0, 0.3, -0.5])
    mode = rng.normal(0, 0.8, (chains, 1, cases, 3)) if chains > 1 else 0.0
    logits = centre + mode + 0.8 * rng.normal(size=(chains, draws, cases, 3))
    weight = np.exp(logits)
    result = figures(array(weight / weight.sum(-1, keepdims=True)))
    names = [str(name) for name in result if not str(name).endswith("_mcse")]
    assert len(names) == 7
    for name in names:
        spread = float(result[name].var(ddof=1))
        claimed = result[f"{name}_mcse"] ** 2
        kurtosis = float(stats.kurtosis(result[name])) + 2
        noise = (float(claimed.var()) + spread**2 * kurtosis) ** 0.5 / cases**0.5
        allowed = Z * noise + (0.05 if chains == 1 else 0.25) * spread
        assert abs(float(claimed.mean()) - spread) < allowed, name


def jackknife(analysis: Callable[[xr.DataArray], xr.Dataset], probs: xr.DataArray) -> xr.Dataset:
    """Leave one draw of a single chain out, for every figure of an analysis."""
    count = probs.sizes["draw"]
    without = [analysis(probs.drop_isel(draw=index)) for index in range(count)]
    return xr.concat(without, dim="left").var("left") ** 0.5 * (count - 1) ** 0.5


@pytest.mark.parametrize("name", ["entropy", "variance", "summary"])
def test_mcse_agrees_with_the_jackknife(name: str) -> None:
    """Two first-order estimates of one error: apart by a share of order 1 / draws."""
    analysis = getattr(uncertainty, name)
    probs = random_probs(chains=1, draws=200, cases=5, noise=0.7)
    result, oracle = analysis(probs), jackknife(lambda part: analysis(part, mcse=False), probs)
    for figure in oracle.data_vars:
        if not str(figure).endswith("_se"):
            np.testing.assert_allclose(result[f"{figure}_mcse"], oracle[figure], rtol=0.03)


def test_mcse_is_not_too_small_where_the_first_derivative_vanishes() -> None:
    rng = np.random.default_rng(6)
    first = rng.beta(4, 4, size=(1, 40, 4000))
    result = uncertainty.variance(array(np.stack([first, 1 - first], axis=-1)))
    claimed = float((result["total_mcse"] ** 2).mean())
    spread = float(result["total"].var("case").mean())
    assert 1.5 < claimed / spread < 2.7  # two by theory: 4 v^2 claimed, 2 v^2 true


def test_standard_error_of_a_mean_is_the_variance_components_one() -> None:
    rng = np.random.default_rng(2)
    values = xr.DataArray(rng.normal(size=(5, 8, 4000)), dims=("chain", "draw", "case"))
    values = values + xr.DataArray(rng.normal(size=(5, 4000)), dims=("chain", "case"))
    between = values.mean("draw").std("chain", ddof=1) / 5**0.5
    within = values.std("draw", ddof=1).pipe(lambda sd: np.sqrt((sd**2).mean("chain") / 40))
    error = monte_carlo.standard_error(values)
    np.testing.assert_allclose(error, np.maximum(between, within), rtol=1e-12)
    pooled = stats.f_oneway(*values[:, :, 0].values)
    ratio = float((between / within)[0] ** 2)
    assert pooled.statistic == pytest.approx(ratio)


def test_copies_of_a_member_do_not_lower_the_error() -> None:
    members = random_probs(chains=5, draws=1)
    copies = xr.concat([members.isel(draw=0, drop=True)] * 9, dim="draw").transpose("chain", ...)
    for name, value in figures(members).items():
        np.testing.assert_allclose(figures(copies)[name], value, atol=1e-14)


def test_summary_averages_variance_over_cases_and_classes() -> None:
    probs = random_probs(extra={"row": 2, "col": 2})
    full, short = uncertainty.variance(probs), uncertainty.summary(probs)
    for name in ("aleatoric", "epistemic", "total"):
        assert float(short[name]) == pytest.approx(float(full[name].mean()), rel=1e-12)
        per_class = full[name].mean(("case", "row", "col"))
        np.testing.assert_allclose(short[f"{name}_per_class"], per_class, rtol=1e-12)
        cases = full[name].mean(("class", "row", "col"))
        assert float(short[f"{name}_se"]) == pytest.approx(stats.sem(cases.values))


def test_summary_error_knows_that_cases_share_draws() -> None:
    one = random_probs(chains=1, cases=1)
    many = xr.concat([one] * 50, dim="case")
    for suffix in ("", "_per_class"):
        name = f"epistemic{suffix}_mcse"
        np.testing.assert_allclose(
            uncertainty.summary(many)[name], uncertainty.summary(one)[name], rtol=1e-12
        )


def test_tree_dataset_and_array_agree() -> None:
    tree = classification_tree()
    group = tree["posterior"].to_dataset()
    expected = uncertainty.entropy(tree)
    xr.testing.assert_identical(uncertainty.entropy(group), expected)
    xr.testing.assert_identical(uncertainty.entropy(group["probs"]), expected)
    xr.testing.assert_identical(
        uncertainty.entropy(group["probs"].transpose("class", "case", "draw", "chain")), expected
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.isel(chain=0), "lacks the dimension.*chain"),
        (lambda p: p.rename({"case": "sample"}), "lacks the dimension.*case"),
        (lambda p: p.where(p["draw"] > 0), "NaN"),
        (lambda p: np.log(p), "negative"),
        (lambda p: 2 * p, "sum to one"),
        (lambda p: p.isel({"class": [0]}), "sum to one"),
        (lambda p: p.isel(case=[]), "empty along case"),
        (lambda p: p.to_dataset(name="loc"), "holds no probs"),
        (lambda p: xr.DataTree.from_dict({"/prior": p.to_dataset()}), "no posterior group"),
    ],
)
def test_malformed_probs_are_refused(damage: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        uncertainty.variance(damage(random_probs()))  # type: ignore[operator]


def test_wrong_type_is_refused() -> None:
    with pytest.raises(TypeError, match="DataTree"):
        uncertainty.entropy(np.ones(3))  # type: ignore[arg-type]


def test_where_there_is_no_influence_there_is_no_error() -> None:
    """Of a single chain too, whose sums over draws would else leave the NaN out."""
    values = np.random.default_rng(0).normal(size=(1, 8, 3))
    values[:, :, 1] = np.nan
    error = monte_carlo.standard_error(xr.DataArray(values, dims=("chain", "draw", "case")))
    assert np.isnan(error.values).tolist() == [False, True, False]
