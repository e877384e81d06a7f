"""Simulations that are done: kept in a file, gone on with, and turned into a tree."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ppl_med import storage
from ppl_med.testing.rank_verdicts import FIGURES, verdicts

SAVE_EVERY = 20.0  # seconds
Shapes = dict[str, tuple[int, ...]]
Row = tuple[Shapes, np.ndarray]


class FinishedSimulations:
    """Figures of every quantity by the number of the simulation.

    Args:
        path: A file ``*.nc`` to keep them in, and to go on with if it exists; None for memory.
        settings: What the simulations share; another run's file is refused by them.

    Raises:
        ValueError: If the file is of another run, or damaged.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, dict(settings)
        self.shapes: Shapes = {}
        self.rows: dict[int, np.ndarray] = {}
        self._saved = time.monotonic()
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        kept = storage.load(path)
        attrs: dict[str, Any] = {str(name): value for name, value in kept.attrs.items()}
        shapes = json.loads(attrs.pop("shapes", "{}"))
        if attrs != self.settings or not isinstance(kept, xr.Dataset):
            known = {*attrs, *self.settings}
            other = sorted(n for n in known if attrs.get(n) != self.settings.get(n))
            raise ValueError(
                f"checkpoint {path} is of another run: {', '.join(other)} differ; pass the same "
                "arguments, or another path"
            )
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        numbers = kept["simulation"].values.tolist()
        self.rows = dict(zip(numbers, kept["figures"].values, strict=True))

    def add(self, number: int, row: Row) -> None:
        """Take one more, and save from time to time.

        Raises:
            ValueError: If its quantities are others than before.
        """
        shapes, figures = row
        if self.rows and shapes != self.shapes:
            raise ValueError(
                f"quantities of simulation {number} have the shapes {shapes}, before they had "
                f"{self.shapes}; rank the same ones of every simulation"
            )
        self.shapes, self.rows[number] = shapes, figures
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.close()

    def close(self) -> None:
        """Save."""
        if self.path is not None and self.rows:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            numbers = sorted(self.rows)
            values = np.stack([self.rows[number] for number in numbers])
            data = xr.Dataset(
                {"figures": (("simulation", "figure", "quantity"), values)},
                {"simulation": numbers, "figure": list(FIGURES)},
                attrs=self.settings | {"shapes": json.dumps(self.shapes)},
            )
            storage.save(data, self.path)
        self._saved = time.monotonic()

    def tree(self, simulations: int, level: float, group: str) -> xr.DataTree:
        """The result of the first so many simulations."""
        values = np.stack([self.rows[number] for number in range(simulations)])
        figures = dict(zip(FIGURES, values.transpose(1, 0, 2), strict=True))
        entries = list(_entry_names(self.shapes))
        variables, start = {}, 0
        for name, shape in self.shapes.items():
            size = int(np.prod(shape))
            own = figures["pit"][:, start : start + size].reshape(1, simulations, *shape)
            dims = ("chain", "draw", *(f"{name}_dim_{axis}" for axis in range(len(shape))))
            long_name = f"place of the true {name} among the draws"
            variables[name] = (dims, own, {"long_name": long_name, "units": "probability"})
            start += size
        coords = {"chain": [0], "draw": np.arange(simulations)}
        residual = figures.pop("residual")
        verdict = verdicts(figures["pit"], residual, self.settings["draws"], entries, level)
        figures["rank"] = figures["rank"].astype(np.int64)
        ranks = xr.Dataset(
            {n: (("simulation", "quantity"), v) for n, v in figures.items() if n != "pit"},
            {"simulation": np.arange(simulations), "quantity": entries},
        )
        parts = {group: xr.Dataset(variables, coords), "verdict": verdict, "ranks": ranks}
        return xr.DataTree.from_dict(parts)


def _entry_names(shapes: Shapes) -> Iterator[str]:
    for name, shape in shapes.items():
        for at in np.ndindex(*shape):
            yield f"{name}[{','.join(map(str, at))}]" if at else name
