"""The processes that train together: each its own part and noise, all the same steps.

Gradients are averaged by torch's ``DistributedDataParallel`` around one module of model, guide and
objective. Noise, and what data sets draw, is a function of (seed, rank, epoch, batch), so that no
rank repeats another's and no checkpoint needs to hold generators: a run goes on with any number of
ranks, and with as many as before bit for bit. What the clock or a user decides (checkpoints,
Ctrl-C), ranks agree on before every step.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ppl_med.data.random_streams import random_stream
from ppl_med.inference import process_group
from ppl_med.inference.batches import Loader
from ppl_med.inference.training.objectives import Loss
from ppl_med.inference.training.ranks.parts import Weight, part_of
from ppl_med.programs import rng
from ppl_med.programs.parameters import modules_of

SIGNALS = ("asked", "save", "read", "ended", "more", "failed")


class Ranks:
    """Which rank this process is, and what the ranks do together; alone, nothing.

    Args:
        rank: Number of this process, from 0.
        size: How many train together.
        shares: Whether batches are whole and each rank takes its part of them; False where every
            rank is given its own.
        least: Fewest cases that a rank takes.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, *, shares: bool = True, least: int = 1
    ) -> None:
        self.rank, self.size, self.shares, self.least = rank, size, shares, least

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    @property
    def speaks(self) -> bool:
        """Whether this process tells what all of those that train together would tell."""
        return not self.several or self.rank == 0

    def seed(self, seed: int, *place: int) -> None:
        """Seed all generators for a place in the run, differently on every rank."""
        if self.several:
            rng.seed_in_use(noise_seed(seed, self.rank, *place))

    def seed_epoch(self, loader: Loader, seed: int, epoch: int, start: Any) -> Any:
        """Seed all generators, a loader's own too, for an epoch; what it is then to start from.

        Alone, where it started from before.
        """
        if not self.several:
            return start
        self.seed(seed, epoch)
        for generator in loader.generators():
            generator.manual_seed(noise_seed(seed, self.rank, epoch))
        return None

    def part(self, batch: dict[str, Any], factor: Weight) -> tuple[dict[str, Any], Weight]:
        """This rank's part of a batch, and what its cases weigh; see ``part_of``."""
        if not (self.several and self.shares):
            return batch, factor
        return part_of(batch, factor, self.rank, self.size, self.least)

    def agree(self, **signals: bool) -> frozenset[str]:
        """Signals of any rank, on all of them; nobody waits for a device.

        Raises:
            ValueError: If the batches of some ranks have ended and those of others go on.
        """
        own = torch.tensor([bool(signals.get(name)) for name in SIGNALS], dtype=torch.int32)
        distributed.all_reduce(own, distributed.ReduceOp.MAX, group=process_group.host_group())
        found = frozenset(name for name, value in zip(SIGNALS, own.tolist(), strict=True) if value)
        if {"ended", "more"} <= found:
            raise ValueError(
                "batches have other lengths on some ranks than on others; every rank must have as "
                "many batches in an epoch"
            )
        return found

    def engine(self, objective: nn.Module, pair: tuple[Any, Any]) -> Callable[..., Loss]:
        """The objective, whose gradients are averaged over the ranks.

        All ranks get rank 0's parameters and buffers. Which parameters take part in a step may
        change from step to step, and buckets of gradients are never rearranged, which would change
        the rounding of a resumed run.
        """
        if not self.several:
            return objective
        self.share_buffers(pair)
        return DistributedDataParallel(_Step(objective, pair), find_unused_parameters=True)

    def averaged(self, loss: Loss) -> Loss:
        """The loss with the figures of the whole batch, whose gradient is still this rank's."""
        if not self.several:
            return loss
        values = [*loss.nll.values(), *loss.kl.values(), *loss.extra.values()]
        means = torch.stack(values).detach() / self.size
        distributed.all_reduce(means)
        rest = iter(means.unbind())
        nll, kl, extra = (dict(zip(d, rest, strict=False)) for d in (loss.nll, loss.kl, loss.extra))
        return Loss(loss.value, nll, kl, extra)

    def share_buffers(self, programs: Iterable[Any]) -> None:
        """Give all ranks rank 0's buffers, such as the running statistics of norm layers."""
        if not self.several:
            return
        buffers = {id(b): b for module in modules_of(*programs) for b in module.buffers()}
        with torch.no_grad():
            for buffer in buffers.values():
                sent = buffer.to(torch.uint8) if buffer.dtype == torch.bool else buffer.contiguous()
                distributed.broadcast(sent, 0)
                buffer.copy_(sent)

    def on_first(self, function: Callable[[], Any]) -> Any:
        """What a function gives on rank 0, or raises, on all ranks."""
        return process_group.on_rank_0(function) if self.several else function()

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.several:
            process_group.barrier()


def noise_seed(seed: int, rank: int, *place: int) -> int:
    """Seed of what one rank draws at a place in the run: an epoch, and perhaps a batch."""
    return int(random_stream(seed, rank, *place).integers(2**63))


class _Step(nn.Module):
    """An objective as a module of all parameters, whose gradients are then averaged.

    Buffers are not in it: they would be sent at every step.
    """

    def __init__(self, objective: nn.Module, pair: tuple[Any, Any]) -> None:
        super().__init__()
        self._objective = [objective]  # in a list, so that it is no part of the module
        parameters = {id(p): p for module in modules_of(*pair) for p in module.parameters()}
        # The last one is never used: torch calls the search for such needless where it finds none.
        never = nn.Parameter(torch.zeros_like(next(iter(parameters.values())).reshape(-1)[:1]))
        self.parameters_ = nn.ParameterList([*parameters.values(), never])

    def forward(self, *arguments: Any) -> Loss:
        """The loss; a parameter that only its figures show takes no gradient."""
        loss: Loss = self._objective[0](*arguments)
        figures: list[dict[str, Tensor]] = [
            {name: value.detach() for name, value in terms.items()}
            for terms in (loss.nll, loss.kl, loss.extra)
        ]
        return Loss(loss.value, *figures)
