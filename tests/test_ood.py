"""Scores of what a model has never seen: closed forms, other libraries, and rates that are held."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from ood_trees import CLASSES, UNITS, feature_tree
from scipy import stats
from scipy.special import softmax
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

from ppl_med import storage
from ppl_med.analysis import ood, shift, uncertainty
from ppl_med.analysis.ood import confidence, features
from ppl_med.analysis.ood.found import one_of_each, pvalues

OF_CLASSIFIERS = [*confidence.SCORES, *features.SCORES]
FALSE_ALARM = 1e-6


@pytest.fixture(scope="module")
def train() -> xr.DataTree:
    return feature_tree(300, "t")


@pytest.fixture(scope="module")
def held_out() -> xr.DataTree:
    return feature_tree(99, "v")


@pytest.fixture(scope="module")
def inside() -> xr.DataTree:
    return feature_tree(120, "i")


@pytest.fixture(scope="module")
def outside() -> xr.DataTree:
    return feature_tree(120, "o", shift=6.0)


def table(tree: xr.DataTree, name: str, draw: int = 0) -> np.ndarray:
    found: xr.DataArray = tree["posterior"][name]  # type: ignore[assignment]
    return np.asarray(found.values[0, draw], np.float64)


def labels(tree: xr.DataTree) -> np.ndarray:
    found: xr.DataArray = tree["observed_data"]["label"]  # type: ignore[assignment]
    return found.values


# --- the contract of every score


@pytest.mark.parametrize("name", OF_CLASSIFIERS)
def test_a_score_has_a_value_a_spread_and_a_pvalue_of_every_case(
    name: str, train: xr.DataTree, held_out: xr.DataTree, inside: xr.DataTree
) -> None:
    reference = ood.fit_reference(name, train, held_out=held_out)
    found = ood.score(inside, reference)
    single = found["score_per_draw"]
    assert single.dims == ("chain", "draw", "case") and np.isfinite(single).all()
    np.testing.assert_allclose(found["score_sd"], single.values[0].std(0, ddof=1), atol=1e-9)
    assert ((found["pvalue"] >= 1 / 100) & (found["pvalue"] <= 1)).all()
    backwards = ood.score(inside.isel(case=slice(None, None, -1)), reference)
    xr.testing.assert_allclose(backwards.isel(case=slice(None, None, -1)), found)


@pytest.mark.parametrize("name", OF_CLASSIFIERS)
def test_a_saved_reference_scores_alike(
    name: str, train: xr.DataTree, held_out: xr.DataTree, inside: xr.DataTree, tmp_path
) -> None:
    reference = ood.fit_reference(name, train, held_out=held_out)
    storage.save(reference, tmp_path / "reference.nc")
    loaded = storage.load(tmp_path / "reference.nc")
    assert isinstance(loaded, xr.Dataset)
    xr.testing.assert_equal(ood.score(inside, loaded), ood.score(inside, reference))


@pytest.mark.parametrize("name", ["mcp", "mahalanobis", "knn", "novelty"])
def test_false_alarms_are_as_rare_as_stated(name: str) -> None:
    """Over repeated studies in-distribution p-values are uniform: exact at every 1 / (n + 1)."""
    pooled = []
    for seed in range(40):
        sizes = {"t": 60, "v": 19, "i": 1}
        learnt, held, new = (
            feature_tree(n, p, seed=seed, samples=(1, 2)) for p, n in sizes.items()
        )
        if name == "novelty":
            held = feature_tree(29, "v", seed=seed, samples=(1, 2))
            found = ood.novelty(new, ood.fit_novelty(learnt, held))
        else:
            found = ood.score(new, ood.fit_reference(name, learnt, held_out=held))
        pooled.append(float(found["pvalue"][0]))
    counts = np.bincount((20 * np.array(pooled)).round().astype(int), minlength=21)[1:]
    assert counts.sum() == 40
    halves = counts.reshape(4, 5).sum(1)
    assert stats.chisquare(halves).pvalue > FALSE_ALARM


def of_patients(number: int, each: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of cases whose patients differ more than their cases do, and the patients."""
    random = np.random.default_rng(seed)
    people = np.repeat(np.arange(number), each)
    return random.normal(size=number)[people] + 0.3 * random.normal(size=len(people)), people


