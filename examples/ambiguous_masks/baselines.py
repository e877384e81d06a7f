"""Samples that no model made: masks of other patients, copied. A model has to beat them.

random_masks     masks of training images drawn at random; the image is never looked at
nearest_masks    masks of the training images nearest to the image, one grader of each at random

They are stored as a tree of one-hot ``probs``, so that every figure is computed as for a model.
"""

import numpy as np
import xarray as xr

NAMES = ("random_masks", "nearest_masks")
_BLOCKS = 12  # by which the middle 3/8 of two images are compared, in either direction


def copied_masks(
    name: str,
    train: dict[str, np.ndarray],
    images: np.ndarray,
    observed: xr.Dataset,
    classes: list[str],
    draws: int,
    seed: int,
) -> xr.DataTree:
    """Copy masks of training images as samples of other cases.

    Args:
        name: One of `NAMES`.
        train: ``image`` (case, channel, row, col) and ``mask`` (case, grader, row, col) to copy.
        images: Of the cases, in the unit of the training images.
        observed: The observed group of the cases.
        classes: Names.
        draws: Samples of every case.
        seed: Seed of the choice.

    Returns:
        Tree with ``posterior/probs`` (chain, draw, case, class, row, col), 0 or 1, and
        ``observed_data``.
    """
    rng = np.random.default_rng(seed)
    cases, graders = len(images), train["mask"].shape[1]
    if name == "random_masks":
        chosen = rng.integers(0, len(train["image"]), (draws, cases))
    else:
        chosen = _nearest(train["image"], images, draws)
    masks = train["mask"][chosen, rng.integers(0, graders, (draws, cases))]
    probs = (masks[:, :, None] == np.arange(len(classes))[:, None, None]).astype(np.float32)
    array = xr.DataArray(
        probs[None],
        coords={"class": classes, "case": observed["case"].values},
        dims=("chain", "draw", "case", "class", "row", "col"),
        name="probs",
    )
    return xr.DataTree.from_dict(
        {"/posterior": array.to_dataset(), "/observed_data": observed.load()}
    )


def _nearest(train: np.ndarray, images: np.ndarray, number: int) -> np.ndarray:
    """Positions of the nearest training images (draw, case), by squared distance."""
    known, asked = (_small(array) for array in (train, images))
    distance = (asked**2).sum(1)[:, None] + (known**2).sum(1) - 2 * asked @ known.T
    return np.argsort(distance, axis=1, kind="stable")[:, :number].T


def _small(images: np.ndarray) -> np.ndarray:
    """The middle of every image, where the nodule is, as means over blocks (case, value)."""
    cases, channels, side = images.shape[:3]
    block = max(1, side * 3 // 8 // _BLOCKS)
    start = (side - _BLOCKS * block) // 2
    middle = images[..., start : start + _BLOCKS * block, start : start + _BLOCKS * block]
    shape = (cases, channels, _BLOCKS, block, _BLOCKS, block)
    return middle.reshape(shape).mean((3, 5)).reshape(cases, -1).astype(np.float64)
