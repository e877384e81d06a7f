"""Weights for test cases that are drawn from other inputs than the calibration cases.

If the distribution of the observation given the image is the same and only the images differ,
coverage holds with the likelihood ratio w = density of test / density of calibration at every
case, up to a factor. A classifier that tells the two sets apart by features estimates it: w =
odds of being a test case. Then coverage is as good as the estimate; it is exact only for the true
ratio.

The better the two sets are told apart, the fewer calibration cases resemble a test case. What is
left is Kish's effective number of them. Where it cannot carry the level (below 9 at 90 %), the sets
of `predict_sets` hold every class, with a warning; sets that do not overlap at all raise here.

Source: Tibshirani, Barber, Candes and Ramdas, NeurIPS 2019, arXiv:1904.06019, section 2.3.
"""

import numpy as np
import xarray as xr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ppl_med import checks
from ppl_med.analysis.conformal import compared
from ppl_med.analysis.statistics.principal_shift import (
    LEADING,
    distances,
    principal_coordinates,
)
from ppl_med.analysis.statistics.unit_permutations import check_units
from ppl_med.analysis.tree import case_ids, check_disjoint, open_layers, unit_names
from ppl_med.moved import renamed_argument

_FOLDS = 5


@renamed_argument("calibration_features", "calibration")
@renamed_argument("test_features", "test")
def density_ratio(
    calibration: xr.DataTree | xr.DataArray,
    test: xr.DataTree | xr.DataArray,
    *,
    layer: str | None = None,
    group: str | None = None,
    penalty: float = 1.0,
    seed: int = 0,
) -> tuple[xr.DataArray, xr.DataArray]:
    """Estimate the likelihood ratio test / calibration of every case by logistic regression.

    Args:
        calibration: The tree of `predict` on the calibration cases with
            ``keep=("feature:<layer>",)``; or features (case, feature), e.g. metadata.
        test: The same of the test cases; no labels are used. Of trees, every layer is reduced to
            its 8 leading directions and the distances within them and outside, as in the tests of
            shift.
        layer: Layer of the trees; None for all that were kept.
        group: Column of the trees, or coordinate of the features, that says whose the cases are:
            a patient is weighted by a fit without any case of that patient. None for "patient"
            where there is one; "case" for every case by itself.
        penalty: Penalty of the squared coefficients of standardised features, 1 / C of
            scikit-learn.
        seed: Seed of the folds.

    Returns:
        Weights of the calibration and of the test cases, each (case), for ``weights=`` of
        `calibrate` and `predict_sets`. A case is weighted by a fit without it (5 folds). Their
        attributes hold ``auc``, how well the two sets are told apart (0.5: no shift), and
        ``effective_n``, Kish's effective number of calibration cases.

    Raises:
        TypeError: A tree and an array.
        ValueError: Other dimensions, features, layers or functions, nothing kept, values not
            finite, too few cases or patients, shared ones, or sets that do not overlap (AUC of 1):
            no weights can help then.
    """
    arrays: list[xr.DataArray]
    if isinstance(calibration, xr.DataTree) and isinstance(test, xr.DataTree):
        arrays = _reduced(calibration, test, layer)
    elif isinstance(calibration, xr.DataTree) or isinstance(test, xr.DataTree):
        raise TypeError("calibration and test must be two trees, or features of both.")
    else:
        arrays = [calibration, test]
        if layer is not None:
            checks.reject("layer", "None, where trees are not given", layer)
    for name, array in zip(("calibration", "test"), arrays, strict=True):
        _check(array, name)
    if arrays[0].sizes["feature"] != arrays[1].sizes["feature"]:
        raise ValueError(
            f"calibration has {arrays[0].sizes['feature']} features, "
            f"test {arrays[1].sizes['feature']}; give the same ones."
        )
    checks.positive("penalty", penalty)
    values = [array.transpose("case", "feature").values.astype(np.float64) for array in arrays]
    sizes = [len(part) for part in values]
    is_test = np.repeat([0, 1], sizes)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1 / penalty, max_iter=1000))
    units = _units((calibration, test), arrays, group)
    kind = StratifiedKFold if units is None else StratifiedGroupKFold
    odds = cross_val_predict(
        model,
        np.concatenate(values),
        is_test,
        groups=units,
        cv=kind(_FOLDS, shuffle=True, random_state=seed),
        method="decision_function",
    )
    auc = float(roc_auc_score(is_test, odds))
    if auc == 1:
        raise ValueError(
            "The features tell calibration and test cases apart without error: the two sets do not "
            "overlap and no weights can correct the shift. Calibrate on cases like the test cases."
        )
    ratio = np.exp(odds - odds.max())
    own = ratio[: sizes[0]]
    attrs = {"auc": auc, "effective_n": float(own.sum() ** 2 / (own**2).sum())}
    first = _weights(own, arrays[0], attrs)
    return first, _weights(ratio[sizes[0] :], arrays[1], attrs)


def _reduced(calibration: xr.DataTree, test: xr.DataTree, layer: str | None) -> list[xr.DataArray]:
    """Leading coordinates and distances of both trees, each (case, feature)."""
    found = []
    for tree in (calibration, test):
        layers = open_layers(tree)
        if not layers:
            raise ValueError(
                "A tree holds no features; call predict(..., keep=('feature:<name of a layer>',))."
            )
        if layer is not None:
            layers = {checks.choice("layer", layer, layers): layers[layer]}
        array = next(iter(layers.values()))
        found.append((array, compared.read_layers(tree, layers)))
    (first, own), (second, other) = found
    check_disjoint(case_ids(first), case_ids(second))
    other.check_like(own)
    columns = []
    for name, values in own.features.items():
        both = np.concatenate([values, other.features[name]]).astype(np.float64)
        coordinates, rest = principal_coordinates(both, LEADING[0])
        columns += [coordinates, distances(coordinates, rest)]
    table = np.concatenate(columns, 1)
    parts = np.split(table, [first.sizes["case"]])
    return [
        xr.DataArray(part, {"case": array["case"].values}, ("case", "feature"))
        for part, array in zip(parts, (first, second), strict=True)
    ]


def _units(
    given: tuple[object, object], arrays: list[xr.DataArray], group: str | None
) -> np.ndarray | None:
    """Whose the cases of both are; None where every one is for itself."""
    names = [
        unit_names(source, group, next(iter(open_layers(source).values()), array))
        for source, array in zip(given, arrays, strict=True)
    ]
    if "case" in (names[0][1], names[1][1]):
        return None
    units = check_units(arrays[0].values, arrays[1].values, (names[0][0], names[1][0]))
    if units is None:
        return None
    fewest = min(len(np.unique(own)) for own in units)
    if fewest < _FOLDS:
        checks.reject("group", f"{_FOLDS} patients or more in either set", fewest)
    return np.concatenate(units)


def _check(array: xr.DataArray, name: str) -> None:
    if not isinstance(array, xr.DataArray) or set(array.dims) != {"case", "feature"}:
        raise ValueError(f"{name} must be a DataArray with the dimensions case and feature.")
    if array.sizes["case"] < 2 * _FOLDS:
        raise ValueError(f"{name} has {array.sizes['case']} cases; at least {2 * _FOLDS} needed.")
    if not np.isfinite(array.values.astype(np.float64)).all():
        raise ValueError(f"{name} holds NaN or infinite values; impute or drop them.")


def _weights(values: np.ndarray, array: xr.DataArray, attrs: dict[str, float]) -> xr.DataArray:
    coords = {"case": array["case"].values} if "case" in array.coords else {}
    return xr.DataArray(values, coords, ("case",), attrs=attrs)
