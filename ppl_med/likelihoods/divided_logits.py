"""Classes from logits that are a quotient: what speaks for each class, over how familiar the case.

    label  ~  Categorical(softmax(h / g)),     g = sigmoid(a) in (0, 1)

``predict`` stores h as ``dividend`` (chain, draw, case, class) and g as ``divisor`` (chain, draw,
case) beside ``probs``. A density of the label, as ``Categorical`` is.

Reference: Hsu et al., "Generalized ODIN", CVPR 2020, arXiv:2002.11297, eq. 4.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ppl_med.checks import different_names
from ppl_med.likelihoods.classes import ClassLikelihood
from ppl_med.likelihoods.interface import note, precision

_LEAST = -80.0  # of the log-odds of g, below which float32 could not divide by it


class DividedLogits(ClassLikelihood):
    """One of K classes from K + 1 outputs: h of every class, then the log-odds of g.

    Args:
        classes: Class names, K >= 2 of them.
        event: Names of the axes after the class axis.
        site: Name of the observed site.
    """

    def __init__(
        self, classes: Sequence[str], event: Sequence[str] = (), site: str = "label"
    ) -> None:
        super().__init__()
        self.classes = different_names("classes", classes, least=2)
        self.event, self.site = tuple(event), site

    @property
    def num_outputs(self) -> int:
        """One per class, and one."""
        return len(self.classes) + 1

    def forward(self, output: Tensor, value: Tensor | None) -> None:
        """Observe the site; at prediction note dividend and divisor."""
        if not self.training:
            dividend, divisor = self.parts(output.to(precision(output, training=False)))
            note("dividend", dividend, "class", *self.event)
            note("divisor", divisor, *self.event)
        super().forward(output, value)

    def parts(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """h, dims (..., case, class, *event), and g, dims (..., case, *event)."""
        axis = output.dim() - 1 - len(self.event)
        dividend, rest = output.split([len(self.classes), 1], axis)
        return dividend, rest.squeeze(axis).clamp(min=_LEAST).sigmoid()

    def distribution(self, output: Tensor) -> Any:
        """Categorical of h / g."""
        dividend, divisor = self.parts(output)
        return self.categorical(self.class_last(dividend) / divisor.unsqueeze(-1))
