"""The training loop behind ``fit``: steps, checkpoints, resuming, and what stops it."""

import contextlib
import copy
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ppl_med.inference import checkpoint as files
from ppl_med.inference.batches import BatchSpec, Loader, check_one_grader, first_batch
from ppl_med.inference.data_digest import data_digest
from ppl_med.inference.training.dry_run import DryRun, check_validation
from ppl_med.inference.training.earlier_runs import warn_of_repeats
from ppl_med.inference.training.heldout import heldout_nll
from ppl_med.inference.training.history import History
from ppl_med.inference.training.interrupts import Interrupts, told_interrupt
from ppl_med.inference.training.loss_log import LossLog
from ppl_med.inference.training.optimizers import Factory, make_optimizer
from ppl_med.inference.training.run_state import identity, not_finite, restore, run_state
from ppl_med.inference.training.schedules import Schedule, rate_factor, weight_at
from ppl_med.inference.training.value_units import learn_units
from ppl_med.programs import rng
from ppl_med.programs.case_scale import CaseScale
from ppl_med.programs.isolation import private_store
from ppl_med.programs.parameters import free_parameters, set_mode
from ppl_med.programs.sites import Program, select_arguments, to_device
from ppl_med.storage.atomic import check_writable

LARGE_KL, COLLAPSED_KL = 1e3, 0.05
REFRESH_SECONDS, MAX_PENDING = 0.5, 1000
VALIDATION_DRAWS = 8


