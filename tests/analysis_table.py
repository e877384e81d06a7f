"""The table of all analyses, and the trees they are tried on; see test_analyses.py.

A new analysis is one line of `ANALYSES`: its name, a function of a tree, and what kind of tree.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from detection_trees import detection_tree, drawn_boxes, graded_tree
from posterior_trees import array
from scipy.special import expit, softmax

from ppl_med import analysis
from ppl_med.analysis import (
    acquisition,
    aggregation,
    augmentation,
    calibration,
    case_groups,
    class_subsets,
    conformal,
    detection,
    exports,
    findings,
    moments,
    ood,
    scoring,
    segmentation,
    selective,
    shift,
    spray,
    uncertainty,
)
from ppl_med.analysis.ood import generative
from ppl_med.axes import SAMPLES

Result: TypeAlias = xr.Dataset | xr.DataArray

CASES, SIDE = 12, 4
HOLES = (2, 7)  # cases of which nothing was observed; of maps also the first row of every case


@dataclass(frozen=True)
class Kind:
    """A kind of tree.

    Args:
        build: From the number of cases and a prefix of their ids.
        observed: What may hold -1 or NaN; its values are what an analysis leaves out.
        rows: Whether a row of every map is left out too, not only whole cases.
    """

    build: Callable[[int, str], xr.DataTree]
    observed: str
    rows: bool = True


@dataclass(frozen=True)
class Analysis:
    """A row of the table.

    Args:
        run: The analysis, with settings that draw no random number.
        kind: Of the tree.
        reads: Whether it reads observations; if not, it leaves nothing out.
        unknown: Results that are NaN for a case without observation.
        members: Whether chains mean members to it, and are not pooled.
    """

    run: Callable[[xr.DataTree], Result]
    kind: Kind
    reads: bool = True
    unknown: tuple[str, ...] = ()
    members: bool = False


def ids(number: int, prefix: str) -> dict[str, Any]:
    """Case ids, and coordinates of the user beside them."""
    return {
        "case": [f"{prefix}{index}" for index in range(number)],
        "age": ("case", 40.0 + np.arange(number)),
        "ward": ("case", np.array(["north", "south"])[np.arange(number) % 2]),
    }


def class_tree(
    number: int = CASES, prefix: str = "c", extra: tuple[str, ...] = (), draws: int = 3
) -> xr.DataTree:
    """Two chains of three draws of three classes; the labels leave no map unlearnable."""
    rng = np.random.default_rng(len(prefix) + len(extra))
    shape = (number, 3, *(SIDE for _ in extra))
    centre = 1.5 * rng.normal(size=shape)
    probs = softmax(centre + 0.5 * rng.normal(size=(2, draws, *shape)), 3)
    label = (centre + 2 * rng.normal(size=shape)).argmax(1)
    coords = ids(number, prefix)
    dims = (*SAMPLES, "case", "class", *extra)
    chosen = np.take_along_axis(probs, label[None, None, :, None], 3)[:, :, :, 0]
    name = "mask" if extra else "label"
    groups = {
        "/": xr.Dataset(attrs={"log_likelihood_of": "held-out"}),
        "/posterior": xr.Dataset({"probs": (dims, probs)}, coords | {"class": ["x", "y", "z"]}),
        "/log_likelihood": xr.Dataset({name: ((*dims[:3], *extra), np.log(chosen))}, coords),
        "/observed_data": xr.Dataset({name: (("case", *extra), label)}, coords),
        "/constant_data": xr.Dataset({"site": ("case", np.arange(number) % 2)}, coords),
    }
    return xr.DataTree.from_dict(groups)


def pixel_tree(number: int = CASES, prefix: str = "c") -> xr.DataTree:
    """The same with a class per pixel."""
    return class_tree(number, prefix, ("row", "col"))


def sampled_tree(number: int = CASES, prefix: str = "c") -> xr.DataTree:
    """Two chains of two draws of the weights, each with three samples of a class per pixel."""
    tree = class_tree(number, prefix, ("row", "col"), draws=6)
    for name in ("posterior", "log_likelihood"):
        group = tree[name].to_dataset().assign_coords(weights=("draw", np.repeat([0, 1], 3)))
        tree[name] = xr.DataTree(group)
    return tree


def augmented_tree(
    number: int = CASES, prefix: str = "c", extra: tuple[str, ...] = ()
) -> xr.DataTree:
    """The draws of a tree of classes, each under four augmentations."""
    tree = class_tree(number, prefix, extra)
    group = tree["posterior"].to_dataset()
    probs = group["probs"]
    moved = np.random.default_rng(7).normal(size=(4, *probs.shape[2:]))
    effect = xr.DataArray(moved, dims=("augmentation", *probs.dims[2:]))
    logs: Any = np.log(probs)
    odds = (logs + 0.4 * effect).transpose(*SAMPLES, "augmentation", ...)
    under = odds.copy(data=softmax(odds.values, odds.get_axis_num("class")))
    tree["posterior"] = xr.DataTree(group.assign(probs=under))
    return tree


def number_tree(
    number: int = CASES, prefix: str = "c", extra: tuple[str, ...] = (), draws: int = 3
) -> xr.DataTree:
    """Two chains of three draws of a normal distribution per case."""
    rng = np.random.default_rng(len(prefix) + len(extra))
    shape = (number, *(SIDE for _ in extra))
    centre = rng.normal(size=shape)
    loc = centre + 0.3 * rng.normal(size=(2, draws, *shape))
    scale = rng.uniform(0.4, 0.7, size=loc.shape)
    value = centre + 0.6 * rng.normal(size=shape)
    density = -0.5 * ((value - loc) / scale) ** 2 - np.log(scale)
    coords, dims = ids(number, prefix), (*SAMPLES, "case", *extra)
    groups = {
        "/": xr.Dataset(attrs={"log_likelihood_of": "held-out"}),
        "/posterior": xr.Dataset({"loc": (dims, loc), "scale": (dims, scale)}, coords),
        "/posterior_predictive": xr.Dataset({"value": (dims, rng.normal(loc, scale))}, coords),
        "/log_likelihood": xr.Dataset({"value": (dims, density)}, coords),
        "/observed_data": xr.Dataset({"value": (dims[2:], value)}, coords),
    }
    return xr.DataTree.from_dict(groups)


def depth_tree(number: int = CASES, prefix: str = "c") -> xr.DataTree:
    """The same with a number per pixel."""
    return number_tree(number, prefix, ("row", "col"))


def finding_tree(number: int = CASES, prefix: str = "c") -> xr.DataTree:
    """Two chains of three draws of three findings, each there in some cases."""
    rng = np.random.default_rng(len(prefix))
    names = ["effusion", "mass", "nodule"]
    centre = 1.5 * rng.normal(size=(number, len(names)))
    odds = centre + 0.5 * rng.normal(size=(2, 3, *centre.shape))
    label = (centre + 2 * rng.normal(size=centre.shape) > 0).astype(np.int64)
    coords = {**ids(number, prefix), "finding": names}
    classes = coords | {"class": ["absent", "present"]}
    dims = (*SAMPLES, "case", "class", "finding")
    density = np.where(label == 1, expit(odds), expit(-odds))
    groups = {
        "/": xr.Dataset(attrs={"log_likelihood_of": "held-out"}),
        "/posterior": xr.Dataset(
            {"probs": (dims, np.stack([expit(-odds), expit(odds)], 3))}, classes
        ),
        "/log_likelihood": xr.Dataset(
            {"findings": (dims[:3], np.log(density).sum(-1))}, ids(number, prefix)
        ),
        "/observed_data": xr.Dataset({"findings": (("case", "finding"), label)}, coords),
    }
    return xr.DataTree.from_dict(groups)


def map_tree(number: int = CASES, prefix: str = "c") -> xr.DataTree:
    """Maps of an uncertainty, in which NaN is what an analysis leaves out."""
    values = np.random.default_rng(0).random((number, SIDE, SIDE))
    maps = xr.Dataset({"map": (("case", "row", "col"), values)}, ids(number, prefix))
    return xr.DataTree.from_dict({"/maps": maps})


def generated_tree(number: int = CASES, prefix: str = "c", model: str = "one") -> xr.DataTree:
    """Images, their likelihoods under codes of two chains of three draws, and those codes."""
    rng = np.random.default_rng(len(prefix) + len(model))
    coords, dims = ids(number, prefix), (*SAMPLES, "case")
    image = rng.normal(size=(number, 1, SIDE, SIDE))
    code = rng.normal(size=(2, 3, number, 2))
    density = {name: rng.normal(size=(2, 3, number)) for name in ("image", "prior", "guide")}
    posterior = {"z": ((*dims, "latent"), code), "error": (dims, np.exp(density["image"]))}
    groups = {
        "/": xr.Dataset(attrs={"log_likelihood_of": "held-out", "parameters_sha256": model}),
        "/posterior": xr.Dataset(posterior, coords),
        "/log_likelihood": xr.Dataset({"image": (dims, density["image"])}, coords),
        "/log_prior": xr.Dataset({"z": (dims, density["prior"])}, coords),
        "/log_guide": xr.Dataset({"z": (dims, density["guide"])}, coords),
        "/observed_data": xr.Dataset({"image": (("case", "channel", "row", "col"), image)}, coords),
    }
    return xr.DataTree.from_dict(groups)


def generative_scores(tree: xr.DataTree, name: str) -> xr.Dataset:
    """Scores of generated cases against others."""
    learnt = unseen(lambda number, prefix: generated_tree(number, "learnt"), tree)
    return ood.score(tree, ood.fit_reference(name, learnt, held_out=unseen(generated_tree, tree)))


def background(tree: xr.DataTree) -> xr.DataTree:
    """The tree as another model would give it: densities in another order."""
    result = tree.copy()
    density = tree["log_likelihood"].to_dataset()
    result["log_likelihood"] = xr.DataTree(density.assign(image=2 * density["image"]))
    result.attrs["parameters_sha256"] = "another"
    return result


def recalibrated(tree: xr.DataTree) -> xr.Dataset:
    """Calibrated probabilities and log-likelihoods, by a map learnt on other cases."""
    build = pixel_tree if "row" in tree["posterior"].dims else class_tree
    learnt = calibration.fit(build(30, "other"))
    found = calibration.apply(learnt, tree)
    logs = next(iter(found["log_likelihood"].data_vars.values()))
    mixture = {"probs": found["posterior/probs"], "logs": logs}
    return xr.Dataset(mixture, attrs=found.attrs).isel(chain=0, draw=0, drop=True)


def grader_tree(number: int = CASES, prefix: str = "c") -> xr.DataTree:
    """Sampled masks, probabilities and the masks of three graders."""
    tree = pixel_tree(number, prefix)
    rng = np.random.default_rng(len(prefix))
    coords, space = ids(number, prefix), ("row", "col")
    drawn = rng.integers(0, 3, (2, 3, number, SIDE, SIDE))
    graded = rng.integers(0, 3, (number, 3, SIDE, SIDE))
    masks = {"mask": ((*SAMPLES, "case", *space), drawn)}
    tree["posterior_predictive"] = xr.DataTree(xr.Dataset(masks, coords))
    observed = xr.Dataset({"mask": (("case", "grader", *space), graded)}, coords)
    tree["observed_data"] = xr.DataTree(observed)
    return tree.filter(lambda node: node.name != "log_likelihood")


def attribution_tree(number: int = CASES, prefix: str = "c") -> xr.DataTree:
    """Attributions of two chains of three draws; two kinds of cases."""
    values = np.random.default_rng(0).normal(size=(2, 3, number, SIDE, SIDE))
    values[:, :, ::2, 0] += 3
    dims = (*SAMPLES, "case", "row", "col")
    maps = xr.Dataset({"map": (dims, values)}, ids(number, prefix))
    return xr.DataTree.from_dict({"/maps": maps})


def moments_tree(number: int = CASES, prefix: str = "c") -> xr.DataTree:
    """Moments of draws of a class per pixel."""
    probs = array(pixel_tree(number, prefix), "posterior/probs")
    entropy = -(probs * np.log(probs)).sum("class").mean(SAMPLES)
    mean = probs.mean(SAMPLES).assign_attrs(num_draws="6")
    group = {"probs_mean": mean, "probs_variance": probs.var(SAMPLES, ddof=1)}
    posterior = xr.Dataset({**group, "expected_entropy": entropy})
    observed = pixel_tree(number, prefix)["observed_data"].to_dataset()
    return xr.DataTree.from_dict({"/posterior_moments": posterior, "/observed_data": observed})


def with_copies(group: xr.Dataset, copies: int) -> xr.Dataset:
    """Every draw as often as that."""
    if "draw" not in group.dims:
        return group
    return group.isel(draw=np.repeat(np.arange(group.sizes["draw"]), copies))


def training(build: Callable[[int, str], xr.DataTree], tree: xr.DataTree) -> xr.DataTree:
    """Training cases, as many chains and draws of them as the tree has."""
    copies = tree.attrs.get("copies", 1)
    chains, draws = (tree["posterior"].sizes[dim] for dim in SAMPLES)
    draws //= copies

    def same_draws(group: xr.Dataset) -> xr.Dataset:
        if "draw" not in group.dims:
            return group
        flat = group.stack(all=SAMPLES, create_index=False)
        parts = [flat.isel(all=slice(draws * c, draws * (c + 1))) for c in range(chains)]
        joined = xr.concat(parts, "chain").rename(all="draw").transpose(*SAMPLES, ...)
        return with_copies(joined, copies)

    result = build(15, "other").map_over_datasets(same_draws)
    result.attrs["log_likelihood_of"] = "training"
    return result


def predicted(result: xr.Dataset) -> xr.Dataset:
    """The result without the test of shift, which sees cases without an observation too."""
    return result.drop_vars("shift_pvalue")


def prediction_sets(tree: xr.DataTree, **options: Any) -> xr.Dataset:
    """Sets by a threshold learnt on other cases."""
    learnt = conformal.calibrate(class_tree(30, "other"), 0.2, **options)
    return predicted(conformal.predict_sets(learnt, tree, shift_alarm=0))


def resampled_accuracy(tree: xr.DataTree) -> xr.Dataset:
    """Accuracy over groups of cases; its errors are drawn, and not compared."""
    ids = np.asarray(tree["observed_data/label"]["case"])
    groups = xr.DataArray([f"p{str(one)[1:]}" for one in ids], {"case": ids}, "case")
    return case_groups.bootstrap(scoring.score, tree, groups, resamples=20)[["accuracy", "nll"]]


def left_out_in_turn(tree: xr.DataTree) -> xr.Dataset:
    """PSIS, of which the sum is compared: few draws give large Pareto k, of which it warns."""
    tree = tree.copy()
    tree.attrs["log_likelihood_of"] = "training"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto")
        return scoring.elpd_loo(tree)[["elpd_sum", "elpd_sum_se"]]


def table(tree: xr.DataTree) -> xr.Dataset:
    """The numbers of the table of results."""
    frame = exports.to_frame(tree)
    kept = frame.select_dtypes("number").drop(columns=["age"])
    coords = {name: ("case", frame[name].to_numpy(str)) for name in ("ward",)}
    ids = frame["id"].to_numpy(str)
    return xr.Dataset(
        {name: ("case", kept[name].to_numpy(float)) for name in kept},
        {"case": ids, "age": ("case", frame["age"].to_numpy(float)), **coords},
    )


def some_classes(tree: xr.DataTree) -> xr.Dataset:
    """Two of three classes, whose cases are told by their names."""
    found = class_subsets.select(tree, ["z", "x"])
    result = scoring.entry_scores(found)[["nll", "brier", "confidence"]]
    label = tree["observed_data/label"]
    assert isinstance(label, xr.DataArray)
    left = result["nll"].reindex_like(label).assign_coords(label.coords)
    counts = {"num_cases": int((label != -1).sum()), "left_out": int((label == -1).sum())}
    return xr.Dataset({"left": left}, attrs=counts | {"left_out_cases": counts["left_out"]})


def prediction_intervals(tree: xr.DataTree) -> xr.Dataset:
    """Intervals by a threshold learnt on other cases."""
    learnt = conformal.calibrate_intervals(number_tree(30, "other"), 0.2, method="absolute")
    return predicted(conformal.predict_intervals(learnt, tree, shift_alarm=0))


def prediction_masks(tree: xr.DataTree) -> xr.Dataset:
    """Masks by a threshold learnt on other cases."""
    learnt = conformal.calibrate_masks(grader_tree(30, "other"), 0.3)
    return predicted(conformal.predict_masks(learnt, tree, shift_alarm=0))


def reconstructions(tree: xr.DataTree) -> xr.Dataset:
    """The overlap of graders' masks with one drawn mask."""
    drawn = tree["posterior_predictive/mask"].isel(chain=0, draw=[0] * 3)
    return segmentation.oracle_iou(tree, drawn.rename(draw="grader"))


