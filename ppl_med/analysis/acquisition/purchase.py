"""Buy a batch of labels by a rule, by name or of one's own."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from ppl_med import checks
from ppl_med.analysis.acquisition.candidates import open_candidates
from ppl_med.analysis.acquisition.rules import NOISY, RULES, Purchase, Request, Rule, top
from ppl_med.analysis.tree import Posterior, case_coords, check_cases, find_variable

Scorer: TypeAlias = Callable[[Any], xr.DataArray | xr.Dataset]

METHODS: tuple[str, ...] = tuple(RULES)
"""Names that ``acquire(by=...)`` takes."""


def needs(by: str | Scorer) -> frozenset[str]:
    """What a rule reads beside the probabilities of the pool.

    Args:
        by: As for `acquire`.

    Returns:
        Of "functions" (two or more: no point estimate), "feature" (of a kept layer), "labelled"
        (it keeps away from labelled cases, where they are in the tree), "targets" (a second tree),
        "maps" (a class per pixel). Of a function nothing is known.

    Raises:
        ValueError: ``by`` is no rule.
    """
    return _rule(by).needs


def acquire(
    tree: Posterior,
    by: str | Scorer = "bald",
    size: int = 10,
    *,
    seed: int = 0,
    labelled: Iterable[Any] = (),
    targets: Posterior | None = None,
    **options: Any,
) -> xr.Dataset:
    """Choose the cases to label next.

    The choice depends on the pool, its predictions and the seed, not on the order of the cases.
    Ties are broken, and noise is drawn, by the seed: give every step another.

    Args:
        tree: The tree of `predict` on the unlabelled pool, its posterior group, or ``probs``
            (chain, draw, case, class, ...). Observations in it are not read.
        by: A name in `METHODS`, or a function from the tree to a score per case (case,), larger is
            bought first: a DataArray, or the Dataset of a score of this package.
        size: How many cases.
        seed: Of ties, noise, clusters and samples.
        labelled: Ids of cases of the tree that have a label: they are not bought, and "core_set",
            "typiclust" and "class_balanced" keep away from them.
        targets: For "epig": see `epig`.
        **options: Of the rule.

    ==================================  =========================================================
    Rule                                Options
    ==================================  =========================================================
    scores, and the three below         ``aggregation`` and ``settings`` of maps, as `max_entropy`
    power, softmax, softrank (_bald)    ``score``, "bald" unless another is named; ``beta``;
                                        ``noise`` of any score, one of the three
    batch_bald                          ``configurations``: more joint labels are sampled
    core_set, typiclust                 ``layer``: of the kept features, where there are several
    foreground_random                   ``share`` from cases with ``foreground`` (case): flags,
                                        or what is predicted
    stratified_entropy                  ``share`` that classes buy in turn; ``beta``
    ==================================  =========================================================

    Returns:
        Dataset over the cases bought, in order of purchase, with their ids and coordinates:
        ``rank`` (0, 1, ...); ``score`` at purchase, where the rule has one (NaN where a case has
        none), and ``score_mcse``; of "batch_bald" ``joint``, the information of the batch up to
        there in nats, and ``joint_mcse``, where ``score`` is what the case adds; of
        "stratified_entropy" ``stratum``, the class whose turn it was. Attributes:
        ``by``, ``seed``, ``num_candidates``, ``num_functions``, and what the rule adds, such as
        ``num_exact``, the purchases whose joint information is exact.

    Raises:
        TypeError, ValueError: Unknown rule or option; ``size`` above the number of cases; what the
            rule needs is absent; disagreement asked of a point estimate; repeated or missing ids.

    Source: see the modules of this package.
    """
    rule = _rule(by)
    seed = checks.whole("seed", seed, least=0)
    checks.known_keys(f"acquire(by={by!r})", options, rule.options)
    if targets is not None and "targets" not in rule.needs:
        checks.reject("targets", f"None for {by!r}, which does not read it", "a tree")
    probs = find_variable(tree, "posterior", "probs", "classification")
    if "case" not in probs.dims:
        raise ValueError(f"probs has no axis case, only {probs.dims}.")
    cases = open_candidates(probs, labelled, size)
    request = Request(tree, cases, int(size), seed, targets, {**rule.options, **options})
    bought = rule.choose(request)
    places = cases.free[bought.places]
    attrs = {
        "by": by if isinstance(by, str) else getattr(by, "__name__", type(by).__name__),
        "seed": seed,
        "num_candidates": len(cases.free),
        **bought.attrs,
    }
    figures: dict[str, Any] = {"rank": ("case", np.arange(size), {"units": "place, 0 first"})}
    for name, (values, units) in bought.figures.items():
        figures[name] = ("case", values, {"units": units})
    return xr.Dataset(figures, case_coords(probs.isel(case=places)), attrs)


def _rule(by: str | Scorer) -> Rule:
    if isinstance(by, str):
        if by not in RULES:
            fix = checks.nearest(by, METHODS).removeprefix("; ")
            checks.reject("by", f"a function or one of {', '.join(METHODS)}", by, fix)
        return RULES[by]
    if not callable(by):
        checks.reject("by", "the name of a rule or a function of the tree", by)
    return Rule(partial(_by_function, function=by), options=NOISY)


def _by_function(request: Request, function: Scorer) -> Purchase:
    found = function(request.tree)
    if isinstance(found, xr.Dataset):
        found = found[next(iter(found.data_vars))]
    if not isinstance(found, xr.DataArray) or found.dims != ("case",):
        checks.reject(
            "by",
            "a function that returns a DataArray over case",
            found.dims if isinstance(found, xr.DataArray) else type(found).__name__,
        )
    check_cases(found, request.cases.array, "the score", "tree")
    return top(request, found.load(), {}, {})
