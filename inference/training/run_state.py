"""The state of a training run: all that a resumed one needs to continue as if never interrupted.

A finished run can be taken up again with more epochs: every member goes on from where it stood
after its last epoch, not from the epoch that was kept.
"""

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ppl_med.inference import checkpoint as files
from ppl_med.inference.data_digest import DATA, same_data
from ppl_med.inference.training.history import History
from ppl_med.inference.training.member import Member
from ppl_med.inference.training.schedules import rate_factor, weight_at
from ppl_med.inference.training.selection import Plateau, best_epoch
from ppl_med.inference.training.settings import Settings

if TYPE_CHECKING:
    from ppl_med.inference.training.trainer import Trainer

CHECKED = (0.0, 0.25, 0.5, 0.75, 1.0)  # fractions of a run at which schedules are compared
# What checkpoints do not hold that were written before there was such an argument.
ABSENT: dict[str, Any] = {
    "keep": "last",
    "accumulate": 1,
    "clip_norm": None,
    "rate_warm_up": 0.0,
    "average": None,
}


def run_state(trainer: "Trainer") -> dict[str, Any]:
    """Parameters, optimizers, histories, position and random number generators of a run.

    ``states``, which ``load`` reads, are those that are kept: of ``keep="best"`` the best ones so
    far, of ``average`` the averages. ``training`` are those that training goes on from where they
    are others.
    """
    members = trainer.members
    found = files.states_of(trainer.pairs)
    now = found["states"]
    present = trainer.index < len(members)
    standing = trainer.standing()
    standings = [
        standing if present and index == trainer.index else member.standing
        for index, member in enumerate(members)
    ]
    return {
        **found,
        "states": [member.kept_state(state) for member, state in zip(members, now, strict=True)],
        "training": [_training(member, state) for member, state in zip(members, now, strict=True)],
        "optimizers": [member.updates.optimizer_state() for member in members],
        "objectives": [member.updates.objective.state_dict() for member in members],
        "averages": [None if m.average is None else m.average.state_dict() for m in members],
        "open_steps": [member.updates.open_step() for member in members],
        "histories": [asdict(member.history) for member in members],
        "members": [
            {"standing": where, "told": member.told, "done": member.done}
            for where, member in zip(standings, members, strict=True)
        ],
        "identity": identity(trainer),
        "loader_generators": [g.get_state() for g in trainer.loader.generators()],
    }


def _training(member: Member, now: dict[str, Any]) -> dict[str, Any] | None:
    if member.best is None and member.average is None:
        return None
    return member.last if member.done else now


def check_schedules(settings: Settings) -> None:
    """Raise where a schedule gives no number somewhere in a run."""
    _schedules(settings)


def _schedules(settings: Settings) -> dict[str, list[float]]:
    return {
        "kl_weight": [round(weight_at(settings.kl_weight, x), 12) for x in CHECKED],
        "schedule": [round(rate_factor(settings.schedule, x), 12) for x in CHECKED],
    }


def identity(trainer: "Trainer") -> dict[str, Any]:
    """What a resumed run must share with the interrupted one; calls the schedules."""
    plan = trainer.settings
    rates, average = plan.learning_rate, trainer.members[0].average
    return {
        "epochs": plan.epochs,
        "num_cases": trainer.loader.num_cases,
        "len(batches)": trainer.loader.num_batches,
        **trainer.loader.settings(),
        **plan.objective.settings(),
        "learning_rate": [*map(list, rates.items())] if isinstance(rates, Mapping) else rates,
        "precision": plan.precision,
        "seed": plan.seed,
        **_schedules(plan),
        **({"schedule": repr(plan.schedule)} if isinstance(plan.schedule, Plateau) else {}),
        "rate_warm_up": plan.rate_warm_up,
        "clip_norm": plan.clip_norm,
        "accumulate": plan.accumulate,
        "average": plan.average,
        **({} if average is None else {"what average leaves as trained": average.as_trained}),
        "validation": plan.validation is not None,
        "keep": plan.keep,
        "settings of the model": files.settings(trainer.members[0].model),
        DATA: trainer.data,
    }


