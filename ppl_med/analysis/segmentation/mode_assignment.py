"""Mode frequencies: which of the known alternatives does every sample show, and how often?

Where the distribution of the masks is known (label-switching generators), every sample is assigned
to the mode at the least distance d = 1 - IoU, and the frequencies are compared with the
probabilities.

Ties need care. If a class that switches is absent from a case, the modes that differ only in it are
the same mask there; giving the sample to the first of them, as published, biases the histogram
towards the unswitched modes. `ties` says what to do:

    exclude       leave the sample out (default): it does not tell which mode it is
    proportional  share it among the tied modes by their true probabilities: a perfect sampler
                  keeps the right frequencies on average, but the sample adds no evidence
    equal         share it in equal parts: pulls frequencies towards uniform
    first         as published; for comparison only

Source: Kohl et al., NeurIPS 2018, arXiv:1806.05034, section 4.2 (Cityscapes with 32 modes).
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.segmentation import overlap
from ppl_med.analysis.segmentation.frequencies import (
    check_probabilities,
    entropy,
    kl_per_case,
)
from ppl_med.analysis.segmentation.frequencies import compare as compare_frequencies
from ppl_med.analysis.segmentation.summary import case_dataset, describe
from ppl_med.analysis.statistics.case_means import ratio_error
from ppl_med.analysis.tree import (
    ClassList,
    Posterior,
    check_cases,
    class_indices,
    class_labels,
    compared_cases,
    count_left_out,
    open_annotations,
    open_draws,
)

_TOLERANCE = 1e-9  # distances of equal masks differ by rounding only


def modes(
    tree: Posterior,
    mode_masks: xr.DataArray,
    probabilities: Sequence[float] | np.ndarray | xr.DataArray | None = None,
    *,
    ties: str = "exclude",
    samples: str = "mode",
    classes: ClassList = None,
    empty: float = 1.0,
) -> xr.Dataset:
    """Assign every sample to its nearest mode and compare the frequencies with the truth.

    Args:
        tree: The tree of `predict`; or ``probs``, or masks (chain, draw, case, row, col).
        mode_masks: The mask of every mode (case, mode, row, col); -1 where not defined.
            Cases without any mode are left out.
        probabilities: True probability of every mode: (mode,), the same for all cases, or (case,
            mode), given the image. An array without names has its axes in this order.
        ties: What to do with a sample at the same distance from several modes, as above.
        samples: "mode" (argmax of every draw) or "draw" (posterior_predictive/mask).
        classes: Classes whose IoU is averaged; by default all but class 0.
        empty: IoU of a class that both masks lack: 1, or nan to leave it out of the mean.

    Returns:
        Dataset with ``frequency`` (mode) and ``frequency_se`` over cases, probability;
        ``count`` (case, mode), samples; ``distance`` (case), mean distance of a sample to its
        mode, and ``tied`` (case), share of samples that are tied, both with ``_mean`` and ``_se``;
        ``modes_found``, number of modes with a count. With ``probabilities`` also ``probability``
        (mode), its mean over the counted samples; ``kl_empirical_true``, ``kl_true_empirical``
        (nats), ``total_variation`` of the pooled frequencies, their ``_se`` over cases and their
        value for a perfect sampler, ``_perfect``; ``kl_per_case`` (case), nats, which also fails
        a model that ignores the image, and ``kl_per_case_perfect`` (case), both with ``_mean`` and
        ``_se``. The perfect values take ties to be independent of the mode.

    Raises:
        TypeError, ValueError: Samples, modes, probabilities or classes are malformed; every sample
            is tied with ``ties="exclude"``; or "proportional" without probabilities.
    """
    overlap.check_empty(empty)
    _check_ties(ties, probabilities)
    draws = open_draws(tree, samples)
    numbers = class_indices(classes, draws)
    known = open_annotations(tree, _as_graders(mode_masks), draws, "mode_masks")
    truth = _truth(probabilities, known)
    counts = np.zeros((draws.num_cases, known.sizes["grader"]))
    figures, seen = np.full((2, draws.num_cases), np.nan), np.zeros(draws.num_cases, bool)
    for index, case in enumerate(compared_cases(draws, known)):
        if not case.present.any():
            continue
        if not case.present.all():
            raise ValueError("mode_masks leaves a mode of a case undefined (-1 everywhere).")
        gaps = 1 - overlap.pairwise(case.samples, case.graders, numbers, empty)
        shares, tied = _shares(gaps, ties, None if truth is None else truth[index])
        counts[index], seen[index] = shares.sum(0), True
        figures[:, index] = gaps.min(1).mean(), tied.mean()
    left_out = count_left_out(known)
    result = _frequencies(counts, figures, truth, known, seen)
    if "mode" in mode_masks.coords:
        result = result.assign_coords(mode=mode_masks["mode"].variable)
    return describe(
        result,
        **left_out,
        ties=ties,
        distance="1 - IoU, mean over classes",
        classes=class_labels(numbers, draws),
        empty=float(empty),
        samples=samples,
        num_samples=draws.num_samples,
    )


def _frequencies(
    counts: np.ndarray,
    figures: np.ndarray,
    truth: np.ndarray | None,
    template: xr.DataArray,
    seen: np.ndarray,
) -> xr.Dataset:
    if not counts.sum() > 0:
        raise ValueError(
            "Every sample is tied between modes, so none can be counted; use "
            "ties='proportional', or cases in which all switching classes are present."
        )
    named = dict(zip(("distance", "tied"), figures, strict=True))
    base = case_dataset(template, named, {"distance": "1", "tied": "probability"})
    total = counts.sum(1)
    result = base.assign(
        {
            "frequency": ("mode", counts.sum(0) / total.sum(), {"units": "probability"}),
            "frequency_se": (
                "mode",
                ratio_error(counts, np.repeat(total[:, None], counts.shape[1], 1)),
                {"units": "probability", "note": "standard error over cases"},
            ),
            "count": (("case", "mode"), counts, {"units": "samples"}),
            "modes_found": ((), int((counts.sum(0) > 0).sum()), {"units": "modes"}),
        }
    )
    if truth is None:
        return result
    mean = (total[:, None] * truth).sum(0) / total.sum()
    note = f"entropy of the truth {entropy(truth[seen]):.4f} nats, mean over cases"
    result["probability"] = ("mode", mean, {"units": "probability", "note": note})
    names = ("kl_per_case", "kl_per_case_perfect")
    inside = dict(zip(names, kl_per_case(counts, truth), strict=True))
    found = case_dataset(template, inside, "nats")
    pooled = compare_frequencies(counts[seen], truth[seen])
    return result.assign(found.data_vars).assign(pooled.data_vars)


def _shares(gaps: np.ndarray, ties: str, truth: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Share of every sample in every mode (sample, mode), and which samples are tied."""
    if np.isnan(gaps).any():
        raise ValueError(
            "A sample and a mode have no class in common to compare (empty=nan); use empty=1."
        )
    nearest = gaps <= gaps.min(1, keepdims=True) + _TOLERANCE
    tied = nearest.sum(1) > 1
    if ties == "first":
        shares = np.zeros(gaps.shape)
        shares[np.arange(len(gaps)), nearest.argmax(1)] = 1
        return shares, tied
    weight = nearest.astype(float)
    if ties == "proportional" and truth is not None:
        weight = nearest * truth
    total = weight.sum(1, keepdims=True)
    # Tied modes that are all impossible give the truth no say: share equally among them.
    weight = np.where(total > 0, weight, nearest)
    shares = weight / weight.sum(1, keepdims=True)
    if ties == "exclude":
        shares[tied] = 0
    return shares, tied


