"""Numbers in the user's unit, from a network whose outputs are about 1.

    value  =  loc + scale * number,     log p(value)  =  log p(number) - log(scale)

Weights whose prior is about outputs near 1 reach no age of 60 years, and a noise that starts at 1
mm³ none of a volume of 1,000. ``fit`` takes mean and standard deviation of the training values
where ``loc`` and ``scale`` are not given; what is predicted, and its log-density, is in the unit of
the values.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_med.checks import different_names, finite, positive, reject
from ppl_med.likelihoods.interface import Likelihood

Numbers = float | Sequence[float]


class NumberLikelihood(Likelihood):
    """A likelihood of numbers: one per case or per pixel, or several findings per case.

    Args:
        event: Names of the axes after the case, such as ("row", "col").
        site: Name of the observed site.
        partial: Whether a value of NaN says that an entry was not observed.
        loc: Where the network's 0 lies, in the unit of the values; a number, or one per finding.
            None learns it: the mean of the training values, taken by the first ``fit``.
        scale: What the network's 1 spans, likewise; the standard deviation.
        findings: Names of several numbers per case; none for one.
    """

    loc: Tensor
    scale: Tensor
    findings: tuple[str, ...] = ()
    learnt: Tensor | None

    def __init__(
        self,
        event: Sequence[str],
        site: str,
        partial: bool,
        loc: Numbers | None,
        scale: Numbers | None,
        findings: Sequence[str] | None,
    ) -> None:
        super().__init__()
        if findings is not None:
            self.findings = different_names("findings", findings)
            if event:
                reject("event", "empty where findings are named", tuple(event))
        self.event = ("finding",) if self.findings else tuple(event)
        self.site, self.partial = site, partial
        number = len(self.findings)
        if loc is not None:
            self.given_loc = [finite("loc", one) for one in _each("loc", loc, number)]
        if scale is not None:
            self.given_scale = [positive("scale", one) for one in _each("scale", scale, number)]
        size = (number,) if number else ()
        for name, start in (("loc", 0.0), ("scale", 1.0)):
            given = getattr(self, f"given_{name}", None)
            value = torch.full(size, start, dtype=torch.float64)
            if given is not None:
                value = torch.tensor(given, dtype=torch.float64).reshape(size)
            self.register_buffer(name, value, persistent=given is None)
        given = loc is not None and scale is not None
        self.register_buffer("learnt", None if given else torch.tensor(False))

    @property
    def coords(self) -> dict[str, list[Any]]:
        """The names of the findings."""
        return {"finding": list(self.findings)} if self.findings else {}

    @property
    def is_open(self) -> bool:
        """Whether ``loc`` or ``scale`` is still to be learnt."""
        return self.learnt is not None and not bool(self.learnt)

    def learn_unit(self, mean: Tensor, deviation: Tensor) -> None:
        """Take ``loc`` and ``scale`` from the values, as far as they were not given.

        Args:
            mean: Mean of the values, dims () or (finding,).
            deviation: Their standard deviation; a scale of 1 stands for 0.
        """
        assert self.learnt is not None
        if not hasattr(self, "given_loc"):
            self.loc.copy_(mean)
        if not hasattr(self, "given_scale"):
            self.scale.copy_(torch.where(deviation > 0, deviation, 1.0))
        self.learnt.fill_(True)

    def by_output(self, output: Tensor) -> tuple[Tensor, ...]:
        """What the network says of every entry, each (..., case, *event)."""
        if self.findings:
            axis = output.unflatten(-1, (-1, len(self.findings)))
            return axis.unbind(-2)
        return output.unbind(-1 - len(self.event))

    def unit(self, like: Tensor, extra: int = 0) -> tuple[Tensor, Tensor]:
        """``loc`` and ``scale`` in the precision of a tensor, with so many axes behind."""
        shape = (*self.loc.shape, *[1] * extra)
        return self.loc.to(like).view(shape), self.scale.to(like).view(shape)


def _each(name: str, value: Numbers, number: int) -> list[float]:
    """One number, or one per finding."""
    if not isinstance(value, Sequence):
        return [value] * max(number, 1)
    if len(value) != number:
        reject(name, f"one number, or one for each of {number} findings", value)
    return list(value)
