"""What several processes cannot train together, told before any of them begins."""

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ppl_med.inference import process_group
from ppl_med.inference.batches import Loader, num_cases_in
from ppl_med.inference.case_order import distributed_sampler
from ppl_med.inference.training.ranks.together import Ranks
from ppl_med.programs import protocol
from ppl_med.programs.parameters import free_parameters, parts_of, set_mode
from ppl_med.programs.sites import full_name

Pair = tuple[Any, Any]


def ranks_of(loader: Loader, pair: Pair, least: int, first: Mapping[str, Any]) -> Ranks:
    """The ranks that train a pair together; a single one where this process is alone.

    Args:
        loader: The batches.
        pair: Model and guide.
        least: Fewest cases that the model takes.
        first: The first batch.

    Raises:
        ValueError: If ranks would be given other batches than one process, or the same ones; if
            a batch is too small for them; if the model follows steps by their cases; if the guide
            needs all cases when the training has ended, and each rank has a part.

    Warns:
        UserWarning: If BatchNorm takes its statistics from a part of each batch.
    """
    size = process_group.num_ranks()
    if size == 1:
        return Ranks()
    if protocol.after_steps(pair[0]):
        raise ValueError(
            f"{full_name(pair[0])} follows every step by the cases of its batch, of which each "
            "process has a part; train it in one process, without torchrun"
        )
    shares, norms = _are_whole(loader.batches, size), _moving_norms(pair)
    if not shares and protocol.after_trainings(pair[1]):
        raise ValueError(
            f"{full_name(pair[1])} learns from one more pass over all cases, of which a "
            "DistributedSampler gives each process a part; use data.Batches or data.DatasetBatches"
        )
    ranks = Ranks(process_group.rank(), size, shares=shares, least=max(least, 2 if norms else 1))
    cases = num_cases_in(first)
    if ranks.shares and cases < size * ranks.least:
        several = f" of {ranks.least} or more cases each" if ranks.least > 1 else ""
        raise ValueError(
            f"batches have {cases} case(s), too few for a part{several} on each of {size} "
            f"processes; use a batch size of {size * ranks.least} or more, or fewer processes"
        )
    plain = [norm for norm in norms if not isinstance(norm, nn.SyncBatchNorm)]
    if plain and ranks.rank == 0:
        warnings.warn(
            f"{type(plain[0]).__name__} takes its statistics from the part of a batch that each of "
            f"the {size} processes has, so that training differs from that of one process; on GPUs "
            "use torch.nn.SyncBatchNorm.convert_sync_batchnorm(net) before the model is built, "
            "elsewhere GroupNorm, or batches as many times as large",
            stacklevel=5,
        )
    return ranks


def check_alike(identity: dict[str, Any]) -> None:
    """Raise a ValueError where ranks were given other arguments or other data than rank 0."""
    first, *others = process_group.of_all_ranks(identity)
    for rank, other in enumerate(others, 1):
        names = [name for name in first if other.get(name) != first[name]]
        if names:
            raise ValueError(
                f"{names[0]} is {first[names[0]]} on rank 0 and {other.get(names[0])} on rank "
                f"{rank}; call fit with the same arguments and data on all processes"
            )


def check_averaged(pair: Pair) -> None:
    """Raise where parameters lie outside of modules, whose gradients are averaged over ranks.

    Args:
        pair: Model and guide, once they have run.

    Raises:
        ValueError: They do.
    """
    if free := free_parameters(*pair):
        raise ValueError(
            f"pyro.param keeps {next(iter(free))!r} in Pyro's store, where gradients of several "
            "processes are not averaged; make it a nn.Parameter or PyroParam of the module"
        )


def _are_whole(batches: Any, size: int) -> bool:
    """Whether batches are the same on all ranks, of which each takes its part."""
    if hasattr(batches, "iterate") or isinstance(batches, list | tuple):
        return True
    sampler = distributed_sampler(batches)
    if sampler is None:
        raise ValueError(
            f"batches are a {type(batches).__name__}, of which {size} processes cannot tell whose "
            "turn each case is; use data.Batches or data.DatasetBatches, whose order is a function "
            "of seed and epoch, or DataLoader(..., sampler=DistributedSampler(dataset))"
        )
    given, own = (sampler.num_replicas, sampler.rank), (size, process_group.rank())
    if given != own:
        raise ValueError(
            f"the DistributedSampler of batches is for rank {given[1]} of {given[0]}, but this "
            f"process is rank {own[1]} of {own[0]}; leave out its num_replicas and rank"
        )
    return False


def _moving_norms(pair: Pair) -> list[nn.Module]:
    """Layers that normalise by the cases of a batch when they are trained."""
    set_mode(pair, True)
    parts = [part for program in pair for part in parts_of(program)]
    found: list[nn.Module] = [p for p in parts if isinstance(p, _BatchNorm) and p.training]
    set_mode(pair, False)
    return found