def test_patients_and_not_cases_hold_the_false_alarms() -> None:
    """A case of a new patient: p <= .2 one time in five, though cells of one are alike."""
    alarms = {"patients": 0, "cases": 0}
    repeats = 3000
    for seed in range(repeats):
        known, people = of_patients(4, 20, seed)
        new = of_patients(1, 1, 10**6 + seed)[0]
        for name, rows in (("patients", one_of_each(people, seed)), ("cases", slice(None))):
            level = 0.2 + 1e-9 if name == "patients" else 0.05
            alarms[name] += float(pvalues(new, known[rows])[0]) <= level
    bound = stats.norm.isf(FALSE_ALARM)
    assert abs(alarms["patients"] / repeats - 0.2) < bound * (0.2 * 0.8 / repeats) ** 0.5
    assert alarms["cases"] / repeats > 0.05 + bound * (0.05 * 0.95 / repeats) ** 0.5


def test_a_patient_counts_once(train, held_out, inside) -> None:
    people = xr.DataArray(np.arange(99) // 9, {"case": held_out["posterior"]["case"]}, ("case",))
    reference = ood.fit_reference("knn", train, held_out=held_out, group=people)
    found = ood.score(inside, reference)
    by_case = ood.fit_reference("knn", train, held_out=held_out)
    np.testing.assert_array_equal(found["score"], ood.score(inside, by_case)["score"])
    assert (found.attrs["n"], found.attrs["unit"], by_case.attrs["n"]) == (11, "array", 99)
    drawn = reference["calibration_case"]
    assert sorted(people.sel(case=drawn.values).values) == list(range(11))
    own = by_case["calibration_score"].sel(calibration_case=drawn.values).values
    np.testing.assert_array_equal(reference["calibration_score"].values, own)
    with pytest.raises(ValueError, match="share"):  # a case that was not drawn is still of it
        ood.score(held_out, reference)
    novel = ood.novelty(inside, ood.fit_novelty(train, held_out, group=people))
    assert novel.attrs["n"] == 8 and float(novel["pvalue"].min()) >= 1 / 9
    enough = people.copy(data=np.arange(99) % 24)
    few = ood.fit_novelty(train, held_out, group=enough)
    assert few.attrs["n"] == 19 and few.attrs["least_pvalue"] == 0.05
    alone = people.copy(data=np.zeros(99, int))
    with pytest.raises(ValueError, match="of one patient"):
        ood.fit_novelty(train, held_out, group=alone)
    made = ood.score(held_out, ood.fit_reference("mcp", inside))
    again = ood.with_pvalues(ood.score(train, ood.fit_reference("mcp", inside)), made, group=people)
    assert again.attrs["n"] == 11


def test_patients_who_teach_do_not_judge(train, held_out, inside) -> None:
    """Cells of a patient who taught look familiar: 99 % false alarms at 10 % where this goes by."""

    def of(tree: xr.DataTree, first: int) -> xr.DataTree:
        case = tree["posterior"]["case"]
        names = [f"p{first + i // 10}" for i in range(len(case))]
        group = xr.Dataset({"patient": ("case", names)}, {"case": case})
        return xr.DataTree.from_dict(
            {"/": xr.Dataset(attrs=tree.attrs), "/constant_data": group}
            | {f"/{name}": tree[name].to_dataset() for name in ("posterior", "observed_data")}
        )

    teaching, same, others = of(train, 0), of(held_out, 29), of(held_out, 30)
    wrong = r"held_out has cases of 1 patient\(s\) of whom tree has others, e.g. 'p29'"
    for fit in (lambda: ood.fit_reference("knn", teaching, held_out=same),
                lambda: ood.fit_novelty(teaching, same),
                lambda: shift.fit_reference(teaching, held_out=same)):  # fmt: skip
        with pytest.raises(ValueError, match=wrong):
            fit()
    assert ood.fit_reference("knn", teaching, held_out=others).attrs["unit"] == "patient"
    assert ood.fit_reference("knn", teaching, held_out=same, group="case").attrs["n"] == 99
    assert ood.fit_reference("knn", train, held_out=same).attrs["n"] == 10
    made = ood.score(others, ood.fit_reference("mcp", inside))
    made = made.assign_coords(patient=others["constant_data"]["patient"])
    found = ood.score(train, ood.fit_reference("mcp", inside))
    by_patient = ood.with_pvalues(found, made)
    assert by_patient.attrs["n"] == 10
    turned = ood.with_pvalues(found, made.isel(case=slice(None, None, -1)))
    xr.testing.assert_equal(turned, by_patient)
    assert ood.with_pvalues(found, made, group="case").attrs["n"] == 99


# --- each score against what defines it


def test_confidence_is_that_of_the_uncertainty(inside: xr.DataTree) -> None:
    parts = uncertainty.entropy(inside)
    names = {"entropy": "predictive_entropy", "mutual_information": "mutual_information"}
    names["expected_entropy"] = "expected_entropy"
    held_out = feature_tree(20, "v")
    for name, other in names.items():
        found = ood.score(inside, ood.fit_reference(name, held_out))
        np.testing.assert_allclose(found["score"], parts[other], atol=1e-12)
    found = ood.score(inside, ood.fit_reference("mcp", held_out))
    probs: xr.DataArray = inside["posterior/probs"]  # type: ignore[assignment]
    np.testing.assert_allclose(found["score"], 1 - probs.mean(("chain", "draw")).max("class"))


@pytest.mark.parametrize("draws", [1, 3, 7])
def test_equal_draws_have_no_mutual_information(draws: int) -> None:
    tree = feature_tree(200, "e", samples=(1, draws), same_in_all_draws=True)
    found = ood.score(
        tree, ood.fit_reference("mutual_information", feature_tree(9, "k", samples=(1, draws)))
    )
    assert (found["score"] == 0).all() and (found["score_per_draw"] == 0).all()
    assert (uncertainty.entropy(tree, mcse=False)["mutual_information"] == 0).all()


def test_energy_needs_logits_for_probabilities_have_none(inside: xr.DataTree) -> None:
    reference = ood.fit_reference("energy", feature_tree(20, "v"))
    logit: xr.DataArray = inside["posterior/logit"]  # type: ignore[assignment]
    exponential: Any = np.exp(logit)
    expected = -np.log(exponential.sum("class")).mean(("chain", "draw"))
    np.testing.assert_allclose(ood.score(inside, reference)["score"], expected)
    bare = inside.copy()
    bare["posterior"] = inside["posterior"].to_dataset().drop_vars("logit")
    with pytest.raises(ValueError, match=r"keep=\('logit',\)"):
        ood.fit_reference("energy", bare)


def test_mahalanobis_is_that_of_scikit_learn() -> None:
    train, held_out = (feature_tree(n, p, samples=(1, 1)) for n, p in ((300, "t"), (60, "v")))
    new = feature_tree(80, "o", shift=3.0, samples=(1, 1))
    label, feature = labels(train), table(train, "feature:head")
    means = np.stack([feature[label == k].mean(0) for k in range(CLASSES)])
    tied = EmpiricalCovariance(assume_centered=True).fit(feature - means[label])
    point = table(new, "feature:head")
    expected = np.min([tied.mahalanobis(point - mean) for mean in means], axis=0)
    found = ood.score(new, ood.fit_reference("mahalanobis", train, held_out=held_out))
    np.testing.assert_allclose(found["score"], expected, rtol=1e-8)
    whole = EmpiricalCovariance().fit(feature).mahalanobis(point)
    found = ood.score(new, ood.fit_reference("relative_mahalanobis", train, held_out=held_out))
    np.testing.assert_allclose(found["score"], expected - whole, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["mahalanobis", "relative_mahalanobis"])
def test_mahalanobis_minds_neither_units_nor_dead_units(name: str) -> None:
    """Distances stay under an invertible linear map, and where units are always 0 or copied."""
    trees = [feature_tree(n, p, shift=s) for n, p, s in ((300, "t", 0), (50, "v", 0), (40, "o", 3))]
    turn = np.random.default_rng(1).normal(size=(UNITS, UNITS)) * np.logspace(-4, 4, UNITS)

    def mapped(tree: xr.DataTree, matrix: np.ndarray) -> xr.DataTree:
        tree = tree.copy()
        group = tree["posterior"].to_dataset()
        values = group["feature:head"].values @ matrix
        tree["posterior"] = group.drop_vars("feature:head").assign(
            {"feature:head": (("chain", "draw", "case", "unit"), values)}
        )
        return tree

    dead = np.concatenate([np.eye(UNITS), np.zeros((UNITS, 5)), np.eye(UNITS)[:, :2]], 1)
    plain = ood.score(trees[2], ood.fit_reference(name, trees[0], held_out=trees[1]))
    for matrix in (turn, dead):
        other = [mapped(tree, matrix) for tree in trees]
        found = ood.score(other[2], ood.fit_reference(name, other[0], held_out=other[1]))
        np.testing.assert_allclose(found["score"], plain["score"], rtol=1e-6)


@pytest.mark.parametrize("name", ["mahalanobis", "relative_mahalanobis"])
def test_features_that_do_not_vary_have_no_distance(name: str, train, held_out) -> None:
    still = train.copy()
    group = train["posterior"].to_dataset()
    still["posterior"] = group.assign({"feature:head": 0 * group["feature:head"] + 3.0})
    for tree in (still, train.isel(case=slice(0, 1))):
        with pytest.raises(ValueError, match="choose another layer, or pass more cases"):
            ood.fit_reference(name, tree, held_out=held_out)


def test_knn_is_that_of_scikit_learn() -> None:
    train, held_out, new = (feature_tree(n, p) for n, p in ((150, "t"), (30, "v"), (20, "o")))
    found = ood.score(new, ood.fit_reference("knn", train, held_out=held_out, k=7))
    expected = []
    for draw in range(4):
        bank, point = (table(tree, "feature:head", draw) for tree in (train, new))
        bank, point = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (bank, point))
        expected.append(NearestNeighbors(n_neighbors=7).fit(bank).kneighbors(point)[0][:, -1])
    np.testing.assert_allclose(found["score"], np.mean(expected, 0), atol=1e-6)


