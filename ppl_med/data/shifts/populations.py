"""Shifts of who is in a set, and of what things are called, by construction.

Each returns positions or labels, so that images, ids and patients are taken along by indexing.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_med import checks


def resample_labels(
    label: Any, shares: Mapping[int, float], *, number: int | None = None, seed: int = 0
) -> NDArray[np.int64]:
    """Choose cases so that the classes have other shares: a label shift.

    Within a class every case is as likely as the next and none comes twice, so p(image | class)
    stays what it was.

    Args:
        label: Class of every case (case), integers from 0.
        shares: Share of every class that is to remain, summing to one; classes left out get none.
        number: Cases in all; None for as many as the rarest class allows.
        seed: Seed of the choice.

    Returns:
        Positions of the chosen cases, ascending.

    Raises:
        ValueError: Shares that are no distribution, a class that ``label`` lacks, more cases than
            there are.
    """
    label = _labels(label)
    wanted = {
        int(name): checks.finite(f"shares[{name}]", share, 0, 1) for name, share in shares.items()
    }
    if not wanted or abs(sum(wanted.values()) - 1) > 1e-9:
        raise ValueError(f"shares sum to {sum(wanted.values()):g}; they must sum to 1")
    have = {name: int((label == name).sum()) for name in wanted}
    most = min(have[name] / share for name, share in wanted.items() if share > 0)
    if number is None:
        number = int(most)
    number = checks.whole("number", number)
    if number > most + 1e-9:
        rare = min(
            (name for name, share in wanted.items() if share > 0),
            key=lambda name: have[name] / wanted[name],
        )
        raise ValueError(
            f"number is {number}, but class {rare} has {have[rare]} cases, which allows "
            f"{int(most)}; ask for fewer, or for a smaller share of it"
        )
    counts = _whole_counts(wanted, number, have)
    random = np.random.default_rng(checks.whole("seed", seed, least=0))
    chosen = [
        random.choice(np.flatnonzero(label == name), count, replace=False)
        for name, count in counts.items()
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def relabel(
    label: Any, renamed: Mapping[int, int], *, share: float = 1.0, seed: int = 0
) -> NDArray[np.int64]:
    """Call cases of a class by the name of another one: a concept shift.

    Args:
        label: Class of every case (case), integers from 0; -1 is not known and stays.
        renamed: Old class to new class.
        share: Probability with which a case of these classes is renamed.
        seed: Seed of which.

    Returns:
        New labels (case).

    Raises:
        ValueError: Labels that are no classes, or a share outside [0, 1].
    """
    label = _labels(label)
    share = checks.finite("share", share, 0, 1)
    known = {checks.whole("renamed", old, least=0): checks.whole("renamed", new, least=0)
             for old, new in renamed.items()}  # fmt: skip
    chance = np.random.default_rng(checks.whole("seed", seed, least=0)).random(len(label))
    result = label.copy()
    for old, new in known.items():
        result[(label == old) & (chance < share)] = new
    return result


def hold_out_class(
    label: Any, held_out: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Set a class apart, which training never sees: a semantic shift.

    Args:
        label: Class of every case (case), integers from 0.
        held_out: The class.

    Returns:
        Positions of the cases inside, their labels counted anew from 0 without a gap, and positions
        of the cases of the class held out.

    Raises:
        ValueError: No case, or every case, is of that class.
    """
    label = _labels(label)
    held_out = checks.whole("held_out", held_out, least=0)
    outside = label == held_out
    if not outside.any() or outside.all():
        raise ValueError(
            f"held_out is class {held_out}, of which there are {int(outside.sum())} in "
            f"{len(label)} cases; choose a class that some cases have and others have not"
        )
    inside = np.flatnonzero(~outside)
    anew = label[inside] - (label[inside] > held_out)
    return inside.astype(np.int64), anew, np.flatnonzero(outside).astype(np.int64)


def _labels(label: Any) -> NDArray[np.int64]:
    values = np.asarray(label)
    if values.ndim != 1 or values.dtype.kind not in "iu" or not values.size:
        raise ValueError(
            f"label has shape {values.shape} and dtype {values.dtype}; expected integers (case)"
        )
    return values.astype(np.int64)


def _whole_counts(shares: dict[int, float], number: int, have: dict[int, int]) -> dict[int, int]:
    """Counts that sum to ``number``, the largest remainders rounded up where there are cases."""
    counts = {name: min(int(share * number + 1e-9), have[name]) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: counts[name] - shares[name] * number)
    for name in by_remainder:
        if sum(counts.values()) < number and counts[name] < have[name]:
            counts[name] += 1
    return counts
