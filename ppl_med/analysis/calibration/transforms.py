"""Probability integral transforms: where the observation lies in the predicted distribution.

With F the distribution function of the mixture of the draws, u = F(y) is uniform on 0..1 if the
predictions are calibrated. F is read

    in closed form     mean over draws of F_s(y), from ``loc`` and ``scale``
    from the draws     (number below y + V (1 + number equal to y)) / (draws + 1), V ~ U(0, 1)

Both are exactly uniform if y comes from the mixture; the second for any number of draws, as y is
then one more draw of the same distribution. A hump in their histogram says that predictions are too
wide, a bowl that they are too narrow, a slope that they are off to one side.

Sources: Dawid, JRSS A 147, 1984; Gneiting, Balabdaoui and Raftery, JRSS B 69, 2007, section 3.1;
Czado, Gneiting and Held, Biometrics 65, 2009 (randomised).
"""

import numpy as np
import xarray as xr
from scipy import stats

from ppl_med.analysis.statistics import location_scale
from ppl_med.analysis.statistics.case_fill import finite_or_fill, first_entries
from ppl_med.analysis.statistics.weight_draws import num_functions, one_of_each
from ppl_med.analysis.tree import Block, Numbers, count_left_out, open_numbers
from ppl_med.checks import choice
from ppl_med.moved import renamed_argument

DISTRIBUTIONS = ("normal", "laplace", "student_t", "samples")


@renamed_argument("law", "distribution")
def pit(
    tree: xr.DataTree, site: str | None = None, *, distribution: str | None = None, seed: int = 0
) -> xr.Dataset:
    """Transform every observed number by its predicted distribution function.

    Args:
        tree: The tree of `predict` on cases with observed numbers; lazy ones are read in parts.
        site: Name of the observed site; None takes the only one.
        distribution: What ``loc`` and ``scale`` of the posterior group belong to: "normal",
            "laplace", "student_t", or "samples" for the values drawn. None is "normal" where the
            group has ``loc`` and ``scale`` and no ``variance``, as `predict` stores a normal and
            nothing else; "samples" otherwise.
        seed: Seed of the randomisation, and of the choice of pixels to test.

    Returns:
        Dataset with ``pit`` (case, ...), probability, NaN where nothing was observed; and a
        Kolmogorov-Smirnov check that it is uniform, ``ks`` and ``ks_pvalue``. Pixels of a case
        depend on each other, so of maps one observed pixel per case, drawn at random, is tested;
        attributes say how many numbers.

    Raises:
        TypeError, ValueError: A site is missing or holds classes; values are malformed; an unknown
            distribution, or one that contradicts the variance of the tree.
    """
    numbers = open_numbers(tree, site)
    chosen = _chosen(numbers, distribution)
    rng = np.random.default_rng(seed)
    values = np.empty(numbers.observed.shape)
    for block in numbers.blocks():
        where = tuple(block.get(dim, slice(None)) for dim in numbers.sizes)
        values[where] = _block(numbers, block, chosen, rng)
    coords = {dim: numbers.observed.coords[dim] for dim in numbers.sizes
              if dim in numbers.observed.coords}  # fmt: skip
    result = xr.Dataset({"pit": (tuple(numbers.sizes), values)}, coords)
    counts = count_left_out(result["pit"])
    tested = one_per_case(values, rng)
    test = stats.kstest(tested, "uniform")
    result["ks"], result["ks_pvalue"] = ((), test.statistic), ((), test.pvalue)
    for name, long_name in (
        ("pit", "predicted probability of a number at or below the observed one"),
        ("ks", "largest distance of the distribution of the transforms to the uniform one"),
        ("ks_pvalue", "probability of such a distance if the predictions are calibrated"),
    ):
        result[name].attrs.update(units="probability", long_name=long_name)
    observed = values.size - counts["left_out"]
    result.attrs.update(counts, distribution=chosen, num_observed=observed, num_tested=len(tested))
    return result.assign_attrs(num_draws=num_functions(numbers.drawn))


def one_per_case(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return one known entry of each case that has any, drawn at random."""
    flat = values.reshape(len(values), -1)
    known = [row[~np.isnan(row)] for row in flat]
    return np.array([row[rng.integers(len(row))] for row in known if len(row)])


def _chosen(numbers: Numbers, distribution: str | None) -> str:
    names = set(map(str, numbers.posterior))
    if distribution is None:
        return "normal" if {"loc", "scale"} <= names and "variance" not in names else "samples"
    choice("distribution", distribution, DISTRIBUTIONS)
    needed = {"loc", "scale", "variance"} if distribution == "student_t" else {"loc", "scale"}
    missing = needed - names
    if missing and distribution != "samples":
        raise ValueError(
            f"distribution={distribution!r} needs {sorted(missing)} in the posterior group of the "
            "tree."
        )
    return distribution


def _block(
    numbers: Numbers, block: Block, distribution: str, rng: np.random.Generator
) -> np.ndarray:
    """Transforms of a block, NaN where nothing was observed."""
    value = numbers.observations(block)
    if distribution == "samples":
        apart = one_of_each(numbers.draws(block))  # exchangeable with the observation
        drawn = apart.values
        below = (drawn < value.values).sum((0, 1))
        equal = (drawn == value.values).sum((0, 1))
        found = (below + rng.random(value.shape) * (1 + equal)) / (num_functions(apart) + 1)
        return np.where(np.isnan(value.values), np.nan, found)
    group = numbers.parameters(block).astype(np.float64).load()
    scale = group["scale"].values
    first = first_entries(numbers.posterior["scale"], block)
    whole = finite_or_fill(scale, first) and finite_or_fill(group["loc"].values, first)
    if not whole or (scale <= 0).any():
        raise ValueError("scale must be positive and loc finite; find the draw that diverged.")
    z = (value.values - group["loc"].values) / scale
    ratio = group["variance"].values / scale**2 if "variance" in group else None
    result: np.ndarray = location_scale.cdf(z, distribution, ratio).mean((0, 1))
    return result
