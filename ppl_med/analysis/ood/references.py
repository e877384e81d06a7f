"""One contract for all scores: learn a reference on in-distribution cases, then score others.

    reference = ood.fit_reference("mahalanobis", tree_in, held_out=tree_val)
    found = ood.score(tree, reference)          # score, score_sd, pvalue of every case

A p-value is conformal: with s_1 .. s_n the scores of n in-distribution cases from which nothing was
learnt, neither the reference nor the network,

    p = (1 + #{i : s_i >= s}) / (n + 1)

so that in-distribution cases have p <= a with probability at most a, for any score and any a: exact
where scores have no ties. Its least value is 1 / (n + 1). Cases of one patient are alike and do not
stand for those of another: where patients are known, one case of each is drawn, which is exact for
a case of a new patient.

Sources: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005; Bates et al.,
Annals of Statistics 51, 2023, arXiv:2104.08279; Dunn, Wasserman and Ramdas, arXiv:1809.07441
(groups, subsampling once).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.ood import confidence, features, generative
from ppl_med.analysis.ood.found import FAMILIAR, ORIENTATION, as_found, drawn_cases, pvalues
from ppl_med.analysis.ood.outputs import Outputs, open_outputs, table
from ppl_med.analysis.tree import (
    case_coords,
    case_units,
    check_apart,
    check_disjoint,
    open_classes,
)
from ppl_med.axes import SAMPLES

SCORES = (*confidence.SCORES, *features.SCORES, *generative.SCORES)
_FITTED = "fitted_"
_IDENTITY = "same_"


def fit_reference(
    score: str,
    tree: xr.DataTree,
    *,
    held_out: xr.DataTree | None = None,
    layer: str | None = None,
    group: str | xr.DataArray | None = None,
    seed: int = 0,
    **settings: Any,
) -> xr.Dataset:
    """Learn what in-distribution cases score.

    Args:
        score: A name of ``ood.SCORES``: "mcp", "entropy", "expected_entropy", "mutual_information",
            "energy", "max_logit" learn nothing; "mahalanobis", "relative_mahalanobis", "knn",
            "residual" and "vim" learn from features. Of a model that generates the image:
            "reconstruction", "likelihood" and "waic" learn nothing, "reconstruction_mahalanobis"
            and "input_complexity" learn; read the warning in ``ood.generative``. Of the models of
            these names: "duq", "generalized_odin", "generalized_odin_divisor" learn nothing.
        tree: The tree of `predict` on in-distribution cases: for scores of features best the
            training cases, with ``keep=("feature:<layer>",)``.
        held_out: The same on in-distribution cases that the network has not seen, which give the
            p-values. Without them, a half of ``tree`` is kept back for this (all of it, where
            nothing is learnt), so ``tree`` must then be of unseen cases.
        layer: Layer of the features; None for the only one that was kept.
        group: Patients, of each of whom one case is drawn for the p-values: a column, or the groups
            of all cases of ``held_out`` (case); "case" for every case by itself; None for the
            column "patient" where there is one.
        seed: Seed of the halves, and of which case of a patient.
        **settings: Of the score: ``k`` of "knn" (1 in 100 cases, at most 50), ``dimension`` of the
            main directions of "residual" and "vim" (half the units; 512 of 768, 1000 of 2048).

    Returns:
        Dataset that saves and loads: ``calibration_score`` (calibration_case), what was learnt
        (``fitted_<name>``), ``learnt_case``, ids it was learnt on, and attributes.

    Raises:
        TypeError, ValueError: A wrong name or setting; a malformed tree; what the score needs was
            not kept; p-values from training cases; shared cases or patients; other draws.
    """
    checks.choice("score", score, SCORES)
    inside = open_outputs(tree, layer)
    known, generating = features.SCORES.get(score), generative.SCORES.get(score)
    learns = known is not None or (generating is not None and generating.fit is not None)
    allowed = dict(known.settings or {}) if known else {}
    for name, value in settings.items():
        if name not in allowed:
            known_settings = f"one of {sorted(allowed)}" if allowed else "none at all"
            checks.reject("settings", f"{known_settings} for score={score!r}", name)
        settings[name] = checks.whole(name, value)
    if layer is not None:
        inside.feature()  # raises where it was not kept
    ids = inside.ids
    rows = np.arange(len(ids))
    learning = rows if learns else rows[:0]
    if held_out is not None:
        outside = open_outputs(held_out, layer)
        check_same_functions(inside.identity(), inside.samples, outside)
        check_disjoint(ids, outside.ids, "tree and held_out", FAMILIAR)
        check_apart((tree, inside.array), (held_out, outside.array), group, ("tree", "held_out"))
    elif not learns:
        outside = inside
    else:
        people, _ = case_units(tree, group, inside.array)
        learning, kept = split_units(people, 0.5, checks.whole("seed", seed, least=0))
        outside = open_outputs(tree.isel(case=kept), layer)
        group = _of_cases(group, kept)
    check_unseen(outside.tree, "tree" if held_out is None else "held_out")
    result = xr.Dataset(attrs={"score": score, "orientation": ORIENTATION})
    result.attrs |= settings | identity_attrs(inside)
    if known is not None:
        result.attrs["layer"] = str(inside.feature().name)
        result = _fit(result, known, open_outputs(tree.isel(case=learning), layer), settings)
    elif generating is not None and generating.fit is not None:
        taught = open_outputs(tree.isel(case=learning))
        for name, value in generating.fit(taught).items():
            result[_FITTED + name] = _as_variable(name, value)
        result["learnt_case"] = ("learnt", np.sort(taught.ids.astype(str)))
    values, _ = _scores(outside, result)
    units, kind = case_units(outside.tree, group, outside.array)
    return with_calibration(result, values, outside.ids, units, kind, seed)


def with_calibration(
    result: xr.Dataset,
    values: np.ndarray,
    ids: np.ndarray,
    units: np.ndarray,
    kind: str,
    seed: int,
) -> xr.Dataset:
    """Add the scores of one held-out case of every unit, and the ids of all of them."""
    drawn = drawn_cases(ids, units, seed)
    order = drawn[np.argsort(ids[drawn].astype(str))]
    result["calibration_score"] = ("calibration_case", values[order])
    others = np.setdiff1d(ids.astype(str), ids[drawn].astype(str))
    if others.size:
        result["other_calibration_case"] = ("other", others)
    result.attrs |= {"n": len(order), "unit": kind, "least_pvalue": 1 / (len(order) + 1)}
    return result.assign_coords(calibration_case=ids[order])


def score(tree: xr.DataTree, reference: xr.Dataset) -> xr.Dataset:
    """Score cases against a reference.

    Args:
        tree: The tree of `predict` on other cases: the same guide, draws and seed, and the same
            ``keep``.
        reference: What `fit_reference` gave.

    Returns:
        Dataset over case: ``score``, larger is more unlike; ``score_sd``, its standard deviation
        over draws, NaN for one draw; ``pvalue``, probability; and ``score_per_draw`` (chain, draw,
        case). ``attrs["least_pvalue"]``, 1 / (n + 1), is the least that n patients or cases can
        give: with fewer than 19 of them nothing is ever below .05.

    Raises:
        TypeError, ValueError: No reference; a malformed tree; cases of the reference; other draws.
    """
    outputs = check_reference(tree, reference)
    if "components" in reference.attrs:
        raise TypeError("reference is of ood.fit_novelty; pass it to ood.novelty.")
    values, single = _scores(outputs, reference)
    coords = case_coords(outputs.array, "chain", "draw")
    per_draw = xr.DataArray(
        single.reshape(*outputs.samples, len(values)),
        {name: coords[name] for name in coords},
        (*SAMPLES, "case"),
    )
    result = as_found(values, per_draw)
    known = reference["calibration_score"].values
    result["pvalue"] = ("case", pvalues(values, known), {"units": "probability"})
    of_reference = ("orientation", "n", "unit", "least_pvalue")
    result.attrs = {
        name: reference.attrs[name]
        for name in ("score", "layer", "k", "dimension", *of_reference)
        if name in reference.attrs
    }
    return result


def split_units(units: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of a share of the units, and of the others, ascending.

    Raises:
        ValueError: There is but one unit.
    """
    names = np.unique(units)
    if len(names) < 2:
        raise ValueError(
            "all cases are of one patient, who cannot both teach and judge; pass cases of others, "
            "or group='case' if they are independent"
        )
    drawn = np.random.default_rng(seed).permutation(names)[: max(1, round(share * len(names)))]
    inside = np.isin(units, drawn)
    return np.flatnonzero(inside), np.flatnonzero(~inside)


