"""One member of a run: its programs, what trains them, and what is kept of them."""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor, nn

from ppl_med.inference import checkpoint as files
from ppl_med.inference.training.dry_run import DryRun
from ppl_med.inference.training.history import History
from ppl_med.inference.training.moving_average import moving_norms
from ppl_med.inference.training.parameter_groups import frozen_norms
from ppl_med.inference.training.selection import Plateau, best_epoch
from ppl_med.inference.training.settings import Settings
from ppl_med.inference.training.updates import Updates
from ppl_med.programs import protocol
from ppl_med.programs.parameters import modules_of, set_mode
from ppl_med.programs.sites import Batch, select_arguments

LARGE_KL, COLLAPSED_KL = 1e3, 0.05


class Member:
    """A model and a guide that are trained together.

    Args:
        pair: The two.
        dry_run: What a first run showed of them.
        updates: What trains them.

    Attributes:
        history: Figures of the run so far.
        plateau: Factor on the learning rate that held-out scores ask for.
        best: State with the best held-out score so far, on the CPU; None where nobody asks.
        last: State after the last epoch, where the programs were put to another that is kept.
        told: Who of the callbacks stopped the training; None where nobody did.
        standing: Where to go on from; None at the start.
        done: Whether it is trained.
        average: That of its parameters; None where nobody asks.
        norms: Layers whose running statistics are measured anew for the average.
    """

    def __init__(self, pair: tuple[Any, Any], dry_run: DryRun, updates: Updates) -> None:
        self.pair, self.dry_run, self.updates = pair, dry_run, updates
        self.model, self.guide = pair
        self.history = History()
        self.plateau = 1.0
        self.best: dict[str, Any] | None = None
        self.last: dict[str, Any] | None = None
        self.told: str | None = None
        self.standing: dict[str, Any] | None = None
        self.done = False
        self.average = updates.average
        self._still = frozen_norms(modules_of(*pair), updates.groups.frozen)
        self.norms: list[nn.Module] = []
        if self.average is not None:
            self.set_training()
            self.norms = moving_norms(pair)
            set_mode(pair, False)
        self._after_steps = protocol.after_steps(self.model)
        self._followers = protocol.step_followers(self.guide)

    def batches_done(self, num_batches: int) -> int:
        """Batches trained so far, of epochs of ``num_batches``."""
        standing = self.standing or {"epoch": 0, "batch": 0}
        return int(standing["epoch"] * num_batches + standing["batch"])

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Take no gradient of what does not learn, while the block runs."""
        changed = [parameter for parameter in self.updates.groups.frozen if parameter.requires_grad]
        try:
            for parameter in changed:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in changed:
                parameter.requires_grad_(True)

    def forget(self) -> None:
        """Let the guide forget what an earlier training has left; see ``before_trainings``."""
        for function in protocol.before_trainings(self.guide):
            function()

    def set_training(self) -> None:
        """Put the programs into training mode; norm layers that are frozen stand still."""
        set_mode(self.pair, True)
        for module in self._still:
            module.eval()

    def after_step(self, batch: Batch, num_cases: int, done: float) -> None:
        """Let parts of the programs follow a step of one batch, at a finished fraction of the run.

        See ``protocol.step_followers`` and ``protocol.after_steps``.
        """
        for follow in self._followers:
            follow(done)
        if not self._after_steps:
            return
        set_mode(self.pair, False)
        with torch.no_grad():
            drawn = poutine.trace(self.guide).get_trace(**batch, num_cases=num_cases)
            for program in self._after_steps:
                poutine.replay(program, trace=drawn)(**select_arguments(program, batch))
        self.set_training()

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Put the programs to the average while the block runs, which may move statistics."""
        if self.average is None:
            yield
            return
        buffers = [buffer for norm in self.norms for buffer in norm.buffers()]
        held = [buffer.clone() for buffer in buffers]
        try:
            with self.average.in_place():
                yield
        finally:
            for buffer, earlier in zip(buffers, held, strict=True):
                buffer.copy_(earlier)

    def shown(self) -> AbstractContextManager[None]:
        """Put the programs to the average while the block runs, where that needs no pass."""
        return nullcontext() if self.norms else self.judged()

    def kept_state(self, now: dict[str, Any]) -> dict[str, Any]:
        """State that would be kept now, where the programs are in another."""
        if self.best is not None:
            return self.best
        if self.average is None or self.done or self.norms:
            return now
        with self.judged():
            return snapshot(files.program_state(*self.pair))

    def look_at_scores(self, settings: Settings) -> None:
        """Take from held-out scores what the coming epoch needs of them."""
        if isinstance(settings.schedule, Plateau):
            self.plateau = settings.schedule.rate(self.history.validation_nll)

    def note_score(self, score: float, *, keep: str) -> None:
        """Take an epoch's held-out NLL; keep the state where it is the best."""
        scores = self.history.validation_nll
        scores.append(score)
        if keep == "best" and best_epoch(scores) == len(scores) - 1:
            self.best = snapshot(files.program_state(*self.pair))

    def stopped(self, settings: Settings) -> bool:
        """Whether a callback or the held-out scores ended the training."""
        over = settings.stopping is not None and settings.stopping.is_over(
            self.history.validation_nll
        )
        return over or self.told is not None

    def finish(self, standing: dict[str, Any], settings: Settings) -> None:
        """Note how the training ended, and put the programs to the state that is kept."""
        kept = self.history.kept
        if settings.stopping is not None or settings.callbacks:
            early = self.stopped(settings)
            kept["stopped_by"] = (self.told or "no improvement") if early else "epochs"
        moved = settings.keep == "best" or self.average is not None
        if moved and settings.checkpoint is not None:
            self.last = snapshot(files.program_state(*self.pair))
        if self.average is not None:
            self.average.take_place()
        if settings.keep == "best":
            kept["best_epoch"] = best_epoch(self.history.validation_nll)
            if self.best is None:
                raise FloatingPointError(
                    "keep='best': the held-out NLL was finite after no epoch; look for extreme "
                    "values in validation, or lower learning_rate"
                )
            files.load_program_state(*self.pair, self.best)
        for sentence in protocol.shortfalls(self.guide):
            warnings.warn(sentence, stacklevel=5)
        self.standing, self.done = standing, True

    def go_on(self) -> None:
        """Take the training up again after it had ended."""
        if self.last is not None:
            files.load_program_state(*self.pair, self.last)
        self.last, self.told, self.done = None, None, False
        self.history.kept.clear()

    def warn_of_kl(self, steps: int) -> None:
        """Warn of a KL that is very large, or nothing, over the last ``steps`` steps.

        Warns:
            UserWarning: It is.
        """
        last = self.history.kl[-steps:]
        by_site = self.updates.losses.kl_by_site()
        kl, states = sum(last) / max(len(last), 1), self.dry_run.states
        if states:  # theirs is how well a mask is told: large ones have thousands of nats
            kl = sum(value for name, value in by_site.items() if name not in states)
        if kl > LARGE_KL:
            warnings.warn(
                f"the KL is {kl:.3g} nats per case, above {LARGE_KL:g}"
                f"{', that of the noising process left out' if states else ''}: the prior is far "
                "from the guide; start with a larger init_scale, a narrower prior or fewer random "
                "weights",
                stacklevel=5,
            )
        for name, value in by_site.items():
            if name in self.dry_run.local_latents and value < COLLAPSED_KL:
                warnings.warn(
                    f"posterior collapse: the latent {name!r} carries {value:.3g} nats per case, "
                    f"below {COLLAPSED_KL}; warm up the KL (kl_weight=warm_up()) or sum the "
                    "likelihood over pixels",
                    stacklevel=5,
                )


def snapshot(state: Any) -> Any:
    """A copy of a state, its tensors on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, Mapping):
        return {name: snapshot(value) for name, value in state.items()}
    if isinstance(state, list):
        return [snapshot(value) for value in state]
    return copy.deepcopy(state)