def restore(trainer: "Trainer", content: dict[str, Any]) -> None:
    """Set a prepared trainer to where a checkpoint stands; a ValueError where it does not fit."""
    plan, members = trainer.settings, trainer.members
    path = plan.checkpoint
    if "optimizers" not in content:
        raise ValueError(
            f"checkpoint {path} was written by save, not by fit: it holds no optimizer; load it "
            "with load, and give fit another path"
        )
    files.check_members(path, content, trainer.pairs)
    _check_identity(trainer, content["identity"])
    files.load_members(content, trainer.pairs)
    for member, state in zip(members, content["optimizers"], strict=True):
        try:
            member.updates.load_optimizer(state)
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"optimizer does not fit the checkpoint {path}: {error}; resume with the same "
                "optimizer"
            ) from error
    for index, member in enumerate(members):
        member.updates.objective.load_state_dict(content["objectives"][index])
        member.history = History(**content["histories"][index])
        found = _standings(content)[index]
        member.standing, member.told, member.done = found["standing"], found["told"], found["done"]
        training = content.get("training", [None] * len(members))[index]
        if training is not None:
            member.last = training
            if best_epoch(member.history.validation_nll) is not None and plan.keep == "best":
                member.best = content["states"][index]
        if member.average is not None:
            member.average.load_state_dict(content["averages"][index])
    _go_on(trainer, content["identity"]["epochs"], known_apart="members" in content)
    for member, step in zip(members, content.get("open_steps", [None] * len(members)), strict=True):
        member.updates.reopen(step)
    generators = trainer.loader.generators()
    for generator, state in zip(generators, content["loader_generators"], strict=False):
        generator.set_state(state)


def _check_identity(trainer: "Trainer", saved: dict[str, Any]) -> None:
    path, own = trainer.settings.checkpoint, identity(trainer)
    if not same_data(saved.get(DATA), own.pop(DATA)):
        raise ValueError(
            f"batches hold other data than those that the checkpoint {path} was made with, though "
            "as many; resume with the same data, or give another checkpoint"
        )
    if own.pop("epochs") < saved["epochs"]:
        raise ValueError(
            f"epochs is {trainer.settings.epochs} but the checkpoint {path} was made with "
            f"{saved['epochs']}; resume with as many or more"
        )
    for name, value in own.items():
        if saved.get(name, ABSENT.get(name)) != value:
            raise ValueError(
                f"{name} is {value} but the checkpoint {path} was made with "
                f"{saved.get(name)}; resume with the same arguments"
            )


def _standings(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Where each member stands; also of checkpoints that knew of one position only."""
    if "members" in content:
        return list(content["members"])
    position, found = content["position"], []
    for index in range(len(content["states"])):
        done, begun = index < position["member"], index == position["member"]
        last = {"epoch": content["identity"]["epochs"], "batch": 0}
        where = last if done else {n: position[n] for n in ("epoch", "batch")}
        where |= {"epoch_start": content["epoch_start"], "generators": content["generators"]}
        found.append({"standing": where if done or begun else None, "told": None, "done": done})
    return found


def _go_on(trainer: "Trainer", epochs: int, *, known_apart: bool) -> None:
    """Take up again what is to be trained further, each member from where it stood.

    ``known_apart`` says that this is known of every member.
    """
    plan, members = trainer.settings, trainer.members
    longer = plan.epochs > epochs
    for member in members:
        if not member.done:
            if member.last is not None:
                files.load_program_state(*member.pair, member.last)
                member.last = None
            continue
        over = plan.stopping is not None and plan.stopping.is_over(member.history.validation_nll)
        assert member.standing is not None
        asked = longer or (member.told is None and member.standing["epoch"] < plan.epochs)
        if asked and not over:
            member.go_on()
    if not longer:
        return
    if len(members) > 1 and (trainer.loader.generators() or not known_apart):
        raise ValueError(
            f"epochs is {plan.epochs} but the checkpoint {plan.checkpoint} was made with {epochs}, "
            "and this Ensemble cannot be trained further: its checkpoint is of an earlier version, "
            "or its batches have a generator of their own, from which later members drew what "
            "earlier ones would have; train it anew"
        )
    by_fraction = [name for name, values in _schedules(plan).items() if len(set(values)) > 1]
    if by_fraction or plan.rate_warm_up:
        named = " and ".join(by_fraction or ["rate_warm_up"])
        warnings.warn(
            f"{named} is a function of the finished fraction: from here on it is that of a run of "
            f"{plan.epochs} epochs, while the first {epochs} were trained as if they were all; the "
            f"result is not that of fit(epochs={plan.epochs}) from the start",
            stacklevel=6,
        )


def not_finite(pairs: list[tuple[Any, Any]]) -> set[tuple[int, str]]:
    """Member and name of every tensor that holds NaN or infinite values.

    Some do from the start and are meant to, such as attention masks kept as buffers.
    """
    return {
        (member, name)
        for member, pair in enumerate(pairs)
        for name, tensor in files.named_tensors(files.program_state(*pair))
        if tensor.is_floating_point() and not bool(tensor.isfinite().all())
    }
