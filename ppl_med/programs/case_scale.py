"""The weight of cases in a program, corrected from outside it."""

from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_med.programs.sites import plates


class CaseScale(Messenger):
    """Multiply the scale of every site in the plate of cases.

    The plate itself scales by num_cases / len(batch): each batch stands for the data set. That is
    right for one batch drawn at random, and wrong for an epoch of batches of unequal sizes.

    Args:
        factor: One for all cases of the batch, or a tensor (case,).
    """

    def __init__(self, factor: float | Tensor) -> None:
        super().__init__()
        self.factor = factor

    def _pyro_sample(self, msg: Any) -> None:
        frame = plates(msg).get("case")
        if frame is None or (isinstance(self.factor, float) and self.factor == 1):
            return
        factor = self.factor
        if isinstance(factor, Tensor):  # the plates to the right of that of cases
            factor = factor.reshape(-1, *[1] * (-1 - (frame.dim or -1)))
        msg["scale"] = msg["scale"] * factor