def test_knn_of_a_case_without_features_is_a_number() -> None:
    learnt = features.fit_knn(np.eye(4), None, None, 2, k=1)
    assert features.knn(learnt, np.zeros((1, 4)), None).tolist() == [1.0]


def test_vim_is_that_of_pytorch_ood() -> None:
    torch = pytest.importorskip("torch")
    detector = pytest.importorskip("pytorch_ood.detector")
    train, held_out = (feature_tree(n, p, samples=(1, 1)) for n, p in ((300, "t"), (60, "v")))
    new = feature_tree(80, "o", shift=3.0, samples=(1, 1))
    feature, logit = table(train, "feature:head"), table(train, "logit")
    design = np.concatenate([feature, np.ones((len(feature), 1))], 1)
    solved = np.linalg.lstsq(design, logit, rcond=None)[0]
    weights, bias = torch.tensor(solved[:-1].T), torch.tensor(solved[-1])
    vim = detector.ViM(None, 2, weights, bias)
    label = torch.as_tensor(labels(train))
    vim.fit_features(torch.tensor(feature), label)
    expected = vim.predict_features(torch.tensor(table(new, "feature:head"))).numpy()
    found = ood.score(new, ood.fit_reference("vim", train, held_out=held_out, dimension=2))
    np.testing.assert_allclose(found["score"], expected, rtol=1e-4, atol=1e-4)


