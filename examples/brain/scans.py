"""Brain scans: phantoms, real hippocampi with a planted atrophy, and one's own."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt

from ppl_med.data import brains, load_brains, load_hippocampus

CLASSES = ("healthy", "Alzheimer")
ATROPHY, STEEPNESS, LABEL_NOISE = 0.6, 12.0, 0.05  # of the planted atrophy, as in ``brains``


def phantoms(sizes: dict[str, int], size: tuple[int, int, int], seed: int) -> dict[str, Any]:
    """Phantoms for every split, of people of their own."""
    splits = {}
    for part, (name, number) in enumerate(sizes.items()):
        arrays = brains(number, size=size, seed=10 * seed + part)
        arrays["volume_share"] = arrays["hippocampus_volume"] / arrays["brain_volume"]
        splits[name] = arrays
    return splits


def planted_hippocampi(folder: Path, seed: int) -> dict[str, Any]:
    """Real hippocampi (Decathlon), half their resolution, that lost their rim by a known severity.

    Label and severity follow the law of ``brains``. The voxels nearest to the surface of the
    outlined organ, a share ``ATROPHY`` times severity of it, get the level of fluid. "train" is the
    reader's, "test" its "val"; "mask" is the organ before.
    """
    splits = {}
    found = load_hippocampus(folder)
    for part, name in ((0, "train"), (1, "val")):
        arrays, random = found[name], np.random.default_rng([seed, part])
        num = len(arrays["id"])
        severity, toss, flip = random.random((3, num))
        p = 1 / (1 + np.exp(-STEEPNESS * (severity - 0.5)))
        diseased = (toss < p).astype(np.int64)
        images, masks = [], []
        left = np.empty(num)
        for case in range(num):
            image, organ = arrays["image"][case, 0].copy(), arrays["mask"][case] > 0
            depth = distance_transform_edt(organ)[organ] + 0.01 * random.random(int(organ.sum()))
            lost = depth <= np.quantile(depth, ATROPHY * severity[case])
            place = np.argwhere(organ)[lost]
            fluid = np.quantile(image, 0.03) + 0.1 * random.standard_normal(len(place))
            image[tuple(place.T)] = fluid
            images.append(_halved(image))
            masks.append(_halved(organ.astype(np.float32)) >= 0.5)
            left[case] = (organ.sum() - lost.sum()) * arrays["voxel_volume"][case]
        splits["test" if name == "val" else name] = {
            "image": np.stack(images)[:, None],
            "mask": np.stack(masks),
            "label": np.where(flip < LABEL_NOISE, 1 - diseased, diseased),
            "severity": severity,
            "label_probability": LABEL_NOISE + (1 - 2 * LABEL_NOISE) * p,
            "volume_share": left,
            "affine": arrays["affine"] @ _HALF,
            "patient": arrays["id"],
            "id": arrays["id"],
        }
    return splits


def class_names(options: Any) -> tuple[str, str]:
    """The two groups, the healthy one first."""
    if options.data is None:
        return CLASSES
    return options.classes or ("healthy", "dementia")


def own(
    folder: Path, size: tuple[int, int, int], classes: tuple[str, str] | None, seed: int
) -> dict[str, Any]:
    """Scans of a user: OASIS-1, ADNI, BIDS; see ``load_brains``. The ROI volume is nWBV."""
    splits = load_brains(
        folder, size=size, spacing="mixed", incomplete="drop", classes=classes, seed=seed
    )
    if classes is None and splits.classes != ("healthy", "dementia"):  # of a CDR
        raise ValueError(
            f"the groups are {splits.classes}: say which is healthy, --classes HEALTHY DISEASED"
        )
    for arrays in splits.values():
        if "nWBV" in arrays:  # of the whole brain, normalised by the head
            arrays["volume_share"] = np.asarray(arrays["nWBV"], float)
    return {name: splits[name] for name in ("train", "test")}


def prepared(arrays: dict[str, Any]) -> dict[str, Any]:
    """What the net sees: each scan on a scale of its own.

    Grey levels are centred at the median of the voxels that are not 0 and divided by their standard
    deviation; 0 stays 0.
    """
    image = np.zeros_like(arrays["image"], np.float32)
    for scaled, values in zip(image, np.asarray(arrays["image"]), strict=True):
        inside = values != 0
        level = values[inside]
        scaled[inside] = (level - np.median(level)) / level.std()
    kept = {name: arrays[name] for name in ("label", "id", "patient", "affine")}
    return {"image": image, **kept}


_HALF = np.array([[2, 0, 0, 0.5], [0, 2, 0, 0.5], [0, 0, 2, 0.5], [0, 0, 0, 1]])


def _halved(volume: Any) -> Any:
    """The mean of blocks of 2 by 2 by 2 voxels."""
    depth, row, col = (n // 2 for n in volume.shape)
    blocks = volume[: 2 * depth, : 2 * row, : 2 * col].reshape(depth, 2, row, 2, col, 2)
    return blocks.mean((1, 3, 5))
