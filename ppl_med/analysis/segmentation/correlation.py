"""NCC: does the uncertainty map lie where the graders disagree with the samples?

With p_i(x) the class probabilities of draw i at pixel x, p their mean over draws and y_j the mask
of grader j, two maps of cross entropy are formed, in nats,

    E_SS(x)   = mean_i of -sum_c p_c(x)     log p_ic(x)
    E_SY_j(x) = mean_i of -sum_c y_jc(x)    log p_ic(x)

and the correlation over pixels of E_SS with E_SY_j is averaged over graders, -1..1.

Source: Baumgartner et al., PHiSeg, MICCAI 2019, arXiv:1906.04045, the normalised cross correlation
of its section 3.
"""

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.segmentation.overlap import known_mean
from ppl_med.analysis.segmentation.summary import case_dataset, describe
from ppl_med.analysis.tree import (
    UNANNOTATED,
    Draws,
    Posterior,
    count_left_out,
    open_annotations,
    open_probabilities,
)

_OFFSET = 1e-8


def ncc(
    tree: Posterior, annotations: xr.DataArray | None = None, *, offset: float = _OFFSET
) -> xr.Dataset:
    """Correlate the expected cross entropy of samples with that of the graders.

    Args:
        tree: The tree of `predict`, or its ``probs`` (chain, draw, case, class, row, col). All
            classes count, the background included.
        annotations: Graders' masks (case, grader, row, col), -1 where not annotated; a grader is
            compared on the pixels that he or she annotated.
        offset: Added to probabilities before the logarithm, as in the published code.

    Returns:
        Dataset with ``ncc`` (case), its ``_mean`` and ``_se`` over cases, and ``ncc_per_grader``
        (case, grader). NaN where a map is constant (no uncertainty, hence no correlation) or the
        grader is absent; a case averages the graders it has a value for.

    Raises:
        TypeError, ValueError: Probabilities or annotations are missing or malformed, or ``offset``
            is not positive.
    """
    checks.positive("offset", offset, fix="1e-8 is the published value")
    draws = open_probabilities(tree)
    graded = open_annotations(tree, annotations, draws)
    rows = []
    for block in draws.blocks():
        mean, log = _moments(draws, block, offset)
        masks = graded.isel(case=block).values.reshape(len(mean), -1, draws.num_pixels)
        expected = -(mean * log).sum(1)
        for index, graders in enumerate(masks):
            rows.append([_one_grader(expected[index], log[index], mask) for mask in graders])
    values = np.array(rows)
    result = case_dataset(graded, {"ncc": known_mean(values.T)}, "1")
    result["ncc_per_grader"] = (("case", "grader"), values, {"units": "1"})
    return describe(
        result,
        **count_left_out(graded, empty=True),
        num_samples=draws.num_samples,
        offset=offset,
        undefined="a constant map has no correlation; an absent grader has no map",
    )


def _moments(draws: Draws, block: slice, offset: float) -> tuple[np.ndarray, np.ndarray]:
    shape = (block.stop - block.start, draws.array.sizes["class"], draws.num_pixels)
    mean, log = np.zeros(shape), np.zeros(shape)
    for piece in draws.probabilities(block):
        values = piece.astype(np.float64)
        mean += values
        log += np.log(values + offset)
    return mean / draws.num_samples, log / draws.num_samples


def _one_grader(expected: np.ndarray, log: np.ndarray, mask: np.ndarray) -> float:
    known = mask != UNANNOTATED
    if not known.any():
        return np.nan
    truth = mask[known].astype(np.intp)
    against = -np.take_along_axis(log[:, known], truth[None], axis=0)[0]
    left, right = _standardised(expected[known]), _standardised(against)
    if left is None or right is None:
        return np.nan
    return float((left * right).mean())


def _standardised(values: np.ndarray) -> np.ndarray | None:
    if float(np.ptp(values)) <= 1e-12 * max(1.0, float(np.abs(values).max())):
        return None
    return (values - values.mean()) / values.std()
