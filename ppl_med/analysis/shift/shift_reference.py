"""What is remembered of in-distribution cases, against which a shift is diagnosed.

Features of all kept layers become few numbers, the directions: in each layer those that tell the
classes apart best come first, all of unit variance within classes. They are learnt on cases that
the network may know; the reference, against which others are compared, is of cases that neither
the network nor the directions were learnt on, so that it is exchangeable with new ones.

Features of a chain are averaged over its draws, and chains stand side by side: a fixed function of
the image, whatever the guide.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from scipy.linalg import block_diag, solve_triangular
from sklearn.covariance import ledoit_wolf_shrinkage

from ppl_med import checks
from ppl_med.analysis.ood.features import RESOLUTION
from ppl_med.analysis.ood.found import FAMILIAR
from ppl_med.analysis.ood.outputs import Outputs, open_outputs
from ppl_med.analysis.ood.references import (
    check_same_functions,
    check_unseen,
    identity_attrs,
    split_units,
)
from ppl_med.analysis.tree import (
    case_units,
    check_apart,
    check_disjoint,
    mean_features,
    open_classes,
    unit_names,
)

DIRECTIONS = 10
_CASES_PER_DIRECTION = 10


def fit_reference(
    tree: xr.DataTree,
    *,
    held_out: xr.DataTree | None = None,
    layer: str | Sequence[str] | None = None,
    directions: int = DIRECTIONS,
    group: str | xr.DataArray | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Learn what in-distribution cases are like.

    Args:
        tree: The tree of `predict` on labelled in-distribution cases, best the training cases, with
            ``keep=("feature:<layer>", ...)``. Keep an early layer too: noise and blur show there
            when the last layer no longer sees them.
        held_out: The same on labelled cases that the network has not seen, some hundred at best;
            every class in two units or more. None keeps a half of ``tree`` back for this, of
            patients that the other half lacks; its cases must then be unseen.
        layer: One layer or several; None for all that were kept.
        directions: Of every layer, at most (and at least the classes less 1); all together one
            for 10 held-out cases.
        group: What is exchangeable among held-out cases: a column such as "patient", or the groups
            (case); None for "patient" where there is such a column, else cases.
        seed: Seed of the halves.

    Returns:
        Dataset that saves and loads: ``centre`` and ``matrix`` (unit, direction) of features,
        ``class_mean``; ``point``, ``label``, ``unit_name`` and ``probs`` of the held-out cases.

    Raises:
        TypeError, ValueError: Malformed trees; no features kept; held-out cases that the network
            knows or that are among the others, or whose patients are; a class in fewer than two
            units.
    """
    checks.whole("directions", directions)
    inside = open_outputs(tree)
    if held_out is None:
        check_unseen(tree, "tree")
        people = case_units(tree, group, inside.probs)[0]
        halves = split_units(people, 0.5, checks.whole("seed", seed, least=0))
        if isinstance(group, xr.DataArray):
            group = group.isel(case=halves[1])
        held_out = tree.isel(case=halves[1])
        tree = tree.isel(case=halves[0])
        inside = open_outputs(tree)
    outside = open_outputs(held_out)
    check_unseen(held_out, "held_out")
    check_same_functions(inside.identity(), inside.samples, outside)
    check_disjoint(inside.ids, outside.ids, "tree and held_out", FAMILIAR)
    pair = (tree, inside.probs), (held_out, outside.probs)
    check_apart(*pair, group, ("tree", "held_out"))
    if inside.probs.ndim != 4:
        checks.reject("tree", "of one class per case", inside.probs.dims)
    if layer is None:
        layer = inside.layers()
    layers = [layer] if isinstance(layer, str) else list(checks.different_names("layer", layer))
    label, rows, counts = open_classes(tree).labelled_cases()
    num_classes = inside.probs.sizes["class"]
    if len(rows) <= num_classes + 1:
        checks.reject("tree", f"of more than {num_classes + 1} labelled cases", len(rows))
    known, kept, _ = open_classes(held_out).labelled_cases()
    names = unit_names(held_out, group, outside.probs)
    _check_classes(known, names[0][kept], open_classes(tree).names)
    number = max(directions, num_classes - 1)
    number = max(1, min(number, len(kept) // _CASES_PER_DIRECTION // len(layers)))
    parts = []
    for features in read_features(inside, layers):
        parts.append(_directions(features[rows], label, num_classes, number))
    centre = np.concatenate([one for one, _ in parts])
    matrix = block_diag(*[two for _, two in parts])
    learnt = (np.concatenate(read_features(inside, layers), 1)[rows] - centre) @ matrix
    point = (np.concatenate(read_features(outside, layers), 1)[kept] - centre) @ matrix
    present = np.unique(label)
    result = xr.Dataset(
        {
            "centre": ("unit", centre),
            "matrix": (("unit", "direction"), matrix),
            "class_mean": (
                ("learnt_class", "direction"),
                np.stack([learnt[label == k].mean(0) for k in present]),
            ),
            "point": (("calibration_case", "direction"), point),
            "label": ("calibration_case", known),
            "unit_name": ("calibration_case", names[0][kept].astype(str)),
            "probs": (
                ("calibration_case", "class"),
                open_classes(held_out).mixture().values[kept],
            ),
            "learnt_case": ("learnt", np.sort(inside.ids[rows].astype(str))),
        },
        {"class": open_classes(tree).names, "calibration_case": outside.ids[kept]},
    )
    attrs = {"layers": layers, "group": names[1], "num_held_out": len(kept)}
    return result.assign_attrs(identity_attrs(inside) | attrs | counts)


def project(outputs: Outputs, reference: xr.Dataset) -> np.ndarray:
    """Return the directions (case, direction) of cases."""
    layers = [str(name) for name in np.atleast_1d(reference.attrs["layers"])]
    features = np.concatenate(read_features(outputs, layers), 1)
    if features.shape[1] != reference.sizes["unit"]:
        raise ValueError(
            f"The layers {layers} have {features.shape[1]} units in tree, "
            f"{reference.sizes['unit']} in the reference; predict both with one model."
        )
    return (features - reference["centre"].values) @ reference["matrix"].values


def read_features(outputs: Outputs, layers: Sequence[str]) -> list[np.ndarray]:
    """Features (case, unit) of every layer: means over draws, chains side by side."""
    return [
        mean_features(Outputs(outputs.tree, outputs.probs, layer).feature()) for layer in layers
    ]


def _check_classes(label: np.ndarray, units: np.ndarray, names: Sequence[str]) -> None:
    for k, name in enumerate(names):
        number = len(np.unique(units[label == k]))
        if number < 2:
            raise ValueError(
                f"held_out has class {name!r} in {number} unit(s) (cases, or patients); two or "
                "more are needed: add some, or select the other classes."
            )


def _directions(
    features: np.ndarray, label: np.ndarray, num_classes: int, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Centre (unit,) and matrix (unit, direction), padded with 0 where there are fewer."""
    sums = np.zeros((num_classes, features.shape[1]))
    np.add.at(sums, label, features)
    mean = sums / np.maximum(np.bincount(label, minlength=num_classes), 1)[:, None]
    rest = features - mean[label]
    scale = rest.std(0)
    alive = scale > RESOLUTION * np.abs(features).max(0)
    centre = features.mean(0)
    if not alive.any():
        raise ValueError("All units of a layer are constant; choose another layer.")
    scaled = rest[:, alive] / scale[alive]
    shrinkage = ledoit_wolf_shrinkage(scaled, assume_centered=True)
    common = (1 - shrinkage) * scaled.T @ scaled / len(scaled)
    common += max(shrinkage, 1e-6) * np.eye(len(common))
    inverse = solve_triangular(np.linalg.cholesky(common), np.eye(len(common)), lower=True).T
    white = (features[:, alive] - centre[alive]) / scale[alive] @ inverse
    vectors = np.linalg.svd(white, full_matrices=False)[2][:number].T
    largest = np.abs(vectors).argmax(0)
    vectors = vectors * np.sign(vectors[largest, np.arange(vectors.shape[1])])
    matrix = np.zeros((features.shape[1], vectors.shape[1]))
    matrix[alive] = inverse @ vectors / scale[alive][:, None]
    return centre, matrix
