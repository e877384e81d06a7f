"""The table of rules: what each reads, which options it takes, and how it chooses a batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis import uncertainty
from ppl_med.analysis.acquisition import chance, strata
from ppl_med.analysis.acquisition.batches import choose_batch
from ppl_med.analysis.acquisition.candidates import Candidates, largest
from ppl_med.analysis.acquisition.case_scores import SCORES, require_functions
from ppl_med.analysis.acquisition.noisy_order import log_weights
from ppl_med.analysis.acquisition.spread import farthest_first, typical_cases
from ppl_med.analysis.acquisition.targets import epig
from ppl_med.analysis.aggregation import aggregate, predicted_mask
from ppl_med.analysis.statistics import monte_carlo
from ppl_med.analysis.statistics.weight_draws import one_of_each
from ppl_med.analysis.tree import Posterior, mean_features, open_classes, open_layers
from ppl_med.axes import SAMPLES

Figures = dict[str, tuple[np.ndarray, str]]
"""Name: value of every purchase, in order, and its unit."""


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Args:
        tree: The pool.
        cases: Who can be bought.
        size: How many.
        seed: Of all random numbers.
        targets: Unlabelled cases the model is for, or None.
        options: Of the rule, with its defaults filled in.
    """

    tree: Posterior
    cases: Candidates
    size: int
    seed: int
    targets: Posterior | None
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Purchase:
    """What is bought.

    Args:
        places: Positions among the free cases, in order.
        figures: What is told of each.
        attrs: What is told of all.
    """

    places: np.ndarray
    figures: Figures = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """A way to choose.

    Args:
        choose: From a request to a purchase.
        needs: What it reads, as `needs` says.
        options: Names and defaults.
    """

    choose: Callable[[Request], Purchase]
    needs: frozenset[str] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)


def top(
    request: Request, score: xr.DataArray, others: Mapping[str, xr.DataArray], attrs: Any
) -> Purchase:
    """The largest scores (case), or a noisy order of them."""
    cases, noise = request.cases, request.options["noise"]
    values = score.values[cases.free].astype(np.float64)
    ranked = np.where(np.isnan(values), -np.inf, values)
    tie = cases.noise(request.seed)
    if noise is not None:
        ranked = log_weights(ranked, noise, request.options["beta"]) + tie
        attrs = {**attrs, "noise": noise, "beta": float(request.options["beta"])}
    places = largest(ranked, tie, request.size)
    units = str(score.attrs.get("units", ""))
    figures = {"score": (values[places], units)}
    for name, one in others.items():
        figures[name] = (one.values[cases.free][places], units)
    return Purchase(places, figures, attrs)


NOISY = {"noise": None, "beta": 1.0}
_MAPS = {"aggregation": None, "settings": None}


def _by_score(request: Request, name: str | None = None) -> Purchase:
    options = request.options
    name = checks.choice("score", name or options["score"], SCORES)
    found = SCORES[name](request.tree, options["aggregation"], settings=options["settings"])
    return _of_dataset(request, found, name)


def _of_dataset(request: Request, found: xr.Dataset, name: str) -> Purchase:
    error = f"{name}_mcse"
    others = {"score_mcse": found[error]} if error in found else {}
    return top(request, found[name], others, {**found.attrs, "score": name})


def _by_epig(request: Request) -> Purchase:
    if request.targets is None:
        checks.reject("targets", "a tree of unlabelled cases predicted with the same draws", None)
    return _of_dataset(request, epig(request.tree, request.targets), "epig")


def _batch_bald(request: Request) -> Purchase:
    opened = open_classes(request.tree)
    opened = replace(opened, array=one_of_each(opened.array))
    if opened.array.ndim > 4:
        raise ValueError(
            f"batch_bald needs one class per case, and probs has the axes {opened.array.dims[4:]}: "
            "the labels of all pixels of a batch have no table. Take 'power_bald' with an "
            "aggregation."
        )
    number = require_functions(opened.array, "batch_bald")
    most = checks.whole("configurations", request.options["configurations"], least=number)
    free = request.cases.free
    probs = opened.isel(free).read().values.reshape(number, len(free), -1)
    batch = choose_batch(probs, request.cases.noise(request.seed), request.size, most, request.seed)
    shape = (*opened.num_samples, request.size)
    influence = xr.DataArray(batch.influence.reshape(shape), dims=(*SAMPLES, "case"))
    gain = np.diff(batch.joint, prepend=0.0)
    figures = {
        "score": (gain, "nats"),
        "joint": (batch.joint, "nats"),
        "joint_mcse": (monte_carlo.standard_error(influence).values, "nats"),
    }
    attrs = {"num_functions": number, "num_exact": batch.num_exact, "mcse": monte_carlo.CAVEAT}
    return Purchase(batch.chosen, figures, attrs | {"configurations": most})


