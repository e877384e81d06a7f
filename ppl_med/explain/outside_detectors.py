"""Detectors of pytorch-ood, fitted to kept features or logits, draw by draw.

    found = score_with("KNN", tree_in, tree, held_out=tree_val, k=5)

What ``predict(..., keep=("logit", "feature:<layer>"))`` has stored goes to the detector: features
where it reads features (KNN, Mahalanobis, RMD, GMM, ViM, SHE, NNGuide, fDBD, NCI, PNML, DICE, LTS),
logits where it reads logits (EnergyBased, MaxLogit, MaxSoftmax, Entropy, GEN, KLMatching,
WeightedEBO, TemperatureScaling). Every draw has a detector of its own, since features differ from
draw to draw. The score of a case is the mean over draws; larger is more unlike, as there.

The package has faults of its own: its Mahalanobis adds the same small number to the undivided
covariance whatever the units are (issue #81), so that rarely used units count too little or too
much. `ppl_med.analysis.ood` has the scores that are checked here; this is for all others.

Source: Kirchheim, Filax and Ortmeier, CVPR workshops 2022 (pytorch-ood).
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from ppl_med.analysis.ood.features import last_layer
from ppl_med.analysis.ood.found import FAMILIAR, as_found, with_pvalues
from ppl_med.analysis.ood.outputs import Outputs, open_outputs, table
from ppl_med.analysis.ood.references import check_same_functions, check_unseen
from ppl_med.analysis.tree import (
    case_coords,
    check_apart,
    check_disjoint,
    open_classes,
    unit_names,
)
from ppl_med.axes import SAMPLES
from ppl_med.checks import nearest, reject

_NETWORKS = ("encoder", "model")
_LAST_LAYER = ("head", "w", "b")


def score_with(
    detector: str | Callable[..., Any],
    tree_in: xr.DataTree,
    tree: xr.DataTree,
    *,
    held_out: xr.DataTree | None = None,
    layer: str | None = None,
    group: str | xr.DataArray | None = None,
    **settings: Any,
) -> xr.Dataset:
    """Score cases by a detector of pytorch-ood.

    Args:
        detector: Name of a class of ``pytorch_ood.detector``, such as "KNN", or what makes a
            detector. Of its arguments, ``encoder`` and ``model`` are None; ``head`` is the last
            layer of the draw, ``w`` and ``b`` its weights and biases, found from its inputs and
            outputs.
        tree_in: The tree of `predict` on in-distribution cases, with ``keep``; the training cases
            best. Detectors that are fitted learn from it; those of features need labels.
        tree: The cases in question: the same guide, draws and seed.
        held_out: In-distribution cases that the network has not seen, which give p-values.
        layer: Layer of the features; None for the only one that was kept.
        group: Patients of the held-out cases, of each of whom one case gives the p-values; as for
            ``analysis.ood.fit_reference``.
        **settings: Further arguments of the detector, such as ``k``.

    Returns:
        Dataset as of ``analysis.ood.score``: ``score``, ``score_sd``, ``score_per_draw``, and
        ``pvalue`` where held-out cases are given.

    Raises:
        ImportError: pytorch-ood is not installed.
        TypeError: A detector that reads neither features nor logits, such as those that need
            gradients or maps; a wrong setting.
        ValueError: No such detector; logits or the layer were not kept; shared cases or
            patients; other draws; scores that are not finite.
    """
    make = _maker(detector)
    inside = open_outputs(tree_in, layer)
    scored = {"tree": open_outputs(tree, layer)}
    if held_out is not None:
        scored["held_out"] = open_outputs(held_out, layer)
        check_unseen(held_out, "held_out")
        pair = (tree_in, inside.array), (held_out, scored["held_out"].array)
        check_apart(*pair, group, ("tree_in", "held_out"))
    for name, outputs in scored.items():
        check_same_functions(inside.identity(), inside.samples, outputs)
        check_disjoint(inside.ids, outputs.ids, f"tree_in and {name}", FAMILIAR)
    wanted = set(inspect.signature(make).parameters)
    needs_head = bool(wanted & set(_LAST_LAYER))
    fitted: dict[int, Any] = {}
    reads = ""

    def of_place(place: tuple[int, int], number: int) -> Any:
        """The detector of a function, fitted once."""
        nonlocal reads
        if number not in fitted:
            given: dict[str, Any] = dict.fromkeys(wanted & set(_NETWORKS))
            if needs_head:
                given |= _last_layer(inside, place, wanted)
            one = make(**given, **settings)
            reads = _reads(one)
            fitted[number] = _fit(one, inside, reads, place)
        return fitted[number]

    first = of_place((0, 0), 0)
    arrays = [_array(inside, reads)]
    if needs_head:
        arrays = [inside.feature(), inside.logit()]
    numbers = inside.functions(*arrays)
    found = {}
    for name, outputs in scored.items():
        single = _single(outputs, reads, numbers, of_place)
        coords = case_coords(outputs.probs, *SAMPLES)
        per_draw = xr.DataArray(
            single.reshape(*outputs.samples, -1),
            {key: coords[key] for key in coords},
            (*SAMPLES, "case"),
        )
        title = f"pytorch_ood.{type(first).__name__}"
        found[name] = as_found(single.mean(0), per_draw, score=title)
        if reads == "features":
            found[name].attrs["layer"] = str(inside.feature().name)
    if held_out is None:
        return found["tree"]
    units, kind = unit_names(held_out, group, scored["held_out"].array)
    case = found["held_out"]["case"]
    people = "case" if kind == "case" else xr.DataArray(units, {"case": case}, ("case",))
    return with_pvalues(found["tree"], found["held_out"], group=people)


def _maker(detector: str | Callable[..., Any]) -> Callable[..., Any]:
    if not isinstance(detector, str):
        if not callable(detector):
            reject("detector", "the name of a detector of pytorch-ood, or what makes one", detector)
        return detector
    try:
        module = import_module("pytorch_ood.detector")
    except ImportError as error:
        raise ImportError(
            "score_with runs detectors of pytorch-ood: pip install pytorch-ood"
        ) from error
    known = [name for name, one in vars(module).items() if inspect.isclass(one)]
    if detector not in known:
        raise ValueError(
            f"detector must be a class of pytorch_ood.detector, got {detector!r}"
            f"{nearest(detector, known)}"
        )
    found: Callable[..., Any] = getattr(module, detector)
    return found


def _reads(detector: Any) -> str:
    """What a detector takes."""
    for name in ("features", "logits"):
        if hasattr(detector, f"predict_{name}"):
            return name
    raise TypeError(
        f"{type(detector).__name__} has neither predict_features nor predict_logits: it runs the "
        "network itself, by gradients, maps or several layers, which no tree holds. For ODIN use "
        "ppl_med.explain.odin."
    )


def _array(outputs: Outputs, reads: str) -> xr.DataArray:
    return outputs.feature() if reads == "features" else outputs.logit()


def _tensor(values: np.ndarray) -> Tensor:
    """What networks give: these detectors keep their means in it."""
    return torch.from_numpy(np.ascontiguousarray(values)).float()


def _last_layer(outputs: Outputs, place: tuple[int, int], wanted: set[str]) -> dict[str, Any]:
    weights, bias = last_layer(table(outputs.feature(), place), table(outputs.logit(), place))
    head = nn.Linear(weights.shape[1], weights.shape[0])
    with torch.no_grad():
        head.weight.copy_(_tensor(weights))
        head.bias.copy_(_tensor(bias))
    head.requires_grad_(False)
    own: dict[str, Any] = {"head": head, "w": head.weight.data, "b": head.bias.data}
    return {name: own[name] for name in wanted & own.keys()}


def _fit(detector: Any, inside: Outputs, reads: str, place: tuple[int, int]) -> Any:
    if not getattr(detector, "requires_fit", True):
        return detector
    label, rows, _ = open_classes(inside.tree).labelled_cases()
    values = table(_array(inside, reads), place)[rows]
    getattr(detector, f"fit_{reads}")(_tensor(values), torch.from_numpy(label).long())
    return detector


def _single(
    outputs: Outputs,
    reads: str,
    numbers: np.ndarray,
    of_place: Callable[[tuple[int, int], int], Any],
) -> np.ndarray:
    """Scores (sample, case) of all draws, by runs of cases."""
    runs = []
    for part in outputs.blocks(_array(outputs, reads)):
        values = _array(part, reads).compute()
        found: dict[int, np.ndarray] = {}
        for place in part.places():
            number = int(numbers[place])
            if number not in found:
                detector = of_place(place, number)
                with torch.no_grad():
                    scores = getattr(detector, f"predict_{reads}")(_tensor(table(values, place)))
                found[number] = scores.detach().cpu().double().numpy().reshape(-1)
        runs.append(np.stack([found[int(numbers[place])] for place in part.places()]))
    single = np.concatenate(runs, 1)
    bad = int((~np.isfinite(single)).sum())
    if bad:
        raise ValueError(f"the detector gave {bad} scores that are NaN or infinite")
    return single
