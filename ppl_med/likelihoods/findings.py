"""Several findings per case, each there or not, such as the fourteen of a chest radiograph.

    findings_f  ~  Bernoulli(sigmoid(logit_f)),   independent given the image and the weights

Unlike classes, any number of findings may be there at once, and a report need not speak of all.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_med.checks import different_names
from ppl_med.likelihoods.interface import Likelihood
from ppl_med.likelihoods.stored import IntegerBernoulli


class PartialBernoulli(IntegerBernoulli):
    """Bernoulli whose value -1 means "not observed" and has log-density 0."""

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """Integers from -1 to 1."""
        return constraints.integer_interval(-1, 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability in nats; 0 where the value is -1."""
        log_prob: Tensor = super().log_prob(value.clamp(min=0))
        return torch.where(value < 0, torch.zeros_like(log_prob), log_prob)


class Findings(Likelihood):
    """Several findings per case, each of two classes, from one logit each.

    ``predict`` stores ``probs`` (chain, draw, case, class, finding), and the log-likelihood of a
    case is that of all its findings together. ``ppl_med.analysis.findings`` gives the tree of one
    finding, which every analysis of labels takes.

    Args:
        findings: Names, in the order of the network's outputs.
        classes: Names of "not there" and "there".
        site: Name of the observed site.
        partial: Whether a value of -1 or NaN says that a finding is not known; it then has no
            influence.
    """

    event = ("finding",)

    def __init__(
        self,
        findings: Sequence[str],
        classes: Sequence[str] = ("absent", "present"),
        site: str = "findings",
        *,
        partial: bool = True,
    ) -> None:
        super().__init__()
        self.findings = different_names("findings", findings)
        self.classes = different_names("classes", classes, least=2)
        if len(self.classes) != 2:
            raise ValueError(f"classes must be two, not there and there, got {self.classes}")
        self.site, self.partial = site, partial

    @property
    def num_outputs(self) -> int:
        """Channels that the network must have: one per finding."""
        return len(self.findings)

    @property
    def coords(self) -> dict[str, list[Any]]:
        """The names of the findings and of the two classes."""
        return {"finding": list(self.findings), "class": list(self.classes)}

    def distribution(self, output: Tensor) -> Any:
        """Bernoulli of every finding, dims (..., case, finding)."""
        return (PartialBernoulli if self.partial else IntegerBernoulli)(logits=output)

    def prediction(self, output: Tensor) -> Tensor:
        """Log-odds that a finding is there, dims (case, 1, finding)."""
        return output.unsqueeze(1)

    def forward(self, output: Tensor, value: Tensor | None) -> None:
        """Observe the site; NaN stands for -1."""
        if value is not None and value.is_floating_point():
            value = value.nan_to_num(nan=-1.0)
        super().forward(output, value)

    def check_value(self, value: Tensor) -> None:
        """Raise a ``ValueError`` unless findings are 0 or 1, or not known where they may be so."""
        value = torch.as_tensor(value)
        known = value[~(value.isnan() | (value == -1))] if self.partial else value
        wrong = known[(known != 0) & (known != 1)]
        if wrong.numel():
            unknown = ", or -1 or NaN where a finding is not known" if self.partial else ""
            raise ValueError(
                f"{self.site} must be 0 or 1{unknown}, got {wrong[0].item():g} in {wrong.numel()} "
                "entries; for classes that exclude each other use BayesianClassifier"
            )