def clusters(tree: xr.DataTree) -> xr.Dataset:
    """Clusters; the sign of an eigenvector says nothing, and pairs of cases have two orders."""
    options: dict[str, Any] = {"most_clusters": 3, "neighbours": 3, "embedding": "spectral"}
    return (
        spray.clusters(array(tree, "maps/map"), **options)
        .drop_vars("coordinate")
        .drop_dims("case2", errors="ignore")
    )


def compared(function: Callable[..., xr.Dataset], *unknown: str, **options: Any) -> Analysis:
    """A comparison with graders, whose figure per case has the name of the function."""
    return Analysis(
        lambda tree: function(tree, **options), GRADERS, unknown=unknown or (function.__name__,)
    )


def selected(function: Callable[..., xr.Dataset]) -> dict[str, Analysis]:
    """A curve of labels, masks and numbers."""
    name = f"selective.{function.__name__}"
    kinds = {"": LABELS, "/pixels": PIXELS, "/numbers": NUMBERS}
    if function is selective.precision_recall:
        del kinds["/numbers"]
    return {
        name + suffix: Analysis(lambda tree: function(tree, "total", replicates=0), kind)
        for suffix, kind in kinds.items()
    }


def patient_tree(number: int = CASES, prefix: str = "c") -> xr.DataTree:
    """Labelled cases, two of every patient."""
    tree = class_tree(number, prefix)
    group = tree["constant_data"].to_dataset()
    pairs = [f"p{int(name[1:]) // 2}" for name in group["case"].values]
    tree["constant_data"] = xr.DataTree(group.assign(pair=("case", pairs)))
    return tree


