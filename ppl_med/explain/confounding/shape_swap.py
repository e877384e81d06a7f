"""Swap of shapes: an image of one class with the outline of a foreground of the other.

The swap that ``swap_test`` needs where the shape of the foreground is the suspect. The texture
stays: inside it is stretched, by the warp of ``normalize_shape``. A net that looks at the texture
alone gives the same answer, but for what the interpolation took. To tell that from the shape, give
the same images outlines of their own class too, and compare both swaps:

    other, *_ = swap_shape(image, mask, masks_of_the_other_class)
    own, *_ = swap_shape(image, mask, mask, patient=ids, donor_patient=ids)
    swap_test(nets, torch.from_numpy(own).float(), torch.from_numpy(other).float(), target)

Reference: Sdika, "Uncertainties and explainability" (lecture): "change an image from class A such
that its brain shape is in class B".
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl_med.checks import present, whole
from ppl_med.explain.confounding.shape import as_foregrounds, check_one_spacing, normalize_shape


def swap_shape(
    image: NDArray[Any],
    mask: NDArray[Any],
    donor: NDArray[Any],
    *,
    patient: ArrayLike | None = None,
    donor_patient: ArrayLike | None = None,
    spacing: ArrayLike | None = None,
    donor_spacing: ArrayLike | None = None,
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    """Give every image the outline, and with it the size and the place, of a donor's foreground.

    Donors are drawn at random, all of them about equally often.

    Args:
        image: Dims (case, channel, [depth,] row, col).
        mask: Foreground of each, (case, [depth,] row, col), bool or 0 and 1.
        donor: Foregrounds to give, of the same size, as many as there are.
        patient: Patient of each image; given together with ``donor_patient``, no image gets an
            outline of its own patient.
        donor_patient: Patient of each donor.
        spacing: mm along each axis of every image, (case, axis); see ``normalize_shape``.
        donor_spacing: The same of every donor; one spacing must hold for all.
        seed: Seed of the pairs.

    Returns:
        Images (case, channel, [depth,] row, col), linearly interpolated, their foregrounds (case,
        [depth,] row, col), and the row of each one's donor (case,).

    Raises:
        ValueError: If only one of two arguments that go together is given, sizes differ, an image
            has no donor of another patient, or as in ``normalize_shape``.
    """
    masks, donors = as_foregrounds("mask", mask), as_foregrounds("donor", donor)
    whole("seed", seed, 0)
    if donors.shape[1:] != masks.shape[1:]:
        raise ValueError(f"donor has shape {donors.shape}, mask {masks.shape}; sizes must agree")
    if _both("spacing", spacing, donor_spacing):
        both = np.concatenate([np.asarray(spacing, float), np.asarray(donor_spacing, float)])
        check_one_spacing(both, np.concatenate([masks, donors]))
    own, given = np.arange(len(masks)), -1 - np.arange(len(donors))
    if _both("patient", patient, donor_patient):
        own = _patients("patient", patient, len(masks))
        given = _patients("donor_patient", donor_patient, len(donors))
    chosen = _pairs(own, given, np.random.default_rng(seed))
    images, foregrounds = normalize_shape(image, masks, donors[chosen])
    return images, foregrounds, chosen


def _both(name: str, one: Any, other: Any) -> bool:
    """Whether two arguments that go together are given."""
    if (one is None) != (other is None):
        raise ValueError(f"{name} and donor_{name} go together; give both or none")
    return one is not None


def _patients(name: str, values: Any, number: int) -> NDArray[Any]:
    names = np.array([str(one) for one in present(name, np.asarray(values))])
    if names.shape != (number,):
        raise ValueError(f"{name} has shape {names.shape}; give one for each of {number} cases")
    return names


def _pairs(
    own: NDArray[Any], given: NDArray[Any], random: np.random.Generator
) -> NDArray[np.int64]:
    """Row of the donor of every case: of those of other patients, one that was taken least."""
    taken = np.zeros(len(given), np.int64)
    chosen = np.empty(len(own), np.int64)
    for case in random.permutation(len(own)):
        fit = np.flatnonzero(given != own[case])
        if not len(fit):
            raise ValueError(f"donor has no foreground of another patient for case {case}")
        least = fit[taken[fit] == taken[fit].min()]
        chosen[case] = random.choice(least)
        taken[chosen[case]] += 1
    return chosen
