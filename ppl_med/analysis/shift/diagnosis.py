"""One verdict on cases that may have shifted: "none", "covariate", "label" or "semantic".

1. Any shift at all? Four two-sample tests of features and of classifier outputs, Bonferroni over
   them. Not rejected: "none". So false alarms are at most ``alarm``, whatever the network.
2. A label shift alone? The shares of the classes are fitted, and what remains is tested
   (`label_hypothesis`). Not rejected: "label".
3. Otherwise two accounts compete (`class_mixtures`): the classes stay and something new is added,
   "semantic"; or the classes themselves have moved, "covariate". The better log density of cases
   that the fit has not seen wins. Where more than half of the cases would be new, nothing that is
   known has stayed in its place, and it is called "covariate": a set of unknown things alone cannot
   be told from one whose images all look different.

Steps 2 and 3 choose between accounts; only step 1 is a promise. Of two shifts at once the larger is
named.

Sources: Rabanser, Guennemann and Lipton, NeurIPS 2019, arXiv:1810.11953 (which tests find shifts).
"""

from typing import Any

import numpy as np
import xarray as xr
from scipy.special import xlogy

from ppl_med import checks
from ppl_med.analysis.ood.outputs import open_outputs
from ppl_med.analysis.ood.references import check_goes_with
from ppl_med.analysis.shift.class_mixtures import (
    fit_added,
    fit_classes,
    fit_moved,
    held_out_density,
)
from ppl_med.analysis.shift.label_hypothesis import LabelFit, Sample, fit_label_shift
from ppl_med.analysis.shift.label_shares import confusion_shares, em_shares
from ppl_med.analysis.shift.shift_reference import project
from ppl_med.analysis.statistics import two_sample
from ppl_med.analysis.statistics.unit_permutations import Units, check_units
from ppl_med.analysis.tree import case_coords, open_classes, unit_names

VERDICTS = ("none", "covariate", "label", "semantic")
ALARM = 0.05
_FOLDS = 5
_MOST_NEW = 0.5
_FEWEST = 10  # units of which a shift is worth looking for


def diagnose(
    tree: xr.DataTree,
    reference: xr.Dataset,
    *,
    alarm: float = ALARM,
    group: str | xr.DataArray | None = None,
    permutations: int = 999,
    resamples: int = 499,
    seed: int = 0,
) -> xr.Dataset:
    """Say whether cases have shifted, and how. Labels are never read.

    Args:
        tree: The tree of `predict` on other cases: the same guide, draws, seed and ``keep``.
        reference: What `shift.fit_reference` gave.
        alarm: Probability of a verdict other than "none" where nothing has shifted, at most; and
            below which a label shift alone is rejected.
        group: Units of the cases, as those of the reference; None for the same column.
        permutations: Of the units, in tests that permute.
        resamples: Pairs of samples drawn where a label shift is tested.
        seed: Seed of both and of folds.

    Returns:
        Dataset of ``verdict``; ``pvalue`` (test) of the tests of any shift, ``pvalue_any`` of all
        together, ``pvalue_label`` of a label shift alone, probability; ``share`` (class) of the
        kernel fit on which that rests, ``share_confusion`` (NaN where the calls do not tell
        classes apart), ``share_em``, ``reference_share``; ``gain`` of "something is added" over
        "classes have moved", nats per case, with ``gain_se`` over units; ``added_share``, at most
        so many cases are new, and ``added_probability`` (case); ``class_move`` (class), by how many
        standard deviations of cases within a class it would have moved. ``attrs["rests_on"]`` says
        what the verdict rests on.

    Raises:
        TypeError, ValueError: No reference; a malformed tree; cases or patients of the reference;
            other draws; fewer than 10 units.

    Note:
        A concept shift, the same images under other labels, cannot be seen without labels. A
        verdict "none" says that these features and so many cases show no shift. A label or
        semantic shift is diagnosed within what the kept layers see.
    """
    checks.inside("alarm", alarm)
    checks.whole("permutations", permutations)
    checks.whole("resamples", resamples)
    checks.whole("seed", seed, least=0)
    if not isinstance(reference, xr.Dataset) or "class_mean" not in reference:
        raise TypeError(
            f"reference must be what shift.fit_reference gave, not {type(reference).__name__}."
        )
    outputs = open_outputs(tree)
    check_goes_with(outputs, reference)
    source = open_classes(tree)
    if source.names != list(map(str, reference["class"].values)):
        raise ValueError(f"tree has the classes {source.names}, the reference others.")
    kind = str(reference.attrs["group"])
    if group is None and kind != "array":
        group = kind
    given = "array" if isinstance(group, xr.DataArray) else group
    if given != kind and (kind in ("array", "case") or given == "case"):
        rule = "an array of groups" if kind == "array" else f"{kind!r} or None"
        checks.reject("group", f"{rule}, as the units of the reference are", given)
    own = unit_names(tree, group, outputs.probs)[0].astype(str)
    if len(np.unique(own)) < _FEWEST:
        checks.reject("tree", f"of {_FEWEST} units (cases, patients) or more", len(np.unique(own)))
    known, points = reference["point"].values, project(outputs, reference)
    probs, known_probs = source.mixture().values, reference["probs"].values
    label, units = reference["label"].values, (reference["unit_name"].values.astype(str), own)
    centres = reference["class_mean"].values
    tests = _tests(
        (_seen(known, centres), _seen(points, centres)),
        (_called(known_probs), _called(probs)),
        None if check_units(known, points, units) is None else units,
        permutations,
        seed,
    )
    found = np.array([test.pvalue for test in tests.values()])
    pvalue = min(1.0, len(found) * float(found.min()))
    samples = [Sample(a, np.unique(b, return_inverse=True)[1])
               for a, b in zip((known, points), units, strict=True)]  # fmt: skip
    number = len(source.names)
    shares = fit_label_shift(samples[0], label, samples[1], number, resamples, seed)
    classes = fit_classes(known, label, number)
    new, moved = fit_added(classes, points), fit_moved(classes, points)
    fold = np.random.default_rng(seed).permutation(samples[1].num_units)[samples[1].units] % _FOLDS
    gains = held_out_density(fit_added, classes, points, fold)
    gains -= held_out_density(fit_moved, classes, points, fold)
    added = 1 - float(new.share.sum())
    verdict, why = _verdict(pvalue, shares, float(gains.mean()), added, alarm)
    result = xr.Dataset(
        {
            "verdict": verdict,
            "pvalue": ("test", found),
            "pvalue_any": pvalue,
            "pvalue_label": shares.pvalue,
            "share": ("class", shares.share),
            **_other_shares(probs, known_probs, label),
            "gain": gains.mean(),
            "gain_se": _error(gains, samples[1]),
            "added_share": added,
            "class_move": ("class", np.linalg.norm(moved.moves, axis=1)),
        },
        {"test": list(tests), "class": source.names},
    )
    chances = xr.DataArray(new.added(points), case_coords(outputs.probs), "case")
    result["added_probability"] = chances
    for name in ("pvalue", "pvalue_any", "pvalue_label", "added_share", "added_probability"):
        result[name].attrs["units"] = "probability"
    result["gain"].attrs["units"] = "nats per case"
    attrs: dict[str, Any] = {"rests_on": why, "alarm": alarm, "new_cases": len(points)}
    return result.assign_attrs(attrs, num_held_out=len(known), units=reference.attrs["group"])