def _features(request: Request) -> tuple[np.ndarray, np.ndarray, str]:
    """Mean features of the free and of the labelled cases, and the layer."""
    layers, layer = open_layers(request.tree), request.options["layer"]
    if not layers:
        raise ValueError(
            "The posterior group holds no features; call predict(..., keep=('feature:<layer>',))."
        )
    if layer is None and len(layers) > 1:
        checks.reject("layer", f"one of {', '.join(layers)}", layer)
    layer = checks.choice("layer", layer or next(iter(layers)), layers)
    values = mean_features(layers[layer])
    return values[request.cases.free], values[request.cases.labelled], layer


def _core_set(request: Request) -> Purchase:
    free, labelled, layer = _features(request)
    noise = request.cases.noise(request.seed)
    places, distance = farthest_first(free, labelled, noise, request.size)
    return Purchase(places, {"score": (distance, "distance of features")}, {"layer": layer})


def _typiclust(request: Request) -> Purchase:
    free, labelled, layer = _features(request)
    both = np.concatenate([labelled, free])
    places, density = typical_cases(both, len(labelled), request.size, request.seed)
    return Purchase(places, {"score": (density, "1 / distance of features")}, {"layer": layer})


def _random(request: Request) -> Purchase:
    return Purchase(np.argsort(-request.cases.noise(request.seed))[: request.size])


def _class_balanced(request: Request) -> Purchase:
    opened = open_classes(request.tree)
    if opened.array.ndim > 4:
        raise ValueError(
            "class_balanced needs one class per case; for maps take 'foreground_random'."
        )
    classes = opened.mixture().argmax("class").values
    cases = request.cases
    counts = np.bincount(classes[cases.labelled], minlength=opened.array.sizes["class"])
    order = chance.balanced_order(classes[cases.free], counts, cases.noise(request.seed))
    return Purchase(order[: request.size])


def _foreground_random(request: Request) -> Purchase:
    share = checks.finite("share", request.options["share"], 0, 1)
    given, cases = request.options["foreground"], request.cases
    if given is None:
        mask = predicted_mask(request.tree)
        given = (mask > 0).any([dim for dim in mask.dims if dim != "case"])
    elif not isinstance(given, xr.DataArray) or dict(given.sizes) != {
        "case": cases.array.sizes["case"]
    }:
        checks.reject("foreground", "a DataArray of flags over the cases of the tree", given)
    kind = np.random.default_rng([request.seed, 2]).random(len(cases.free))
    flags = given.values[cases.free].astype(bool)
    order = chance.foreground_order(flags, cases.noise(request.seed), kind, share)
    return Purchase(order[: request.size], attrs={"share": share})


def _stratified_entropy(request: Request) -> Purchase:
    options, cases = request.options, request.cases
    share = checks.finite("share", options["share"], 0, 1)
    maps = uncertainty.entropy(request.tree, mcse=False)["predictive_entropy"]
    mask = predicted_mask(request.tree)
    scores = [aggregate(maps, "mean").values[cases.free]]
    for name in range(open_classes(request.tree).array.sizes["class"]):
        found = aggregate(maps, "foreground", mask=mask, classes=[name])
        scores.append(found.values[cases.free])
    noisy = []
    for kind, score in enumerate(scores):
        weights = log_weights(np.nan_to_num(score, nan=-np.inf), "power", options["beta"])
        order = weights + cases.noise(request.seed, kind)
        noisy.append(np.where(np.isnan(score), -np.inf, order))
    turns = np.random.default_rng([request.seed, len(scores)]).permutation(len(scores) - 1)
    number = int(np.ceil(share * request.size))
    places, whose = strata.stratified_order(
        np.array(noisy[1:]), noisy[0], turns, number, request.size
    )
    value = np.array([scores[name + 1][place] for place, name in zip(places, whose, strict=True)])
    figures = {"score": (value, "nats"), "stratum": (whose, "class index; -1 for all")}
    attrs = {"share": share, "beta": float(options["beta"]), "aggregation": "mean"}
    return Purchase(places, figures, attrs)


_DRAWS = frozenset({"functions"})
_OF_ONE = ("max_entropy", "margin", "least_confidence")

RULES: dict[str, Rule] = {
    **{
        name: Rule(
            partial(_by_score, name=name),
            frozenset() if name in _OF_ONE else _DRAWS,
            {**_MAPS, **NOISY},
        )
        for name in SCORES
    },
    "epig": Rule(_by_epig, frozenset({"functions", "targets"}), NOISY),
    "batch_bald": Rule(_batch_bald, _DRAWS, {"configurations": 4096}),
    **{
        f"{noise}_bald": Rule(
            _by_score, _DRAWS, {**_MAPS, "score": "bald", "noise": noise, "beta": 1.0}
        )
        for noise in ("power", "softmax", "softrank")
    },
    "core_set": Rule(_core_set, frozenset({"feature", "labelled"}), {"layer": None}),
    "typiclust": Rule(_typiclust, frozenset({"feature", "labelled"}), {"layer": None}),
    "random": Rule(_random),
    "class_balanced": Rule(_class_balanced),
    "foreground_random": Rule(
        _foreground_random,
        frozenset({"maps"}),
        {"share": chance.SHARE, "foreground": None},
    ),
    "stratified_entropy": Rule(
        _stratified_entropy, frozenset({"maps"}), {"share": strata.SHARE, "beta": 1.0}
    ),
}
