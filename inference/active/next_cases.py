"""The next cases to buy: the pool predicted, and what ``analysis.acquisition`` asks for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ppl_med.analysis.acquisition import METHODS, acquire, needs
from ppl_med.analysis.acquisition.rules import RULES
from ppl_med.checks import known_keys, reject, whole
from ppl_med.inference.active.oracles import Pool
from ppl_med.inference.adapted import adapted
from ppl_med.inference.guides.ensemble import Ensemble
from ppl_med.inference.guides.point_estimate import PointEstimate
from ppl_med.inference.predictive import predict
from ppl_med.programs.sites import Program

Rule = str | Callable[[xr.DataTree], xr.DataArray | xr.Dataset]
_MAP = "mask"


@dataclass(frozen=True)
class Selection:
    """How the next cases are chosen.

    Args:
        by: Rule of ``acquire``.
        options: Its further arguments.
        subsample: Most cases without a label that are scored at a step; None for all.
        targets: Batches of cases that the model is for, or None.
        keep: What ``predict`` keeps of every draw.
    """

    by: Rule
    options: Mapping[str, Any]
    subsample: int | None
    targets: Any
    keep: tuple[str, ...]

    @property
    def name(self) -> str:
        """The rule with its options, for the result."""
        name = self.by if isinstance(self.by, str) else getattr(self.by, "__name__", "function")
        plain = {key: one for key, one in self.options.items() if not isinstance(one, xr.DataArray)}
        return name + "".join(f", {key}={one}" for key, one in sorted(plain.items()))

    def check(self, guide: Program, site: str, size: int, draws: int) -> None:
        """Raise before any work where the rule cannot choose among these cases by this guide.

        Raises:
            ValueError: If something that it reads is missing.
        """
        if self.subsample is not None:
            whole("subsample", self.subsample, least=size, fix="size cases are chosen among them")
        read = needs(self.by)
        if isinstance(self.by, str):
            known_keys("acquisition_options", self.options, RULES[self.by].options)
            takes = RULES[self.by].options
            if site == _MAP and "aggregation" in takes and not self.options.get("aggregation"):
                raise ValueError(
                    f"acquisition {self.by!r} gives a map for masks; name how a case's score "
                    "follows: acquisition_options={'aggregation': 'mean'}, or another of "
                    "analysis.aggregation"
                )
        one = isinstance(guide, PointEstimate) or (draws < 2 and not isinstance(guide, Ensemble))
        if "functions" in read and one:
            single = [name for name in METHODS if not needs(name)]
            reject(
                "acquisition", f"of {single} for a single function", self.by,
                "it is a disagreement between draws: take a guide with a posterior, and 32 draws",
            )  # fmt: skip
        if "feature" in read and not self.keep:
            raise ValueError(
                f"acquisition {self.by!r} reads features; name a layer: keep=('feature:<layer>',)"
            )
        if "maps" in read and site != _MAP:
            reject("acquisition", "a rule for labels", self.by, "it reads maps of classes")
        if self.targets is not None and "targets" not in read:
            reject("targets", f"None for {self.by!r}, which does not read it", "batches")

    def __call__(
        self,
        model: Program,
        guide: Program,
        pool: Pool,
        bought: Sequence[int],
        order: np.ndarray,
        size: int,
        drawn: Mapping[str, Any],
    ) -> tuple[list[int], list[float]]:
        """Positions of the next cases in the pool, in order, and their scores.

        Args:
            model: The model, trained.
            guide: Its guide.
            pool: The cases.
            bought: Positions of those that have a label.
            order: A random order of all positions, whose first are scored.
            size: How many to choose.
            drawn: Arguments of ``predict``: draws, seed, device.
        """
        free = order[~np.isin(order, bought)][: self.subsample]
        read = needs(self.by)
        labelled = list(bought) if "labelled" in read else []
        places = [*np.sort(free).tolist(), *labelled]
        if self.by == "random":
            drawn = {**drawn, "draws": 1}  # of which nothing but the ids is read
        tree = predict(model, guide, pool.unlabelled(places), keep=self.keep, **drawn)
        targets = None
        if "targets" in read:
            given = self.targets
            targets = tree if given is None else predict(model, guide, adapted(given), **drawn)
        found = acquire(
            tree,
            self.by,
            size,
            seed=drawn["seed"],
            labelled=[pool.ids[place] for place in labelled],
            targets=targets,
            **self.options,
        )
        positions = [pool.place[name] for name in found["case"].values.tolist()]
        scores = found["score"].values if "score" in found else np.full(size, np.nan)
        return positions, scores.tolist()