def test_vim_says_where_nothing_is_left_outside_the_main_directions() -> None:
    train, held_out = (feature_tree(n, p, dead=26) for n, p in ((200, "t"), (40, "v")))
    with pytest.raises(ValueError, match="dimension must be below 6"):
        ood.fit_reference("vim", train, held_out=held_out)
    reference = ood.fit_reference("vim", train, held_out=held_out, dimension=3)
    assert np.isfinite(reference["calibration_score"]).all()


def test_residual_is_what_the_main_directions_leave() -> None:
    flat = np.zeros((50, 5))
    flat[:, :2] = np.random.default_rng(0).normal(size=(50, 2))
    learnt = features.fit_residual(flat, None, None, 2, dimension=2)
    point = np.array([[9.0, -9.0, 0, 0, 0], [0, 0, 3.0, 0, 4.0]])
    np.testing.assert_allclose(features.residual(learnt, point, None), [0, 5], atol=1e-10)


def test_figures_of_cases_that_stand_on_both_sides_are_refused(train, held_out, inside) -> None:
    found = ood.score(inside, ood.fit_reference("mcp", held_out))
    with pytest.raises(ValueError, match="inside and outside"):
        ood.evaluate(found, found, resamples=0)


def test_figures_compare_one_score_of_one_layer(train, held_out, inside, outside) -> None:
    one = ood.score(inside, ood.fit_reference("knn", train, held_out=held_out, k=3))
    other = ood.score(outside, ood.fit_reference("knn", train, held_out=held_out, k=9))
    with pytest.raises(ValueError, match="inside has k 3, outside 9"):
        ood.evaluate(one, other, resamples=0)
    with pytest.raises(
        ValueError, match="inside has layer 'feature:head', outside 'feature:early'"
    ):
        ood.evaluate(one, one.assign_attrs(layer="feature:early"), resamples=0)


