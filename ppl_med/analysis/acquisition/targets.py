"""EPIG: what the label of a case tells of the labels of cases one will be asked about.

    epig(x) = mean over targets x* of I(y; y* | x, x*)        nats

y and y* depend on each other through the function alone, so that their joint probability is the
mean over draws of p_s(y | x) p_s(y* | x*). It is at most BALD (what y tells of y* it tells of the
function first), and 0 where all draws agree at every target: an odd case of the pool that nobody
will ask about is not worth a label.

Source: Bickford Smith et al., Prediction-Oriented Bayesian Active Learning, AISTATS 2023,
arXiv:2304.08151, eq. 5.
"""

import numpy as np
import xarray as xr

from ppl_med.analysis.acquisition.case_scores import require_functions
from ppl_med.analysis.statistics import monte_carlo
from ppl_med.analysis.statistics.weight_draws import one_of_each
from ppl_med.analysis.tree import (
    Posterior,
    case_coords,
    class_names,
    drop_copies,
    functions_of,
    open_classes,
    other_samples,
)
from ppl_med.axes import SAMPLES

_BLOCK = 2**22  # numbers in a table of pairs


def epig(tree: Posterior, targets: Posterior) -> xr.Dataset:
    """Expected information of the label of every case about those of target cases.

    Args:
        tree: The tree of `predict` on the pool, or its ``probs`` (chain, draw, case, class).
        targets: The tree of unlabelled cases that the model is for, predicted with the same guide,
            seed and draws. Cost grows with pool x targets x classes^2: some hundred do.

    Returns:
        Dataset over the cases of ``tree``: ``epig`` in nats and ``epig_mcse``; attributes
        ``num_functions`` and ``num_targets``.

    Raises:
        TypeError, ValueError: ``probs`` is malformed or of maps; other draws, functions or classes
            in ``targets``; all draws are one function.
    """
    pool, target = (open_classes(one, copies=True).array for one in (tree, targets))
    _check(pool, target, tree, targets)
    asked = pool.sizes["case"]
    pool, target = (one_of_each(array) for array in (pool, target))
    plain = [array.drop_vars([*array.coords]) for array in (pool, target)]
    joined = drop_copies(xr.concat(plain, "case"))  # copies are so at pool and targets alike
    number = require_functions(joined, "epig")
    shape = (joined.sizes["chain"], joined.sizes["draw"])
    values = open_classes(joined, copies=True).read().values
    values = values.reshape(number, *values.shape[2:])
    score, influence = _information(values[:, :asked], values[:, asked:])
    coords = case_coords(pool)
    error = monte_carlo.standard_error(
        xr.DataArray(influence.reshape(*shape, asked), dims=(*SAMPLES, "case"))
    )
    nats = {"units": "nats"}
    return xr.Dataset(
        {"epig": ("case", score, nats), "epig_mcse": ("case", error.values, nats)},
        coords,
        {
            "num_functions": number,
            "num_targets": target.sizes["case"],
            "mcse": f"{monte_carlo.CAVEAT}; the targets are taken as given",
        },
    )


def _information(pool: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean information (case) and the influence (draw, case) of every draw on it.

    Args:
        pool: Probabilities (draw, case, class).
        target: Likewise.
    """
    draws, cases, classes = pool.shape
    told = target.transpose(1, 2, 0).reshape(-1, draws)  # (target and class, draw)
    of_told = told.mean(1)
    score, influence = np.empty(cases), np.empty((draws, cases))
    step = max(1, _BLOCK // (classes * len(told)))
    for start in range(0, cases, step):
        part = pool[:, start : start + step].transpose(1, 2, 0)  # (case, class, draw)
        joint = part @ told.T / draws
        apart = part.mean(2)[..., None] * of_told
        ratio = np.log(joint, where=joint > 0, out=np.zeros_like(joint))
        ratio -= np.log(apart, where=joint > 0, out=np.zeros_like(apart))
        score[start : start + step] = (joint * ratio).sum((1, 2))
        weighed = ratio @ told  # (case, class, draw): sum over targets and their classes
        influence[:, start : start + step] = (part * weighed).sum(1).T
    number = target.shape[1]
    return np.maximum(score / number, 0.0), influence / number


def _check(pool: xr.DataArray, target: xr.DataArray, tree: Posterior, targets: Posterior) -> None:
    for name, array in (("tree", pool), ("targets", target)):
        if array.ndim > 4:
            raise ValueError(
                f"{name} has the axes {array.dims[4:]} beside class: epig needs one class per "
                "case. For maps take 'power_bald' with an aggregation."
            )
    if class_names(pool) != class_names(target):
        raise ValueError("targets has other classes than tree; predict both with one model.")
    other = other_samples(pool, target)
    if other:
        raise ValueError(
            f"targets has other values along {other} than tree; predict both with the same draws "
            "and seed, so that draw s is the same function in both."
        )
    known = [functions_of(one) if isinstance(one, xr.DataTree) else {} for one in (tree, targets)]
    different = [name for name, value in known[0].items() if known[1].get(name, value) != value]
    if different:
        raise ValueError(
            f"targets was predicted by other functions than tree ({', '.join(different)} differ); "
            "predict both with the same model, guide and seed."
        )
