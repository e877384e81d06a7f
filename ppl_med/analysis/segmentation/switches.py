"""Switched regions: does every sample switch a whole region, and as often as it should?

In a label-switching generator each region carries its class or, with a known probability, an
alternative class, the same for all its pixels and independent of the other regions. For each
sample, case and switch,

    alternative fraction f  share of the region's pixels that show the alternative, among those
                            that show either
    flip                    f > 1/2 (a region split in halves counts 1/2)
    consistency             max(f, 1 - f): 1 for coherent samples, near max(rate, 1 - rate) for
                            pixel-wise noise
    accuracy                share of the region's pixels that show either

Source: the generator of Kohl et al., NeurIPS 2018, arXiv:1806.05034, section 4.2.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.segmentation.frequencies import compare
from ppl_med.analysis.segmentation.overlap import known_mean
from ppl_med.analysis.segmentation.summary import add_draws, case_dataset, describe
from ppl_med.analysis.statistics.case_means import ratio_error
from ppl_med.analysis.tree import (
    Draws,
    Posterior,
    class_indices,
    class_labels,
    count_left_out,
    known,
    open_annotations,
    open_draws,
)

_MOST_SWITCHES = 12  # 2^12 modes


def flips(
    tree: Posterior,
    regions: xr.DataArray,
    switches: Mapping[int, int] | Mapping[str, str],
    rates: Sequence[float] | np.ndarray | None = None,
    *,
    samples: str = "mode",
) -> xr.Dataset:
    """Read off every sample which regions it switched.

    Args:
        tree: The tree of `predict`; or ``probs``, or masks (chain, draw, case, row, col).
        regions: Unswitched class of every pixel (case, row, col); -1 for pixels to leave out.
        switches: Alternative of every class that switches, by index or name.
        rates: True, independent switching rates in the order of ``switches``: adds the comparison
            of all 2^k patterns with their probabilities.
        samples: "mode" (argmax of every draw) or "draw" (posterior_predictive/mask).

    Returns:
        Dataset with ``alternative_fraction`` (chain, draw, case, switch), NaN where a region is
        absent or shows neither class; ``consistency``, ``accuracy``, ``flip`` (case, switch) means
        over samples, each with ``_mean`` (switch), ``_se`` over cases; ``correlation`` (switch,
        switch_other) of flips over all samples and cases, NaN for a switch that never varies;
        ``frequency`` (mode) of the patterns of flips, named "01..." in the order of ``switches``
        and numbered as in `ppl_med.data.ClassFlips`, over samples in which every region is decided,
        ``frequency_se`` over cases, ``modes_found`` and ``undecided``, the share of
        samples left out. With ``rates`` also ``rate`` (switch), ``probability`` (mode), and, unless
        every sample was left out, the divergences of the pooled frequencies as in
        `ppl_med.analysis.segmentation.modes`.

    Raises:
        TypeError, ValueError: Samples, regions, switches or rates are malformed, or more than 12
            switches.
    """
    draws = open_draws(tree, samples)
    pairs = _pairs(switches, draws)
    truth = _check_rates(rates, len(pairs))
    unswitched = _open_regions(tree, regions, draws)
    shape = (draws.num_cases, draws.num_samples, len(pairs))
    fraction, accuracy = np.full(shape, np.nan), np.full(shape, np.nan)
    for block in draws.blocks():
        masks = draws.masks(block)
        inside = unswitched.isel(case=block).values.reshape(len(masks), draws.num_pixels)
        for index in range(len(masks)):
            found = _read(masks[index], inside[index], pairs)
            fraction[block.start + index], accuracy[block.start + index] = found
    result = _figures(fraction, accuracy, draws, class_labels(pairs[:, 0], draws))
    left_out = count_left_out(unswitched)
    seen = known(unswitched).any(unswitched.dims[1:]).values
    result = result.merge(_patterns(_flipped(fraction)[seen], truth))
    return describe(result, **left_out, samples=samples, num_samples=draws.num_samples)


def _read(
    masks: np.ndarray, region: np.ndarray, pairs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    fraction = np.full((len(masks), len(pairs)), np.nan)
    accuracy = np.full((len(masks), len(pairs)), np.nan)
    for index, (original, alternative) in enumerate(pairs):
        inside = masks[:, region == original]
        if not inside.shape[1]:
            continue
        switched = (inside == alternative).sum(1)
        either = switched + (inside == original).sum(1)
        np.divide(switched, either, out=fraction[:, index], where=either > 0)
        accuracy[:, index] = either / inside.shape[1]
    return fraction, accuracy


def _flipped(fraction: np.ndarray) -> np.ndarray:
    # 1, 0, or 1/2 on a split region; NaN stays.
    return (np.sign(fraction - 0.5) + 1) / 2


def _figures(
    fraction: np.ndarray, accuracy: np.ndarray, draws: Draws, names: list[str]
) -> xr.Dataset:
    means = {
        "consistency": np.maximum(fraction, 1 - fraction),
        "accuracy": accuracy,
        "flip": _flipped(fraction),
    }
    means = {name: known_mean(values.swapaxes(0, 1)) for name, values in means.items()}
    result = case_dataset(
        draws.array, means, "probability", dims=("switch",), coords={"switch": names}
    )
    result = add_draws(result, "alternative_fraction", fraction, draws, "switch", "probability")
    flat = _flipped(fraction).reshape(-1, fraction.shape[2])
    result = result.assign_coords(switch_other=names)
    result["correlation"] = (("switch", "switch_other"), _correlation(flat), {"units": "1"})
    return result


def _correlation(flat: np.ndarray) -> np.ndarray:
    number = flat.shape[1]
    result = np.full((number, number), np.nan)
    for first in range(number):
        for second in range(number):
            both = flat[~np.isnan(flat[:, first] + flat[:, second])][:, [first, second]]
            if len(both) > 1 and (both.std(0) > 0).all():
                result[first, second] = np.corrcoef(both.T)[0, 1]
    return result


def _patterns(flipped: np.ndarray, rates: np.ndarray | None) -> xr.Dataset:
    number = flipped.shape[2]
    decided = ((flipped == 0) | (flipped == 1)).all(2)
    code = np.where(decided, np.nan_to_num(flipped) @ 2.0 ** np.arange(number), 0).astype(int)
    counts = np.stack(
        [np.bincount(row[use], minlength=2**number) for row, use in zip(code, decided, strict=True)]
    ).astype(float)
    total = counts.sum(1)
    # Flip k is the k-th binary digit of the mode's number, and the k-th letter of its name.
    bits = (np.arange(2**number)[:, None] >> np.arange(number)) % 2
    names = ["".join(map(str, row)) for row in bits]
    unit = {"units": "probability"}
    pooled = counts.sum(0) / total.sum() if total.sum() else np.full(2**number, np.nan)
    error = ratio_error(counts, np.repeat(total[:, None], 2**number, 1))
    result = xr.Dataset(
        {
            "frequency": ("mode", pooled, unit),
            "frequency_se": ("mode", error, {**unit, "note": "standard error over cases"}),
            "modes_found": ((), int((counts.sum(0) > 0).sum()), {"units": "modes"}),
            "undecided": ((), float(1 - decided.mean()), unit),
        },
        coords={"mode": names},
    )
    if rates is None:
        return result
    truth = np.where(bits == 1, rates, 1 - rates).prod(1)
    result["rate"] = ("switch", rates, unit)
    result["probability"] = ("mode", truth, unit)
    if not total.sum():
        return result
    return result.merge(compare(counts, np.broadcast_to(truth, counts.shape)))


def _pairs(switches: Mapping[int, int] | Mapping[str, str], draws: Draws) -> np.ndarray:
    if not isinstance(switches, Mapping) or not switches:
        raise TypeError("switches must map every class that switches to its alternative.")
    if len(switches) > _MOST_SWITCHES:
        raise ValueError(f"switches holds {len(switches)}; at most {_MOST_SWITCHES} are counted.")
    originals = class_indices(list(switches.keys()), draws)
    alternatives = class_indices(list(switches.values()), draws)
    if set(originals) & set(alternatives):
        raise ValueError("switches uses a class both as original and as alternative.")
    return np.stack([originals, alternatives], axis=1)


def _check_rates(rates: Sequence[float] | np.ndarray | None, number: int) -> np.ndarray | None:
    if rates is None:
        return None
    values = np.asarray(rates, dtype=np.float64)
    if values.shape != (number,) or not ((values >= 0) & (values <= 1)).all():
        checks.reject("rates", f"{number} probabilities, one per switch", rates)
    return values


def _open_regions(tree: Posterior, regions: xr.DataArray, draws: Draws) -> xr.DataArray:
    if isinstance(regions, xr.DataArray) and "grader" in regions.dims:
        raise ValueError("regions must be (case, row, col): one unswitched class map per case.")
    if regions is None:
        raise TypeError("regions must be a DataArray, not None.")
    return open_annotations(tree, regions, draws, "regions").isel(grader=0)