def test_far_away_confidence_is_blind_and_distance_is_not() -> None:
    """A rectified net is the surer the farther it is from its data (Hein et al., CVPR 2019)."""
    random = np.random.default_rng(0)

    def tree(centre: tuple[float, float], prefix: str) -> xr.DataTree:
        near = np.array([[-2.0, 0.0], [2.0, 0.0]])
        label = random.integers(2, size=200)
        point = random.normal(size=(200, 2)) + (near[label] if centre == (0, 0) else centre)
        logit = np.stack([-point[:, 0], point[:, 0]], 1)
        probs = np.exp(logit) / np.exp(logit).sum(1, keepdims=True)
        made = feature_tree(200, prefix, samples=(1, 1))
        case = made["posterior"]["case"]
        dims = ("chain", "draw", "case")
        made["posterior"] = xr.Dataset(
            {
                "probs": ((*dims, "class"), probs[None, None]),
                "feature:head": ((*dims, "unit"), point[None, None]),
            },
            coords={"case": case},
        )
        made["observed_data"] = xr.Dataset({"label": ("case", label)}, coords={"case": case})
        return made

    train, held_out, inside = (tree((0, 0), prefix) for prefix in "tvi")
    far = tree((12.0, 0.0), "o")
    area = {}
    for name in ("mcp", "mahalanobis"):
        reference = ood.fit_reference(name, train, held_out=held_out)
        scores = ood.score(inside, reference), ood.score(far, reference)
        area[name] = float(ood.evaluate(*scores, resamples=0)["auroc"])
    assert area["mcp"] < 0.03 and area["mahalanobis"] == 1.0


# --- figures


