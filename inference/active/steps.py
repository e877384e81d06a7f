"""One step after the other: ask for labels, train, measure, choose what to ask for next."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import xarray as xr
from tqdm import tqdm

from ppl_med import storage
from ppl_med.axes import SAMPLES
from ppl_med.checks import reject
from ppl_med.data.random_streams import random_stream
from ppl_med.inference.active.next_cases import Selection
from ppl_med.inference.active.oracles import AskedLabels, KnownLabels, Pool
from ppl_med.inference.active.purchases import FILE, Purchases
from ppl_med.inference.active.stopping import Stopping
from ppl_med.inference.batches import first_batch
from ppl_med.inference.checkpoint import load
from ppl_med.inference.predictive import predict
from ppl_med.inference.svi import fit
from ppl_med.programs import rng
from ppl_med.programs.isolation import alone
from ppl_med.programs.sites import Program

_START, _PART, _STEP = range(3)  # streams of random numbers


def step_seed(seed: int, step: int) -> int:
    """The seed of training, prediction and acquisition at a step of ``active_learn``."""
    return int(random_stream(seed, _STEP, step).integers(2**31))


def start_positions(
    pool: Pool, labels: KnownLabels | AskedLabels, start: Any, balanced: bool, seed: int
) -> list[int]:
    """Positions of the cases at step 0: those named, or a draw that depends on the seed alone.

    Of classes, each gives an equal share as long as it has cases, the rare first.
    """
    if not isinstance(start, int | np.integer):
        return [pool.place[name] for name in start]
    order = random_stream(seed, _START).permutation(len(pool.ids))
    classes = labels.classes if balanced else None
    if classes is None:
        return order[:start].tolist()
    names, counts = np.unique(classes, return_counts=True)
    chosen: list[int] = []
    for done, name in enumerate(names[np.argsort(counts, kind="stable")]):
        share = (start - len(chosen)) // (len(names) - done)
        chosen += order[classes[order] == name][:share].tolist()
    rest = order[~np.isin(order, chosen)]
    return [*chosen, *rest[: start - len(chosen)].tolist()]


@dataclass(frozen=True)
class Settings:
    """Arguments of ``active_learn``, checked."""

    make_program: Callable[[], tuple[Program, Program]]
    test: Any
    validation: Any
    selection: Selection
    budget: int
    size: int
    draws: int
    warm_start: bool
    stopping: Stopping | None
    figures: Callable[[xr.DataTree], xr.Dataset]
    fit_options: Callable[[int], Mapping[str, Any]]
    folder: Path | None
    seed: int
    device: Any
    progress: bool


class Steps:
    """A run of ``active_learn``: its settings, its cases, and what was bought so far."""

    def __init__(
        self,
        settings: Settings,
        pool: Pool,
        labels: KnownLabels | AskedLabels,
        purchases: Purchases,
        classes: Sequence[Any] | None,
        attrs: Mapping[str, Any],
    ) -> None:
        self.settings, self.pool, self.labels = settings, pool, labels
        self.purchases, self.classes, self.attrs = purchases, classes, dict(attrs)

    def run(self) -> xr.DataTree:
        """Go on until the budget is spent or the stopping rule says so."""
        settings, bought = self.settings, self.purchases
        left = max(0, settings.budget - len(bought.positions))
        total = bought.step + 1 + -(-left // settings.size)
        with ExitStack() as held:
            held.enter_context(alone())
            held.enter_context(rng.restored())
            held.enter_context(pyro.get_param_store().scope())
            weights = settings.folder
            if weights is None and settings.warm_start:
                weights = Path(held.enter_context(tempfile.TemporaryDirectory()))
            bar = held.enter_context(
                tqdm(
                    total=total,
                    initial=bought.step + bought.is_measured,
                    desc="active learning",
                    unit="step",
                    disable=not settings.progress,
                )
            )
            while (stopped := self._stopped()) == "no":
                answers = self.labels.ask(bought.positions)
                self._step(answers, weights)
                bar.set_postfix(self._status())
                bar.update()
        return self._save(stopped)

    def _stopped(self) -> str:
        """What ended the run; "no" where it goes on."""
        bought, settings = self.purchases, self.settings
        if not bought.is_measured:
            return "no"
        if settings.stopping is not None and settings.stopping(bought.history("validation")):
            return "stopping"
        return "budget" if len(bought.positions) >= settings.budget else "no"

    def _step(self, answers: Mapping[int, Any], weights: Path | None) -> None:
        """Train on what was bought, measure, and choose what to buy next; then all is written."""
        settings, bought = self.settings, self.purchases
        step, seed = bought.step, step_seed(settings.seed, bought.step)
        batches = self.pool.labelled(answers, shuffle=True, seed=settings.seed)
        model, guide = self._program(weights, batches)
        place = None if weights is None else weights / f"step-{step}.pt"
        options = settings.fit_options(len(answers))
        fit(
            model, guide, batches, seed=seed, checkpoint=place, resume=place is not None,
            device=settings.device, progress=False, **options,
        )  # fmt: skip
        drawn = {"draws": settings.draws, "seed": seed, "device": settings.device}
        drawn["progress"] = False
        held_out = {"test": settings.test, "validation": settings.validation}
        bought.measure(
            {
                name: self._figures(predict(model, guide, given, **drawn))
                for name, given in held_out.items()
                if given is not None
            }
        )
        if self._stopped() == "no":
            number = min(settings.size, settings.budget - len(bought.positions))
            order = random_stream(settings.seed, _PART, step).permutation(len(self.pool.ids))
            chosen = settings.selection(
                model, guide, self.pool, bought.positions, order, number, drawn
            )
            bought.buy(*chosen)
        self._save("no", answers)
        if weights is not None and step:
            (weights / f"step-{step - 1}.pt").unlink(missing_ok=True)

    def _program(self, weights: Path | None, batches: Any) -> tuple[Program, Program]:
        """Model and guide to train at this step, and an empty parameter store."""
        settings, before = self.settings, self.purchases.step - 1
        pyro.clear_param_store()
        pair = made_program(settings.make_program, settings.seed)
        if settings.warm_start and before >= 0 and weights is not None:
            path = weights / f"step-{before}.pt"
            load(path, *pair, example=first_batch(batches))
        return pair

    def _figures(self, tree: xr.DataTree) -> xr.Dataset:
        found = self.settings.figures(tree)
        if not isinstance(found, xr.Dataset):
            reject("figures", "a function that gives a Dataset", found)
        kept = [name for name, one in found.items() if not {*SAMPLES, "case"} & {*one.dims}]
        if not kept:
            raise ValueError(
                f"figures gave no variable without draws and cases, only {[*found]}; reduce them"
            )
        return found[kept].drop_attrs(deep=False)

    def _status(self) -> dict[str, Any]:
        done = self.purchases.figures["test"]
        test, number = done[-1], self.purchases.numbers()[len(done) - 1]
        first = next((name for name, one in test.items() if one.ndim == 0), None)
        status: dict[str, Any] = {"labels": int(number)}
        return status if first is None else status | {str(first): f"{float(test[first]):.3f}"}

    def start(self, positions: Sequence[int]) -> None:
        """Buy the first cases."""
        self.purchases.buy(positions, [float("nan")] * len(positions))
        self._save("no", {})

    def _save(self, stopped: str, answers: Mapping[int, Any] | None = None) -> xr.DataTree:
        """The run as a tree, in its file where there is one."""
        if answers is None:
            answers = self.labels.ask(self.purchases.positions)
        attrs = {**self.attrs, "budget": self.settings.budget, "stopped_by": stopped}
        tree = self.purchases.tree(self.pool.ids, answers, self.classes, attrs)
        if self.settings.folder is not None:
            storage.save(tree, self.settings.folder / FILE)
        return tree


def made_program(
    make_program: Callable[[], tuple[Program, Program]], seed: int
) -> tuple[Program, Program]:
    """A model and a guide with the first weights of a seed.

    Raises:
        TypeError: It gives no pair.
    """
    with rng.restored():
        rng.seed_all(seed)
        pair = make_program()
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise TypeError(
            f"make_program must give a model and its guide, (model, guide), got {pair!r}"
        )
    return pair
