"""Recalibration: a map learnt on labelled cases that the model has not seen, applied to others.

By default the draws are pooled first and the mixture, which is what is used, is calibrated: a
mixture of calibrated members is under-confident. ``pool=False`` calibrates every draw by itself.
Lazy trees are read in parts; the probabilities of one draw are in memory, and what `apply` returns.

    temperature   one number; decisions stay as they are
    vector        scale and intercept of each class; Platt scaling for two classes
    matrix        linear map of log-probabilities, penalised (Dirichlet calibration)
    isotonic      a rising step-like function per class; needs many cases, can give 0
    beta          two slopes and an intercept per class
    histogram     share of a class in bins of its probability; can give 0

Sources: Rahaman and Thiery, NeurIPS 2021, arXiv:2007.08792, and Wu and Gales, arXiv:2101.05397
(pool, then calibrate); for the maps see `logit_maps` and `binary_maps`.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from ppl_med.analysis.calibration import binary_maps, logit_maps
from ppl_med.analysis.calibration.calibrated_tree import calibrated_tree
from ppl_med.analysis.calibration.learnt_cases import check_other_cases, check_same_classes
from ppl_med.analysis.tree import (
    Classes,
    Posterior,
    case_ids,
    count_left_out,
    known,
    open_classes,
    other_samples,
)
from ppl_med.axes import SAMPLES
from ppl_med.checks import choice, finite, whole


class _Map(NamedTuple):
    learn: Callable[..., logit_maps.Parameters]
    apply: Callable[[logit_maps.Parameters, np.ndarray], np.ndarray]
    dims: dict[str, tuple[str, ...]]
    option: str | None = None


_MAPS = {
    "temperature": _Map(
        logit_maps.learn_temperature,
        logit_maps.apply_temperature,
        {"temperature": (), "temperature_se": ()},
    ),
    "vector": _Map(
        logit_maps.learn_vector,
        logit_maps.apply_vector,
        {"scale": ("class",), "intercept": ("class",)},
        "penalty",
    ),
    "matrix": _Map(
        logit_maps.learn_matrix,
        logit_maps.apply_matrix,
        {"weight": ("class", "input_class"), "intercept": ("class",)},
        "penalty",
    ),
    "isotonic": _Map(
        binary_maps.learn_isotonic,
        binary_maps.apply_isotonic,
        {"knot": ("class", "piece"), "value": ("class", "piece")},
    ),
    "beta": _Map(
        binary_maps.learn_beta,
        binary_maps.apply_beta,
        {"a": ("class",), "b": ("class",), "c": ("class",)},
    ),
    "histogram": _Map(
        binary_maps.learn_histogram,
        binary_maps.apply_histogram,
        {"edge": ("class", "inner_edge"), "bin_value": ("class", "bin")},
        "bins",
    ),
}
_PENALTY = {"vector": 0.0, "matrix": 1e-3}


def fit(
    tree: xr.DataTree,
    method: str = "temperature",
    *,
    pool: bool = True,
    penalty: float | None = None,
    bins: int | None = None,
) -> xr.Dataset:
    """Learn a map from labelled cases that the model was not trained on.

    Args:
        tree: The tree of `predict` on the calibration cases, with labels; or masks, whose pixels
            count one by one. Labels and pixels that are -1 are left out.
        method: "temperature", "vector", "matrix", "isotonic", "beta" or "histogram".
        pool: Calibrate the mixture of the draws; False learns one map for every draw.
        penalty: Penalty of "vector" (on intercepts; 0 by default) and "matrix" (on off-diagonal
            weights and intercepts; 0.001), times their squares, in nats per case (or pixel).
        bins: Bins of "histogram"; 10 by default.

    Returns:
        Dataset of the parameters (with chain and draw unless pooled), with ``nll_before``,
        ``nll_after`` (nats per case or pixel) and ``accuracy_before``, ``accuracy_after`` on the
        calibration cases themselves; their ids as coordinate case, the classes as coordinate
        class. It saves and loads as any Dataset. Temperature has ``temperature_se``, over cases.

    Raises:
        TypeError, ValueError: ``probs`` or labels malformed, a case id twice or absent, unknown
            method or option, probabilities of 0 that the map cannot take, or no best parameters.
    """
    options = _options(method, penalty, bins)
    source = open_classes(tree)
    case_ids(source.array)
    label = source.labels()
    counts, seen = count_left_out(label), known(label).values
    used = seen.reshape(len(seen), -1).any(1)
    settings = {"num_cases": len(seen), "seen": seen} if method == "temperature" else options
    learnt = [
        _learn(method, table, label.values, seen, settings) for table in _tables(source, pool)
    ]
    lead, samples = ((), (1, 1)) if pool else (SAMPLES, source.num_samples)
    cases = source.array["case"].isel(case=used)
    coords: dict[str, Any] = {"case": cases, "class": source.names}
    result = xr.Dataset(coords=coords if pool else {**source.samples, **coords})
    figures = ("nll_before", "nll_after", "accuracy_before", "accuracy_after")
    for name, dims in {**_MAPS[method].dims, **dict.fromkeys(figures, ())}.items():
        values = _stack([one[name] for one in learnt])
        per_draw = values.reshape(*samples, *values.shape[1:])
        result[name] = ((*lead, *dims), per_draw[0, 0] if pool else per_draw)
        if name.startswith(("nll", "accuracy")):
            result[name].attrs["units"] = "nats" if name.startswith("nll") else "probability"
            result[name].attrs["note"] = "on the calibration cases"
    result.attrs.update(counts, method=method, pool=int(pool), **options)
    return result


def apply(parameters: xr.Dataset, tree: Posterior) -> xr.DataTree:
    """Give other cases calibrated probabilities.

    Args:
        parameters: What `fit` returned.
        tree: The tree of `predict` on other cases of the same classes, or its ``probs``. Unless
            pooled, with the chains and draws of the calibration cases, in the same order.

    Returns:
        A tree with new ``probs``: those of the calibrated mixture as one chain and one draw where
        the map was learnt on the mixture, else of every draw. Observations and metadata stay;
        log_likelihood is that of the new probabilities. What no longer belongs to them is left
        out: predictive draws, and other variables of the posterior. Attributes of the root
        say what changed: ``calibration``, ``decisions_changed`` (cases or pixels whose most
        probable class is another), ``undetermined`` (cases without information, see
        `binary_maps`), and with labels ``accuracy_before``, ``accuracy_after``, of the mixture.

    Raises:
        TypeError, ValueError: ``parameters`` not from `fit`; a case was used to learn them; other
            classes, chains or draws; a probability the map cannot take.
    """
    method, pool = _check_parameters(parameters)
    source = open_classes(tree)
    check_same_classes(parameters, source.names)
    check_other_cases(parameters, source.array)
    if not pool:
        if other_samples(parameters, source.array):  # of a single sure case, all draws are equal
            source = open_classes(tree, copies=True)
        _check_same_draws(parameters, source.array)
    return calibrated_tree(source, _transform(parameters, method, source, pool), method)


def _options(method: str, penalty: float | None, bins: int | None) -> dict[str, Any]:
    choice("method", method, _MAPS)
    given = {"penalty": penalty, "bins": bins}
    wanted = _MAPS[method].option
    for name, value in given.items():
        if value is not None and name != wanted:
            raise ValueError(f"method {method!r} has no option {name}; leave it out.")
    if wanted == "bins":
        return {"bins": whole("bins", 10 if bins is None else bins)}
    if wanted == "penalty":
        return {"penalty": finite("penalty", _PENALTY[method] if penalty is None else penalty, 0)}
    return {}


def _tables(probs: Classes, pool: bool) -> Iterator[np.ndarray]:
    """Log-probabilities of the mixture, or of every draw, each (case and pixels, class)."""
    for table in [probs.mixture()] if pool else probs.draws():
        values = table.transpose("case", *probs.array.dims[4:], "class").values
        with np.errstate(divide="ignore"):  # not around yield: it would be the caller's, too
            logs = np.log(values.reshape(-1, values.shape[-1]))
        yield logs
        del logs  # before the next one is made


def _learn(
    method: str, logs: np.ndarray, label: np.ndarray, seen: np.ndarray, settings: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Parameters, and what they do to the cases they were learnt on: entries that were seen."""
    rows = slice(None) if seen.all() else seen.ravel()
    logs, label = logs[rows], label.ravel()[rows]
    learnt = dict(_MAPS[method].learn(logs, label, **settings))
    for name, table in (("before", logs), ("after", _MAPS[method].apply(learnt, logs))):
        chosen = np.take_along_axis(table, label[:, None], 1)
        learnt[f"nll_{name}"] = np.array(-chosen.mean())
        learnt[f"accuracy_{name}"] = np.array((table.argmax(1) == label).mean())
    return learnt