def feature_tree(number: int = CASES, prefix: str = "c") -> xr.DataTree:
    """Labelled cases with logits and features of a layer."""
    tree = class_tree(number, prefix)
    group = tree["posterior"].to_dataset()
    logit: Any = np.log(group["probs"])
    turn = np.random.default_rng(5).normal(size=(3, 4))
    feature = xr.DataArray(logit.values @ turn, dims=(*SAMPLES, "case", "unit"))
    kept = {"logit": logit, "feature:head": feature}
    tree["posterior"] = xr.DataTree(group.assign(kept))
    return tree


def unseen(build: Callable[[int, str], xr.DataTree], tree: xr.DataTree) -> xr.DataTree:
    """In-distribution cases, as many chains and draws of them as the tree has."""
    result = training(build, tree)
    result.attrs["log_likelihood_of"] = "held-out"
    return result


def ood_scores(tree: xr.DataTree, name: str = "entropy") -> xr.Dataset:
    """Scores of cases against others."""
    return ood.score(tree, ood.fit_reference(name, unseen(class_tree, tree)))


def distances(tree: xr.DataTree) -> xr.Dataset:
    """Scores of cases against features of others."""
    return ood.score(tree, ood.fit_reference("knn", unseen(feature_tree, tree), k=2))


def novelties(tree: xr.DataTree) -> xr.Dataset:
    """Novelty of cases against others."""
    build = partial(feature_tree, 15)
    held_out = unseen(lambda number, prefix: build("held"), tree)
    return ood.novelty(tree, ood.fit_novelty(unseen(feature_tree, tree), held_out))


