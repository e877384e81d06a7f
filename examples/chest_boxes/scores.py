"""What is known of the films against what the posterior says of them."""

from typing import Any

import numpy as np
import xarray as xr

from chest_boxes.study import CHEST_CLASSES, DISTANCES, FEW, MAIN, NOISE, SETTINGS, Study
from ppl_med.analysis import detection
from ppl_med.analysis.statistics.case_means import ratio_error
from ppl_med.analysis.tree import overlaps

SURE = 0.3  # least p(exists) of an object whose edges count
Figure = tuple[float, float]


def of_class(tree: xr.DataTree, kind: int) -> xr.DataTree:
    """Objects and boxes of one class alone."""
    result = tree.copy()
    found = tree["objects"].to_dataset()
    own = found["label"] == kind
    kept = {name: found[name].where(own) for name in found.data_vars if "box" in found[name].dims}
    kept["label"] = found["label"].where(own, -1)
    result["objects"] = xr.DataTree(found.assign(kept))
    truth = tree["observed_data"].to_dataset()
    own = truth["box_label"] == kind
    result["observed_data"] = xr.DataTree(truth.assign(
        box_edge=truth["box_edge"].where(own), box_label=truth["box_label"].where(own, -1)
    ))  # fmt: skip
    return result


def of_seeds(study: Study, setting: str, part: str = "films") -> xr.DataTree:
    """Objects of all seeds, one under the other, with a column that says of which film."""
    groups: dict[str, list[xr.Dataset]] = {"objects": [], "observed_data": []}
    for seed in study.options.seeds:
        tree = study.objects(setting, seed, part)
        for name, found in groups.items():
            one = tree[name].to_dataset()
            found.append(one.assign_coords(case=[f"{seed} {case}" for case in one["case"].values]))
    joined = {name: _stacked(found) for name, found in groups.items()}
    film = [str(case).split(" ", 1)[1] for case in joined["objects"]["case"].values]
    about = xr.Dataset({"film": ("case", film)}, {"case": joined["objects"]["case"].values})
    return xr.DataTree.from_dict({**joined, "constant_data": about})


def _stacked(found: list[xr.Dataset]) -> xr.Dataset:
    room = max(one.sizes["box"] for one in found)
    padded = [
        one.pad(box=(0, room - one.sizes["box"]), constant_values={
            name: -1 if one[name].dtype.kind == "i" else np.nan for name in one.data_vars
        })
        for one in found
    ]  # fmt: skip
    return xr.concat(padded, "case", data_vars="minimal", combine_attrs="override")


def coverage(study: Study, setting: str, part: str = "films") -> dict[str, Any]:
    """Coverage of the 90 % intervals by class and edge, of the first reader's boxes."""
    tree = study.one_reader(of_seeds(study, setting, part))
    found: dict[str, Any] = {}
    for kind, name in enumerate(CHEST_CLASSES):
        one = detection.edge_coverage(of_class(tree, kind), threshold=SURE, group="film")
        found[name] = {
            key: one[key].values.tolist() for key in ("coverage", "coverage_se", "width")
        } | {"number": one.attrs["num_matched"]}
    both = detection.edge_coverage(tree, threshold=SURE, group="film")
    found["all"] = {
        "coverage": float(both["coverage"].mean()),
        "interval_score": float(both["interval_score"].mean()),
        "interval_score_se": float(both["interval_score_se"].mean()),
    }
    return found


def noise(study: Study, setting: str) -> dict[str, Any]:
    """Predicted aleatoric standard deviation of each edge over the generator's, and readers'."""
    tree = of_seeds(study, setting)
    group = tree["objects"].to_dataset()
    kept = {name: group[name].where(group["p_exists"] >= SURE) for name in group.data_vars
            if "box" in group[name].dims and group[name].dtype.kind == "f"}  # fmt: skip
    kept["label"] = group["label"].where(group["p_exists"] >= SURE, -1)
    tree["objects"] = xr.DataTree(group.assign(kept))
    found = detection.reader_spread(tree, group="film")
    return {
        name: found[name].values.tolist()
        for name in ("predicted", "predicted_se", "spread", "spread_se", "ratio", "ratio_se")
    } | {"over_truth": (found["predicted"].values / np.array(NOISE)).tolist()}


def lesions(study: Study, setting: str, seed: int, part: str) -> dict[str, np.ndarray]:
    """What is said of every opacity (case, place): 0 where nothing was found, of edges NaN."""
    films, tree = study.films(part), study.objects(setting, seed, part)
    found = tree["objects"].to_dataset()
    true, kind = films["true_box"], films["true_label"]
    names = ("p_exists", "score_aleatoric", "score_epistemic")
    result = {name: np.where(kind < 0, np.nan, 0.0) for name in names}
    result |= {name: np.full(kind.shape, np.nan) for name in ("edge_aleatoric", "edge_epistemic")}
    shared = np.nan_to_num(overlaps(true, found["edge_mean"].values))
    for case, place in zip(*np.nonzero(kind >= 0), strict=True):
        best = int(shared[case, place].argmax())
        if shared[case, place, best] < 0.5:
            continue
        for name in names:
            result[name][case, place] = found[name].values[case, best]
        if found["p_exists"].values[case, best] >= SURE:
            for name in ("edge_aleatoric", "edge_epistemic"):
                result[name][case, place] = found[name].values[case, best].mean()
    return result


