"""Weights for test cases that are drawn from other inputs than the calibration cases.

If the distribution of the observation given the image is the same and only the images differ,
coverage holds with the likelihood ratio w = density of test / density of calibration at every
case, up to a factor. A classifier that tells the two sets apart by features estimates it: w =
odds of being a test case. Then coverage is as good as the estimate; it is exact only for the true
ratio.

Source: Tibshirani, Barber, Candes and Ramdas, NeurIPS 2019, arXiv:1904.06019, section 2.3.
"""

import numpy as np
import xarray as xr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ppl_med import checks

_FOLDS = 5


def density_ratio(
    calibration_features: xr.DataArray,
    test_features: xr.DataArray,
    *,
    penalty: float = 1.0,
    seed: int = 0,
) -> tuple[xr.DataArray, xr.DataArray]:
    """Estimate the likelihood ratio test / calibration of every case by logistic regression.

    Args:
        calibration_features: (case, feature), e.g. metadata or an embedding of the image.
        test_features: The same features of the test cases, (case, feature); no labels are used.
        penalty: Penalty of the squared coefficients of standardised features, 1 / C of
            scikit-learn.
        seed: Seed of the folds.

    Returns:
        Weights of the calibration and of the test cases, each (case), for ``weights=`` of
        `calibrate` and `predict_sets`. A case is weighted by a fit without it (5 folds). Their
        attributes hold ``auc``, how well the two sets are told apart (0.5: no shift), and
        ``effective_n``, Kish's effective number of calibration cases.

    Raises:
        ValueError: Other dimensions or features, values not finite, too few cases, or sets that do
            not overlap (AUC of 1): no weights can help then.
    """
    arrays = [calibration_features, test_features]
    for name, array in zip(("calibration_features", "test_features"), arrays, strict=True):
        _check(array, name)
    if calibration_features.sizes["feature"] != test_features.sizes["feature"]:
        raise ValueError(
            f"calibration_features has {calibration_features.sizes['feature']} features, "
            f"test_features {test_features.sizes['feature']}; give the same ones."
        )
    checks.positive("penalty", penalty)
    values = [array.transpose("case", "feature").values.astype(np.float64) for array in arrays]
    sizes = [len(part) for part in values]
    is_test = np.repeat([0, 1], sizes)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1 / penalty, max_iter=1000))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    odds = cross_val_predict(
        model, np.concatenate(values), is_test, cv=folds, method="decision_function"
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
    first = _weights(own, calibration_features, attrs)
    return first, _weights(ratio[sizes[0] :], test_features, attrs)


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
