"""Figures of segmented pixels: entropy maps, confusion, IoU with resampled images, precision."""

from typing import Any

import numpy as np
import xarray as xr

from ppl_med.analysis import selective, uncertainty
from ppl_med.analysis.statistics import binning
from ppl_med.data.readers.camvid import CLASS_NAMES

RESAMPLES = 500  # of the images, for standard errors of the IoU
SCORES = ("predictive_entropy", "expected_entropy", "mutual_information", "logit_variance")


def pixel_maps(tree: xr.DataTree, logit_variance: np.ndarray) -> xr.Dataset:
    """Maps of every pixel from a posterior in memory, as ``Study.predict_maps`` returns them."""
    entropy = uncertainty.entropy(tree, mcse=False)
    probs = tree["posterior/probs"].mean(("chain", "draw")).transpose("case", "class", ...)
    truth = tree["observed_data/mask"].transpose("case", "row", "col")
    values = probs.values
    at_truth = np.take_along_axis(values, truth.values.clip(0)[:, None], 1)[:, 0]
    nll = -np.log(np.where(truth.values >= 0, at_truth, np.nan).clip(1e-12))
    names = ("predictive_entropy", "expected_entropy", "mutual_information")
    result = entropy[list(names)].transpose("case", "row", "col").astype(np.float32)
    dims = ("case", "row", "col")
    result["logit_variance"] = (dims, logit_variance.astype(np.float32))
    result["confidence"] = (dims, values.max(1).astype(np.float32))
    result["nll"] = (dims, nll.astype(np.float32))
    result["truth"] = (dims, truth.values.astype(np.int8))
    result["prediction"] = (dims, values.argmax(1).astype(np.int8))
    return result.drop_attrs()


def confusions_of(maps: xr.Dataset) -> xr.DataArray:
    """Labelled pixels of every image by their true and predicted class (case, true, predicted)."""
    count = len(CLASS_NAMES)
    pairs = zip(maps["truth"].values, maps["prediction"].values, strict=True)
    found = [
        np.bincount(count * truth[truth >= 0].astype(int) + guess[truth >= 0],
                    minlength=count**2).reshape(count, count)
        for truth, guess in pairs
    ]  # fmt: skip
    return xr.DataArray(
        np.array(found),
        {"case": maps["case"].values, "true": list(CLASS_NAMES), "predicted": list(CLASS_NAMES)},
        ("case", "true", "predicted"),
    )


def iou(confusion: np.ndarray) -> np.ndarray:
    """Mean over classes that occur of intersection over union, from counts (..., true, guess)."""
    both = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    union = confusion.sum(-1) + confusion.sum(-2) - both
    ratio = np.divide(both, union, out=np.zeros(both.shape), where=union > 0)
    return np.asarray(ratio.sum(-1) / np.maximum((union > 0).sum(-1), 1))


def resampled(confusion: np.ndarray) -> np.ndarray:
    """IoU (resample) of images drawn with replacement; the same images for every variant."""
    number = len(confusion)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(number, np.full(number, 1 / number), RESAMPLES)
    return iou(np.tensordot(weights, confusion, 1))


def score(maps: xr.Dataset, confusion: xr.DataArray) -> xr.Dataset:
    """Figures on one set of images; NaN for what needs labels where there are none."""
    names = ("predictive_entropy", "expected_entropy", "logit_variance")
    result = xr.Dataset({name: float(maps[name].astype(np.float64).mean()) for name in names})
    known = maps["truth"].values >= 0
    counts = confusion.values
    missing = not known.any()
    result["iou"] = np.nan if missing else float(iou(counts.sum(0)))
    result["iou_se"] = np.nan if missing else float(resampled(counts).std(ddof=1))
    result["nll"] = np.nan if missing else float(np.nanmean(maps["nll"].astype(np.float64)))
    for name in ("accuracy", "ece", "precision"):
        result[name] = np.nan
    if not missing:
        right = (maps["truth"] == maps["prediction"]).values[known].astype(np.float64)
        confidence = maps["confidence"].values[known].astype(np.float64)
        pair = (xr.DataArray(values, dims="case") for values in (right, confidence))
        result["accuracy"] = float(right.mean())
        result["ece"] = float(binning.calibration_error(*pair, bins=15))
        curve = by_uncertainty(maps, SCORES[0], recall=(0.5,), replicates=0)
        result["precision"] = float(curve["precision"][0])
    return result


def by_uncertainty(maps: xr.Dataset, name: str, **settings: Any) -> xr.Dataset:
    """Precision and recall as the most uncertain pixels are left out."""
    wrong = (maps["truth"] != maps["prediction"]).astype(np.float64).where(maps["truth"] >= 0)
    return selective.precision_recall(None, maps[name], wrong, mantissa_bits=11, **settings)
