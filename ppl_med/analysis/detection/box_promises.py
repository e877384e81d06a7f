"""What is promised of boxes is learnt here: a threshold of scores and margins of edges.

The rules are those of `conformal_boxes`.
"""

from typing import NamedTuple

import numpy as np

from ppl_med.analysis.conformal.risk_control import risk_threshold
from ppl_med.analysis.detection.box_matching import match
from ppl_med.analysis.detection.open_objects import FoundObjects

VARIANCES = ("edge_aleatoric", "edge_epistemic")
_OUTWARD = np.array([-1.0, -1.0, 1.0, 1.0])


class Pairs(NamedTuple):
    """What the true boxes found: image, score and distance of the edges in units (true, edge)."""

    case: np.ndarray
    score: np.ndarray
    away: np.ndarray

    def shares(self, num_cases: int, chosen: np.ndarray) -> np.ndarray:
        """What each chosen box is of those of its image (chosen,)."""
        case = self.case[chosen]
        result: np.ndarray = 1 / np.bincount(case, minlength=num_cases)[case]
        return result


def pair_up(found: FoundObjects, scale: str, sides: str, iou: float, by_class: bool) -> Pairs:
    """Pair the true boxes of all images with objects; see `conformal_boxes.calibrate_boxes`."""
    score = found.confidence if by_class else found.p_exists
    matches = match(found, np.array([iou]), by_class=by_class, order=score).first()
    rows = np.flatnonzero(matches.hit)
    true = matches.true[rows]
    reached = np.full(found.true_case.size, -np.inf)
    reached[true] = score[rows]
    gap = found.true_box[true] - found.box[rows]
    gap = np.abs(gap) if sides == "both" else gap * _OUTWARD
    away = np.full((found.true_case.size, 4), np.inf)
    away[true] = gap / unit_of(found, scale)[rows]
    return Pairs(found.true_case, reached, away)


def unit_of(found: FoundObjects, scale: str) -> np.ndarray:
    """Unit of the margins (object, edge), in pixels."""
    if scale == "pixels":
        return np.ones_like(found.box)
    if scale == "size":
        size = found.box[:, 2:] - found.box[:, :2]
        unit, name = size[:, [0, 1, 0, 1]], "width or height"
    else:
        unit, name = np.sqrt(sum(found.others[one] for one in VARIANCES)), "sd of an edge"
    count = int((~(unit > 0)).any(1).sum())
    if count:
        raise ValueError(
            f"The {name} is 0 in {count} object(s), so nothing can be measured in it; use "
            "scale='pixels'"
        )
    return np.asarray(unit)


def random_halves(
    found: FoundObjects, holds: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Images with true boxes in two halves, at random, whatever their order (case,)."""
    rows = np.flatnonzero(holds)
    rows = rows[np.argsort(found.array["case"].values[rows].astype(str), kind="stable")]
    rows = np.random.default_rng(seed).permutation(rows)
    first, second = np.zeros_like(holds), np.zeros_like(holds)
    first[rows[: len(rows) // 2]], second[rows[len(rows) // 2 :]] = True, True
    return first, second


def learn_all(
    found: FoundObjects, pairs: Pairs, learns: np.ndarray, missed: float, outside: float
) -> tuple[float, np.ndarray]:
    """Threshold and margins (edge) of the promise "all", from the images that learn (case,)."""
    least = learn_threshold(found, pairs, learns, missed)
    later = learn_threshold(found, pairs, learns, missed, optimistic=True)
    away = np.where(pairs.score < later, np.inf, pairs.away.max(1))
    margin = _margin(found, pairs, away, learns[pairs.case], missed + outside, outside)
    return least, np.full(4, margin)


def learn_found(
    found: FoundObjects,
    pairs: Pairs,
    learns: np.ndarray,
    least: float,
    outside: float,
    margins: str,
) -> np.ndarray:
    """Margins (edge) of the promise "found"."""
    chosen = (pairs.score >= least) & learns[pairs.case]
    if margins == "max":
        return np.full(4, _margin(found, pairs, pairs.away.max(1), chosen, outside, outside))
    if margins == "max_rank":
        return _by_max_rank(found, pairs, chosen, outside)
    level = outside / 4
    return np.array([_margin(found, pairs, away, chosen, level, level) for away in pairs.away.T])


def _by_max_rank(
    found: FoundObjects, pairs: Pairs, chosen: np.ndarray, outside: float
) -> np.ndarray:
    """Margins (edge) at one rank of the distances of each edge; see `conformal_boxes`."""
    away = np.sort(pairs.away[chosen], 0)
    ranks = np.zeros(len(pairs.case))
    by_edge = [
        np.searchsorted(column, own, "right")
        for column, own in zip(away.T, pairs.away[chosen].T, strict=True)
    ]
    ranks[chosen] = np.max(by_edge, 0) if len(away) else 0
    rank = int(_margin(found, pairs, ranks, chosen, outside, outside))
    rank += int(np.bincount(pairs.case[chosen]).max())  # what a test image may move ranks by
    if rank > len(away):
        raise ValueError(
            f"edges cannot be promised at a level of {outside:g} by their ranks among {len(away)} "
            "found object(s); give more images, a larger outside, or margins='max'"
        )
    return np.asarray(away[rank - 1])


def learn_threshold(
    found: FoundObjects,
    pairs: Pairs,
    learns: np.ndarray,
    missed: float,
    *,
    optimistic: bool = False,
) -> float:
    """The largest t of the module's rule; ``optimistic`` without the 1 of the test image."""
    chosen, number = learns[pairs.case], int(learns.sum())
    shares = pairs.shares(found.num_cases, chosen)
    level = missed + 1 / (number + 1) if optimistic else missed
    least = risk_threshold(pairs.score[chosen], shares, number, level)
    if np.isneginf(least):
        never = float(shares[np.isneginf(pairs.score[chosen])].sum())
        raise ValueError(
            f"missed is {missed:g}, but of the objects of {number} case(s) the detector misses "
            f"{100 * never / max(number, 1):.3g} % at any threshold, so that the least that can be "
            f"promised is {(never + 1) / (number + 1):.3g}; raise missed, or give more "
            "images or a detector with a lower least score"
        )
    return min(least, 1.0)


def _margin(
    found: FoundObjects,
    pairs: Pairs,
    away: np.ndarray,
    chosen: np.ndarray,
    level: float,
    own: float,
) -> float:
    """The least q that leaves a share of at most ``level`` of an image's chosen boxes outside."""
    number = int((np.bincount(pairs.case[chosen], minlength=found.num_cases) > 0).sum())
    shares = pairs.shares(found.num_cases, chosen)
    margin = -risk_threshold(-away[chosen], shares, number, level) if number else np.inf
    if np.isinf(margin):
        raise ValueError(
            f"edges cannot be promised at a level of {own:g} from {number} case(s) with found "
            f"objects, of which {int(np.ceil(1 / own - 1 - 1e-9))} or more are needed; give more "
            "images, or a larger outside"
        )
    return float(margin)


def mean_by_image(
    found: FoundObjects, pairs: Pairs, bad: np.ndarray, chosen: np.ndarray | None = None
) -> np.ndarray:
    """Share of the chosen true boxes of an image that are bad (case,); NaN where it has none."""
    chosen = np.ones(len(bad), bool) if chosen is None else chosen
    total = np.bincount(pairs.case[chosen], minlength=found.num_cases)
    count = np.bincount(pairs.case[chosen & bad], minlength=found.num_cases)
    return np.where(total > 0, count / np.maximum(total, 1), np.nan)
