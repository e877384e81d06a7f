"""Do calibration and test cases look exchangeable? Two-sample tests with a stated false alarm.

What is looked at, with its share of the false alarm:

Where labels are known, the coverage itself, with a half: whether so few test cases are covered by
chance.

Outputs: the score of the true class where labels are known, the mixture probability of every class,
the mean of a number. Each is compared by a Kolmogorov-Smirnov test; the smallest p-value times the
number of tests (Bonferroni) is a valid p-value of all.

Features, where the trees keep those of layers (``predict(..., keep=("feature:<layer>",))``): their
means over draws, by `principal_shift`. A network may be as sure as ever of images that it has never
seen the like of; its features tell more often. They share the rest with the outputs equally.

Cases of one patient are alike. Where the calibration knows patients, they are permuted as a whole,
in every test. Where thresholds hold within groups, the groups are compared one by one: their shares
may differ. Where cases have weights for a covariate shift, the weighted calibration cases are
compared, with Kish's effective number of them: weights that do not undo the shift are seen too.
That test is approximate.

A silent test does not prove that coverage holds: it sees only these, and only as well as the number
of cases allows.
"""

import warnings
from typing import NamedTuple

import numpy as np
import xarray as xr

from ppl_med.analysis.conformal.compared import Compared
from ppl_med.analysis.statistics.principal_shift import (
    LEADING,
    distances,
    principal_coordinates,
    principal_shift,
)
from ppl_med.analysis.statistics.two_sample import kolmogorov_smirnov
from ppl_med.analysis.statistics.unit_permutations import Units

FALSE_ALARM = 0.01


class Tests(NamedTuple):
    """P-values of what was compared.

    Attributes:
        outputs: Of probabilities, numbers and scores.
        features: Of layers; None where none were kept.
        coverage: How likely it is that so few test cases are covered; None where not known.
    """

    outputs: float
    features: float | None = None
    coverage: float | None = None

    @property
    def pvalue(self) -> float:
        """One p-value of all."""
        parts = [self.outputs] if self.features is None else [self.outputs, self.features]
        pvalue = min(1.0, min(parts) * len(parts))
        return pvalue if self.coverage is None else min(1.0, 2 * min(pvalue, self.coverage))

    @property
    def sign(self) -> str:
        """What differs most."""
        seen = {"look different": self.outputs, "look different in their features": self.features}
        sign, least = min(
            ((sign, one) for sign, one in seen.items() if one is not None), key=lambda pair: pair[1]
        )
        share = 1 if self.features is None else 2
        if self.coverage is not None and self.coverage < min(1.0, share * least):
            return "are not alike: fewer test cases are covered than chance allows"
        return sign


def compare(
    first: Compared,
    second: Compared,
    false_alarm: float,
    *,
    weights: np.ndarray | None = None,
    coverage_pvalue: float | None = None,
) -> xr.DataArray:
    """Test for shift, and warn where it is found.

    Args:
        first: The calibration cases.
        second: The test cases; outputs of theirs may be NaN where they are not known.
        false_alarm: Warn below this p-value; 0 never warns.
        weights: Of the calibration cases, for a covariate shift.
        coverage_pvalue: How likely it is that so few test cases are covered, where it is known.

    Returns:
        The p-value, with what was tested in its attributes, among them ``outputs`` and
        ``features``, the p-values of the two, where features were compared.

    Raises:
        ValueError: A patient of both, or features of other functions.

    Warns:
        RuntimeWarning: The p-value is below ``false_alarm``.
    """
    pairs: list[Units | None] = []
    for one, other in ((first.units, second.units), (first.groups, second.groups)):
        pairs.append(None if one is None or other is None else (one, other))
    units, groups = pairs
    outputs = _outputs(first, second, units, groups, weights)
    features = None
    if first.features and second.features:
        features = _features(first, second, units, groups, weights)
    found = Tests(outputs, features, coverage_pvalue)
    if found.pvalue < false_alarm:
        fix = "Calibrate on cases like the test cases"
        fix += ", or pass weights for a known covariate shift." if weights is None else "."
        warnings.warn(
            f"Calibration and test cases {found.sign} (p = {found.pvalue:.2g}, alarm below "
            f"{false_alarm:g}){'' if weights is None else ', weighted as they are'}: the coverage "
            f"may not hold. {fix}",
            RuntimeWarning,
            stacklevel=4,
        )
    note = f"Kolmogorov-Smirnov, Bonferroni over {first.outputs.shape[1]} feature(s)"
    if first.features:
        note += f"; features of {', '.join(first.features)}"
        note += " were not kept for the test cases, and not compared" if features is None else ""
    note += "" if groups is None else ", within groups"
    note += "" if units is None else ", patients permuted as a whole"
    note += "" if weights is None else ", calibration cases weighted (approximate)"
    note += "" if coverage_pvalue is None else "; and the coverage, each with half the false alarm"
    attrs = {"units": "probability", "test": note, "false_alarm": false_alarm}
    parts = {} if features is None else {"outputs": outputs, "features": features}
    return xr.DataArray(found.pvalue, attrs=attrs | parts)


def _outputs(
    first: Compared,
    second: Compared,
    units: Units | None,
    groups: Units | None,
    weights: np.ndarray | None,
) -> float:
    if groups is None:
        return kolmogorov_smirnov(
            first.outputs, second.outputs, units=units, weights=weights
        ).pvalue
    parts = []
    for name in np.unique(groups[1]):
        rows = groups[0] == name, groups[1] == name
        own = None if units is None else (units[0][rows[0]], units[1][rows[1]])
        values = first.outputs[rows[0]], second.outputs[rows[1]]
        parts.append(kolmogorov_smirnov(*values, units=own).pvalue)
    return min(1.0, min(parts) * len(parts))


def _features(
    first: Compared,
    second: Compared,
    units: Units | None,
    groups: Units | None,
    weights: np.ndarray | None,
) -> float:
    second.check_like(first)
    layers = [(first.features[name], second.features[name]) for name in first.features]
    if weights is None:
        ones, others = zip(*layers, strict=True)
        return principal_shift(ones, others, units=units, strata=groups).pvalue
    columns = []
    for one, other in layers:
        coordinates, rest = principal_coordinates(np.concatenate([one, other]))
        columns += [coordinates[:, : LEADING[0]], distances(coordinates, rest)]
    table = np.concatenate(columns, 1)
    if not table.shape[1]:
        return 1.0
    number = len(first.outputs)
    return kolmogorov_smirnov(table[:number], table[number:], units=units, weights=weights).pvalue