def test_figures_are_those_of_scikit_learn(train, held_out, inside, outside) -> None:
    reference = ood.fit_reference("knn", train, held_out=held_out)
    one, other = ood.score(inside, reference), ood.score(outside, reference)
    found = ood.evaluate(one, other, resamples=200)
    score = np.concatenate([one["score"], other["score"]])
    event = np.repeat([0, 1], 120)
    assert float(found["auroc"]) == pytest.approx(roc_auc_score(event, score))
    precision = average_precision_score(event, score)
    assert float(found["average_precision"]) == pytest.approx(precision)
    threshold = np.sort(other["score"].values)[6]  # 114 of 120 at or above
    assert float(found["false_alarms_at_95"]) == (one["score"].values >= threshold).mean()
    assert (
        found["auroc_lower"] < found["auroc"] < found["auroc_upper"] and found["prevalence"] == 0.5
    )
    wrong: xr.DataArray = inside["posterior/probs"].mean(("chain", "draw"))
    mistaken = wrong.argmax("class").values != labels(inside)
    failures = ood.evaluate_failures(one, inside, resamples=50)
    assert float(failures["auroc"]) == pytest.approx(roc_auc_score(mistaken, one["score"]))


def test_a_constant_score_has_half(inside: xr.DataTree, outside: xr.DataTree) -> None:
    held_out = feature_tree(30, "v")
    pair = [ood.score(tree, ood.fit_reference("mcp", held_out)) for tree in (inside, outside)]
    flat = [one.assign(score=0.3 * xr.ones_like(one["score"])) for one in pair]
    found = ood.evaluate(*flat, resamples=20)
    assert float(found["auroc"]) == 0.5 and float(found["auroc_se"]) == 0.0
    assert float(found["false_alarms_at_95"]) == 1.0


def test_errors_over_patients_are_wider(inside: xr.DataTree, outside: xr.DataTree) -> None:
    held_out = feature_tree(30, "v")
    pair = [ood.score(tree, ood.fit_reference("mcp", held_out)) for tree in (inside, outside)]
    doubled = [
        xr.concat([one, one.assign_coords(case=[f"{c}#" for c in one["case"].values])], "case")
        for one in pair
    ]
    groups = [one["case"].str.strip("#") for one in doubled]
    plain = ood.evaluate(*pair, resamples=400)
    by_patient = ood.evaluate(
        *doubled, group_inside=groups[0], group_outside=groups[1], resamples=400
    )
    assert float(by_patient["auroc_se"]) == pytest.approx(float(plain["auroc_se"]), rel=0.15)
    naive = ood.evaluate(*doubled, resamples=400)
    assert float(naive["auroc_se"]) < 0.85 * float(plain["auroc_se"])


# --- several scores together


def test_novelty_finds_either_kind(train, held_out, inside, outside) -> None:
    reference = ood.fit_novelty(train, held_out)
    one, other = ood.novelty(inside, reference), ood.novelty(outside, reference)
    assert float(ood.evaluate(one, other, resamples=0)["auroc"]) > 0.95
    assert (one["pvalue"] <= 0.1).mean() < 0.25 and (other["pvalue"] <= 0.05).mean() > 0.9
    assert one["component"].values.tolist() == [
        "mahalanobis of head",
        "knn of head",
        "mutual_information",
    ]


def test_novelty_is_saved(train, held_out, outside, tmp_path) -> None:
    reference = ood.fit_novelty(train, held_out)
    storage.save(reference, tmp_path / "novelty.nc")
    loaded = storage.load(tmp_path / "novelty.nc")
    assert isinstance(loaded, xr.Dataset)
    xr.testing.assert_equal(ood.novelty(outside, loaded), ood.novelty(outside, reference))