IMAGES = Kind(generated_tree, "observed_data/image")


def told_apart_tree(number: int = CASES, prefix: str = "c") -> xr.DataTree:
    """Labelled cases most of which are called what they are."""
    tree = class_tree(number, prefix)
    right = np.eye(3)[array(tree, "observed_data/label").values]
    group = tree["posterior"].to_dataset()
    tree["posterior"] = xr.DataTree(group.assign(probs=0.4 * group["probs"] + 0.6 * right))
    return tree


def others(tree: xr.DataTree) -> xr.DataTree:
    """Further in-distribution cases, some more."""
    return unseen(lambda number, prefix: feature_tree(40, "held"), tree)


def shift_found(tree: xr.DataTree) -> xr.Dataset:
    """Diagnosis of cases against others."""
    reference = shift.fit_reference(unseen(feature_tree, tree), held_out=others(tree))
    return shift.diagnose(tree, reference, permutations=9, resamples=9)


def bought(tree: xr.DataTree, by: str, **options: Any) -> xr.Dataset:
    """Three purchases, as figures of every case: NaN where a case is not bought."""
    cases = next(iter(tree["observed_data"].to_dataset().data_vars.values())).coords
    found = acquisition.acquire(tree, by, 3, **options).reset_coords(drop=True)
    ids = cases["case"].values
    result = found.reindex(case=ids)
    return result.assign_coords({n: cases[n].variable for n in ("age", "ward")})


