"""A CUDA graph imitated on the CPU: operators are recorded, with their numbers, and run again.

As on a GPU, Python code is not run again, what is no tensor stays as it was at the recording, all
tensors keep their addresses, and recording does none of the work. Random operators draw anew, from
torch's generator; ``Frozen`` imitates a generator that is not registered with the graph.
"""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ppl_med.inference.training.captured import captured_step, eligibility
from ppl_med.programs.host_reads import HOST_READS


class Tape(TorchDispatchMode):
    """Records operators, and holds what they touch that was there before.

    Attributes:
        calls: Operator, arguments and results, in order.
        before: By address, tensors from outside and their values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self._own: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)]
        places = {place(x) for x in given}
        for x in given:
            if place(x) not in self._own and place(x) not in self.before:
                self.before[place(x)] = (x, x.detach().clone())
        result = func(*args, **(kwargs or {}))
        if func._schema.name.partition("::")[2] in HOST_READS:
            raise RuntimeError("operation not permitted when stream is capturing")
        leaves = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        made = [x for x in leaves if place(x) not in places]
        self._own |= {place(x) for x in made}
        self.calls.append((func, args, kwargs or {}, made))
        return result


def place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class TapedGraph:
    """As ``CudaGraph``, on the CPU.

    Attributes:
        made: All that were made, of this class and of those that follow it.
        replays: How often this one was replayed.
    """

    made: ClassVar[list["TapedGraph"]] = []

    def __init__(self, device: torch.device, generators: Iterable[torch.Generator] = ()) -> None:
        self.tape, self.replays = Tape(), 0
        TapedGraph.made.append(self)

    def aside(self, run: Callable[[], Any]) -> Any:
        return run()

    def record(self, run: Callable[[], Any]) -> Any:
        state = torch.get_rng_state()
        with self.tape:
            result = run()
        torch.set_rng_state(state)
        with torch.no_grad():
            for tensor, value in self.tape.before.values():
                tensor.copy_(value)
        return result

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, made in self.tape.calls:
            again = [x for x in tree_leaves(func(*args, **kwargs)) if isinstance(x, Tensor)]
            for target, value in zip(made, again[-len(made) :] if made else (), strict=True):
                if not func.is_view:
                    target.copy_(value)

    def close(self) -> None:
        self.tape = Tape()


class Frozen(TapedGraph):
    """Draws the same numbers in every replay."""

    def replay(self) -> None:
        state = torch.get_rng_state()
        torch.manual_seed(0)
        super().replay()
        torch.set_rng_state(state)


class FrozenAlthoughAdvancing(TapedGraph):
    """Draws the same numbers in every replay, while the generator goes on as it should."""

    def replay(self) -> None:
        state = torch.get_rng_state()
        torch.manual_seed(0)
        super().replay()
        torch.set_rng_state(state)
        held = [(t, t.clone()) for t, _ in self.tape.before.values()]
        kept = [(t, t.clone()) for *_, made in self.tape.calls for t in made]
        super().replay()
        with torch.no_grad():
            for tensor, value in (*held, *kept):
                tensor.copy_(value)


def imitate(monkeypatch: pytest.MonkeyPatch, graph: type[TapedGraph] = TapedGraph) -> None:
    """Let ``fit(..., capture=True)`` run on the CPU."""
    TapedGraph.made.clear()
    monkeypatch.setattr(captured_step, "CudaGraph", graph)
    monkeypatch.setattr(eligibility, "DEVICES", ("cuda", "cpu"))
