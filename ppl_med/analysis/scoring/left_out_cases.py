"""Expected log predictive density from the training cases, each left out in turn by PSIS."""

import numpy as np
import xarray as xr

from ppl_med.analysis.statistics import monte_carlo
from ppl_med.analysis.statistics.tail_ties import explained_ties
from ppl_med.analysis.statistics.weight_draws import check_own_weights
from ppl_med.analysis.tree import Posterior, count_left_out, needed_log_likelihood
from ppl_med.axes import SAMPLES


def elpd_loo(tree: Posterior, site: str | None = None) -> xr.Dataset:
    """Estimate the expected log predictive density by leaving out one training case at a time.

    The draws that trained on a case are weighted as if they had not: Pareto-smoothed importance
    sampling of ``arviz_stats.loo``. Pixels of a case are left out together.

    Args:
        tree: The tree of `predict` on training cases (``log_likelihood_of="training"``). ArviZ
            takes any log-likelihood; of held-out cases it would leave out what was never in.
        site: Name of the observed site; None takes label or mask, or the only one.

    Returns:
        Dataset with ``elpd`` and ``pareto_k`` (case), of the cases with an observation; k is NaN
        where all draws agree, as of a case of which all are sure: it needs no weights;
        ``elpd_sum`` with ``elpd_sum_se`` over cases, nats.

    Raises:
        ValueError: No log-likelihood, the tree is of held-out cases or does not say, or there is
            one draw or one case; or draws that fit a case least are ties.

    Warns:
        UserWarning: Pareto k is large: the estimate cannot be trusted.

    Source: Vehtari, Gelman and Gabry, Statistics and Computing 27, 2017.
    """
    likelihood = needed_log_likelihood(tree, site)
    kind = tree.attrs.get("log_likelihood_of")
    if kind != "training":
        raise ValueError(
            f"tree.attrs['log_likelihood_of'] is {kind!r}: no draw has seen these cases, so none "
            "can be left out. Use scoring.elpd_heldout, or predict the training cases with "
            "log_likelihood_of='training'."
        )
    monte_carlo.require_draws(likelihood.array)
    check_own_weights(likelihood.array, "tree", "held-out cases and scoring.elpd_heldout")
    from arviz_stats import loo

    logs = likelihood.read()
    pixels = [dim for dim in logs.dims if dim not in ("chain", "draw", "case")]
    seen = logs.isel(chain=0, draw=0).notnull().any(pixels)
    counts = count_left_out(seen.reset_coords(drop=True))
    if counts["num_cases"] < 2:
        raise ValueError("One case has no error over cases; leave one out of two or more cases.")
    logs = logs.sum(pixels).isel(case=seen.values.nonzero()[0]).rename("case_density")
    first = logs.isel(chain=0, draw=0, drop=True)
    differ = (logs != first).any(SAMPLES)
    elpd, shape = first.copy(), xr.full_like(first, np.nan)
    if differ.any():
        group = logs.isel(case=differ.values.nonzero()[0]).to_dataset()
        given = xr.DataTree.from_dict({"/log_likelihood": group, "/posterior": group})
        with explained_ties("tree"):
            found = loo(given, pointwise=True, var_name="case_density", reff=1.0)
        elpd[differ.values], shape[differ.values] = found.elpd_i.values, found.pareto_k.values
    result = xr.Dataset({"elpd": elpd, "pareto_k": shape})
    result["elpd_sum"], result["elpd_sum_se"] = elpd.sum(), (elpd.size * elpd.var()) ** 0.5
    for name in ("elpd", "elpd_sum", "elpd_sum_se"):
        result[name].attrs["units"] = "nats"
    result["pareto_k"].attrs["units"] = "1"
    return result.assign_attrs(counts)
