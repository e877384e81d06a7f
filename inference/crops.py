"""Several crops of one volume in a batch: together they weigh as much as the volume.

An epoch sums to ``num_cases`` volumes. Each of the k crops that a volume gives at one visit has
1 / k of its weight, so that the volume's term is the mean of theirs: for the likelihood, and for
the KL of latents that belong to a crop.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ppl_med.data.case_entries import CROPS


def crops_in(batch: Any) -> Tensor | None:
    """Crops that the volume of each entry has given, (case); None where each is a case itself."""
    found = batch.get(CROPS) if isinstance(batch, Mapping) else None
    return found if isinstance(found, Tensor) else None


def volumes_of(size: int, crops: Tensor | None) -> int:
    """Volumes in a batch of ``size`` entries."""
    return size if crops is None else round(float((1 / crops.double()).sum()))


def spread(per_volume: Sequence[Any], crops: Tensor | None) -> list[Any]:
    """What stands for each volume, once for each of its crops."""
    if crops is None:
        return list(per_volume)
    counts, place = [], 0
    while place < len(crops):
        counts.append(int(crops[place]))
        place += counts[-1]
    return [one for one, count in zip(per_volume, counts, strict=True) for _ in range(count)]


def share_of_volume(factor: float | Tensor, crops: Tensor | None) -> float | Tensor:
    """The factor on the weight of each entry, shared among crops of one volume."""
    if crops is None:
        return factor
    if isinstance(factor, float) and bool((crops == crops[0]).all()):
        return factor / int(crops[0])
    return (factor / crops).float() if isinstance(factor, Tensor) else factor / crops.float()


def check_whole(batch: Any) -> None:
    """Raise a ValueError on crops where whole volumes are predicted."""
    if crops_in(batch) is not None:
        raise ValueError(
            "batches hold several crops of one volume; to predict, give whole volumes: leave the "
            "cropping transform out, and pass window=<size of the crops> where a volume is too "
            "large for the network"
        )
