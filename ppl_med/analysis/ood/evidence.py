"""P-values of several scores put together: one verdict per case, its false-alarm rate held.

Sources: Vovk and Wang, Biometrika 107, 2020, arXiv:1212.4966 (averages of dependent p-values); that
of `novelty` is conformal.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.ood import features
from ppl_med.analysis.ood.found import pvalues
from ppl_med.analysis.ood.outputs import open_outputs
from ppl_med.analysis.ood.references import (
    check_reference,
    check_unseen,
    fit_reference,
    score,
    split_units,
    with_calibration,
)
from ppl_med.analysis.tree import case_units, check_apart, check_cases
from ppl_med.axes import SAMPLES

Method = Literal["harmonic", "bonferroni", "max"]
COMPONENTS = ("mahalanobis", "knn", "mutual_information")
_JUDGES = 19  # of whom the least p-value is .05
_MARK = "::"


def combine(found: Sequence[xr.Dataset], method: Method = "harmonic") -> xr.DataArray:
    """Return one p-value per case from those of several scores, valid however they depend.

    Args:
        found: Results of `score` on the same cases, two or more.
        method: "harmonic": e ln K times the harmonic mean (K of two); "bonferroni": K times the
            smallest; "max": the largest, where all scores must agree.

    Returns:
        Probability (case), at most 1.

    Raises:
        TypeError: Something else than results of `score`.
        ValueError: A wrong method, fewer than two results, or other cases.
    """
    checks.choice("method", method, ("harmonic", "bonferroni", "max"))
    if isinstance(found, xr.Dataset):
        raise TypeError("found must be a list of results of ood.score, not one of them.")
    number = len(found)
    if number < 2:
        raise ValueError(f"found must hold two results of ood.score or more, got {number}.")
    for one in found:
        if not isinstance(one, xr.Dataset) or "pvalue" not in one:
            raise TypeError("found must hold results of ood.score, each with a pvalue.")
        check_cases(one["pvalue"], found[0]["pvalue"], "one of found", "the first of found")
    joined = xr.concat([one["pvalue"] for one in found], "score", join="exact")
    if method == "max":
        return joined.max("score")
    if method == "bonferroni":
        return (number * joined.min("score")).clip(max=1)
    factor = number if number < 3 else np.e * np.log(number)
    return (factor / (1 / joined).mean("score")).clip(max=1)


def fit_novelty(
    tree: xr.DataTree,
    held_out: xr.DataTree,
    *,
    layer: str | Sequence[str] | None = None,
    components: Sequence[str] = COMPONENTS,
    group: str | xr.DataArray | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Learn what `novelty` compares with: the default for whoever does not want to choose a score.

    A case is novel if its features are far from those of training, in any layer that was kept, or
    if the draws disagree. A third of the held-out cases, or fewer where 19 would not be left, puts
    these on one scale, their tail probability; the others give the p-value. Keep early layers too:
    what is new in an image (its grey values, its sharpness) is often forgotten by the last. What it
    cannot see: images that only fade, which lie nearer to the middle of all others than before.

    Args:
        tree: The tree of `predict` on training cases, with ``keep=("feature:<layer>", ...)``.
        held_out: The same on in-distribution cases that the network has not seen, 4 or more.
        layer: Layer of the features, or several; None for all that were kept.
        components: Names of ``ood.SCORES``; a case is as novel as the score that says so most.
        group: Patients, of each of whom one case gives the p-values; as for `fit_reference`.
        seed: Seed of the parts.

    Returns:
        Dataset that saves and loads.

    Raises:
        TypeError, ValueError: As for `fit_reference`.
    """
    wanted = checks.different_names("components", components)
    check_unseen(held_out, "held_out")
    opened = open_outputs(held_out)
    if len(opened.ids) < 4:
        raise ValueError(f"held_out has {len(opened.ids)} cases; pass 4 or more.")
    pair = (tree, open_outputs(tree).array), (held_out, opened.array)
    check_apart(*pair, group, ("tree", "held_out"))
    units, kind = case_units(held_out, group, opened.array)
    number = len(np.unique(units))
    third = number // 3 if number < _JUDGES + 2 else min(number // 3, number - _JUDGES)
    rows = split_units(units, third / number, checks.whole("seed", seed, least=0))
    scaling, judging = (held_out.isel(case=part) for part in rows)
    parts = []
    pairs = _with_layers(wanted, tree, layer)
    names = [name if own is None else f"{name} of {own}" for name, own in pairs]
    for name, own in pairs:
        part = fit_reference(name, tree, held_out=scaling, layer=own, group="case")
        part = part.rename({"calibration_case": "scaled_case"})
        parts.append(part.drop_indexes("scaled_case").reset_coords("scaled_case"))
    result = xr.Dataset(attrs={**parts[0].attrs, "score": "novelty", "components": list(names)})
    for name, part in zip(names, parts, strict=True):
        renamed = {dim: name + _MARK + str(dim) for dim in part.dims if dim not in SAMPLES}
        part = part.rename_dims(renamed)
        result = result.assign({name + _MARK + str(key): v for key, v in part.variables.items()})
        for key, value in part.attrs.items():
            result.attrs[name + _MARK + key] = value
    values, _ = _scored(judging, result)
    return with_calibration(result, values, opened.ids[rows[1]], units[rows[1]], kind, seed)


