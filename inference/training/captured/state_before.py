"""What a training step moves, as it was before: steps on trial are undone by it."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ppl_med.inference.training.updates import Updates
from ppl_med.programs import rng
from ppl_med.programs.parameters import modules_of
from ppl_med.programs.sites import Program


def moved_tensors(updates: Updates, programs: Iterable[Program]) -> list[Tensor]:
    """What a step moves in place: parameters, buffers, state of the optimizer and objective."""
    modules: list[nn.Module] = [*modules_of(*programs), updates.objective]
    buffers = {id(buffer): buffer for module in modules for buffer in module.buffers()}
    states = updates.optimizer.state.values()
    kept = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    return [*updates.parameters(), *buffers.values(), *kept]


class StateBefore:
    """The values of what steps move, at the moment that this is made.

    Args:
        updates: Optimizer and objective.
        programs: Model and guide.
    """

    def __init__(self, updates: Updates, programs: Iterable[Program]) -> None:
        self._optimizer = updates.optimizer
        self._held = [(t, t.detach().clone()) for t in moved_tensors(updates, programs)]
        self._known = set(self._optimizer.state)

    def change(self, tensors: Iterable[Tensor]) -> Tensor:
        """How far parameters have moved since, dims (entry,), in double precision on the CPU."""
        earlier = {id(tensor): value for tensor, value in self._held}
        moves = [(tensor.detach() - earlier[id(tensor)]).reshape(-1) for tensor in tensors]
        return torch.cat(moves).double().cpu()

    @torch.no_grad()
    def restore(self) -> None:
        """Put all of it back in place; state that an optimizer has made since is forgotten."""
        for tensor, value in self._held:
            tensor.copy_(value)
        for parameter in set(self._optimizer.state) - self._known:
            del self._optimizer.state[parameter]


def device_state(device: torch.device) -> Tensor:
    """State of the generator that programs on a device draw from."""
    state: Tensor = rng.get_state(device)["cuda" if device.type == "cuda" else "torch"]
    return state


def host_state(device: torch.device) -> str:
    """State of the generators that a GPU's programs must not draw from, to be compared.

    Python's own is left out: type checkers such as beartype draw from it. What programs draw from
    it shows in the comparison of replays.
    """
    state = rng.get_state(device)
    kind, keys, *rest = state["numpy"]
    torch_state = state["torch"].tolist() if device.type == "cuda" else None
    return repr((kind, keys.tolist(), rest, torch_state))
