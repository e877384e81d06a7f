"""Every analysis on trees made of fixed numbers: classes, masks, numbers, maps of numbers."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from frozen_store import Results, named, tree_of
from scipy import stats

from ppl_med.analysis import (
    aggregation,
    calibration,
    conformal,
    scoring,
    segmentation,
    selective,
    spray,
    uncertainty,
)

SAMPLES = ("chain", "draw")
SCORING = "ppl_med.analysis.scoring"
brier_decomposition = named("brier_decomposition", SCORING, "ppl_med.analysis.decomposition")
crps = named("crps", SCORING, "ppl_med.analysis.draw_scores")
energy = named("energy", SCORING, "ppl_med.analysis.draw_scores")
interval_score = named("interval_score", SCORING, "ppl_med.analysis.quantile_scores")
quantile_score = named("quantile_score", SCORING, "ppl_med.analysis.quantile_scores")


def _softmax(values: np.ndarray, axis: int) -> np.ndarray:
    power = np.exp(values - values.max(axis, keepdims=True))
    return power / power.sum(axis, keepdims=True)


def _ids(cases: int, prefix: str) -> list[str]:
    return [f"{prefix}{index}" for index in range(cases)]


def class_tree(cases: int = 40, prefix: str = "c", seed: int = 0, draws: int = 4) -> xr.DataTree:
    """Two chains of draws, three classes, a site of two per case."""
    rng = np.random.default_rng(seed)
    centre = 1.5 * rng.normal(size=(cases, 3))
    probs = _softmax(centre + 0.5 * rng.normal(size=(2, draws, cases, 3)), -1)
    label = (_softmax(0.7 * centre, -1).cumsum(-1)[:, :-1] < rng.random((cases, 1))).sum(-1)
    ids: dict[str, Any] = {"case": _ids(cases, prefix)}
    picked = np.log(probs[:, :, np.arange(cases), label])
    drawn = (probs.cumsum(-1)[..., :-1] < rng.random(probs.shape[:-1])[..., None]).sum(-1)
    return xr.DataTree.from_dict(
        {
            "/": xr.Dataset(attrs={"log_likelihood_of": "training"}),
            "/posterior": xr.Dataset(
                {"probs": ((*SAMPLES, "case", "class"), probs)}, ids | {"class": ["x", "y", "z"]}
            ),
            "/posterior_predictive": xr.Dataset({"label": ((*SAMPLES, "case"), drawn)}, ids),
            "/log_likelihood": xr.Dataset({"label": ((*SAMPLES, "case"), picked)}, ids),
            "/observed_data": xr.Dataset({"label": ("case", label)}, ids),
            "/constant_data": xr.Dataset({"site": ("case", np.arange(cases) % 2)}, ids),
        }
    )


def number_tree(
    shape: tuple[int, ...] = (40,),
    prefix: str = "c",
    seed: int = 0,
    *,
    draws: int = 4,
    quantiles: bool = False,
) -> xr.DataTree:
    """Normal predictions of a number per case or per pixel."""
    rng = np.random.default_rng(seed)
    dims = ("case", *("row", "col")[: len(shape) - 1])
    centre = rng.normal(size=shape)
    loc = centre + 0.3 * rng.normal(size=(2, draws, *shape))
    scale = np.broadcast_to(0.4 + 0.3 * rng.random(shape), loc.shape)
    value = centre + 0.6 * rng.normal(size=shape)
    ids = {"case": _ids(shape[0], prefix)}
    posterior = xr.Dataset(
        {"loc": ((*SAMPLES, *dims), loc), "scale": ((*SAMPLES, *dims), scale)}, ids
    )
    if quantiles:
        levels = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
        at = loc[..., None] + scale[..., None] * stats.norm.ppf(levels)
        posterior = xr.Dataset(
            {"quantile": ((*SAMPLES, *dims, "level"), at)}, ids | {"level": levels}
        )
    density = stats.norm.logpdf(value, loc, scale)
    density = density.reshape(*density.shape[:3], -1).sum(-1)
    return xr.DataTree.from_dict(
        {
            "/": xr.Dataset(attrs={"log_likelihood_of": "training"}),
            "/posterior": posterior,
            "/posterior_predictive": xr.Dataset(
                {"value": ((*SAMPLES, *dims), rng.normal(loc, scale))}, ids
            ),
            "/log_likelihood": xr.Dataset({"label": ((*SAMPLES, "case"), density)}, ids),
            "/observed_data": xr.Dataset({"value": (dims, value)}, ids),
        }
    )


def mask_tree(
    cases: int = 6, prefix: str = "c", seed: int = 0, graders: int = 0, size: int = 8
) -> xr.DataTree:
    """Blobs with a border that the draws and the graders disagree on; two classes."""
    rng = np.random.default_rng(seed)
    row, col = np.mgrid[:size, :size]
    middle = rng.uniform(2.5, size - 3.5, size=(cases, 2, 1, 1))
    far = np.hypot(row - middle[:, 0], col - middle[:, 1])
    radius = rng.uniform(1.5, 3, size=(cases, 1, 1))
    shift = 0.4 * rng.normal(size=(2, 4, cases, 1, 1))
    logit = 2 * (radius + shift - far)
    probs = np.stack([1 / (1 + np.exp(logit)), 1 / (1 + np.exp(-logit))], 3)
    ids: dict[str, Any] = {"case": _ids(cases, prefix)}
    count = graders or 1
    truth = (far[:, None] < radius[:, None] + 0.5 * rng.normal(size=(cases, count, 1, 1))).astype(
        int
    )
    observed = (
        xr.Dataset({"mask": (("case", "grader", "row", "col"), truth)}, ids)
        if graders
        else xr.Dataset({"mask": (("case", "row", "col"), truth[:, 0])}, ids)
    )
    drawn = (probs[:, :, :, 1] > rng.random(probs[:, :, :, 1].shape)).astype(int)
    return xr.DataTree.from_dict(
        {
            "/posterior": xr.Dataset(
                {"probs": ((*SAMPLES, "case", "class", "row", "col"), probs)},
                ids | {"class": ["background", "lesion"]},
            ),
            "/posterior_predictive": xr.Dataset(
                {"mask": ((*SAMPLES, "case", "row", "col"), drawn)}, ids
            ),
            "/observed_data": observed,
        }
    )


def sometimes_empty() -> tuple[xr.DataTree, xr.DataArray, xr.DataArray]:
    """Masks that have a lesion in some draws only, its probability, and graders likewise."""
    tree, rng = mask_tree(20, graders=4), np.random.default_rng(5)
    share = rng.uniform(0.1, 0.9, size=20)
    present = rng.random((2, 4, 20, 1, 1)) < share[:, None, None]
    posterior = tree["posterior"].to_dataset()
    graded = tree["observed_data"].to_dataset()["mask"]
    truth = xr.DataArray(share, {"case": posterior["case"].values}, ("case",))
    seen = rng.random((20, 4, 1, 1)) < share[:, None, None, None]
    probs = posterior["probs"].values * present[:, :, :, None]
    probs[:, :, :, 0] = 1 - probs[:, :, :, 1]
    tree["posterior"] = posterior.assign(probs=posterior["probs"].copy(data=probs))
    return tree, truth, graded * seen


def held_out(tree: xr.DataTree) -> xr.DataTree:
    """The same tree, said to be of held-out cases."""
    found = tree.copy()
    found.attrs["log_likelihood_of"] = "held-out"
    return found


def of_classes() -> Results:
    tree, other = class_tree(), class_tree(20, "d", 1)
    found = {
        "score": scoring.score(tree),
        "elpd_heldout": scoring.elpd_heldout(held_out(other)),
        "reliability": scoring.reliability(tree, bins=5),
        "brier_decomposition": brier_decomposition(tree),
        "brier_decomposition/binned": brier_decomposition(tree, "binned", bins=5),
        "entropy": uncertainty.entropy(tree),
        "variance": uncertainty.variance(tree),
        "summary": uncertainty.summary(tree),
        "errors": calibration.errors(tree, bins=5, replicates=20),
        "errors_by_group": calibration.errors_by_group(tree, "site", bins=5, replicates=20),
        "reliability_classwise": calibration.reliability_classwise(tree, bins=5),
        "pava": calibration.pava(tree, replicates=20),
    }
    for method in ("temperature", "vector", "matrix", "isotonic", "beta", "histogram"):
        learnt = calibration.fit(tree, method)
        found[f"recalibration/{method}"] = learnt
        applied = calibration.apply(learnt, other)["posterior"].to_dataset().load()
        found[f"recalibrated/{method}"] = applied
    for method in ("lac", "aps", "raps", "saps"):
        learnt = conformal.calibrate(tree, 0.2, method=method)
        sets = conformal.predict_sets(learnt, other)
        found[f"calibrate/{method}"], found[f"predict_sets/{method}"] = learnt, sets
        found[f"coverage/{method}"] = conformal.coverage(sets, other)
        found[f"set_sizes/{method}"] = conformal.set_sizes(sets)
    mondrian = conformal.calibrate(tree, 0.2, within="site")
    found["predict_sets/mondrian"] = conformal.predict_sets(mondrian, other)
    found["leave_one_out_sets"] = conformal.leave_one_out_sets(
        class_tree(draws=20), class_tree(10, "d", 1, 20), 0.2, pareto_k=5.0
    )
    found["bayes_sets"] = conformal.bayes_sets(tree, other, 0.2, min_effective_draws=1.0)
    return found | _selective(tree, "zero_one", ("predictive_entropy", "max_probability"))


def _selective(tree: xr.DataTree, error: str, scores: tuple[str, ...]) -> Results:
    found: Results = {}
    given: dict[str, Any] = {"replicates": 10}
    for score in scores:
        where = f"{error}/{score}"
        kinds: dict[str, Any] = {
            "risk_coverage": lambda score=score: selective.risk_coverage(
                tree, score, error, coverage=(0.25, 0.5, 1.0), **given
            ),
            "sparsification": lambda score=score: selective.sparsification(
                tree, score, error, removed=(0.0, 0.3, 0.6), **given
            ),
            "precision_recall": lambda score=score: selective.precision_recall(
                tree, score, error, recall=(0.2, 0.5, 1.0), **given
            ),
            "scores": lambda score=score: selective.scores(tree, score).to_dataset(name="score"),
            "entry_errors": lambda: selective.errors(tree, error).to_dataset(name="error"),
        }
        if error in ("absolute", "squared"):
            del kinds["precision_recall"]
        found |= {f"{kind}/{where}": make() for kind, make in kinds.items()}
    return found


def of_numbers() -> Results:
    tree, other = number_tree(), number_tree((20,), "d", 1)
    quantiles, maps = number_tree(quantiles=True), number_tree((6, 4, 4))
    found = {
        "crps": crps(tree),
        "crps/maps": crps(maps),
        "energy": energy(maps, over=("row", "col")),
        "quantile_score": quantile_score(tree),
        "interval_score": interval_score(quantiles),
        "variance/numbers": uncertainty.variance(tree),
        "variance/maps": uncertainty.variance(maps),
        "coverage/numbers": calibration.coverage(tree, levels=(0.5, 0.9)),
        "pit": calibration.pit(tree),
        "dispersion": calibration.dispersion(tree, bins=4, replicates=20),
        "number_errors": calibration.number_errors(tree, bins=4, replicates=20),
        "number_errors/maps": calibration.number_errors(maps, bins=4, replicates=20),
    }
    for method in ("absolute", "normalised", "cqr"):
        fitted = conformal.calibrate_intervals(tree, 0.2, method=method)
        found[f"calibrate_intervals/{method}"] = fitted
        found[f"predict_intervals/{method}"] = conformal.predict_intervals(fitted, other)
    found["leave_one_out_intervals"] = conformal.leave_one_out_intervals(
        number_tree(draws=20), number_tree((10,), "d", 1, draws=20), 0.2, pareto_k=5.0
    )
    found["bayes_intervals"] = conformal.bayes_intervals(
        tree, other, 0.2, num_points=21, min_effective_draws=1.0
    )
    return found | _selective(tree, "absolute", ("epistemic",))


def of_masks() -> Results:
    tree, graded = mask_tree(), mask_tree(graders=3)
    many, other = mask_tree(30), mask_tree(6, "d", 1)
    truth = graded["observed_data/mask"].transpose("case", "grader", "row", "col")
    two = truth.isel(grader=slice(2)).rename(grader="mode")
    sparse, present, marked = sometimes_empty()
    maps = uncertainty.entropy(tree)
    predicted = aggregation.predicted_mask(tree)
    settings: dict[str, dict[str, Any]] = {
        "mean": {},
        "max": {},
        "quantile": {},
        "patch_max": {"patch": 3},
        "boundary": {"mask": predicted},
        "foreground": {"mask": predicted},
    }
    found = {
        "score/masks": scoring.score(tree),
        "brier_decomposition/masks": brier_decomposition(tree),
        "entropy/masks": uncertainty.entropy(tree, mcse=False),
        "maps": segmentation.maps(tree),
        "region_uncertainty": segmentation.region_uncertainty(tree),
        "ged": segmentation.ged(graded),
        "ged/draws": segmentation.ged(graded, samples="draw"),
        "diversity": segmentation.diversity(graded),
        "hungarian": segmentation.hungarian(graded),
        "dice_max": segmentation.dice_max(graded),
        "d_max": segmentation.d_max(graded),
        "soft_dice": segmentation.soft_dice(graded),
        "collective_insight": segmentation.collective_insight(graded),
        "ncc": segmentation.ncc(graded),
        "sizes": segmentation.sizes(graded, spacing=(0.5, 0.5)),
        "oracle_iou": segmentation.oracle_iou(graded, truth.roll(row=1)),
        "modes": segmentation.modes(graded, two, ties="equal"),
        "pixel_reliability": segmentation.pixel_reliability(graded, bins=5),
        "presence_reliability/truth": segmentation.presence_reliability(
            sparse, present, bins=5, simulations=10
        ),
        "presence_reliability/graders": segmentation.presence_reliability(
            sparse, annotations=marked, bins=5, simulations=10
        ),
        "predict_masks": conformal.predict_masks(conformal.calibrate_masks(many, 0.3), other),
        "calibrate_masks": conformal.calibrate_masks(many, 0.3),
    }
    found |= {
        f"aggregate/{how}": aggregation.aggregate(maps, how, **given)
        for how, given in settings.items()
    }
    return found | _selective(tree, "zero_one", ("mutual_information",))


def of_maps() -> Results:
    rng = np.random.default_rng(3)
    values = 0.1 * rng.normal(size=(30, 6, 6))
    values[np.arange(30), np.arange(30) % 2 * 3] += 1.0
    maps = xr.DataArray(values, {"case": _ids(30, "c")}, ("case", "row", "col"))
    label = np.arange(30) % 3 % 2
    options: dict[str, Any] = {"embedding": "spectral", "size": 6, "neighbours": 5}
    return {
        "spray": spray.clusters(maps, label, most_clusters=5, **options),
        "unit_maps": spray.unit_maps(maps, "positive").to_dataset(name="map"),
    }


GROUPS: dict[str, Callable[[], Results]] = {
    "classes": of_classes,
    "numbers": of_numbers,
    "masks": of_masks,
    "maps": of_maps,
}


CLASSES = ("shared", "dropout", "ensemble", "bernoulli", "label_noise", "latent-classifier")
NUMBERS = ("gaussian", "laplace-noise", "student-t", "quantiles")
MASKS = ("segmenter", "probabilistic-unet", "hierarchical", "low-rank", "multi-head")


def of_predicted(runs: Results) -> Results:
    """Analyses of the trees that the frozen runs predicted."""
    found: Results = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for name in (*CLASSES, *MASKS):
            tree = tree_of(runs, name)
            found[f"{name}: score"] = scoring.score(tree)
            found[f"{name}: entropy"] = uncertainty.entropy(tree)
        for name in CLASSES:
            found[f"{name}: elpd_heldout"] = scoring.elpd_heldout(tree_of(runs, name))
        for name in MASKS:
            found[f"{name}: ged"] = segmentation.ged(tree_of(runs, name))
        for name in NUMBERS:
            found[f"{name}: crps"] = crps(tree_of(runs, name))
            found[f"{name}: pit"] = calibration.pit(tree_of(runs, name))
        found["dense: variance"] = uncertainty.variance(tree_of(runs, "dense"))
    return found


def result(group: str) -> Results:
    """Those of one group by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return {f"analysis {name}": found for name, found in GROUPS[group]().items()}