@dataclass
class Trainer:
    """Trains the members one after the other.

    Attributes:
        pairs: Model and guide of each member.
        loader: The batches.
        spec: What the model accepts.
        member: Member that the next step trains; with ``epoch`` and ``batch`` where it stands.

    The other attributes are the arguments of ``fit``.
    """

    pairs: list[tuple[Program, Program]]
    loader: Loader
    spec: BatchSpec
    epochs: int
    learning_rate: float
    optimizer: Factory | None
    schedule: str | Schedule
    kl_weight: float | Schedule
    objective: torch.nn.Module
    precision: str
    device: torch.device
    seed: int
    checkpoint: Path | None
    checkpoint_every: float
    validation: Any
    progress: bool
    member: int = 0
    epoch: int = 0
    batch: int = 0

    def __post_init__(self) -> None:
        """Make what each member needs of its own."""
        self.histories = [History() for _ in self.pairs]
        self.dry_runs: list[DryRun] = []
        self.objectives = [copy.deepcopy(self.objective).to(self.device) for _ in self.pairs]
        self.optimizers: list[torch.optim.Optimizer] = []
        self.data: str | None = None
        self.losses = LossLog()
        self.interrupts = Interrupts()
        self.epoch_start: dict[str, Any] | None = None
        self.saved_at = time.monotonic()
        self.never_finite: set[tuple[int, str]] = set()

    # ---------------------------------------------------------------- before the first step

    def prepare(self, *, resume: bool) -> None:
        """Check everything that can be checked, build optimizers, load a checkpoint."""
        if self.checkpoint is not None:
            if self.checkpoint.is_file() and not resume:
                raise FileExistsError(
                    f"checkpoint {self.checkpoint} exists; pass resume=True to resume it, or "
                    "another path"
                )
            if self.checkpoint.is_dir():
                raise IsADirectoryError(
                    f"checkpoint {self.checkpoint} is a folder; give the path of a file in it"
                )
            check_writable(self.checkpoint, "checkpoint")
        identity(self)  # calls the schedules
        first = first_batch(self.loader.batches)
        self.spec.check(first, self.loader.num_cases)
        self.loader.see(first)
        check_one_grader(first)
        if not (resume and self.checkpoint is not None and self.checkpoint.exists()):
            learn_units([model for model, _ in self.pairs], self.loader.batches)
        if self.checkpoint is not None:
            self.data = data_digest(self.loader.batches, self.spec.arguments)
        for member, (model, guide) in enumerate(self.pairs):
            rng.seed_all(self.seed + member)
            with private_store():
                found = DryRun.of(model, guide, first, self.loader.num_cases, self.device)
                if self.validation is not None:
                    check_validation(model, guide, self.validation, self.spec, self.device)
                if len(self.pairs) > 1 and free_parameters(model, guide):
                    raise ValueError(
                        "members of an Ensemble share what pyro.param keeps in Pyro's store; make "
                        "these parameters nn.Parameter or PyroParam of the module"
                    )
            self.dry_runs.append(found)
            self.optimizers.append(
                make_optimizer(self.optimizer, self.learning_rate, found.parameters, (model, guide))
            )
        rng.seed_all(self.seed)
        self.never_finite = not_finite(self.pairs)
        if resume and self.checkpoint is not None and self.checkpoint.exists():
            restore(self, files.read(self.checkpoint))
        if (self.member, self.epoch, self.batch) == (0, 0, 0):
            guides = (guide for _, guide in self.pairs)
            warn_of_repeats(guides, self.seed, self.loader.num_cases, self.loader.num_batches)

    # ---------------------------------------------------------------- the loop

    def run(self) -> list[History]:
        """Train to the end, and return the history of each member."""
        if self.member == len(self.pairs):
            return self.histories
        steps = self.epochs * self.loader.num_batches
        done = (self.member * self.epochs + self.epoch) * self.loader.num_batches
        with (
            Interrupts() as self.interrupts,
            tqdm(
                total=steps * len(self.pairs),
                initial=done + self.batch,
                desc="fit",
                unit="step",
                disable=not self.progress,
                mininterval=REFRESH_SECONDS,
            ) as bar,
        ):
            while self.member < len(self.pairs):
                with private_store():
                    self._train_member(bar)
                    self._finish_member()
                self.member, self.epoch = self.member + 1, 0
                if self.member < len(self.pairs):
                    rng.seed_all(self.seed + self.member)
        self._save(force=True)
        return self.histories

    def _train_member(self, bar: Any) -> None:
        pair, optimizer = self.pairs[self.member], self.optimizers[self.member]
        rates = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
        while self.epoch < self.epochs:
            set_mode(pair, True)
            self.losses.start_epoch()
            for batch, factor in self._batches():
                self._step(*pair, optimizer, rates, batch, factor)
                self.batch += 1
                bar.update()
                self._show(bar)
                self._save()
                self._stop_where_asked()
            self._finish_epoch(*pair)
            self._show(bar)
            self._stop_where_asked()

    def _batches(self) -> Iterator[tuple[dict[str, Any], float | Tensor]]:
        """The epoch's batches from the present position on, and what their cases weigh.

        A loader that draws its order from a generator repeats it on resuming: the generators are
        set to the epoch's start while it does, and then to where they stood.
        """
        now = None
        own = self.loader.generators()
        if self.batch == 0 or self.epoch_start is None:
            states = [generator.get_state() for generator in own]
            self.epoch_start = {"process": rng.get_state(self.device), "loader": states}
        elif self.loader.draws_its_order:
            now = rng.get_state(self.device)
            rng.set_state(self.epoch_start["process"], self.device)
            for generator, state in zip(own, self.epoch_start["loader"], strict=True):
                generator.set_state(state)
        iterator = self.loader.open(self.epoch, self.batch, self.seed + self.member)
        if now is not None:
            rng.set_state(now, self.device)
        while (found := self._next(iterator)) is not None:
            yield found

    def _next(self, iterator: Iterator[Any]) -> tuple[dict[str, Any], float | Tensor] | None:
        """The next batch, checked; where it is bad, what was learned so far is saved."""
        before = None if self.checkpoint is None else rng.get_state(self.device)
        try:
            found = next(iterator, None)
            if found is not None:
                self.spec.check(found[0], self.loader.num_cases)
            return found
        except Exception as error:
            if self.interrupts.asked:  # workers of a loader get Ctrl-C as well, and end
                if before is not None:
                    rng.set_state(before, self.device)
                self._stop_where_asked()
            if before is not None:
                rng.set_state(before, self.device)
                with contextlib.suppress(OSError, FloatingPointError):
                    self._save(force=True)
                    error.add_note(f"The training so far is in the checkpoint {self.checkpoint}.")
            raise

    def _step(
        self,
        model: Program,
        guide: Program,
        optimizer: torch.optim.Optimizer,
        rates: list[float],
        batch: dict[str, Any],
        factor: float | Tensor,
    ) -> None:
        index = self.epoch * self.loader.num_batches + self.batch
        done = index / (self.epochs * self.loader.num_batches)
        weight = weight_at(self.kl_weight, done)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * rate_factor(self.schedule, done)
        values = to_device(select_arguments(model, batch), self.device)
        if isinstance(factor, Tensor):
            factor = factor.to(self.device, non_blocking=True)
        enabled = self.precision == "bfloat16"
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)
        with autocast, CaseScale(factor):
            objective = self.objectives[self.member]
            loss = objective(model, guide, values, self.loader.num_cases, weight)
        optimizer.zero_grad(set_to_none=True)
        (loss.value / self.loader.num_cases).backward()
        optimizer.step()
        self.losses.add(loss, self.loader.num_cases, weight, self.epoch)

    def _show(self, bar: Any) -> None:
        """Read the losses and write them to the bar, not more often than it is redrawn."""
        late = not bar.disable and time.monotonic() - self.losses.read_at >= REFRESH_SECONDS
        if late or len(self.losses) >= MAX_PENDING:
            self._read_losses()
        history = self.histories[self.member]
        if history.nll and not bar.disable:
            bar.set_postfix({n: f"{v:.4g}" for n, v in history.last().items()}, refresh=False)

    def _read_losses(self) -> None:
        """Read the losses off the device and stop at the first that is not finite."""
        try:
            self.losses.read(self.histories[self.member])
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{error}. {self._kept()} Lower learning_rate, start with a smaller init_scale, or "
                "look for extreme values in the batches"
            ) from None

    def _kept(self) -> str:
        path = self.checkpoint
        return f"Last good checkpoint: {path if path is not None and path.exists() else 'none'}."

    def _finish_epoch(self, model: Program, guide: Program) -> None:
        if self.batch == 0:
            raise ValueError(
                f"batches yielded nothing in epoch {self.epoch}; it must be re-iterable"
            )
        self._read_losses()
        if self.validation is not None:
            set_mode((model, guide), False)
            with rng.restored():  # training goes the same way without validation
                value = heldout_nll(
                    model, guide, self.validation, self.device, VALIDATION_DRAWS, self.seed
                )
            self.histories[self.member].validation_nll.append(value)
        self.epoch, self.batch = self.epoch + 1, 0
        self._save()

    def _finish_member(self) -> None:
        set_mode(self.pairs[self.member], False)
        self._check_finite()
        history = self.histories[self.member]
        last = history.kl[-self.loader.num_batches :]
        kl = sum(last) / max(len(last), 1)
        if kl > LARGE_KL:
            warnings.warn(
                f"the KL is {kl:.3g} nats per case, above {LARGE_KL:g}: the prior is far from the "
                "guide; start with a larger init_scale, a narrower prior or fewer random weights",
                stacklevel=4,
            )
        local = self.dry_runs[self.member].local_latents
        for name, value in self.losses.kl_by_site().items():
            if name in local and value < COLLAPSED_KL:
                warnings.warn(
                    f"posterior collapse: the latent {name!r} carries {value:.3g} nats per case, "
                    f"below {COLLAPSED_KL}; warm up the KL (kl_weight=warm_up()) or sum the "
                    "likelihood over pixels",
                    stacklevel=4,
                )

    # ---------------------------------------------------------------- checkpoints

    def _check_finite(self) -> None:
        lost = sorted(not_finite(self.pairs) - self.never_finite)
        if lost:
            step = len(self.histories[self.member].nll)
            raise FloatingPointError(
                f"{lost[0][1]} stopped being finite before step {step}. {self._kept()} Lower "
                "learning_rate, or look for extreme values in the batches"
            )

    def _stop_where_asked(self) -> None:
        """After Ctrl-C: save, and end with how to go on."""
        if not self.interrupts.asked:
            return
        steps = sum(len(history.nll) for history in self.histories) + len(self.losses)
        done = f"fit was interrupted after {steps} steps"
        if self.checkpoint is None:
            raise told_interrupt(
                f"{done}. Model and guide hold what was learned so far, but no checkpoint was "
                "asked for: pass checkpoint=<path> to be able to go on after an interruption."
            )
        self._save(force=True)
        raise told_interrupt(
            f"{done}; the training so far is in the checkpoint {self.checkpoint}. To go on, make "
            "the same call with resume=True."
        )

    def _save(self, *, force: bool = False) -> None:
        path = self.checkpoint
        if path is None:
            return
        if not force and time.monotonic() - self.saved_at < self.checkpoint_every:
            return
        if self.member < len(self.pairs):
            self._read_losses()
            self._check_finite()
        files.write(path, run_state(self))
        self.saved_at = time.monotonic()