def _of_cases(group: str | xr.DataArray | None, rows: np.ndarray) -> str | xr.DataArray | None:
    """The groups of some of the cases."""
    return group.isel(case=rows) if isinstance(group, xr.DataArray) else group


def check_reference(tree: xr.DataTree, reference: xr.Dataset) -> Outputs:
    """Open a tree that is to be scored; raise where it does not go with the reference."""
    if not isinstance(reference, xr.Dataset) or "calibration_score" not in reference:
        raise TypeError(
            f"reference must be what ood.fit_reference gave, not {type(reference).__name__}."
        )
    layer = reference.attrs.get("layer")
    outputs = open_outputs(tree, layer.removeprefix("feature:") if layer else None)
    check_goes_with(outputs, reference)
    return outputs


def identity_attrs(outputs: Outputs) -> dict[str, str | int]:
    """Attributes of a reference that tell which functions it was learnt from."""
    found: dict[str, str | int] = {_IDENTITY + key: v for key, v in outputs.identity().items()}
    return found | dict(zip(("chains", "draws"), outputs.samples, strict=True))


def check_goes_with(outputs: Outputs, reference: xr.Dataset) -> None:
    """Raise where outputs are of other functions than a reference, or of its cases."""
    identity = {
        name.removeprefix(_IDENTITY): str(value)
        for name, value in reference.attrs.items()
        if name.startswith(_IDENTITY)
    }
    samples = (int(reference.attrs["chains"]), int(reference.attrs["draws"]))
    check_same_functions(identity, samples, outputs)
    for name in reference.variables:
        if str(name).endswith(("calibration_case", "learnt_case", "scaled_case")):
            check_disjoint(reference[name].values, outputs.ids, "reference and tree", FAMILIAR)


