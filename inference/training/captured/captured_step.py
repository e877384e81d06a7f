"""A training step that is recorded once and replayed: hundreds of kernels for one call of the host.

The first batch decides the shapes. Its steps are made

1. as they are, ``WARM_UP`` times, on the stream of the recording, and watched for what a replay
   could not do or would repeat; where there is such, they are undone;
2. recorded, and compared with replays (``replay_check``), which is undone;
3. by replays, from then on.

Batches of other shapes are trained on as they are. What changes from step to step lies in tensors
that a replay reads: the batch, the learning rates, the KL weight, the state of the generator. What
follows a step, such as a moving average, comes after the replay.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppl_med.inference.training.captured.cuda_graph import CudaGraph
from ppl_med.inference.training.captured.eligibility import generators_of
from ppl_med.inference.training.captured.replay_check import check_replays
from ppl_med.inference.training.captured.state_before import (
    StateBefore,
    host_state,
    moved_tensors,
)
from ppl_med.inference.training.updates import Updates
from ppl_med.programs.host_reads import HostWaits, NoCopies, NoHostReads, place_of
from ppl_med.programs.sites import Program, send, send_into, to_device
from ppl_med.weights.compiled_nets import Compiled, compiled_nets

WARM_UP = 3  # steps, as in PyTorch's notes
Factor = float | Tensor
Take = Callable[[dict[str, Any], Factor], None]
Make = Callable[[Mapping[str, Any], Factor, int], dict[str, Any]]


class CapturedStep:
    """The steps of one member.

    Args:
        take: Adds a batch, on the device, to the open step, and makes it.
        updates: Whose steps they are.
        pair: Model and guide.
        device: A GPU.
        precision: That of the run.
    """

    def __init__(
        self,
        take: Take,
        updates: Updates,
        pair: tuple[Program, Program],
        device: torch.device,
        precision: str,
    ) -> None:
        self.take, self.updates, self.pair = take, updates, pair
        self.device, self.precision = device, precision
        self.graph = CudaGraph(device, generators_of(*pair))
        self.values: dict[str, Tensor] = {}
        self.factor: Factor = 1.0
        self._key: Any = None
        self._made = self._replays = 0
        self._start: StateBefore | None = None
        self._epoch: int | None = None
        self._terms: Tensor | None = None
        self._places: list[int] = []

    def __call__(self, values: Mapping[str, Any], factor: Factor, epoch: int) -> dict[str, Any]:
        """Make a step of one batch.

        Args:
            values: The batch's arguments of the model.
            factor: What its cases weigh; see ``CaseScale``.
            epoch: In which it is.

        Returns:
            The batch on the device, until the next call.
        """
        key = _key_of(values, factor)
        if self._key is None:
            self._key = key
            self._reserve(values, factor)
        if key != self._key:
            return _as_it_is(self.take, self.device, values, factor)
        for name, value in values.items():
            send_into(value, self.values[name])
        if isinstance(self.factor, Tensor) and isinstance(factor, Tensor):
            send_into(factor, self.factor)
        if self._made < WARM_UP:
            self._watched()
        else:
            self._replay(epoch)
        return dict(self.values)

    def close(self) -> None:
        """Give the memory of the recording back."""
        self._terms = None
        self.updates.optimizer.zero_grad(set_to_none=True)
        self.graph.close()

    def _reserve(self, values: Mapping[str, Any], factor: Factor) -> None:
        """Make the tensors that all replays read the batch from."""
        self.values = {n: torch.empty_like(v, device=self.device) for n, v in values.items()}
        self.factor = factor
        if isinstance(factor, Tensor):
            self.factor = torch.empty_like(factor, device=self.device)

    def _take(self) -> None:
        self.take(self.values, self.factor)

    def _on_trial(self) -> Tensor:
        """Make the step; its terms, dims (term,)."""
        self._take()
        return self.updates.losses.pop()

    def _watched(self) -> None:
        """Make the step; raise where replays would stop or would repeat numbers."""
        if self._start is None:
            self._start = StateBefore(self.updates, self.pair)
        hosts = host_state(self.device)
        try:
            with ExitStack() as watch:
                watch.enter_context(NoHostReads())
                if self.device.type != "cpu":
                    watch.enter_context(NoCopies())
                self.graph.aside(self._take)
        except HostWaits as error:
            self._start.restore()
            raise ValueError(
                "capture must be False with this model and guide, in whose step "
                f"{str(error).splitlines()[0]}{place_of(error)}"
            ) from error
        if host_state(self.device) != hosts:
            self._start.restore()
            raise ValueError(
                "capture must be False with this model and guide, which draw random numbers on the "
                "host: every replay would repeat them; draw on the GPU, as pyro.sample does"
            )
        self._made += 1
        if self._made == WARM_UP:
            self._start = None

    def _record(self) -> None:
        """Record the step, and compare replays with it."""
        updates = self.updates
        with updates.trial():
            try:
                self._terms = self.graph.record(self._on_trial)
            except RuntimeError as error:
                raise RuntimeError(
                    f"capture=True: the step cannot be recorded: {error}; pass capture=False"
                ) from error
            gradients = [p.grad for p in updates.parameters() if p.grad is not None]
        before = StateBefore(updates, self.pair)
        check_replays(
            updates,
            before,
            self._on_trial,
            self._replayed,
            gradients,
            self.device,
            self.precision,
        )
        self._places, self._replays = self._present_places(), 0

    def _replayed(self) -> Tensor:
        """Replay the step; its terms, dims (term,), which the next replay writes to."""
        assert self._terms is not None
        self.graph.replay()
        return self._terms

    def _replay(self, epoch: int) -> None:
        if self._terms is None:
            self._record()
        elif epoch != self._epoch and self._present_places() != self._places:
            self._again()
        elif self._replays == 1 and self._present_places() != self._places:
            raise RuntimeError(
                "capture=True: a parameter, a buffer or a part of the optimizer's state is another "
                "tensor after a step than before, which replays do not see; let what follows a "
                "step write into it (copy_), or pass capture=False"
            )
        self._epoch, self._replays = epoch, self._replays + 1
        self.updates.replayed(self._replayed(), epoch)

    def _again(self) -> None:
        """Record anew, where tensors were exchanged between two epochs."""
        self.graph.close()
        self.graph = CudaGraph(self.device, generators_of(*self.pair))
        self._record()

    def _present_places(self) -> list[int]:
        return [tensor.data_ptr() for tensor in moved_tensors(self.updates, self.pair)]


@contextmanager
def steps_of(
    take: Take,
    updates: Updates,
    pair: tuple[Program, Program],
    device: torch.device,
    precision: str,
    *,
    capture: bool,
    compile_nets: bool,
) -> Iterator[Make]:
    """What makes the steps of a member in the block: as they are, compiled, or ``CapturedStep``."""
    if compile_nets:
        with compiled_nets() as found:
            yield partial(_compiled, take, device, found)
        return
    if not capture:
        yield partial(_as_it_is, take, device)
        return
    captured = CapturedStep(take, updates, pair, device, precision)
    try:
        yield captured
    finally:
        captured.close()


def _as_it_is(
    take: Take, device: torch.device, values: Mapping[str, Any], factor: Factor, epoch: int = 0
) -> dict[str, Any]:
    there = to_device(values, device)
    take(there, send(factor, device) if isinstance(factor, Tensor) else factor)
    return there


def _compiled(
    take: Take,
    device: torch.device,
    found: Compiled,
    values: Mapping[str, Any],
    factor: Factor,
    epoch: int,
) -> dict[str, Any]:
    there = _as_it_is(take, device, values, factor)
    if not found:
        raise ValueError(
            "compile_nets must be False with this model: no network with random weights ran in its "
            "step; compile a deterministic one yourself, by net.compile()"
        )
    return there


def _key_of(values: Mapping[str, Any], factor: Factor) -> Any:
    """What batches that share a recording have in common."""
    shapes = {
        name: (value.shape, value.dtype) if isinstance(value, Tensor) else None
        for name, value in values.items()
    }
    return shapes, factor.shape if isinstance(factor, Tensor) else factor
