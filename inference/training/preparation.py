"""Everything that ``fit`` checks and builds before the first step."""

import copy
from pathlib import Path
from typing import Any

from ppl_med.inference import checkpoint as files
from ppl_med.inference import process_group
from ppl_med.inference.batches import BatchSpec, Loader, check_one_grader, first_batch
from ppl_med.inference.data_digest import data_digest
from ppl_med.inference.training.captured.eligibility import (
    check_alone,
    check_optimizer,
    check_programs,
)
from ppl_med.inference.training.dry_run import DryRun, check_validation
from ppl_med.inference.training.earlier_runs import warn_of_repeats
from ppl_med.inference.training.member import Member
from ppl_med.inference.training.moving_average import moving_average
from ppl_med.inference.training.optimizers import make_optimizer
from ppl_med.inference.training.parameter_groups import group_parameters
from ppl_med.inference.training.ranks.conditions import check_alike, check_averaged, ranks_of
from ppl_med.inference.training.ranks.members_apart import (
    check_apart,
    check_parts,
    own_members,
    take_part,
)
from ppl_med.inference.training.run_state import check_schedules, identity, restore
from ppl_med.inference.training.settings import Settings
from ppl_med.inference.training.trainer import Trainer
from ppl_med.inference.training.updates import Updates
from ppl_med.inference.training.value_units import learn_units
from ppl_med.programs import protocol, rng
from ppl_med.programs.isolation import private_store
from ppl_med.programs.parameters import free_parameters
from ppl_med.programs.sites import full_name
from ppl_med.storage.atomic import check_writable

Pair = tuple[Any, Any]


def prepare(pairs: list[Pair], loader: Loader, spec: BatchSpec, settings: Settings) -> Trainer:
    """Check everything that can be checked, build optimizers, load a checkpoint.

    Args:
        pairs: Model and guide of each member.
        loader: The batches.
        spec: What the model accepts.
        settings: The arguments of ``fit``.

    Raises:
        FileExistsError: If there is a checkpoint, and it is not to be resumed.
        OSError: If none can be written.
        ValueError: If programs, batches, arguments or checkpoint do not fit each other.
    """
    path = settings.checkpoint
    resumed = process_group.on_rank_0(lambda: check_checkpoint(path, resume=settings.resume))
    check_schedules(settings)
    check_alone(
        process_group.num_ranks(), capture=settings.capture, compile_nets=settings.compile_nets
    )
    first = first_batch(loader.batches)
    spec.check(first, loader.num_cases)
    loader.see(first)
    check_one_grader(first)
    apart = len(pairs) > 1
    if apart:
        check_parts(path, resume=settings.resume)
        ranks = check_apart(settings, loader, len(pairs))
    else:
        ranks = ranks_of(loader, pairs[0], spec.least_cases, first)
    if not resumed:
        learn_units([model for model, _ in pairs], loader.batches)
    data = None
    if settings.checkpoint is not None:
        data = data_digest(loader.batches, spec.arguments)
    members = []
    for index, pair in enumerate(pairs):
        rng.seed_all(settings.seed + index)
        part, _ = ranks.part(first, 1.0)
        members.append(_member(pair, part, loader, spec, settings, alone=not apart))
        if ranks.several:
            check_averaged(pair)
    rng.seed_all(settings.seed)
    own = own_members(len(pairs)) if apart else None
    trainer = Trainer(members, loader, spec, settings, data, ranks, own)
    if process_group.num_ranks() > 1:
        asked = {"checkpoint": str(path), "callbacks": bool(settings.callbacks)}
        check_alike({**asked, "stopping": repr(settings.stopping), **identity(trainer)})
    content = process_group.on_rank_0(lambda: files.read(path)) if resumed else None
    if apart:
        content = take_part(settings) or content
    if content is not None:
        restore(trainer, content)
    if all(member.standing is None for member in members):
        guides = (guide for _, guide in pairs)
        warn_of_repeats(guides, settings.seed, loader.num_cases, loader.num_batches)
    return trainer


def check_checkpoint(path: Path | None, *, resume: bool) -> bool:
    """Whether a checkpoint is resumed.

    Raises:
        FileExistsError: If there is one, and it is not to be resumed.
        OSError: If none can be written.
    """
    if path is None:
        return False
    if path.is_file() and not resume:
        raise FileExistsError(
            f"checkpoint {path} exists; pass resume=True to resume it, or another path"
        )
    if path.is_dir():
        raise IsADirectoryError(f"checkpoint {path} is a folder; give the path of a file in it")
    check_writable(path, "checkpoint")
    return resume and path.exists()


def _member(
    pair: Pair,
    first: dict[str, Any],
    loader: Loader,
    spec: BatchSpec,
    settings: Settings,
    *,
    alone: bool,
) -> Member:
    model, guide = pair
    if settings.accumulate > 1 and protocol.after_steps(model):
        raise ValueError(
            f"accumulate must be 1, got {settings.accumulate}: {full_name(model)} follows every "
            "step by the cases of its one batch; use larger batches"
        )
    with private_store():
        found = DryRun.of(model, guide, first, loader.num_cases, settings.device)
        if settings.capture:
            check_programs(model, guide, first, loader.num_cases, settings.device)
        if settings.validation is not None:
            check_validation(model, guide, settings.validation, spec, settings.device)
        if not alone and free_parameters(model, guide):
            raise ValueError(
                "members of an Ensemble share what pyro.param keeps in Pyro's store; make "
                "these parameters nn.Parameter or PyroParam of the module"
            )
        groups = group_parameters(settings.learning_rate, found.parameters, pair)
        average = None
        if settings.average is not None:
            average = moving_average(settings.average, groups.parameters, pair)
    optimizer = make_optimizer(
        settings.optimizer, settings.learning_rate, groups, pair, loader.num_cases
    )
    if settings.capture:
        check_optimizer(optimizer)
    objective = copy.deepcopy(settings.objective).to(settings.device)
    updates = Updates(
        optimizer,
        objective,
        groups,
        loader.num_cases,
        settings.clip_norm,
        average,
        shows_rate=settings.shows_rate,
        capture=settings.capture,
    )
    return Member(pair, found, updates)