def _with_layers(
    components: Sequence[str], tree: xr.DataTree, layer: str | Sequence[str] | None
) -> list[tuple[str, str | None]]:
    """Every component with every layer that it reads; None for those that read no features."""
    if not set(components) & set(features.SCORES):
        return [(name, None) for name in components]
    outputs = open_outputs(tree)
    if layer is None:
        layer = outputs.layers()
    layers = [layer] if isinstance(layer, str) else checks.different_names("layer", layer)
    return [
        (name, own)
        for name in components
        for own in (layers if name in features.SCORES else [None])
    ]


def novelty(tree: xr.DataTree, reference: xr.Dataset) -> xr.Dataset:
    """Say how novel cases are, each with one p-value.

    Args:
        tree: The tree of `predict` on other cases: same guide, draws, seed and ``keep``.
        reference: What `fit_novelty` gave.

    Returns:
        Dataset over case: ``score``, minus the log of the smallest tail probability of a
        component, in nats; ``pvalue``, of which in-distribution cases have p <= a with probability
        at most a; ``component_score`` (component, case).

    Raises:
        TypeError, ValueError: As for `score`.
    """
    told = reference.attrs if isinstance(reference, xr.Dataset) else {}
    components = list(np.atleast_1d(told.get("components", [])))
    if not components:
        raise TypeError("reference must be what ood.fit_novelty gave; for others use ood.score.")
    check_reference(tree, reference)
    values, single = _scored(tree, reference)
    result = xr.Dataset(coords=single[0]["score"].coords)
    result["score"] = ("case", values)
    known = reference["calibration_score"].values
    result["pvalue"] = ("case", pvalues(values, known), {"units": "probability"})
    result["component_score"] = (
        ("component", "case"),
        np.stack([one["score"].values for one in single]),
    )
    kept = ("score", "n", "unit", "least_pvalue")
    result.attrs = {name: reference.attrs[name] for name in kept if name in reference.attrs}
    return result.assign_coords(component=components)


def _scored(tree: xr.DataTree, reference: xr.Dataset) -> tuple[np.ndarray, list[xr.Dataset]]:
    """The largest surprise of the components (case,), and what each of them gives."""
    names = [str(name) for name in np.atleast_1d(reference.attrs["components"])]
    single = [score(tree, _part(reference, name)) for name in names]
    surprises = [
        _surprise(one["score"].values, reference[f"{name}{_MARK}calibration_score"].values)
        for one, name in zip(single, names, strict=True)
    ]
    return np.max(surprises, axis=0), single


def _surprise(values: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """Minus the log of the upper tail probability, between held-out cases by interpolation.

    Beyond the largest calibration score it adds the excess in units of their interquartile range,
    so that cases far out are still told apart.
    """
    known = np.unique(calibration)
    low, high = np.quantile(calibration, [0.25, 0.75])
    excess = (values - known[-1]).clip(min=0)
    beyond = np.log1p(excess / (high - low)) if high > low else 0.0
    steps = -np.log(pvalues(known, calibration))
    last = np.log(1 + len(calibration)) - steps[-1]
    return np.interp(values, known, steps) + np.where(excess > 0, last + beyond, 0.0)


def _part(reference: xr.Dataset, name: str) -> xr.Dataset:
    """The reference of one component, as `fit_reference` gave it."""
    mark = name + _MARK
    own = {
        str(key).removeprefix(mark): xr.Variable(
            [str(dim).removeprefix(mark) for dim in value.dims], value.values, value.attrs
        )
        for key, value in reference.variables.items()
        if str(key).startswith(mark)
    }
    attrs = {
        str(key).removeprefix(mark): value
        for key, value in reference.attrs.items()
        if str(key).startswith(mark)
    }
    part = xr.Dataset(own, attrs=attrs).rename({"scaled_case": "calibration_case"})
    return part.set_coords("calibration_case")