def check_same_functions(
    identity: dict[str, str], samples: tuple[int, int], outputs: Outputs
) -> None:
    """Raise unless draw s of one tree is draw s of the other."""
    if samples != outputs.samples:
        raise ValueError(
            f"The reference has {samples[0]} chain(s) of {samples[1]} draws, the tree has "
            f"{outputs.samples[0]} of {outputs.samples[1]}: every draw is compared with itself. "
            "Predict both with the same guide, draws and seed."
        )
    own = outputs.identity()
    for name in identity.keys() & own.keys():
        if identity[name] != own[name]:
            raise ValueError(
                f"The reference and the tree were predicted with another {name}: draw s is not the "
                "same function in both. Predict both with the same guide, draws and seed."
            )


def check_unseen(tree: xr.DataTree, name: str) -> None:
    """Raise where p-values would come from cases that the network was trained on."""
    if str(tree.attrs.get("log_likelihood_of", "")).startswith("training"):
        raise ValueError(
            f"{name} is of training cases, which look more familiar than new ones of the same "
            "kind: p-values would be too small. Pass held_out= of cases that the network has not "
            "seen."
        )


def _fit(
    result: xr.Dataset, known: features.Learnt, outputs: Outputs, settings: dict[str, Any]
) -> xr.Dataset:
    """Add what each function learns, over ``function``, and which function each draw is."""
    feature = outputs.feature()
    logit = outputs.logit() if "logit" in known.needs else None
    arrays = [feature] if logit is None else [feature, logit]
    number = outputs.functions(*arrays)
    rows, label = np.arange(len(outputs.ids)), None
    if "label" in known.needs:
        if outputs.probs.ndim > 4:  # of masks: no case has a class, all are of one kind
            label = np.zeros(len(rows), np.int64)
        else:
            label, rows, counts = open_classes(outputs.tree).labelled_cases()
            result.attrs |= counts
    learnt = []
    for place in _first_places(number):
        own = None if logit is None else table(logit, place)[rows]
        point, classes = table(feature, place)[rows], outputs.probs.sizes["class"]
        learnt.append(known.fit(point, label, own, classes, **settings))
    for name in learnt[0]:
        stacked = np.stack([one[name] for one in learnt])
        result[_FITTED + name] = _as_variable(name, stacked, "function")
    result["function_of_draw"] = (SAMPLES, number)
    result["learnt_case"] = ("learnt", np.sort(outputs.ids[rows].astype(str)))
    return result


def _as_variable(name: str, value: Any, *first: str) -> xr.Variable:
    """What was learnt under a name; axes beyond the first named ones are numbered."""
    values = np.asarray(value)
    axes = tuple(f"{name}_dim_{axis}" for axis in range(values.ndim - len(first)))
    return xr.Variable((*first, *axes), values)


def _first_places(number: np.ndarray) -> list[tuple[int, int]]:
    """Chain and draw where each function stands first."""
    flat = np.unique(number, return_index=True)[1]
    return [(int(at) // number.shape[1], int(at) % number.shape[1]) for at in flat]


def _scores(outputs: Outputs, reference: xr.Dataset) -> confidence.Found:
    """The score (case,), and that of every draw (sample, case), by runs of cases."""
    name = reference.attrs["score"]
    known = features.SCORES.get(name)
    names = [str(key) for key in reference.data_vars if str(key).startswith(_FITTED)]
    if known is None:
        runs: Iterable[confidence.Found]
        if name in generative.SCORES:
            fitted = {key.removeprefix(_FITTED): reference[key].values for key in names}
            runs = generative.score_runs(name, fitted, outputs)
        else:
            runs = (confidence.SCORES[name](part) for part in outputs.blocks(outputs.probs))
        found = list(runs)
        return np.concatenate([one for one, _ in found]), np.concatenate([s for _, s in found], 1)
    number = reference["function_of_draw"].values
    places = _first_places(number)
    learnt = [
        {key.removeprefix(_FITTED): reference[key].values[row] for key in names}
        for row in range(len(places))
    ]
    read = [outputs.feature(), *([outputs.logit()] if "logit" in known.needs else [])]
    by_run = []
    for part in outputs.blocks(*read):
        feature = part.feature().compute()
        logit = part.logit().compute() if "logit" in known.needs else None
        own = [None if logit is None else table(logit, place) for place in places]
        by_run.append(
            [
                known.score(one, table(feature, place), logits)
                for one, place, logits in zip(learnt, places, own, strict=True)
            ]
        )
    single = np.concatenate([np.stack(run) for run in by_run], 1)[number.ravel()]
    return single.mean(0), single