def bought_for(tree: xr.DataTree, by: str) -> xr.Dataset:
    """The same, with target cases where the rule reads them."""
    reads = "targets" in acquisition.needs(by)
    return bought(tree, by, **({"targets": training(class_tree, tree)} if reads else {}))


def bought_rows() -> dict[str, Analysis]:
    """A purchase by every rule; of features, units of two nets do not correspond."""
    rows = {}
    for name in acquisition.METHODS:
        reads = acquisition.needs(name)
        kind = PIXELS if "maps" in reads else FEATURES if "feature" in reads else LABELS
        rows[f"acquisition.acquire/{name}"] = Analysis(
            partial(bought_for, by=name), kind, reads=False, members="feature" in reads
        )
    return rows


def scored_rows() -> dict[str, Analysis]:
    """Scores of cases, of labels and of maps."""
    rows = {}
    for function in (
        acquisition.max_entropy,
        acquisition.bald,
        acquisition.variation_ratio,
        acquisition.mean_sd,
        acquisition.margin,
        acquisition.least_confidence,
    ):
        name = f"acquisition.{function.__name__}"
        rows[name] = Analysis(function, LABELS, reads=False)
        rows[f"{name}/pixels"] = Analysis(
            partial(function, aggregation="foreground"), PIXELS, reads=False
        )
    return rows


def box_rows() -> dict[str, Analysis]:
    """Figures of boxes; an image without true boxes is none that was left out."""
    learnt = detection_tree(30, "other")
    figures: dict[str, Callable[..., Result]] = {
        name: getattr(detection, name)
        for name in (
            "average_precision",
            "calibration_errors",
            "edge_coverage",
            "existence",
            "fit_confidence",
            "froc",
            "lrp",
            "pdq",
        )
    }
    figures |= {
        "calibrate_boxes": lambda tree: detection.calibrate_boxes(tree, missed=0.5, outside=0.3),
        "predict_boxes": lambda tree: detection.predict_boxes(
            detection.calibrate_boxes(learnt, missed=0.5, outside=0.3), tree
        ),
        "bootstrap": lambda tree: detection.bootstrap("pdq", tree, resamples=20),
        "thresholds": lambda tree: detection.thresholds(tree, otherwise=0.5),
        "apply_confidence": lambda tree: detection.apply_confidence(
            detection.fit_confidence(learnt), tree
        )["objects"].to_dataset(),
        "apply_thresholds": lambda tree: detection.apply_thresholds(
            detection.thresholds(learnt), tree
        )["objects"].to_dataset(),
    }
    rows = {f"detection.{name}": Analysis(run, BOXES, reads=False) for name, run in figures.items()}
    spread = Analysis(detection.reader_spread, GRADED_BOXES, reads=False)
    joined = Analysis(
        lambda tree: detection.objects(tree)["objects"].to_dataset(), DRAWN_BOXES, reads=False
    )
    return rows | {"detection.reader_spread": spread, "detection.objects": joined}


def bound_tree(number: int = CASES, prefix: str = "c") -> xr.DataTree:
    """Bounds of the log-density in two chains of three draws, as of a diffusion."""
    bound = np.random.default_rng(1).normal(-40, 5, (2, 3, number))
    group = xr.Dataset({"mask": ((*SAMPLES, "case"), bound)}, coords=ids(number, prefix))
    label = np.random.default_rng(2).integers(0, 2, number)
    observed = xr.Dataset({"mask": ("case", label)}, coords=ids(number, prefix))
    return xr.DataTree.from_dict({"/evidence_bound": group, "/observed_data": observed})


BOUNDS = Kind(bound_tree, "observed_data/mask", rows=False)
LABELS = Kind(class_tree, "observed_data/label")
FEATURES = Kind(feature_tree, "observed_data/label")
PATIENTS = Kind(patient_tree, "observed_data/label")
AUGMENTED = Kind(augmented_tree, "observed_data/label")
AUGMENTED_PIXELS = Kind(partial(augmented_tree, extra=("row", "col")), "observed_data/mask")
PIXELS = Kind(pixel_tree, "observed_data/mask")
SAMPLED = Kind(sampled_tree, "observed_data/mask")
NUMBERS = Kind(number_tree, "observed_data/value")
DEPTHS = Kind(depth_tree, "observed_data/value")
FINDINGS = Kind(finding_tree, "observed_data/findings", rows=False)
MOMENTS = Kind(moments_tree, "observed_data/mask")
MAPS = Kind(map_tree, "maps/map")
MANY_LABELS = Kind(partial(class_tree, draws=15), "observed_data/label")
MANY_NUMBERS = Kind(partial(number_tree, draws=15), "observed_data/value")
GRADERS = Kind(grader_tree, "observed_data/mask")
WHOLE = Kind(grader_tree, "observed_data/mask", rows=False)
ATTRIBUTIONS = Kind(attribution_tree, "maps/map")
BOXES = Kind(detection_tree, "observed_data/box_label", rows=False)
DRAWN_BOXES = Kind(drawn_boxes, "observed_data/box_label", rows=False)
GRADED_BOXES = Kind(graded_tree, "observed_data/box_label", rows=False)

