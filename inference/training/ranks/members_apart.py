"""An ensemble on several processes: each trains members of its own, as one process would.

Rank r trains the members r, r + R, r + 2R, ... without a word to the others, into a part of the
checkpoint of its own, ``.<name>.rank<r>of<R>``. When all are done, every rank gets every member,
and rank 0 writes the checkpoint that one process would have written.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_med.inference import checkpoint as files
from ppl_med.inference import process_group
from ppl_med.inference.batches import Loader
from ppl_med.inference.case_order import distributed_sampler
from ppl_med.inference.training.member import snapshot
from ppl_med.inference.training.ranks.together import Ranks
from ppl_med.inference.training.run_state import restore, run_state
from ppl_med.inference.training.settings import Settings
from ppl_med.programs.parameters import set_mode
from ppl_med.storage.atomic import remove_leftovers
from ppl_med.storage.locks import locked

if TYPE_CHECKING:
    from ppl_med.inference.training.trainer import Trainer

BY_MEMBER = (
    *("fingerprints", "states", "training", "optimizers", "objectives", "averages"),
    *("open_steps", "histories", "members"),
)


def own_members(number: int) -> list[int]:
    """Positions of the members that this rank trains."""
    return list(range(process_group.rank(), number, process_group.num_ranks()))


def check_apart(settings: Settings, loader: Loader, members: int) -> Ranks:
    """This process among those that train members apart, which wait for nobody.

    Args:
        settings: The arguments of ``fit``.
        loader: The batches.
        members: How many there are.

    Raises:
        ValueError: If the members cannot be trained apart.
    """
    size = process_group.num_ranks()
    if size == 1:
        return Ranks()
    if members < size:
        raise ValueError(
            f"the Ensemble has {members} members, fewer than the {size} processes that would train "
            "one each; start as many processes as members, or fewer"
        )
    sampler = distributed_sampler(loader.batches)
    if sampler is not None and sampler.num_replicas > 1:
        raise ValueError(
            "batches have a DistributedSampler, but each process trains members of the Ensemble on "
            "all cases; leave the sampler out"
        )
    if loader.generators():
        raise ValueError(
            "batches have a generator of their own, from which later members of an Ensemble draw "
            "what earlier ones leave; train in one process, or leave out DataLoader(generator=...)"
        )
    if settings.callbacks:
        raise ValueError(
            "callbacks are told of one member after the other, and the processes train several at "
            "once; leave them out, or train the Ensemble in one process"
        )
    return Ranks(process_group.rank())


def check_parts(path: Path | None, *, resume: bool) -> None:
    """Raise where parts of an unfinished run cannot be taken up by these processes.

    Raises:
        FileExistsError: If there are any, and they are not to be resumed.
        ValueError: If they are of another number of processes.
    """
    if path is None or not path.parent.is_dir():
        return
    pattern = re.compile(re.escape(f".{path.name}.rank") + r"\d+of(\d+)")
    for found in path.parent.iterdir():
        known = pattern.fullmatch(found.name)
        if known is None:
            continue
        if not resume:
            raise FileExistsError(
                f"checkpoint {path} has a part {found}; pass resume=True to resume it, or remove it"
            )
        if int(known[1]) != process_group.num_ranks():
            raise ValueError(
                f"checkpoint {path} is that of an Ensemble on {known[1]} processes, which was not "
                f"finished: {found}; resume with as many, or remove it"
            )


def take_part(settings: Settings) -> dict[str, Any] | None:
    """Have this rank write to a part of the checkpoint; what it has left there, if anything."""
    path, rank, size = settings.checkpoint, process_group.rank(), process_group.num_ranks()
    if path is None or size == 1:
        return None
    settings.checkpoint = path.with_name(f".{path.name}.rank{rank}of{size}")
    return files.read(settings.checkpoint) if settings.checkpoint.exists() else None


def join_members(trainer: "Trainer", path: Path | None) -> None:
    """Give every rank all members, each from the rank that trained it, and write the checkpoint.

    Args:
        trainer: Whose own members are trained.
        path: The checkpoint; the parts of it are removed.
    """
    state = run_state(trainer)
    own = {name: {i: snapshot(state[name][i]) for i in trainer.own} for name in BY_MEMBER}
    for theirs in process_group.of_all_ranks(own):
        for name, values in theirs.items():
            for index, value in values.items():
                state[name][index] = value
    part, trainer.settings.checkpoint = trainer.settings.checkpoint, path
    restore(trainer, state)
    for pair in trainer.pairs:
        set_mode(pair, False)
    if path is not None and part is not None:
        process_group.on_rank_0(lambda: files.write(path, run_state(trainer)))
        with locked(part, "checkpoint"):  # and what killed processes left of it
            part.unlink(missing_ok=True)
            remove_leftovers(part)
        process_group.barrier()
