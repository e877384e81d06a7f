"""Options of the study."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

RULES: dict[str, tuple[str, dict[str, Any]]] = {  # rule of acquire, its options
    "foreground_random": ("known foreground", {}),
    "random": ("random", {}),
    "entropy_mean": ("max_entropy", {"aggregation": "mean"}),
    "power_bald_mean": ("power_bald", {"aggregation": "mean"}),
    "stratified_entropy": ("stratified_entropy", {}),
    "bald_mean": ("bald", {"aggregation": "mean"}),
    "predicted_foreground": ("foreground_random", {}),
}
STUDIED = tuple(RULES)[:5]
BASELINE = dict.fromkeys(RULES, "foreground_random")


@dataclass
class Options:
    """Buy outlines of slices of the hippocampus by several rules."""

    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder that holds hippocampus/; by default what PPL_MED_DATA names."""
    rule: tuple[str, ...] = STUDIED
    """Which rules, of foreground_random (always run), random, entropy_mean, power_bald_mean,
    stratified_entropy, bald_mean and predicted_foreground."""
    seed: tuple[int, ...] = (0, 1, 2)
    """Seeds of pool, start, weights, training and ties."""
    split: Literal["val", "test"] = "test"
    """Where figures are measured."""
    volumes: int = 60
    """Training volumes that slices are cut from."""
    start: int = 20
    """Slices at the start, foreground-aware."""
    size: int = 20
    """Slices a step."""
    budget: int = 80
    """Slices in all."""
    subsample: int = 300
    """Slices of the pool that are scored at a step."""
    measured: int = 12
    """Held-out volumes that are measured at each step; all of the split are at the end."""
    steps: int = 400
    """Optimizer steps after each purchase, from scratch."""
    learning_rate: float = 1e-2
    """Learning rate of Adam at the start; it falls to 0 along a cosine."""
    rate: float = 0.05
    """Dropout rate."""
    draws: int = 8
    """Posterior draws; four times as many at the end, for intervals of volumes."""
    out: Path = Path("runs/active_hippocampus")
    """Folder for the results; an earlier study in it is moved aside."""
    device: str | None = "cpu"
    """Where to train; the nets are so small that a GPU gains nothing."""
    smoke: bool = False
    """A run of seconds, to see that everything works; its figures mean nothing."""
    resume: bool = False
    """Go on with the study in the output folder."""

    def __post_init__(self) -> None:
        """Shrink a smoke run."""
        if self.smoke:
            self.rule, self.seed = ("random", "bald_mean"), self.seed[:2]
            self.volumes, self.start, self.size, self.budget = 3, 4, 3, 7
            self.subsample, self.measured, self.steps, self.draws = 12, 1, 3, 2
        unknown = [rule for rule in self.rule if rule not in RULES]
        if unknown:
            raise ValueError(f"--rule has no {unknown[0]!r}; it takes {', '.join(RULES)}")
        wanted = {"foreground_random", *self.rule}
        self.rule = tuple(rule for rule in RULES if rule in wanted)
