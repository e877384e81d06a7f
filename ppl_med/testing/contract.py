"""The contracts of models and guides, checked as ``fit`` and ``predict`` run them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pyro

from ppl_med.checks import choice
from ppl_med.inference.guides.ensemble import members_of
from ppl_med.programs.isolation import preserved_state
from ppl_med.testing.device_rules import loss_violation, prediction_violation
from ppl_med.testing.guide_rules import guide_violations
from ppl_med.testing.model_rules import program_violations
from ppl_med.testing.program_runs import bind


def check_program(model: Callable[..., Any], batch: Mapping[str, Any]) -> None:
    """Assert that a model keeps the contract ``model(image, label=None, *, num_cases=None)``.

    The model is run with and without observations, on the batch and on a part of it, as if it were
    the whole data set and a third of it, in training and in evaluation mode. Reported are:
    observation sites not named after their argument; observations and local latents outside
    ``plate("case")`` or with another scale than num_cases / len(image); global latents inside it;
    event axes without names; log-densities that are not finite; parameters that get no gradient,
    or appear only after a first call; random numbers outside sample sites, such as an active
    ``nn.Dropout``; buffers that move at prediction, such as BatchNorm's running statistics.

    A model whose factors read more of a batch in training, such as a mask of a constraint, names
    those arguments in ``training_inputs``; they condition no site.

    Afterwards parameters, gradients, buffers, modes, the parameter store and the random number
    generators are what they were. Networks in the closure of a plain function are trained and
    evaluated as ``fit`` and ``predict`` do it, however they were left.

    Args:
        model: A Pyro program, function or module.
        batch: Arguments of the model by name: ``image`` (case, channel, row, col), observations
            such as ``label`` (case,), two cases or more. Entries that are no argument of the model
            are ignored, as ids and metadata are.

    Raises:
        AssertionError: If the contract is broken; the message lists every violation and its fix.
        ValueError: If the batch cannot be used.
    """
    with preserved_state(model) as modules, pyro.validation_enabled(True):
        _assert_none("model", program_violations(model, bind(model, batch), modules))


def check_guide(
    model: Callable[..., Any], guide: Callable[..., Any], batch: Mapping[str, Any]
) -> None:
    """Assert that a guide proposes exactly a model's latents, and that the pair can be trained.

    Reported are: latents that the guide leaves out, adds, or proposes with another shape, plate or
    scale, or outside the model's support; log-densities that are not finite; parameters of either
    program without a finite, somewhere non-zero gradient of the ELBO, or that appear only after a
    first call; random numbers outside sample sites; buffers that move at prediction. A guide may
    stay silent about local latents when there are no observations: they then follow the model's
    conditional prior. Log-densities are skipped where a distribution declares none.

    Afterwards everything is as before, see ``check_program``.

    Args:
        model: A Pyro program that passes ``check_program``.
        guide: A Pyro program with the model's arguments.
        batch: As for ``check_program``.

    Raises:
        AssertionError: If the contract is broken; the message lists every violation and its fix.
        ValueError: If the batch cannot be used.
    """
    with preserved_state(model, guide) as modules, pyro.validation_enabled(True):
        _assert_none("guide", guide_violations(model, guide, bind(model, batch), modules))


def check_device(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    batch: Mapping[str, Any],
    *,
    leave_out: Sequence[Literal["loss", "prediction"]] = (),
) -> None:
    """Assert that a pair trains and predicts on a GPU, on a machine that may have none.

    A training step and draws as of ``predict`` run on tensors that have a device and a shape but no
    data. Reported are: tensors that a program makes or keeps on the CPU; what needs values, as
    ``item()``, ``bool(tensor)`` and results whose shape depends on values do, for which the host
    waits; in the training step also copies between CPU and GPU. A network's parameters and buffers
    move along; tensors in other attributes of a module, and in a function's closure, do not, as on
    a GPU.

    Afterwards everything is as before, see ``check_program``.

    Args:
        model: A Pyro program that passes ``check_program``.
        guide: Its guide, or an ``Ensemble``.
        batch: As for ``check_program``, on the CPU.
        leave_out: What cannot be imitated: ``"loss"`` where the loss takes gradients itself, as a
            penalty on them does, for torch takes none on a GPU that it only imitates; it then runs
            on torch's device "meta" alone, as gradients of all others do. ``"prediction"`` where
            it needs values, as the suppression of overlapping boxes does.

    Raises:
        AssertionError: If a violation is found; the message has the line of each.
        ValueError: If the batch cannot be used.
    """
    for name in leave_out:
        choice("leave_out", name, ("loss", "prediction"))
    found: list[str | None] = []
    for pair in members_of(model, guide):
        if "loss" not in leave_out:
            found.append(loss_violation(*pair, batch, gradient=False))
        found.append(loss_violation(*pair, batch, gradient=True))
        if "prediction" not in leave_out:
            found.append(prediction_violation(*pair, batch))
    _assert_none("pair", list(dict.fromkeys(text for text in found if text is not None)))


def _assert_none(kind: str, violations: list[str]) -> None:
    if violations:
        lines = [f"  {number}. {text}" for number, text in enumerate(violations, 1)]
        raise AssertionError(
            "\n".join([f"the {kind} breaks its contract {len(lines)} times:", *lines])
        )