def average(values: np.ndarray) -> float:
    """Mean of what is known; NaN where nothing is."""
    known = np.asarray(values, float)
    known = known[np.isfinite(known)]
    return float(known.mean()) if known.size else float("nan")


def mean_over_films(values: list[np.ndarray]) -> Figure:
    """Mean over opacities, seeds one beside the other, and its error over films."""
    stack = np.stack(values)
    part = np.nansum(stack, (0, 2))[:, None]
    number = np.isfinite(stack).sum((0, 2))[:, None].astype(float)
    error = ratio_error(part, number)[0]
    return float(part.sum() / max(number.sum(), 1)), float(error)


def variances(study: Study) -> dict[str, Any]:
    """Means of the four variances and of p(exists), by setting and kind of film; differences."""
    rows = [(one, "films") for one in (*FEW, MAIN)] + [(MAIN, "unseen")]
    seeds = study.options.seeds
    all_of = {row: [lesions(study, row[0], seed, row[1]) for seed in seeds] for row in rows}
    names = ("edge_epistemic", "edge_aleatoric", "score_epistemic", "score_aleatoric", "p_exists")
    found: dict[str, Any] = {}
    for row, values in all_of.items():
        found[" ".join(row)] = {
            name: [*mean_over_films([one[name] for one in values]),
                   [average(one[name]) for one in values]]
            for name in names
        }  # fmt: skip
    few, more, most, unseen = rows
    for title, first, second in (
        ("200 - 50", more, few),
        ("800 - 200", most, more),
        ("800 - 50", most, few),
        ("unseen - usual", unseen, most),
    ):
        pairs = list(zip(all_of[first], all_of[second], strict=True))
        found[title] = {
            name: mean_over_films([one[name] - other[name] for one, other in pairs])
            for name in names
        }
    return found


def existence(study: Study, setting: str) -> list[list[float]]:
    """Mean p(exists) of opacities by the probability that a reader marks them, with errors."""
    films = study.films("films")
    p = films["mark_probability"]
    values = [lesions(study, setting, seed, "films")["p_exists"] for seed in study.options.seeds]
    rows = []
    for low, high in zip((0, 0.2, 0.4, 0.6, 0.8, 0.95), (0.2, 0.4, 0.6, 0.8, 0.95, 1), strict=True):
        inside = (p >= low) & (p < high)
        own = [np.where(inside, one, np.nan) for one in values]
        rows.append([average(p[inside]), *mean_over_films(own), int(inside.sum())])
    return rows


def ranking(study: Study, setting: str) -> dict[str, float]:
    """AP50, LRP, PDQ and the calibration of p(exists), mean over seeds."""
    rows = []
    for seed in study.options.seeds:
        tree = study.one_reader(study.objects(setting, seed))
        exists = detection.existence(tree)
        rows.append({
            "AP50": float(detection.average_precision(tree)["map_50"]),
            "LRP": float(detection.lrp(tree)["lrp_mean"]),
            "ECE": float(exists["ece"]),
            "Brier": float(exists["brier"]),
        })  # fmt: skip
    return {name: [one[name] for one in rows] for name in rows[0]}  # type: ignore[misc]


def pairs(study: Study) -> list[dict[str, float]]:
    """How many objects are found of two nodules at a distance, where most readers mark them."""
    films = study.films("pairs")
    box = films["true_box"]
    shared = np.diagonal(overlaps(box[:, :1], box[:, 1:2]), axis1=1, axis2=2)[:, 0]
    seen = films["mark_probability"][:, 0] >= 0.9
    boxes = [
        (study.posterior(MAIN, seed, "pairs")["posterior"]["box_probs"].sum("class") >= 0.5)
        .sum("box").values for seed in study.options.seeds
    ]  # fmt: skip
    rows = []
    for distance in DISTANCES:
        own = np.flatnonzero(seen & (films["distance"] == distance))
        counts = np.array([
            (study.objects(MAIN, seed, "pairs")["objects"]["p_exists"].values[own] >= 0.5).sum(1)
            for seed in study.options.seeds
        ])  # fmt: skip
        row = {"distance": distance, "iou": average(shared[own]), "films": len(own),
               "apart": average(shared[own] < 0.5),
               "nets": average(np.stack([one[:, :, own] for one in boxes]) == 2)}  # fmt: skip
        shares = {name: (counts == k) if k < 3 else counts > 2
                  for k, name in enumerate(("none", "one", "two", "more"))}  # fmt: skip
        rows.append(row | {name: average(one) for name, one in shares.items()})
    return rows


def collect(study: Study) -> dict[str, Any]:
    """All figures."""
    detectors = (*SETTINGS, "one net")
    return {
        "coverage": {one: coverage(study, one) for one in (*detectors, "no image")},
        "coverage_unseen": coverage(study, MAIN, "unseen"),
        "noise": {one: noise(study, one) for one in SETTINGS},
        "variances": variances(study),
        "existence": {one: existence(study, one) for one in SETTINGS},
        "ranking": {one: ranking(study, one) for one in (*detectors, "no image")},
        "pairs": pairs(study),
        "seconds": {one: [study.posterior(one, seed, "films").attrs["training_seconds"]
                          for seed in study.options.seeds] for one in SETTINGS},
    }  # fmt: skip
