"""The state of a training run: all that a resumed one needs to go on as if never interrupted."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ppl_med.inference import checkpoint as files
from ppl_med.inference.training.history import History
from ppl_med.inference.training.plan import Position
from ppl_med.programs import rng

if TYPE_CHECKING:
    from ppl_med.inference.training.trainer import Trainer


def run_state(trainer: "Trainer") -> dict[str, Any]:
    """Parameters, optimizers, histories, position and random number generators of a run."""
    plan = trainer.plan
    return {
        "fingerprints": [files.fingerprint(*pair) for pair in trainer.pairs],
        "states": [files.program_state(*pair) for pair in trainer.pairs],
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "objectives": [objective.state_dict() for objective in trainer.objectives],
        "histories": [asdict(history) for history in trainer.histories],
        "position": asdict(trainer.position),
        "identity": plan.identity() | _settings(trainer),
        "generators": rng.get_state(plan.device),
        "loader_generators": [g.get_state() for g in plan.loader.generators()],
        "epoch_start": trainer.epoch_start,
    }


def _settings(trainer: "Trainer") -> dict[str, Any]:
    return {"settings of the model": files.settings(trainer.pairs[0][0])}


def restore(trainer: "Trainer", content: dict[str, Any]) -> None:
    """Set a prepared trainer to where a checkpoint stands.

    Raises:
        ValueError: If the checkpoint belongs to other programs or was made with other arguments.
    """
    plan, path = trainer.plan, trainer.plan.checkpoint
    if "optimizers" not in content:
        raise ValueError(
            f"checkpoint {path} was written by save, not by fit: it holds no optimizer; load it "
            "with load, and give fit another path"
        )
    files.check_members(path, content, trainer.pairs)
    for name, value in (plan.identity() | _settings(trainer)).items():
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
    trainer.position = Position(**content["position"])
    trainer.epoch_start = content["epoch_start"]
    rng.set_state(content["generators"], plan.device)
    own = plan.loader.generators()
    for generator, state in zip(own, content["loader_generators"], strict=False):
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