def _tests(
    features: tuple[np.ndarray, np.ndarray],
    called: tuple[np.ndarray, np.ndarray],
    units: Units | None,
    permutations: int,
    seed: int,
) -> dict[str, two_sample.Comparison]:
    settings: dict[str, Any] = {"units": units, "permutations": permutations, "seed": seed}
    return {
        "features: Kolmogorov-Smirnov": two_sample.kolmogorov_smirnov(*features, **settings),
        "features: MMD": two_sample.mmd(features[0][:, 1:], features[1][:, 1:], **settings),
        "features: classifier": two_sample.classifier_test(*features, **settings),
        "outputs: Kolmogorov-Smirnov": two_sample.kolmogorov_smirnov(*called, **settings),
    }


def _seen(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Distance from the nearest class, and the directions (case, 1 + direction)."""
    square = ((points[:, None] - centres) ** 2).sum(-1).min(1)
    return np.concatenate([np.sqrt(square)[:, None], points], 1)


def _called(probs: np.ndarray) -> np.ndarray:
    """Entropy and probabilities (case, 1 + class)."""
    return np.concatenate([-xlogy(probs, probs).sum(1, keepdims=True), probs], 1)


def _other_shares(probs: np.ndarray, known: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    once = np.ones(len(probs)), known, label, np.ones(len(label))
    return {
        "share_confusion": ("class", confusion_shares(probs, *once)),
        "share_em": ("class", em_shares(probs, *once)),
        "reference_share": ("class", np.bincount(label, minlength=probs.shape[1]) / len(label)),
    }


def _error(gains: np.ndarray, sample: Sample) -> float:
    """Standard error of a mean over cases, over units."""
    sums = np.bincount(sample.units, gains - gains.mean())
    number = sample.num_units
    return float(np.sqrt((sums**2).sum() * number / (number - 1)) / len(gains))


def _verdict(
    pvalue: float, shares: LabelFit, gain: float, added: float, alarm: float
) -> tuple[str, str]:
    if pvalue >= alarm:
        return "none", f"no test of a shift rejects: p = {pvalue:.2g}, alarm below {alarm:g}"
    start = f"shift: p = {pvalue:.2g}"
    if shares.pvalue >= alarm:
        return "label", f"{start}; other shares of the classes explain it: p = {shares.pvalue:.2g}"
    start += f"; no label shift alone: p = {shares.pvalue:.2g}"
    if added > _MOST_NEW:
        return "covariate", f"{start}; no more than {1 - added:.0%} of the cases are in place"
    if gain > 0:
        return "semantic", (
            f"{start}; classes in place and {added:.0%} new cases fit better than moved classes, "
            f"by {gain:.2g} nats per case"
        )
    return "covariate", (
        f"{start}; moved classes fit better than classes in place and something new, by "
        f"{-gain:.2g} nats per case"
    )
