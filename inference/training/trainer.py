"""The training loop: members one after the other, each from its own seed, with checkpoints."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ppl_med.inference import checkpoint as files
from ppl_med.inference.batches import BatchSpec, Loader
from ppl_med.inference.training.captured.captured_step import steps_of
from ppl_med.inference.training.completion import complete, measure_statistics
from ppl_med.inference.training.heldout import heldout_nll
from ppl_med.inference.training.history import History
from ppl_med.inference.training.interrupts import told_interrupt
from ppl_med.inference.training.member import Member
from ppl_med.inference.training.pace import Pace
from ppl_med.inference.training.ranks.together import Ranks
from ppl_med.inference.training.resumed_epochs import epoch_from, set_back
from ppl_med.inference.training.run_state import not_finite, run_state
from ppl_med.inference.training.schedules import rate_at, weight_at
from ppl_med.inference.training.settings import Settings
from ppl_med.inference.training.updates import num_steps, share_of_step
from ppl_med.programs import rng
from ppl_med.programs.case_scale import CaseScale
from ppl_med.programs.isolation import private_store
from ppl_med.programs.parameters import set_mode
from ppl_med.programs.sites import select_arguments

MAX_PENDING = 1000
VALIDATION_DRAWS = 8


class Trainer:
    """Trains the members one after the other.

    Args:
        members: What ``prepare`` made of the pairs.
        loader: The batches.
        spec: What the model accepts.
        settings: The arguments of ``fit``.
        data: Digest of the data, for the checkpoint.
        ranks: The processes that train together.
        own: Positions of the members that this process trains; None for all.

    Attributes:
        index: Member that the next step trains; with ``epoch`` and ``batch`` where it stands.
    """

    def __init__(
        self,
        members: list[Member],
        loader: Loader,
        spec: BatchSpec,
        settings: Settings,
        data: str | None = None,
        ranks: Ranks | None = None,
        own: Sequence[int] | None = None,
    ) -> None:
        self.members, self.loader, self.spec = members, loader, spec
        self.settings, self.data, self.ranks = settings, data, ranks or Ranks()
        self.own = range(len(members)) if own is None else own
        self.index = self.epoch = self.batch = 0
        self.epoch_start: dict[str, Any] | None = None
        self.pace = Pace(settings, self.ranks)
        self.never_finite = not_finite(self.pairs)

    @property
    def pairs(self) -> list[tuple[Any, Any]]:
        """Model and guide of each member."""
        return [member.pair for member in self.members]

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return num_steps(self.loader.num_batches, self.settings.accumulate)

    # ---------------------------------------------------------------- the loop

    def run(self) -> list[History]:
        """Train to the end, and return the history of each member."""
        own = [(index, self.members[index]) for index in self.own]
        histories = [member.history for member in self.members]
        if all(member.done for _, member in own):
            self.index = len(self.members)
            return histories
        begun = sum(member.batches_done(self.loader.num_batches) for _, member in own)
        with (
            self.pace.interrupts,
            tqdm(
                total=self.settings.epochs * self.loader.num_batches * len(own),
                initial=begun,
                desc="fit",
                unit="step" if self.settings.accumulate == 1 else "batch",
                disable=not self.pace.shows,
                mininterval=self.pace.refresh,
            ) as bar,
        ):
            for index, member in own:
                if member.done:
                    continue
                self.index = index
                with private_store(), member.frozen():
                    self._begin(member)
                    self._train(member, bar)
                    self._end(member)
            self.index = len(self.members)
        self._save(force=True)
        return histories

    def _begin(self, member: Member) -> None:
        """Set position and generators to where the member stands."""
        member.forget()
        self.epoch, self.batch, self.epoch_start = 0, 0, None
        if member.standing is None:
            rng.seed_all(self.settings.seed + self.index)
            return
        self.epoch, self.batch = member.standing["epoch"], member.standing["batch"]
        self.epoch_start = member.standing["epoch_start"]
        rng.set_state(member.standing["generators"], self.settings.device)

    def standing(self) -> dict[str, Any]:
        """Where the present member stands: position and generators."""
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "epoch_start": self.epoch_start,
            "generators": rng.get_state(self.settings.device),
        }

    def _train(self, member: Member, bar: Any) -> None:
        member.updates.engine = self.ranks.engine(member.updates.objective, member.pair)
        plan, take = self.settings, partial(self._take, member)
        known = (member.updates, member.pair, plan.device, plan.precision)
        kind = {"capture": plan.capture, "compile_nets": plan.compile_nets}
        with steps_of(take, *known, **kind) as self._make:
            self._train_epochs(member, bar)

    def _train_epochs(self, member: Member, bar: Any) -> None:
        while self.epoch < self.settings.epochs and not member.stopped(self.settings):
            member.set_training()
            member.updates.losses.start_epoch()
            member.look_at_scores(self.settings)
            for batch, factor in self._batches():
                self._step(member, batch, factor)
                self.batch += 1
                bar.update()
                self._show(member, bar)
                self._save()
                self._stop_where_asked()
            self._finish_epoch(member)
            self._show(member, bar)
            self._stop_where_asked()

    def _batches(self) -> Iterator[tuple[dict[str, Any], float | Tensor]]:
        """The epoch's batches from the present position on, and what their cases weigh."""
        seed = self.settings.seed + self.index
        start = self.ranks.seed_epoch(self.loader, seed, self.epoch, self.epoch_start)
        iterator, self.epoch_start = epoch_from(
            self.loader, self.epoch, self.batch, start, seed, self.settings.device
        )
        while True:
            self.ranks.seed(seed, self.epoch, self.batch)
            if (found := self._next(iterator)) is None:
                return
            yield self.ranks.part(*found)

    def _next(self, iterator: Iterator[Any]) -> tuple[dict[str, Any], float | Tensor] | None:
        """The next batch, checked; where it is bad, what was learned so far is saved."""
        path, device = self.settings.checkpoint, self.settings.device
        before = None if path is None else rng.get_state(device)
        read_at = self.members[self.index].updates.losses.read_at
        try:
            found = next(iterator, None)
            if found is not None:
                self.spec.check(found[0], self.loader.num_cases)
        except Exception as error:
            self.pace.agree(read_at, failed=True)
            if before is not None:
                set_back(self.loader, self.batch, self.epoch_start, before, device)
            self._stop_where_asked()  # workers of a loader get Ctrl-C as well, and end
            self._save_for(error)
            raise
        if self.pace.agree(read_at, ended=found is None):
            self._stop_where_asked()
            lost = RuntimeError("fit ends here: another process that trains along has failed")
            self._save_for(lost)
            raise lost
        return found

    def _save_for(self, error: BaseException) -> None:
        """Save what was learned before an error of the user's code, and tell so."""
        if self.settings.checkpoint is not None:
            with contextlib.suppress(OSError, FloatingPointError):
                self._save(force=True)
                error.add_note(
                    f"The training so far is in the checkpoint {self.settings.checkpoint}."
                )

    def _step(self, member: Member, batch: dict[str, Any], factor: float | Tensor) -> None:
        """Take the gradient of a batch, and perhaps the optimizer's step."""
        plan, loader, updates = self.settings, self.loader, member.updates
        if updates.size == 0:
            left = loader.num_batches - self.batch
            step = self.epoch * self.steps + self.batch // plan.accumulate
            total = plan.epochs * self.steps
            rate = rate_at(plan.schedule, plan.rate_warm_up, step, total, member.plateau)
            size = max(1, min(plan.accumulate, left))
            updates.open(size, rate, weight_at(plan.kl_weight, step / total))
        share = share_of_step(loader.num_batches, plan.accumulate, updates.size)
        if share != 1:
            factor = factor * share
        values = self._make(select_arguments(member.model, batch), factor, self.epoch)
        if updates.size == 0:
            made = self.epoch * self.steps + self.batch // plan.accumulate + 1
            member.after_step(values, loader.num_cases, made / (plan.epochs * self.steps))

    def _take(self, member: Member, values: dict[str, Any], factor: float | Tensor) -> None:
        """Take the gradient of a batch that is on the device."""
        plan, updates = self.settings, member.updates
        enabled = plan.precision == "bfloat16"
        autocast = torch.autocast(plan.device.type, torch.bfloat16, enabled=enabled)
        with autocast, CaseScale(factor):
            loss = updates.engine(
                member.model, member.guide, values, self.loader.num_cases, updates.kl_weight
            )
        if enabled:  # inside another autocast, the weights' copies would serve all later steps
            torch.clear_autocast_cache()
        updates.add(self.ranks.averaged(loss), self.epoch)

    def _show(self, member: Member, bar: Any) -> None:
        """Read the losses and write them to the bar, not more often than it is redrawn."""
        losses, history = member.updates.losses, member.history
        if self.pace.reads(losses.read_at) or len(losses) >= MAX_PENDING:
            self._read_losses(member)
        if history.nll and not bar.disable:
            bar.set_postfix({n: f"{v:.4g}" for n, v in history.last().items()}, refresh=False)

    def _read_losses(self, member: Member) -> None:
        """Read the losses off the device and stop at the first that is not finite."""
        try:
            member.updates.losses.read(member.history)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{error}. {self._kept()} Lower learning_rate, start with a smaller init_scale, or "
                "look for extreme values in the batches"
            ) from None

    def _kept(self) -> str:
        path = self.settings.checkpoint
        return f"Last good checkpoint: {path if path is not None and path.exists() else 'none'}."

    def _finish_epoch(self, member: Member) -> None:
        plan = self.settings
        if self.batch == 0:
            raise ValueError(
                f"batches yielded nothing in epoch {self.epoch}; it must be re-iterable"
            )
        member.updates.finish(self.epoch)  # of an epoch that was shorter than it seemed
        self._read_losses(member)
        self.ranks.share_buffers(member.pair)
        if plan.validation is not None:
            set_mode(member.pair, False)
            with rng.restored(), member.judged():  # training goes the same way without validation
                self._measure(member)
                judge = partial(heldout_nll, *member.pair, plan.validation, plan.device)
                score = self.ranks.on_first(lambda: judge(VALIDATION_DRAWS, plan.seed))
                member.note_score(score, keep=plan.keep)
        self.epoch, self.batch = self.epoch + 1, 0
        if plan.callbacks:
            set_mode(member.pair, False)
            try:
                with rng.restored(), member.shown():
                    news = self._news(member)
                    told = self.ranks.on_first(lambda: plan.callbacks.on_epoch(news))
                    member.told = told or member.told
            except BaseException as error:
                self._save_for(error)
                raise
        self._save()

    def _news(self, member: Member) -> Any:
        """The history of the present member, for callbacks."""
        attrs = {"member": self.index, "members": len(self.members), "epoch": self.epoch}
        return member.history.dataset().assign_attrs(attrs, epochs=self.settings.epochs)

    def _end(self, member: Member) -> None:
        """Leave a member that is trained, at the epoch that is to be kept."""
        self._check_finite()
        set_mode(member.pair, False)
        if self.ranks.speaks:
            member.warn_of_kl(self.steps)
        member.finish(self.standing(), self.settings)
        if self.settings.keep == "last":  # the best state holds its own
            self._measure(member)
        complete(member, self.loader, self.settings, self.settings.seed + self.index)

    def _measure(self, member: Member) -> None:
        """Measure statistics of norm layers; of ranks that have other batches, take rank 0's."""
        measure_statistics(member, self.loader, self.settings, self.settings.seed + self.index)
        self.ranks.share_buffers(member.pair)

    # ---------------------------------------------------------------- checkpoints

    def _check_finite(self) -> None:
        lost = sorted(not_finite(self.pairs) - self.never_finite)
        member = self.members[self.index]
        if lost or not member.updates.is_finite():
            name = lost[0][1] if lost else "a gradient"
            raise FloatingPointError(
                f"{name} stopped being finite before step {len(member.history.nll)}. "
                f"{self._kept()} Lower learning_rate, or look for extreme values in the batches"
            )

    def _stop_where_asked(self) -> None:
        """After Ctrl-C: save, and end with how to go on."""
        if not self.pace.asked:
            return
        steps = sum(len(one.history.nll) + len(one.updates.losses) for one in self.members)
        done = f"fit was interrupted after {steps} steps"
        path = self.settings.checkpoint
        if path is None:
            raise told_interrupt(
                f"{done}. Model and guide hold what was learned so far, but no checkpoint was "
                "asked for: pass checkpoint=<path> to be able to go on after an interruption."
            )
        self._save(force=True)
        raise told_interrupt(
            f"{done}; the training so far is in the checkpoint {path}. To go on, make the same "
            "call with resume=True."
        )

    def _save(self, *, force: bool = False) -> None:
        path = self.settings.checkpoint
        if path is None or not (force or self.pace.saves()):
            return
        if self.index < len(self.members):
            self._read_losses(self.members[self.index])
        self.ranks.on_first(lambda: self._write(path))
        self.pace.saved_at = time.monotonic()

    def _write(self, path: Path) -> None:
        if self.index < len(self.members):
            self._check_finite()
        files.write(path, run_state(self))
