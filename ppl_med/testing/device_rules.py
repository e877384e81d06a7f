"""Run a program as on a GPU where there is none: tensors with a device and a shape, but no data.

torch's ``FakeTensorMode`` computes the device and the shape of every result. An operation on
tensors of two devices raises as on a GPU, so a tensor that a program leaves on the CPU is found on
any machine; so is what needs a number of the device on the host, which stops a GPU's stream.

torch's gradient engine asks for the streams of a GPU that is only imitated, so gradients are taken
on torch's device "meta", which has none and mixes with the CPU as little.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from ppl_med.inference.prediction.posterior_sampler import PosteriorSampler
from ppl_med.programs.elbo import elbo_terms, total
from ppl_med.programs.host_reads import NoCopies, place_of
from ppl_med.programs.isolation import preserved_state, private_store
from ppl_med.programs.parameters import modules_of, set_mode
from ppl_med.programs.sites import Program, batch_size, select_arguments, without_observations

GPU, WITH_GRADIENTS = "cuda", "meta"
_autocast = torch.autocast


class Imitation(FakeTensorMode):
    """Imitates what is on a device; what the host computes with numbers of its own is real."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        device = options.get("device")
        on_host = device is None or torch.device(device).type == "cpu"
        if on_host and not any(isinstance(x, FakeTensor) for x in tree_leaves((args, options))):
            return func(*args, **options)
        return super().__torch_dispatch__(func, types, args, options)


def loss_violation(
    model: Program, guide: Program, batch: Mapping[str, Any], *, gradient: bool
) -> str | None:
    """What goes wrong in a training step on a GPU, in one line; None for nothing.

    With its gradient it runs on "meta". A first pass on the CPU makes what programs make when they
    first run.
    """
    device = WITH_GRADIENTS if gradient else GPU
    values = select_arguments(model, batch)
    num_cases = 2 * batch_size(values)
    with preserved_state(model, guide), private_store(), pyro.validation_enabled(False):
        set_mode((model, guide), True)
        with torch.no_grad():
            elbo_terms(model, guide, **values, num_cases=num_cases)
        with imitated((model, guide), values, device) as there, NoCopies():
            return _violation(lambda: _step(model, guide, there, num_cases, gradient), device)


def prediction_violation(model: Program, guide: Program, batch: Mapping[str, Any]) -> str | None:
    """What goes wrong in two samples of a draw on a GPU, as ``predict`` takes them."""
    values = select_arguments(model, batch)
    with preserved_state(model, guide), torch.no_grad(), pyro.validation_enabled(False):
        set_mode((model, guide), False)
        with imitated((model, guide), values, GPU) as there:
            return _violation(lambda: _predict(model, guide, there), GPU)


def _step(
    model: Program, guide: Program, values: Mapping[str, Any], num_cases: int, gradient: bool
) -> None:
    nll, kl = elbo_terms(model, guide, **values, num_cases=num_cases)
    loss = total(nll) + total(kl)
    if loss.device.type == "cpu":
        raise RuntimeError("the loss is on the CPU")
    if gradient:
        loss.backward()


def _predict(model: Program, guide: Program, values: Mapping[str, Any]) -> None:
    first = {n: v[:1] if isinstance(v, Tensor) else v for n, v in values.items()}
    with private_store():
        bare = without_observations(model, first)
    sampler = PosteriorSampler(model, guide, bare, 0, 0)
    drawn, inputs = sampler.draw(0), sampler.bare(values)
    for sample in range(2):
        sampler.run(drawn, 0, inputs, np.arange(batch_size(values)), sample)


@contextlib.contextmanager
def imitated(
    programs: tuple[Program, ...], batch: Mapping[str, Any], device: str
) -> Iterator[dict[str, Any]]:
    """Put programs on a device that need not exist; yield a batch there.

    The block stands in ``preserved_state`` of the programs, which puts their own tensors back.
    """
    mode = Imitation()

    def moved(value: Any) -> Any:
        return mode.from_tensor(value).to(device) if isinstance(value, Tensor) else value

    with private_store(), mode, mock.patch.object(torch, "autocast", _autocast_of):
        for module in modules_of(*programs):
            for part in module.modules():
                for name, value in part._parameters.items():
                    if value is not None:
                        made = nn.Parameter(moved(value.detach()), value.requires_grad)
                        part._parameters[name] = made
                part._buffers.update({n: moved(value) for n, value in part._buffers.items()})
        yield {name: moved(value) for name, value in batch.items()}


def _autocast_of(device_type: str, *arguments: Any, **options: Any) -> Any:
    """Torch's autocast, which does not know the device "meta"."""
    if device_type == WITH_GRADIENTS:
        return contextlib.nullcontext()
    return _autocast(device_type, *arguments, **options)


def _violation(run: Callable[[], None], device: str) -> str | None:
    try:
        run()
    except Exception as error:
        # Pyro's tracer makes the error anew with the sites' shapes, of which some kinds know not.
        cause = error.__context__ if isinstance(error, TypeError) else None
        cause = error if cause is None else cause
        message = (str(cause).strip().splitlines() or [""])[0]
        return f"{type(cause).__name__}: {message}{place_of(cause, __file__)} (on {device})"
    return None
