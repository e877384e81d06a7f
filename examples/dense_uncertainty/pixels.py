"""Figures of segmented pixels: entropy maps, confusion, IoU with resampled images, precision."""

from typing import Any

import numpy as np
import xarray as xr

from ppl_med.analysis import scoring, selective, uncertainty
from ppl_med.analysis.statistics import binning

LARGEST = -np.log(1e-12)  # NLL of a pixel whose class no draw holds possible
RESAMPLES = 500  # of the images, for standard errors of the IoU
SCORES = ("predictive_entropy", "expected_entropy", "mutual_information", "logit_variance")


def pixel_maps(tree: xr.DataTree, logit_variance: np.ndarray) -> xr.Dataset:
    """Maps of every pixel from a posterior in memory, as ``Study.predict_maps`` returns them."""
    dims = ("case", "row", "col")
    entropy = uncertainty.entropy(tree, mcse=False)
    scores = scoring.entry_scores(tree).transpose(*dims)
    names = ("predictive_entropy", "expected_entropy", "mutual_information")
    result = entropy[list(names)].transpose(*dims).astype(np.float32)
    result["logit_variance"] = (dims, logit_variance.astype(np.float32))
    result["confidence"] = scores["confidence"].astype(np.float32)
    result["nll"] = scores["nll"].clip(max=LARGEST).astype(np.float32)
    result["correct"] = scores["correct"].astype(np.float32)
    result["truth"] = tree["observed_data/mask"].transpose(*dims).astype(np.int8)
    result["prediction"] = scores["predicted"].astype(np.int8)
    counts = scoring.confusion(tree)["confusion"]
    result["confusion"] = counts.rename({"class": "true"})
    return result.drop_attrs()


def resampled(confusion: np.ndarray) -> np.ndarray:
    """IoU (resample) of images drawn with replacement; the same images for every variant."""
    number = len(confusion)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(number, np.full(number, 1 / number), RESAMPLES)
    return scoring.mean_iou(np.tensordot(weights, confusion, 1))


def score(maps: xr.Dataset, confusion: xr.DataArray) -> xr.Dataset:
    """Figures on one set of images; NaN for what needs labels where there are none."""
    names = ("predictive_entropy", "expected_entropy", "logit_variance")
    result = xr.Dataset({name: float(maps[name].astype(np.float64).mean()) for name in names})
    counts = confusion.values
    missing = not counts.any()
    result["iou"] = np.nan if missing else float(scoring.mean_iou(counts.sum(0)))
    result["iou_se"] = np.nan if missing else float(resampled(counts).std(ddof=1))
    result["nll"] = maps["nll"].astype(np.float64).mean()
    right, confidence = (maps[n].astype(np.float64) for n in ("correct", "confidence"))
    result["accuracy"] = right.mean()
    result["ece"] = binning.calibration_error(right, confidence, bins=15)
    result["precision"] = np.nan
    if not missing:
        curve = by_uncertainty(maps, SCORES[0], recall=(0.5,), replicates=0)
        result["precision"] = float(curve["precision"][0])
    return result


def by_uncertainty(maps: xr.Dataset, name: str, **settings: Any) -> xr.Dataset:
    """Precision and recall as the most uncertain pixels are left out."""
    wrong = 1 - maps["correct"].astype(np.float64)
    return selective.precision_recall(None, maps[name], wrong, mantissa_bits=11, **settings)