@pytest.mark.parametrize("method", ["harmonic", "bonferroni", "max"])
@pytest.mark.parametrize("number", [2, 3, 10])
def test_combined_pvalues_hold_under_any_dependence(method: str, number: int) -> None:
    """Independent, equal, and opposed uniforms; no more than 5 % fall below 0.05, by a z-test."""
    random, size = np.random.default_rng(0), 20_000
    own = random.random((number, size))
    for pvalue in (
        own,
        np.tile(own[:1], (number, 1)),
        np.where(np.arange(number)[:, None] % 2, 1 - own[0], own[0]),
    ):
        found = [xr.Dataset({"pvalue": ("case", one)}) for one in pvalue]
        share = float((ood.combine(found, method) <= 0.05).mean())  # type: ignore[arg-type]
        assert share < 0.05 + stats.norm.isf(FALSE_ALARM) * (0.05 * 0.95 / size) ** 0.5


# --- what makes no sense


def test_misuse_is_told(train, held_out, inside) -> None:
    reference = ood.fit_reference("mahalanobis", train, held_out=held_out)
    with pytest.raises(ValueError, match="share 300 case"):
        ood.score(train, reference)
    with pytest.raises(ValueError, match="share 99 case"):
        ood.score(held_out, reference)
    with pytest.raises(ValueError, match=r"layer must be one of \['head'\], such as 'head'"):
        ood.fit_reference("knn", train, held_out=held_out, layer="heads")
    with pytest.raises(ValueError, match="score must be 'mcp'"):
        ood.fit_reference("mahalonobis", train)
    with pytest.raises(ValueError, match="settings must be none at all"):
        ood.fit_reference("mcp", train, k=3)
    with pytest.raises(TypeError, match=r"what ood\.fit_reference gave"):
        ood.score(inside, xr.Dataset())
    with pytest.raises(ValueError, match=r"layer must be one of \['head'\]"):
        ood.fit_reference("mcp", train, held_out=held_out, layer="heads")
    novel = ood.fit_novelty(train, held_out)
    with pytest.raises(TypeError, match=r"of ood\.fit_novelty; pass it to ood\.novelty"):
        ood.score(inside, novel)
    found = ood.score(inside, reference)
    with pytest.raises(
        ValueError, match="one of found and the first of found do not hold the same"
    ):
        ood.combine([found, found.isel(case=slice(None, None, -1))])
    with pytest.raises(TypeError, match="each with a pvalue"):
        ood.combine([found, found.drop_vars("pvalue")])
    with pytest.raises(ValueError, match="more cases than units"):
        ood.fit_reference("vim", train.isel(case=slice(0, 7)), held_out=held_out)
    fewer = inside.isel(draw=slice(0, 2))
    with pytest.raises(ValueError, match="of 4 draws, the tree has 1 of 2"):
        ood.score(fewer, reference)
    other = inside.copy()
    other.attrs["seed"] = 1
    with pytest.raises(ValueError, match="another seed"):
        ood.score(other, reference)


def test_pvalues_come_from_cases_that_the_network_has_not_seen(train, held_out) -> None:
    seen = train.copy()
    seen.attrs["log_likelihood_of"] = "training"
    ood.fit_reference("mahalanobis", seen, held_out=held_out)
    with pytest.raises(ValueError, match="tree is of training cases"):
        ood.fit_reference("mahalanobis", seen)
    with pytest.raises(ValueError, match="held_out is of training cases"):
        ood.fit_novelty(held_out, seen)


def test_features_that_no_draw_moves_are_learnt_once(held_out) -> None:
    alike = dict(samples=(2, 3), same_in_all_draws=True)
    trees = [feature_tree(n, p, **alike) for n, p in ((80, "t"), (40, "v"), (10, "i"))]  # type: ignore
    reference = ood.fit_reference("mahalanobis", trees[0], held_out=trees[1])
    assert reference.sizes["function"] == 1
    assert float(ood.score(trees[2], reference)["score_sd"].max()) == 0.0