MODULES = [
    import_module(f"{analysis.__name__}.{module.name}")
    for module in iter_modules(analysis.__path__)
    if module.name not in ("statistics", "tree")
]
NO_ANALYSES = {  # functions of other things than a tree, and those which must not pool chains
    "acquisition.needs",
    "convergence.effective_draws",
    "convergence.r_hat",
    "scoring.mean_iou",
    "conformal.Score",
    "exports.write_attribution",
    "exports.write_csv",
    "exports.write_dicom_seg",
    "exports.write_nifti",
    "findings.select",
    "conformal.coverage_band",
    "conformal.coverage_rank",
    "conformal.density_ratio",
    "spray.Embedding",
    "spray.Part",
}
ANALYSES: dict[str, Analysis] = {
    **box_rows(),
    **bought_rows(),
    **scored_rows(),
    "acquisition.epig": Analysis(
        lambda tree: acquisition.epig(tree, training(class_tree, tree)), LABELS, reads=False
    ),
    "ood.fit_reference": Analysis(partial(ood.fit_reference, "mcp"), LABELS, reads=False),
    "ood.fit_reference/features": Analysis(
        lambda tree: ood.fit_reference("mahalanobis", tree, held_out=unseen(feature_tree, tree)),
        FEATURES,
    ),
    "ood.score": Analysis(ood_scores, LABELS, reads=False),
    "ood.score/features": Analysis(distances, FEATURES, reads=False),
    **{
        f"ood.score/{name}": Analysis(
            partial(generative_scores, name=name), IMAGES, reads=False, members=name == "waic"
        )
        for name in generative.SCORES
    },
    "ood.background_ratio": Analysis(
        lambda tree: ood.background_ratio(tree, background(tree)), IMAGES, reads=False
    ),
    "ood.fit_novelty": Analysis(
        lambda tree: ood.fit_novelty(
            tree, unseen(feature_tree, tree), components=("mahalanobis", "mutual_information")
        ),  # which need classes; the nearest cases need none
        FEATURES,
    ),
    "ood.novelty": Analysis(novelties, FEATURES, reads=False),
    "ood.combine": Analysis(
        lambda tree: ood.combine([ood_scores(tree), ood_scores(tree, "mcp")]), LABELS, reads=False
    ),
    "ood.evaluate": Analysis(
        lambda tree: ood.evaluate(ood_scores(tree), ood_scores(class_tree(9, "n")), resamples=5),
        LABELS,
        reads=False,
    ),
    "ood.with_pvalues": Analysis(
        lambda tree: ood.with_pvalues(ood_scores(tree), ood_scores(class_tree(9, "n"))),
        LABELS,
        reads=False,
    ),
    "ood.evaluate_failures": Analysis(
        lambda tree: ood.evaluate_failures(ood_scores(tree), tree, resamples=0), LABELS
    ),
    "shift.fit_reference": Analysis(
        lambda tree: shift.fit_reference(tree, held_out=others(tree)), FEATURES, members=True
    ),
    "shift.diagnose": Analysis(shift_found, FEATURES, reads=False, members=True),
    "shift.shares_by_em": Analysis(
        lambda tree: shift.shares_by_em(unseen(class_tree, tree), tree, resamples=0), LABELS
    ),
    "shift.shares_by_confusion": Analysis(
        lambda tree: shift.shares_by_confusion(unseen(class_tree, tree), tree, resamples=0),
        Kind(told_apart_tree, "observed_data/label"),
    ),
    "scoring.score": Analysis(scoring.score, LABELS),
    "scoring.score/pixels": Analysis(scoring.score, PIXELS),
    "scoring.confusion": Analysis(scoring.confusion, LABELS),
    "scoring.confusion/pixels": Analysis(scoring.confusion, PIXELS),
    "scoring.discrimination": Analysis(
        lambda tree: scoring.discrimination(tree, resamples=0), LABELS
    ),
    "scoring.discrimination/pixels": Analysis(
        lambda tree: scoring.discrimination(tree, resamples=0), PIXELS
    ),
    "scoring.discrimination/patients": Analysis(
        lambda tree: scoring.discrimination(tree, group="pair", resamples=9), PATIENTS
    ),
    "scoring.roc": Analysis(lambda tree: scoring.roc(tree, resamples=0), LABELS),
    "scoring.precision_recall": Analysis(
        lambda tree: scoring.precision_recall(tree, resamples=0), LABELS
    ),
    "scoring.operating_point": Analysis(scoring.operating_point, LABELS),
    "scoring.operating_point/pixels": Analysis(scoring.operating_point, PIXELS),
    "scoring.choose_threshold": Analysis(
        lambda tree: scoring.choose_threshold(tree, sensitivity=0.7).drop_vars("case"), LABELS
    ),
    "scoring.overlap": Analysis(
        lambda tree: scoring.overlap(tree, resamples=0), PIXELS, unknown=("dice", "iou")
    ),
    "scoring.entry_scores": Analysis(scoring.entry_scores, LABELS, unknown=("nll", "correct")),
    "scoring.entry_scores/pixels": Analysis(scoring.entry_scores, PIXELS, unknown=("brier",)),
    "scoring.brier_decomposition": Analysis(scoring.brier_decomposition, LABELS),
    "scoring.brier_decomposition/pixels": Analysis(scoring.brier_decomposition, PIXELS),
    "scoring.reliability": Analysis(scoring.reliability, LABELS),
    "scoring.elpd_heldout": Analysis(scoring.elpd_heldout, LABELS, unknown=("elpd", "elpd_mcse")),
    "scoring.elpd_heldout/pixels": Analysis(
        scoring.elpd_heldout, PIXELS, unknown=("elpd", "elpd_mcse")
    ),
    "scoring.elpd_heldout/numbers": Analysis(scoring.elpd_heldout, NUMBERS, unknown=("elpd",)),
    "scoring.evidence_bound": Analysis(
        scoring.evidence_bound, BOUNDS, unknown=("bound", "bound_mcse")
    ),
    "scoring.elpd_loo": Analysis(left_out_in_turn, MANY_LABELS),
    "scoring.crps": Analysis(
        lambda tree: scoring.crps(tree, distribution="normal"),
        NUMBERS,
        unknown=("crps", "crps_mcse"),
    ),
    "scoring.crps/pixels": Analysis(scoring.crps, DEPTHS, unknown=("crps", "crps_mcse")),
    "scoring.energy": Analysis(
        lambda tree: scoring.energy(tree, over=("row", "col")), DEPTHS, unknown=("energy",)
    ),
    "scoring.quantile_score": Analysis(
        scoring.quantile_score, NUMBERS, unknown=("quantile_score",)
    ),
    "scoring.quantile_score/pixels": Analysis(
        scoring.quantile_score, DEPTHS, unknown=("quantile_score",)
    ),
    "scoring.interval_score": Analysis(
        scoring.interval_score, NUMBERS, unknown=("interval_score",)
    ),
    "scoring.interval_score/pixels": Analysis(
        scoring.interval_score, DEPTHS, unknown=("interval_score",)
    ),
    "calibration.errors": Analysis(lambda tree: calibration.errors(tree, replicates=0), LABELS),
    "calibration.errors_by_group": Analysis(
        lambda tree: calibration.errors_by_group(tree, "site", replicates=0), LABELS
    ),
    "calibration.reliability_classwise": Analysis(calibration.reliability_classwise, LABELS),
    "calibration.pava": Analysis(
        lambda tree: calibration.pava(tree, per_draw=True, replicates=0), LABELS
    ),
    "calibration.fit": Analysis(calibration.fit, LABELS),
    "calibration.fit/pixels": Analysis(calibration.fit, PIXELS),
    "calibration.fit/vector": Analysis(lambda tree: calibration.fit(tree, "vector"), PIXELS),
    "calibration.apply": Analysis(recalibrated, LABELS, unknown=("logs",)),
    "calibration.apply/pixels": Analysis(recalibrated, PIXELS, unknown=("logs",)),
    "calibration.pit": Analysis(calibration.pit, NUMBERS, unknown=("pit",)),
    "calibration.coverage": Analysis(calibration.coverage, NUMBERS),
    "calibration.coverage/pixels": Analysis(calibration.coverage, DEPTHS),
    "calibration.dispersion": Analysis(
        lambda tree: calibration.dispersion(tree, bins=3, replicates=0), NUMBERS
    ),
    "calibration.dispersion/pixels": Analysis(
        lambda tree: calibration.dispersion(tree, bins=3, replicates=0), DEPTHS
    ),
    "calibration.number_errors": Analysis(
        lambda tree: calibration.number_errors(tree, bins=3, replicates=0), NUMBERS
    ),
    "uncertainty.entropy": Analysis(uncertainty.entropy, LABELS, reads=False),
    "uncertainty.entropy/pixels": Analysis(uncertainty.entropy, PIXELS, reads=False),
    "uncertainty.variance": Analysis(uncertainty.variance, LABELS, reads=False),
    "uncertainty.variance/numbers": Analysis(uncertainty.variance, DEPTHS, reads=False),
    "uncertainty.summary": Analysis(uncertainty.summary, PIXELS, reads=False),
    "moments.decompose": Analysis(moments.decompose, MOMENTS, reads=False),
    "augmentation.variance": Analysis(augmentation.variance, AUGMENTED, reads=False),
    "augmentation.variance/pixels": Analysis(augmentation.variance, AUGMENTED_PIXELS, reads=False),
    "augmentation.summary": Analysis(augmentation.summary, AUGMENTED_PIXELS, reads=False),
    "exports.to_frame": Analysis(table, LABELS, reads=False),
    "exports.to_frame/pixels": Analysis(table, PIXELS, reads=False),
    "exports.to_frame/numbers": Analysis(table, NUMBERS, reads=False),
    "class_subsets.select": Analysis(some_classes, LABELS, unknown=("left",)),
    "findings.each": Analysis(lambda tree: findings.each(scoring.score, tree), FINDINGS),
    "findings.each/ranking": Analysis(
        lambda tree: findings.each(scoring.discrimination, tree, resamples=0), FINDINGS
    ),
    "findings.each/cases": Analysis(
        lambda tree: findings.each(scoring.entry_scores, tree), FINDINGS, unknown=("nll", "brier")
    ),
    "findings.each/uncertainty": Analysis(
        lambda tree: findings.each(uncertainty.entropy, tree), FINDINGS, reads=False
    ),
    "findings.each/calibration": Analysis(
        lambda tree: findings.each(calibration.fit, tree), FINDINGS
    ),
    "aggregation.aggregate": Analysis(
        lambda tree: aggregation.aggregate(tree["maps"].to_dataset(), "mean"),
        MAPS,
        unknown=("map",),
    ),
    "aggregation.predicted_mask": Analysis(aggregation.predicted_mask, PIXELS, reads=False),
    "conformal.calibrate": Analysis(lambda tree: conformal.calibrate(tree, 0.2), LABELS),
    "conformal.calibrate/classes": Analysis(
        lambda tree: conformal.calibrate(tree, 0.2, within="class", method="aps"), LABELS
    ),
    "conformal.predict_sets": Analysis(prediction_sets, LABELS, unknown=("covered",)),
    "conformal.predict_sets/classes": Analysis(
        lambda tree: prediction_sets(tree, within="class"), LABELS, unknown=("covered",)
    ),
    "case_groups.bootstrap": Analysis(resampled_accuracy, LABELS),
    "conformal.fill_empty_sets": Analysis(
        lambda tree: conformal.fill_empty_sets(prediction_sets(tree), tree),
        LABELS,
        unknown=("covered",),
    ),
    "conformal.calibrate_intervals": Analysis(
        lambda tree: conformal.calibrate_intervals(tree, 0.2, method="absolute"), NUMBERS
    ),
    "conformal.predict_intervals": Analysis(prediction_intervals, NUMBERS, unknown=("covered",)),
    "conformal.calibrate_masks": Analysis(lambda tree: conformal.calibrate_masks(tree, 0.3), WHOLE),
    "conformal.predict_masks": Analysis(prediction_masks, WHOLE, unknown=("risk",)),
    "conformal.coverage": Analysis(
        lambda tree: conformal.coverage(prediction_sets(tree), tree, "site"), LABELS
    ),
    "conformal.set_sizes": Analysis(
        lambda tree: conformal.set_sizes(prediction_sets(tree)), LABELS, reads=False
    ),
    "conformal.leave_one_out_sets": Analysis(
        lambda tree: conformal.leave_one_out_sets(
            training(MANY_LABELS.build, tree), tree, 0.2, pareto_k=np.inf
        ),
        MANY_LABELS,
        unknown=("covered",),
    ),
    "conformal.leave_one_out_intervals": Analysis(
        lambda tree: conformal.leave_one_out_intervals(
            training(MANY_NUMBERS.build, tree), tree, 0.2, pareto_k=np.inf
        ),
        MANY_NUMBERS,
        unknown=("covered",),
    ),
    "conformal.bayes_sets": Analysis(
        lambda tree: conformal.bayes_sets(
            training(class_tree, tree), tree, 0.2, min_effective_draws=0.0
        ),
        LABELS,
        unknown=("covered",),
    ),
    "conformal.bayes_intervals": Analysis(
        lambda tree: conformal.bayes_intervals(
            training(number_tree, tree), tree, 0.2, min_effective_draws=0.0
        ),
        NUMBERS,
        unknown=("covered",),
    ),
    "segmentation.ged": compared(segmentation.ged, "biased", "unbiased"),
    "segmentation.ged/draws": compared(segmentation.ged, "biased", samples="draw"),
    "segmentation.hungarian": compared(segmentation.hungarian, "iou"),
    "segmentation.dice_max": compared(segmentation.dice_max),
    "segmentation.d_max": compared(segmentation.d_max),
    "segmentation.soft_dice": compared(segmentation.soft_dice, "dice"),
    "segmentation.collective_insight": compared(segmentation.collective_insight, "released"),
    "segmentation.ncc": compared(segmentation.ncc),
    "segmentation.oracle_iou": Analysis(reconstructions, GRADERS, unknown=("iou",)),
    "segmentation.pixel_reliability": Analysis(segmentation.pixel_reliability, GRADERS),
    "segmentation.presence_reliability": Analysis(
        lambda tree: segmentation.presence_reliability(
            tree, classes=["z"], min_pixels=5, simulations=2
        ).drop_vars(["slope_perfect", "ece_perfect"]),
        WHOLE,
        unknown=("truth",),
    ),
    "segmentation.sizes": Analysis(
        lambda tree: segmentation.sizes(tree).drop_vars(["mean_mean", "mean_se"]),
        WHOLE,
        unknown=("covered",),
    ),
    "segmentation.modes": Analysis(
        lambda tree: segmentation.modes(
            tree, tree["observed_data/mask"].rename(grader="mode"), [0.5, 0.3, 0.2], ties="equal"
        ),
        GRADERS,
        unknown=("distance", "tied", "kl_per_case"),
    ),
    "segmentation.flips": Analysis(
        lambda tree: segmentation.flips(tree, array(tree, "observed_data/mask"), {"x": "y"}, [0.4]),
        PIXELS,
        unknown=("flip", "accuracy"),
    ),
    "segmentation.diversity": Analysis(segmentation.diversity, PIXELS, reads=False),
    "segmentation.maps": Analysis(segmentation.maps, PIXELS, reads=False),
    "segmentation.rater_and_weight_variance": Analysis(
        segmentation.rater_and_weight_variance, SAMPLED, reads=False, members=True
    ),
    "segmentation.region_uncertainty": Analysis(
        lambda tree: segmentation.region_uncertainty(tree).drop_dims("part"), PIXELS, reads=False
    ),
    **selected(selective.risk_coverage),
    **selected(selective.sparsification),
    **selected(selective.precision_recall),
    "selective.scores": Analysis(
        lambda tree: selective.scores(tree, "predictive_entropy"), LABELS, reads=False
    ),
    "selective.errors": Analysis(
        lambda tree: selective.errors(tree, "brier"), LABELS, unknown=("brier",)
    ),
    "selective.errors/pixels": Analysis(
        lambda tree: selective.errors(tree, "zero_one"), PIXELS, unknown=("zero_one",)
    ),
    "selective.errors/numbers": Analysis(
        lambda tree: selective.errors(tree, "absolute"), DEPTHS, unknown=("absolute",)
    ),
    "spray.clusters": Analysis(clusters, ATTRIBUTIONS, reads=False),
    "spray.unit_maps": Analysis(
        lambda tree: spray.unit_maps(array(tree, "maps/map")), ATTRIBUTIONS, reads=False
    ),
}
