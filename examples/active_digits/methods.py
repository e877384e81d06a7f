"""What the study tries: a net and the rule that chooses its labels."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """A net and how its labels are bought.

    Args:
        net: "dropout" or "point".
        rule: Name in ``analysis.acquisition.METHODS``.
        options: Of the rule.
    """

    net: str
    rule: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What it is called in tables and folders."""
        return f"{self.net}-{self.rule}"


_BATCH = {"configurations": 1000}  # exact for three labels, then drawn
METHODS = {
    one.name: one
    for one in (
        Method("dropout", "bald"),
        Method("dropout", "random"),
        Method("dropout", "variation_ratio"),
        Method("dropout", "max_entropy"),
        Method("point", "max_entropy"),
        Method("point", "random"),
        Method("dropout", "power_bald"),
        Method("dropout", "batch_bald", _BATCH),
        Method("dropout", "mean_sd"),
        Method("point", "least_confidence"),
    )
}
"""The study, what matters most first."""

REPEATED = ("dropout-bald", "dropout-batch_bald", "dropout-random")
"""What is tried on digits that repeat."""
