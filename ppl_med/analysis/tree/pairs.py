"""Two trees of the same draws, read side by side: draw s of one is the function of draw s of both.

Copies of draws are those in both trees: each by itself would lose the draws of a single case of
which the network is sure.
"""

from dataclasses import replace

import xarray as xr

from ppl_med.analysis.tree.case_numbers import CaseNumbers, open_case_numbers
from ppl_med.analysis.tree.classes import Classes, Posterior, open_classes
from ppl_med.analysis.tree.distinct_draws import drop_shared_copies
from ppl_med.analysis.tree.numbers import DRAWS


def open_class_pair(training: Posterior, tree: Posterior) -> tuple[Classes, Classes]:
    """Find the class probabilities of two trees, as `open_classes`, draws aligned."""
    first, second = (open_classes(one, copies=True) for one in (training, tree))
    old, new = drop_shared_copies(first.array, second.array)
    return replace(first, array=old), replace(second, array=new)


def open_number_pair(
    training: xr.DataTree, tree: xr.DataTree, site: str | None = None
) -> tuple[CaseNumbers, CaseNumbers]:
    """Find the numbers of two trees, as `open_case_numbers`, draws of the posterior aligned.

    Args:
        training: Which names the site, where ``site`` does not.
        tree: Other cases.
        site: Name of the observed numbers.
    """
    first = open_case_numbers(training, site, copies=True)
    second = open_case_numbers(tree, first.site, copies=True)
    groups = [
        xr.Dataset({name: one for name, one in each.predicted.items() if name != DRAWS})
        for each in (first, second)
    ]
    old, new = drop_shared_copies(*groups)
    return _with_posterior(first, old), _with_posterior(second, new)


def _with_posterior(numbers: CaseNumbers, group: xr.Dataset) -> CaseNumbers:
    kept = {str(name): array for name, array in group.items()}
    return replace(numbers, predicted={**numbers.predicted, **kept})
