"""How a run goes: the arguments of ``fit`` besides programs and batches, checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from ppl_med.checks import a_path, choice, finite, inside, positive, reject, share, whole
from ppl_med.inference.batches import check_seed, choose_device
from ppl_med.inference.training.callbacks import Callbacks
from ppl_med.inference.training.captured.eligibility import check_run
from ppl_med.inference.training.objectives import Elbo, Objective
from ppl_med.inference.training.optimizers import check_factory
from ppl_med.inference.training.parameter_groups import check_rates
from ppl_med.inference.training.precision import Precision, chosen_precision
from ppl_med.inference.training.schedules import SCHEDULES
from ppl_med.inference.training.selection import EarlyStopping, Plateau


@dataclass
class Settings:
    """The arguments of ``fit``, each as it says there, in the form in which they are used.

    Raises:
        ValueError: On an argument that makes no sense, or that needs ``validation`` and has none.
    """

    epochs: Any
    learning_rate: Any
    optimizer: Any
    schedule: Any
    rate_warm_up: Any
    clip_norm: Any
    accumulate: Any
    average: Any
    kl_weight: Any
    objective: Any
    precision: Any
    device: Any
    seed: Any
    checkpoint: Any
    checkpoint_every: Any
    resume: bool
    validation: Any
    keep: Any
    stopping: Any
    callbacks: Any
    progress: bool
    capture: Any = False
    compile_nets: Any = False

    def __post_init__(self) -> None:
        self.epochs = whole("epochs", self.epochs, least=0)
        self._check_steps()
        if self.objective is None:
            self.objective = Elbo()
        if not isinstance(self.objective, Objective):
            kinds = "Elbo(), ImportanceWeighted(...) or Geco(...)"
            reject("objective", kinds, self.objective, "from ppl_med.inference")
        self.seed = check_seed(self.seed)
        self._check_selection()
        self.asked_precision = choice("precision", self.precision, get_args(Precision))
        self.device: torch.device = choose_device(self.device)
        self.precision = chosen_precision(self.precision, self.device)
        self.capture = check_run(self.capture, self.device, self.accumulate, self.objective)
        finite("checkpoint_every", self.checkpoint_every, least=0)
        if self.resume and self.checkpoint is None:
            raise ValueError(
                "resume=True needs a checkpoint to resume from; pass checkpoint=<path>"
            )
        if self.checkpoint is not None:
            self.checkpoint: Path | None = a_path("checkpoint", self.checkpoint)
            if self.checkpoint.suffix == ".safetensors":
                fix = "save writes .safetensors, which holds no optimizer"
                reject("checkpoint", "a file such as run.pt", self.checkpoint, fix)
        self.callbacks = Callbacks(self.callbacks)

    def _check_steps(self) -> None:
        """What a step is."""
        check_rates(self.learning_rate)
        if not isinstance(self.learning_rate, Mapping):
            self.learning_rate = float(self.learning_rate)
        check_factory(self.optimizer)
        if isinstance(self.schedule, str) and self.schedule == "plateau":
            self.schedule = Plateau()
        if not (callable(self.schedule) or isinstance(self.schedule, Plateau)):
            choice("schedule", self.schedule, SCHEDULES, fix="or pass a function, or Plateau(...)")
        share("rate_warm_up", self.rate_warm_up)
        if self.clip_norm is not None:
            self.clip_norm = positive("clip_norm", self.clip_norm)
        self.accumulate = whole("accumulate", self.accumulate)
        if self.average is not None:
            self.average = inside("average", self.average)

    def _check_selection(self) -> None:
        """What validation decides."""
        choice("keep", self.keep, ("last", "best"))
        if not (self.stopping is None or isinstance(self.stopping, EarlyStopping)):
            fix = "such as EarlyStopping(patience=5)"
            reject("stopping", "None or an EarlyStopping", self.stopping, fix)
        asking = {
            "keep='best'": self.keep == "best",
            "stopping": self.stopping is not None,
            "schedule='plateau'": isinstance(self.schedule, Plateau),
        }
        for name, asks in asking.items():
            if asks and self.validation is None:
                raise ValueError(
                    f"{name} looks at held-out cases, and there are none; pass validation=<batches>"
                )

    @property
    def shows_rate(self) -> bool:
        """Whether the history gets the learning rate of every step."""
        risen = self.rate_warm_up > 0 or isinstance(self.learning_rate, Mapping)
        return risen or self.schedule == "one-cycle" or isinstance(self.schedule, Plateau)
