"""Prediction sets that hold the true class with a stated probability (split conformal).

Scores of n labelled calibration cases give a threshold (see `order_statistics`); the set of a case
holds every class whose score is not above it (see `nonconformity` for the scores). If calibration
and test cases are exchangeable, a set covers with probability at least 1 - alpha, whatever the
model. The draws need not be good: a poor posterior gives valid, large sets.

Thresholds `within` groups hold that promise in every group (Mondrian): by a column of metadata,
e.g. the hospital, or by the true class.

Lazy trees are read in runs of cases; the probabilities of the mixture are in memory.

Source: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005, section 4.5.
"""

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.conformal import compared, exchangeability, thresholds
from ppl_med.analysis.conformal.achieved import coverage_figures
from ppl_med.analysis.conformal.hits import of_label
from ppl_med.analysis.conformal.nonconformity import Score, case_scores, score_of
from ppl_med.analysis.tree import (
    Classes,
    Posterior,
    case_ids,
    check_disjoint,
    metadata_groups,
    open_classes,
)


def calibrate(
    tree: xr.DataTree,
    alpha: float = 0.1,
    *,
    method: str | Score = "lac",
    within: str | xr.DataArray | None = None,
    weights: xr.DataArray | None = None,
    group: str | xr.DataArray | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Learn the threshold from labelled cases that the model was not trained on.

    Args:
        tree: The tree of `predict` on the calibration cases, one label per case; cases with -1 are
            left out.
        alpha: Allowed share of sets that miss the true class, in (0, 1).
        method: "lac" (smallest sets), "aps", "raps", "saps", or a `Score` with settings.
        within: A threshold per group: "class" for the true class, the name of a column of
            constant_data, or the groups (case).
        weights: Likelihood ratio test / calibration of every case, for a covariate shift; e.g.
            from `density_ratio`. Then `predict_sets` needs those of its cases.
        group: Whose the cases are, so that cases of one patient count as one in the tests of
            shift and the band of the coverage: a column or coordinate, or the groups (case); None
            for "patient" where there is one; "case" for every case by itself.
        seed: Seed of the uniform numbers of randomised scores.

    Returns:
        Dataset with ``threshold`` (in units of the score; infinite when n is too small for alpha,
        which gives full sets), ``n``, ``k`` (over ``group`` with ``within``), ``alpha``, ``score``
        (case) with the ids of the calibration cases and the names ``class`` as coordinates, and
        ``features`` (case, feature), the mixture probabilities and the largest of them, and
        ``feature:<layer>`` (case, unit:<layer>), the mean over draws of those that the tree keeps.
        With ``weights`` no threshold or k, but ``weight`` (case) and ``effective_n``. It saves,
        loads and applies to any other tree.

    Raises:
        TypeError, ValueError: ``alpha`` out of range; ``probs``, labels, groups or weights
            malformed; a class or group without cases; one case id twice; labels per pixel (pixels
            of one case are not exchangeable).
    """
    checks.inside("alpha", alpha)
    settings = score_of(method)
    classes = open_classes(tree)
    label = classes.case_labels()
    case_ids(classes.array)
    mixture, scores = _scores(classes, settings, seed)
    groups, names = None, None
    if isinstance(within, str) and within == "class":
        groups, names = thresholds.class_groups(classes, label), classes.names
    elif within is not None:
        groups = metadata_groups(tree, within, classes.array, "within")
    result = thresholds.learn(
        of_label(scores, label),
        alpha,
        compared=compared.read(tree, _outputs(mixture), classes.array, group),
        groups=groups,
        names=names,
        weights=weights,
    ).assign_coords({"class": classes.names})
    if "threshold" in result:
        result["threshold"].attrs["units"] = "probability"
    return result.assign_attrs(
        method=settings.method,
        draws=settings.draws,
        penalty=float(settings.penalty),
        free_ranks=int(settings.free_ranks),
        randomised=int(settings.randomised),
        seed=int(seed),
        within=thresholds.within_name(within),
        mixture="mean of probs over chain and draw",
    )


def predict_sets(
    calibration: xr.Dataset,
    tree: Posterior,
    *,
    within: xr.DataArray | None = None,
    weights: xr.DataArray | None = None,
    group: xr.DataArray | None = None,
    shift_alarm: float = exchangeability.FALSE_ALARM,
) -> xr.Dataset:
    """Return the prediction set of every case and, with labels, how often it covers.

    Args:
        calibration: What `calibrate` returned.
        tree: The tree of `predict` on other cases, or its ``probs``.
        within: Groups (case), where `calibrate` was given an array of groups.
        weights: Likelihood ratios of these cases, where `calibrate` had some.
        group: Patients (case), where `calibrate` was given an array of them; by default the column
            that it knows them by.
        shift_alarm: Warn when a two-sample test of shift has a p-value below this; the rate of
            false alarms is at most this. 0 never warns.

    Returns:
        Dataset with ``prediction_set`` (case, class) bool and ``set_size`` (case); ``n``, ``k``,
        ``threshold`` of the calibration; ``shift_pvalue`` of the tests on mixture probabilities,
        on features that both trees keep and, with labels, on the scores and the coverage (NaN: not
        tested; attributes give what was tested). With observed labels
        also ``covered`` (case), ``coverage``, the share of covered cases; ``coverage_expected`` =
        k / (n + 1) and ``coverage_lower``, ``coverage_upper``, the 99 % band of the Beta-binomial:
        coverage outside says that calibration and test cases are not exchangeable (below) or that
        scores are tied (above); ``coverage_pvalue``, the probability that so few are covered. Where
        cases are of patients, these three come from permuting patients between calibration and
        test. With weights there is no such distribution and no band, and the p-values are
        approximate. A case whose label is -1 has a set and does not count in the coverage: its
        ``covered`` is NaN. Weights that cannot carry the level give sets of all classes; the
        attribute ``unbounded`` counts them.

    Raises:
        TypeError, ValueError: ``calibration`` is not from `calibrate`, the classes differ,
            calibration and test share cases or patients, a case id appears twice, a group has no
            threshold, features are of other functions, or ``probs`` malformed.

    Warns:
        RuntimeWarning: Calibration and test cases look different; weights that leave sets of all
            classes.
    """
    settings = _check_calibration(calibration)
    checks.share("shift_alarm", shift_alarm, "0 never warns")
    classes = open_classes(tree)
    probs = classes.array
    if probs.ndim > 4:
        raise ValueError(f"probs has further dimensions {probs.dims[4:]}; sets are per case.")
    _check_classes(calibration, classes.names)
    check_disjoint(calibration["case"].values, case_ids(probs))
    label = None if classes.observation() is None else classes.case_labels()
    by_class = None if label is None else thresholds.class_groups(classes, label)
    groups = thresholds.test_groups(calibration, tree, within, probs, by_class)
    mixture, scores = _scores(classes, settings, int(calibration.attrs["seed"]))
    seen = compared.read_like(calibration, tree, _outputs(mixture), probs, group)
    if calibration.attrs["within"] == "class":
        limit = calibration["threshold"].rename(group="class").assign_coords(scores["class"].coords)
    else:
        limit = thresholds.per_case(calibration, probs, groups=groups, weights=weights)
    member = scores <= limit
    result = xr.Dataset({"prediction_set": member, "set_size": member.sum("class")})
    result.attrs.update(limit.attrs)
    result["set_size"].attrs["units"] = "classes"
    result = result.assign(thresholds.carried(calibration).data_vars)
    if groups is not None:
        result["case_group"] = ("case", groups.values)
    reached = None
    if label is not None:
        reached = of_label(scores, label)
        figures = coverage_figures(
            of_label(member, label), calibration, groups, reached, seen.units
        )
        result = result.assign(figures.data_vars).assign_attrs(figures.attrs)
    result["shift_pvalue"] = thresholds.shift_check(
        calibration, seen, reached, groups, shift_alarm, result.get("coverage_pvalue")
    )
    result.attrs.update({key: calibration.attrs[key] for key in ("method", "within")})
    result.attrs["alpha"] = float(calibration["alpha"])
    if calibration.get("threshold", xr.DataArray([0.0])).ndim == 0:
        result.attrs["threshold"] = float(calibration["threshold"])
    return result


def _scores(classes: Classes, settings: Score, seed: int) -> tuple[xr.DataArray, xr.DataArray]:
    """Mixture and scores, both (case, class)."""
    mixture = classes.mixture()
    if settings.of_mixture:
        return mixture, case_scores(mixture.expand_dims(("chain", "draw")), settings, seed)
    return mixture, classes.map(lambda part: case_scores(part, settings, seed))


def _outputs(mixture: xr.DataArray) -> np.ndarray:
    values = mixture.transpose("case", "class").values
    # Two classes are one number; their two tests would be the same.
    shown = values if values.shape[1] > 2 else values[:, 1:]
    return np.column_stack([shown, values.max(1)])


def _check_calibration(calibration: xr.Dataset) -> Score:
    thresholds.check_calibration(calibration, "calibrate")
    attrs = calibration.attrs
    try:
        return Score(
            attrs["method"], bool(attrs["randomised"]), float(attrs["penalty"]),
            int(attrs["free_ranks"]), attrs["draws"],
        )  # fmt: skip
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"calibration has method {attrs.get('method')!r} and is no calibration for classes: "
            f"{error}"
        ) from error


def _check_classes(calibration: xr.Dataset, names: list[str]) -> None:
    old = [str(name) for name in calibration["class"].values]
    if old != names:
        raise ValueError(f"The calibration knows the classes {old}; the tree has {names}.")