def _check_ties(ties: str, probabilities: object) -> None:
    checks.choice("ties", ties, ("exclude", "proportional", "equal", "first"))
    if ties == "proportional" and probabilities is None:
        raise ValueError(
            "ties='proportional' needs probabilities, the true probabilities of the modes."
        )


def _as_graders(mode_masks: xr.DataArray) -> xr.DataArray:
    if not isinstance(mode_masks, xr.DataArray):
        raise TypeError(f"mode_masks must be a DataArray, not {type(mode_masks).__name__}.")
    if "mode" not in mode_masks.dims or mode_masks.sizes["mode"] < 2:
        raise ValueError(
            f"mode_masks has sizes {dict(mode_masks.sizes)}; expected (case, mode, ...) with at "
            "least two modes."
        )
    return mode_masks.rename({"mode": "grader"})


def _truth(
    probabilities: Sequence[float] | np.ndarray | xr.DataArray | None, known: xr.DataArray
) -> np.ndarray | None:
    if probabilities is None:
        return None
    if isinstance(probabilities, xr.DataArray):
        probabilities = probabilities.transpose(..., "mode")
        if "case" in probabilities.dims:
            check_cases(probabilities, known, "probabilities")
    values = np.asarray(probabilities, dtype=np.float64)
    num_cases, num_modes = known.sizes["case"], known.sizes["grader"]
    if values.shape not in ((num_modes,), (num_cases, num_modes)):
        raise ValueError(
            f"probabilities has shape {values.shape}; expected one per mode, ({num_modes},), or "
            f"per case and mode, ({num_cases}, {num_modes})."
        )
    return np.broadcast_to(check_probabilities(values, "probabilities"), (num_cases, num_modes))
