"""What was bought at which step, and the figures of every step: a tree, replaced as a whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ppl_med import storage
from ppl_med.inference.active.oracles import answer_files

FILE = "run.nc"
FREE = ("budget", "stopped_by", "num_labelled")  # what a resumed run may have otherwise


@dataclass
class Purchases:
    """Cases in the order in which they were bought, and the figures of the steps that are over.

    Step k trains on all that was bought up to step k; the start is step 0.
    """

    positions: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    figures: dict[str, list[xr.Dataset]] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """The step of the last purchase, whose labels are the last to come."""
        return self.steps[-1]

    @property
    def is_measured(self) -> bool:
        """Whether the last purchase was trained on, and its figures are known."""
        return len(self.figures.get("test", ())) > self.step

    def buy(self, positions: Sequence[int], scores: Sequence[float]) -> None:
        """Add the cases of the next step."""
        step = self.steps[-1] + 1 if self.steps else 0
        self.positions += map(int, positions)
        self.steps += [step] * len(positions)
        self.scores += map(float, scores)

    def measure(self, figures: Mapping[str, xr.Dataset]) -> None:
        """Add the figures of the last step, or replace them."""
        for name, one in figures.items():
            known = self.figures.setdefault(name, [])
            del known[self.step :]
            known.append(one)

    def numbers(self) -> np.ndarray:
        """Labels in hand at every step."""
        return np.cumsum(np.bincount(self.steps))

    def history(self, name: str) -> xr.Dataset:
        """Figures over the steps that are over."""
        joined = xr.concat(
            self.figures[name],
            "step",
            data_vars="all",
            coords="minimal",
            compat="equals",
            join="exact",
            combine_attrs="override",
        )
        steps = np.arange(joined.sizes["step"])
        number = ("step", self.numbers()[steps], {"units": "cases"})
        return joined.assign_coords(step=steps, num_labelled=number)

    def tree(
        self,
        ids: Sequence[Any],
        answers: Mapping[int, Any],
        classes: Sequence[Any] | None,
        attrs: Mapping[str, Any],
    ) -> xr.DataTree:
        """The run as a tree: ``purchases``, ``labelled``, and a group of figures each.

        Args:
            ids: Ids of the pool.
            answers: Labels by position.
            classes: Names of the classes.
            attrs: Settings of the run.
        """
        bought = {
            "score": ("case", np.array(self.scores), {"long_name": "score when it was bought"}),
            "position": ("case", np.array(self.positions), {"long_name": "place in the pool"}),
        }
        known = [np.asarray(answers[p]) for p in self.positions if p in answers]
        whole = len(known) == len(self.positions)
        labelled: dict[str, Any] = {}
        if whole and all(one.ndim == 0 for one in known):
            bought["label"] = ("case", np.array(known), {"long_name": "answer of the oracle"})
        if whole and classes and all(one.dtype.kind in "biu" for one in known):
            labelled["class_count"] = self._class_counts(known, classes)
        names = np.array([ids[position] for position in self.positions])
        purchases = xr.Dataset(bought, {"case": names, "step": ("case", np.array(self.steps))})
        steps = {"step": np.arange(self.step + 1)}
        labelled["num_labelled"] = ("step", self.numbers(), {"units": "cases"})
        groups = {"purchases": purchases, "labelled": xr.Dataset(labelled, steps)}
        groups |= {name: self.history(name) for name in self.figures}
        tree = xr.DataTree.from_dict(groups)
        tree.attrs = {**attrs, "num_labelled": len(self.positions)}
        return tree

    def _class_counts(self, known: list[np.ndarray], classes: Sequence[Any]) -> xr.DataArray:
        """Labels, or pixels of masks, of every class in hand at every step."""
        single = np.stack(
            [np.bincount(one[one >= 0].ravel(), minlength=len(classes)) for one in known]
        )
        each = np.zeros((self.step + 1, len(classes)), np.int64)
        np.add.at(each, self.steps, single)
        units = "pixels" if known[0].ndim else "cases"
        coords = {"class": np.array([str(name) for name in classes])}
        counts = each.cumsum(0)
        return xr.DataArray(counts, coords, ("step", "class"), attrs={"units": units})


def restored(tree: xr.DataTree) -> Purchases:
    """What a tree of ``Purchases`` holds."""
    bought = tree["purchases"].to_dataset()
    figures = {}
    for name, node in tree.children.items():
        if name not in ("purchases", "labelled"):
            rows = node.to_dataset().drop_vars(["step", "num_labelled"])
            figures[name] = [rows.isel(step=k) for k in range(rows.sizes["step"])]
    return Purchases(
        bought["position"].values.tolist(),
        bought["step"].values.tolist(),
        bought["score"].values.tolist(),
        figures,
    )


def open_purchases(folder: Path | None, attrs: Mapping[str, Any], resume: bool) -> Purchases:
    """What an earlier call left in a folder; nothing bought where there is none.

    Raises:
        FileExistsError: If there is a run and it is not to be resumed.
        ValueError: If it was begun with other settings, or its labels are those of no run.
    """
    path = None if folder is None else folder / FILE
    if path is None or folder is None or not path.exists():
        if folder is not None and answer_files(folder):
            raise FileExistsError(
                f"folder {folder} holds labels but no {FILE}; they belong to another run: choose "
                "another folder"
            )
        return Purchases()
    if not resume:
        raise FileExistsError(
            f"folder {folder} holds a run already; pass resume=True to go on with it, or choose "
            "another folder"
        )
    tree = storage.load(path)
    if not isinstance(tree, xr.DataTree) or "purchases" not in tree.children:
        raise ValueError(f"{path} is no run of active_learn; choose another folder")
    for name, value in attrs.items():
        if name not in FREE and str(tree.attrs.get(name)) != str(value):
            raise ValueError(
                f"the run in {folder} was begun with {name} {tree.attrs.get(name)!r}, not "
                f"{value!r}; resume with the same, or choose another folder"
            )
    return restored(tree)
