"""Class flips: an ambiguity whose every mode, and every mode's probability, is known.

Each of a few classes is renamed, "road" to "road 2", over the whole image or not at all, by one
toss of a coin per class and annotation. The image does not tell which: with five classes, it has
2^5 = 32 right masks, and a model must learn how probable each is and that the pixels of a class
flip together.

Reference: Kohl et al., "A Probabilistic U-Net for Segmentation of Ambiguous Images", NeurIPS 2018,
which flips five classes of Cityscapes with the probabilities of ``FLIP_PROBABILITIES``.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Generator

FLIP_PROBABILITIES = (8 / 17, 7 / 17, 6 / 17, 5 / 17, 4 / 17)
_MOST = 16  # classes; 2^16 modes is as far as a table of modes goes


class ClassFlips:
    """Independent flips of some classes of a mask to a second version of the class.

    A ``transform`` of ``Batches``, to be given last: ``flips(batch, generator)`` draws the flips of
    every case, and of every grader, anew. Pixels of -1 stay.

    Args:
        class_names: Names of the classes before flipping, class 0 first.
        classes: Ids of those that flip.
        probabilities: Probability of each flip.

    Attributes:
        classes: Ids of the classes that flip.
        new_classes: Ids that they flip to: they follow the last class, in the order of ``classes``.
        class_names: Names of all classes after flipping, "<name> 2" for the new ones.
        num_classes: How many there are.
        probabilities: Probability of each flip, float64 (flip).
        modes: Which classes are flipped in each mode, bool (mode, flip). Mode 0 flips nothing; flip
            k is the k-th binary digit of the mode's number.

    Raises:
        ValueError: No classes, a class twice or out of range, or probabilities that do not fit.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        classes: Sequence[int],
        probabilities: Sequence[float] = FLIP_PROBABILITIES,
    ) -> None:
        """Check the classes and number the modes; see the class."""
        names, ids = tuple(class_names), tuple(int(one) for one in classes)
        outside = [one for one in ids if not 0 <= one < len(names)]
        if not 1 <= len(ids) <= _MOST or len(set(ids)) < len(ids) or outside:
            raise ValueError(
                f"classes is {ids}; expected 1 to {_MOST} different ids in 0..{len(names) - 1}"
            )
        chance = np.asarray(probabilities, np.float64)
        if chance.shape != (len(ids),) or not ((chance >= 0) & (chance <= 1)).all():
            raise ValueError(
                f"probabilities is {tuple(chance.tolist())}; expected one in 0..1 for each of the "
                f"{len(ids)} classes that flip"
            )
        self._num_before = len(names)
        self.classes, self.probabilities = ids, chance
        self.new_classes = tuple(range(len(names), len(names) + len(ids)))
        self.class_names = names + tuple(f"{names[one]} 2" for one in ids)
        self.num_classes = len(self.class_names)
        self.modes = (np.arange(2 ** len(ids))[:, None] >> np.arange(len(ids))) % 2 == 1

    def mode_probabilities(self) -> NDArray[np.float64]:
        """Probability of every mode, float64 (mode); they sum to 1."""
        return np.where(self.modes, self.probabilities, 1 - self.probabilities).prod(1)

    def mode_masks(self, mask: NDArray) -> NDArray:
        """Every mask that an unflipped mask can become.

        Where a class that flips is absent from the image, modes that differ in it alone are the
        same mask; ``distinct_modes`` merges them.

        Args:
            mask: Unflipped, integers (row, col) or of any shape.

        Returns:
            Masks of the same dtype, dims (mode, row, col).
        """
        return self.flip(np.broadcast_to(mask, (len(self.modes), *np.shape(mask))), self.modes)

    def distinct_modes(self, mask: NDArray) -> tuple[NDArray, NDArray[np.float64]]:
        """The different masks that an unflipped mask can become, and their probabilities.

        Args:
            mask: Unflipped, integers (row, col) or of any shape.

        Returns:
            Masks (mode, row, col) and probabilities (mode), two to the power of the number of
            flipping classes that the mask holds; the sum of probabilities is 1.
        """
        present = np.isin(self.classes, mask)
        kept = ~self.modes[:, ~present].any(1)
        flipped = np.broadcast_to(mask, (int(kept.sum()), *np.shape(mask)))
        chances = np.where(self.modes, self.probabilities, 1 - self.probabilities)
        return self.flip(flipped, self.modes[kept]), chances[:, present].prod(1)[kept]

    def flip(self, mask: NDArray, flips: NDArray[np.bool_]) -> NDArray:
        """Apply given flips.

        Args:
            mask: Unflipped, integers (case, row, col), or any further dims after case.
            flips: Which classes to flip, dims (case, flip).

        Returns:
            Masks of the same dtype and shape.

        Raises:
            ValueError: The mask holds other ids than those before flipping, and -1; or its dtype
                cannot hold the new ids; or shapes do not fit.
        """
        mask, flips = np.asarray(mask), np.asarray(flips, bool)
        if flips.shape != (len(mask), len(self.classes)):
            raise ValueError(
                f"flips has shape {flips.shape}; expected {(len(mask), len(self.classes))}, "
                "(case, flip)"
            )
        self._check(int(mask.min(initial=0)), int(mask.max(initial=0)))
        if mask.dtype.kind not in "iu" or np.iinfo(mask.dtype).max < self.num_classes:
            raise ValueError(f"mask has dtype {mask.dtype}; expected integers such as int8")
        # The last entry of each row serves -1.
        table = np.tile(np.append(np.arange(self._num_before), -1), (len(mask), 1))
        table[:, self.classes] = np.where(flips, self.new_classes, self.classes)
        rows = np.arange(len(mask)).reshape(-1, *[1] * (mask.ndim - 1))
        return table.astype(mask.dtype)[rows, mask]

    def __call__(self, batch: dict[str, Any], generator: "Generator") -> dict[str, Any]:
        """Flip the masks of a batch at random.

        Args:
            batch: Holds "mask", int64 (case, row, col), or (case, grader, row, col) where every
                grader flips apart, and likewise with depth.
            generator: Source of the flips.

        Returns:
            The batch with the flipped "mask", a new tensor.

        Raises:
            ValueError: There is no mask, or one that was flipped before.
        """
        import torch

        mask = batch.get("mask")
        if mask is None:
            raise ValueError(f'batch has no "mask" to flip; its keys are {sorted(batch)}')
        self._check(int(mask.min()), int(mask.max()))
        leading = mask.shape[: 1 + (mask.ndim == batch["image"].ndim)]
        chance = torch.from_numpy(self.probabilities)
        shape = (*leading, len(self.classes))
        flips = torch.rand(shape, generator=generator, dtype=torch.float64) < chance
        table = torch.arange(self._num_before).repeat(*leading, 1)
        old, new = torch.tensor(self.classes), torch.tensor(self.new_classes)
        table[..., self.classes] = torch.where(flips, new, old)
        flat = mask.flatten(len(leading)).long()
        flipped = table.to(mask.device).gather(-1, flat.clamp(min=0)).where(flat >= 0, flat)
        return batch | {"mask": flipped.view(mask.shape)}

    def _check(self, low: int, high: int) -> None:
        if low < -1 or high >= self._num_before:
            raise ValueError(
                f"mask holds {low if low < -1 else high}; before flipping, ids are "
                f"0..{self._num_before - 1}, or -1: give ClassFlips unflipped masks"
            )
