"""The images of the cases of a report, brought to display only where they are shown."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl_med.plots.pictures import one_picture


@dataclass(frozen=True)
class CaseImages:
    """Images, one per case in the order of the tree.

    Args:
        arrays: Each (channel, row, col) or (channel, depth, row, col).
        loc: Mean per channel that was taken off.
        scale: Standard deviation per channel that they were divided by.
    """

    arrays: Sequence[ArrayLike] | NDArray
    loc: ArrayLike = 0.0
    scale: ArrayLike = 1.0

    def picture(self, index: int) -> NDArray[np.float64]:
        """Return one as ([depth,] row, col, 1 or 3), values 0 to 1."""
        return one_picture(self.arrays[index], self.loc, self.scale)

    def slice(self, index: int) -> NDArray[np.float64]:
        """Return one as (row, col, 1 or 3); of a volume the slice in the middle."""
        shown = self.picture(index)
        return shown[len(shown) // 2] if shown.ndim > 3 else shown

    def slices(self) -> NDArray:
        """Return all as (case, channel, row, col), not windowed.

        Of volumes it is the slice in the middle, of more than three channels the first.
        """
        found = []
        for image in self.arrays:
            array = np.asarray(image)
            array = array[:, array.shape[1] // 2] if array.ndim == 4 else array
            found.append(array if array.shape[0] in (1, 3) else array[:1])
        return np.stack(found)