def test_novelty_looks_at_every_kept_layer(train, held_out, inside, outside) -> None:
    """What only one layer shows is found among several; layer= chooses."""

    def with_early(tree: xr.DataTree, shift: float) -> xr.DataTree:
        random = np.random.default_rng(tree["posterior"].sizes["case"] + int(shift))
        shape = tree["posterior"]["feature:head"].shape
        own = tree["posterior"].to_dataset()
        own["feature:early"] = (own["feature:head"].dims, random.normal(shift, 1.0, shape))
        return xr.DataTree.from_dict(
            {"/": xr.Dataset(attrs=tree.attrs), "/posterior": own,
             "/observed_data": tree["observed_data"].to_dataset()}
        )  # fmt: skip

    trees = [with_early(one, 0.0) for one in (train, held_out, inside)]
    unlike = with_early(feature_tree(120, "u"), 5.0)
    reference = ood.fit_novelty(*trees[:2])
    names = [
        f"{score} of {layer}" for score in ("mahalanobis", "knn") for layer in ("head", "early")
    ]
    names.append("mutual_information")
    found = ood.novelty(unlike, reference)
    assert found["component"].values.tolist() == names
    assert float(ood.evaluate(ood.novelty(trees[2], reference), found, resamples=0)["auroc"]) > 0.95
    one = ood.fit_novelty(*trees[:2], layer="head")
    blind = ood.evaluate(ood.novelty(trees[2], one), ood.novelty(unlike, one), resamples=0)
    assert 0.3 < float(blind["auroc"]) < 0.7
    with pytest.raises(ValueError, match="layer must be one of"):
        ood.fit_novelty(*trees[:2], layer="haed")


# --- masks


def of_masks(tree: xr.DataTree) -> xr.DataTree:
    """A tree whose probabilities are maps of 2 x 3 pixels that differ from one to the next."""
    posterior = tree["posterior"].to_dataset()
    random = np.random.default_rng(posterior.sizes["case"])
    logit = posterior["logit"].values[..., None, None]
    maps = softmax(logit + random.normal(size=(*logit.shape[:4], 2, 3)), 3)
    posterior = posterior.drop_vars(["probs", "logit"])
    posterior["probs"] = (("chain", "draw", "case", "class", "row", "col"), maps)
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=tree.attrs), "/posterior": posterior})


@pytest.mark.parametrize("name", ["mcp", "entropy", "expected_entropy", "mutual_information"])
def test_scores_of_masks_are_means_over_pixels(name: str, inside: xr.DataTree) -> None:
    masks = of_masks(inside)
    found = ood.score(masks, ood.fit_reference(name, of_masks(feature_tree(50, "m"))))
    flat = masks["posterior"].to_dataset()["probs"].values.mean((0, 1))
    parts = uncertainty.entropy(masks, mcse=False)
    expected = {
        "mcp": (1 - flat.max(1)).mean((1, 2)),
        "entropy": parts["predictive_entropy"].mean(("row", "col")).values,
        "expected_entropy": parts["expected_entropy"].mean(("row", "col")).values,
        "mutual_information": parts["mutual_information"].mean(("row", "col")).values,
    }[name]
    np.testing.assert_allclose(found["score"], expected, atol=1e-12)


def test_features_of_segmenters_are_of_one_kind(train, held_out, inside) -> None:
    reference = ood.fit_reference("mahalanobis", of_masks(train), held_out=of_masks(held_out))
    found = ood.score(of_masks(inside), reference)
    oracle = EmpiricalCovariance()
    expected = [
        oracle.fit(table(train, "feature:head", d)).mahalanobis(table(inside, "feature:head", d))
        for d in range(4)
    ]
    np.testing.assert_allclose(found["score"], np.mean(expected, 0), rtol=1e-6)
    assert ood.novelty(
        of_masks(inside), ood.fit_novelty(of_masks(train), of_masks(held_out))
    ).sizes["component"] == 3  # fmt: skip
    with pytest.raises(ValueError, match="no logit"):
        ood.fit_reference("energy", of_masks(held_out))
