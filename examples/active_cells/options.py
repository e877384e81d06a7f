"""Options of the study."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

RULES = {  # rule of the study: guide, rule of acquire
    "random": ("dropout", "random"),
    "bald": ("dropout", "bald"),
    "max_entropy": ("dropout", "max_entropy"),
    "epig": ("dropout", "epig"),
    "point_random": ("point", "random"),
    "point_max_entropy": ("point", "max_entropy"),
    "power_bald": ("dropout", "power_bald"),
    "variation_ratio": ("dropout", "variation_ratio"),
}
BASELINE = {
    rule: "point_random" if kind == "point" else "random" for rule, (kind, _) in RULES.items()
}


@dataclass
class Options:
    """Buy labels of cells by several rules, from a pool with few positives."""

    data: Path = field(default_factory=lambda: Path(os.environ.get("PPL_MED_DATA", "data")))
    """Folder with malaria/ or isic/; by default PPL_MED_DATA."""
    source: Literal["malaria", "isic"] = "malaria"
    """Which pictures."""
    rule: tuple[str, ...] = ("random", "bald", "max_entropy")
    """Which rules, of random, bald, max_entropy, epig, point_random, point_max_entropy, power_bald
    and variation_ratio; "point" is a net without a posterior. Baselines are always run."""
    seed: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of pool, start, weights, training and ties."""
    split: Literal["val", "test"] = "test"
    """Where figures are measured; settings were chosen on val."""
    prevalence: float = 0.075
    """Share of positives in the pool, and among the cells that calibration is measured on."""
    start: int = 40
    """Labels at the start, one in five of them positive."""
    size: int = 40
    """Labels a step."""
    budget: int = 160
    """Labels in all."""
    pool: int = 3000
    """Cells in the pool."""
    subsample: int = 400
    """Cells of the pool that are scored at a step."""
    measured: int = 600
    """Cells that are measured at each step; all of the split are at the end."""
    steps: int = 250
    """Optimizer steps after each purchase, from scratch."""
    learning_rate: float = 1e-2
    """Learning rate of Adam at the start; it falls to 0 along a cosine."""
    rate: float = 0.1
    """Dropout rate."""
    draws: int = 10
    """Posterior draws."""
    out: Path = Path("runs/active_cells")
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
            self.rule, self.seed = ("random", "bald", "point_random"), self.seed[:2]
            self.start, self.size, self.budget, self.steps, self.draws = 10, 5, 15, 4, 4
            self.pool, self.subsample, self.measured = 120, 60, 60
        unknown = [rule for rule in self.rule if rule not in RULES]
        if unknown:
            raise ValueError(f"--rule has no {unknown[0]!r}; it takes {', '.join(RULES)}")
        wanted = {*self.rule, *(BASELINE[rule] for rule in self.rule)}
        self.rule = tuple(rule for rule in RULES if rule in wanted)