def _stack(arrays: list[np.ndarray]) -> np.ndarray:
    """Arrays of all draws, the shorter ones (pieces) filled with NaN at the end."""
    shape = np.max([array.shape for array in arrays], axis=0).astype(int)
    filled = np.full((len(arrays), *shape), np.nan)
    for index, array in enumerate(arrays):
        places: tuple[Any, ...] = (index, *(slice(size) for size in array.shape))
        filled[places] = array
    return filled


def _check_parameters(parameters: xr.Dataset) -> tuple[str, bool]:
    if not isinstance(parameters, xr.Dataset):
        raise TypeError("parameters must be the Dataset that calibration.fit returned.")
    method = str(parameters.attrs.get("method"))
    known = method in _MAPS and {"case", "class"} <= set(parameters.coords)
    if not known or not set(_MAPS[method].dims) <= set(parameters):
        raise ValueError(
            f"parameters (method {method!r}) is no result of calibration.fit: it needs the "
            f"attribute method, one of {list(_MAPS)}, its variables, and coordinates case, class."
        )
    return method, bool(parameters.attrs["pool"])


def _check_same_draws(parameters: xr.Dataset, probs: xr.DataArray) -> None:
    dim = other_samples(parameters, probs)
    if dim:
        raise ValueError(
            f"The maps were learnt for {parameters.sizes[dim]} {dim}(s), the tree has "
            f"{probs.sizes[dim]} or others; predict both with the same draws and seed, or "
            "fit with pool=True."
        )


def _transform(parameters: xr.Dataset, method: str, probs: Classes, pool: bool) -> np.ndarray:
    """Calibrated log-probabilities (chain, draw, case and pixels, class)."""
    lead = () if pool else SAMPLES
    samples = (1, 1) if pool else probs.num_samples
    arrays = {}
    for name, dims in _MAPS[method].dims.items():
        values = parameters[name].transpose(*lead, *dims).values
        arrays[name] = values.reshape(samples[0] * samples[1], *values.shape[len(lead) :])
    logs = [
        _MAPS[method].apply({name: np.asarray(a[index]) for name, a in arrays.items()}, table)
        for index, table in enumerate(_tables(probs, pool))
    ]
    return np.array(logs).reshape(*samples, *logs[0].shape)
