"""The state of a training run: all that a resumed one needs to continue as if never interrupted."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ppl_med.inference import checkpoint as files
from ppl_med.inference.data_digest import DATA, same_data
from ppl_med.inference.training.history import History
from ppl_med.inference.training.schedules import rate_factor, weight_at
from ppl_med.programs import rng

if TYPE_CHECKING:
    from ppl_med.inference.training.trainer import Trainer

POSITION = ("member", "epoch", "batch")
CHECKED = (0.0, 0.25, 0.5, 0.75, 1.0)  # fractions of a run at which schedules are compared


def run_state(trainer: "Trainer") -> dict[str, Any]:
    """Parameters, optimizers, histories, position and random number generators of a run."""
    return {
        **files.states_of(trainer.pairs),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "objectives": [objective.state_dict() for objective in trainer.objectives],
        "histories": [asdict(history) for history in trainer.histories],
        "position": {name: getattr(trainer, name) for name in POSITION},
        "identity": identity(trainer),
        "generators": rng.get_state(trainer.device),
        "loader_generators": [g.get_state() for g in trainer.loader.generators()],
        "epoch_start": trainer.epoch_start,
    }


def identity(trainer: "Trainer") -> dict[str, Any]:
    """What a resumed run must share with the interrupted one; calls the schedules."""
    return {
        "epochs": trainer.epochs,
        "num_cases": trainer.loader.num_cases,
        "len(batches)": trainer.loader.num_batches,
        **trainer.loader.settings(),
        **trainer.objective.settings(),  # type: ignore[operator]
        "learning_rate": trainer.learning_rate,
        "precision": trainer.precision,
        "seed": trainer.seed,
        "kl_weight": [round(weight_at(trainer.kl_weight, x), 12) for x in CHECKED],
        "schedule": [round(rate_factor(trainer.schedule, x), 12) for x in CHECKED],
        "validation": trainer.validation is not None,
        "settings of the model": files.settings(trainer.pairs[0][0]),
        DATA: trainer.data,
    }


def restore(trainer: "Trainer", content: dict[str, Any]) -> None:
    """Set a prepared trainer to where a checkpoint stands; a ValueError where it does not fit."""
    path = trainer.checkpoint
    if "optimizers" not in content:
        raise ValueError(
            f"checkpoint {path} was written by save, not by fit: it holds no optimizer; load it "
            "with load, and give fit another path"
        )
    files.check_members(path, content, trainer.pairs)
    own = identity(trainer)
    if not same_data(content["identity"].get(DATA), own.pop(DATA)):
        raise ValueError(
            f"batches hold other data than those that the checkpoint {path} was made with, though "
            "as many; resume with the same data, or give another checkpoint"
        )
    for name, value in own.items():
        if content["identity"].get(name) != value:
            raise ValueError(
                f"{name} is {value} but the checkpoint {path} was made with "
                f"{content['identity'].get(name)}; resume with the same arguments"
            )
    files.load_members(content, trainer.pairs)
    for state, optimizer in zip(content["optimizers"], trainer.optimizers, strict=True):
        try:
            optimizer.load_state_dict(state)
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"optimizer does not fit the checkpoint {path}: {error}; resume with the same "
                "optimizer"
            ) from error
    for objective, state in zip(trainer.objectives, content["objectives"], strict=True):
        objective.load_state_dict(state)
    trainer.histories = [History(**figures) for figures in content["histories"]]
    for name in POSITION:
        setattr(trainer, name, content["position"][name])
    trainer.epoch_start = content["epoch_start"]
    rng.set_state(content["generators"], trainer.device)
    generators = trainer.loader.generators()
    for generator, state in zip(generators, content["loader_generators"], strict=False):
        generator.set_state(state)


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
