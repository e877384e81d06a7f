"""Each rank's part of a batch, and what its cases weigh in the mean over the ranks.

A batch of n cases is cut into R parts of n_r cases that lie in a row. The plate of cases scales the
likelihood of a part by num_cases / n_r, and the mean over the ranks is taken of

    NLL_r * R n_r / n + KL

which is the NLL of the whole batch, however unequal the parts, and the KL of what all cases share
once. So ranks take the step that one process takes of the whole batch.
"""

from typing import Any

import numpy as np
from torch import Tensor

from ppl_med.inference.batches import num_cases_in

Weight = float | Tensor


def part_of(
    batch: dict[str, Any], factor: Weight, rank: int, num_ranks: int, least: int = 1
) -> tuple[dict[str, Any], Weight]:
    """The part of one rank, with the factor on the weight of its cases.

    Of a batch that is too small for all ranks, the last ones get a copy of another's part that
    weighs nothing, so that they take part in the step.

    Args:
        batch: The whole batch.
        factor: What its cases weigh more than in a batch drawn at random: one number, or (case,).
        rank: Which part.
        num_ranks: How many.
        least: Fewest cases of a part.
    """
    size = num_cases_in(batch)
    parts = max(1, min(num_ranks, size // least))
    which = rank % parts
    start, stop = which * size // parts, (which + 1) * size // parts
    share = num_ranks * (stop - start) / size if rank < parts else 0.0
    own = {name: _rows(value, size, start, stop) for name, value in batch.items()}
    return own, share * (factor[start:stop] if isinstance(factor, Tensor) else factor)


def _rows(value: Any, size: int, start: int, stop: int) -> Any:
    """Entries of some cases; what has no entry for each case is left as it is."""
    per_case = isinstance(value, list | tuple) or (
        isinstance(value, Tensor | np.ndarray) and value.ndim > 0
    )
    return value[start:stop] if per_case and len(value) == size else value
