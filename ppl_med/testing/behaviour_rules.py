"""How a program must behave, model and guide alike: densities, parameters, randomness, gradients.

Every rule returns sentences: what is wrong, and how to mend it.
"""

from collections.abc import Callable, Mapping

import pyro
import torch
from pyro.params.param_store import normalize_param_name
from pyro.poutine import Trace
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from ppl_med.programs.parameters import set_mode
from ppl_med.programs.sites import Program, Site, stated_sites
from ppl_med.testing.program_runs import Call, buffers, log_density, run, same

Modules = Mapping[nn.Module, str]


def infinite_densities(named: Mapping[str, Site], whose: str) -> list[str]:
    """Sites whose log-density is not finite, or cannot be computed."""
    found = []
    for name, site in named.items():
        if not isinstance(site["value"], Tensor):
            continue
        try:
            value = log_density(site)
        except ValueError as error:
            reason = str(error).strip().splitlines()[0]
            found.append(f"{whose}'s log-density of site {name!r} cannot be computed: {reason}")
            continue
        if value is not None and not torch.isfinite(value).all():
            bad = int((~torch.isfinite(value)).sum())
            found.append(
                f"{whose}'s log-density of site {name!r} is not finite in {bad} of "
                f"{value.numel()} entries; keep its parameters and values inside the support"
            )
    return found


def parameter_names(program: Program) -> set[str]:
    """Names of a module's parameters and of all in the parameter store; none for a function."""
    if not isinstance(program, nn.Module):
        return set()
    return {name for name, _ in program.named_parameters()} | set(pyro.get_param_store().keys())


def late_parameters(program: Program, before: set[str], beside: Program | None = None) -> list[str]:
    """Parameters that a module did not have before its first call.

    ``before`` are ``parameter_names`` before it; those of ``beside``, another program, do not
    count,
    nor those of a plain function, which live in the parameter store, always.
    """
    if not isinstance(program, nn.Module):
        return []
    owners = [owner for owner in (program, beside) if isinstance(owner, nn.Module)]
    known = {id(parameter) for owner in owners for parameter in owner.parameters()}
    own = {name for name, _ in program.named_parameters()}
    late = own - before
    for name, leaf in pyro.get_param_store().named_parameters():
        plain = normalize_param_name(name)
        if name not in before and id(leaf) not in known and plain not in own:
            late.add(plain)
    return [
        f"parameter {name!r} appears only at the first call, so an optimiser, a checkpoint or "
        "DistributedDataParallel made before misses it; create it in __init__"
        for name in sorted(late)
    ]


def active_dropout(program: Program, modules: Modules) -> list[str]:
    """Dropout layers, of the modules that run in a program, that drop units in training."""
    set_mode([program], True)
    found = [
        f"{type(module).__name__} {name!r} drops units in training: a random variable that no "
        "guide proposes; set its rate to 0 and put dropout into the guide"
        for module, name in modules.items()
        if module.training and _dropout_rate(module) > 0
    ]
    set_mode([program], False)
    return found


def randomness(program: Program, call: Call, replay: Trace) -> list[str]:
    """Random numbers that are drawn outside sample sites, in training or evaluation mode.

    The program's dropout layers are off; ``replay`` is a trace that holds a value of every latent.
    """
    found: list[str] = []
    for training in (True, False):
        set_mode([program], training)
        with torch.no_grad():
            once = run(program, call, replay=replay, seed=1)
            # A latent that only training has, such as noise of logits, is not in ``replay``.
            again = run(program, call, replay=once, seed=2)
        first, second = stated_sites(once), stated_sites(again)
        changed = [name for name in first if not _same_distribution(first[name], second.get(name))]
        if changed and not found:
            mode = "training" if training else "evaluation"
            found.append(
                f"the distributions of {changed} change from run to run in {mode} mode although "
                "every latent is held fixed: random numbers are drawn outside pyro.sample; make "
                "them sample sites or remove them"
            )
    return found


def _dropout_rate(module: nn.Module) -> float:
    if isinstance(module, _DropoutNd):
        return module.p
    return module.dropout if isinstance(module, nn.MultiheadAttention) else 0.0


def _same_distribution(first: Site, second: Site | None) -> bool:
    if second is None:
        return False
    here = log_density(first)
    # The value is held fixed, so the log-density of the first is taken under both distributions.
    there = log_density({**second, "value": first["value"]})
    return here is None or there is None or same(here, there)


def moving_buffers(program: Program, call: Call, modules: Modules) -> list[str]:
    """Buffers that a prediction changes."""
    set_mode([program], False)
    before = buffers(modules)
    with torch.no_grad():
        run(program, call, observed=False)
    return [
        f"buffer {name!r} moves at prediction, so predictions depend on their order; put its layer "
        "into eval() mode, or make the program a module that owns it"
        for name, value in buffers(modules).items()
        if not torch.equal(value, before[name])
    ]


def gradient_faults(
    objective: Callable[[int], tuple[Tensor, dict[str, Tensor]]], what: str, num_seeds: int = 3
) -> list[str]:
    """Parameters whose gradient is missing, not finite, or zero everywhere for all of some seeds.

    ``objective`` goes from a seed to a scalar, called ``what``, and the parameters by name.
    """
    total: dict[str, Tensor | None] = {}
    for seed in range(num_seeds):
        value, leaves = objective(seed)
        gradients = (
            torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
            if value.requires_grad and leaves
            else [None] * len(leaves)
        )
        for name, gradient in zip(leaves, gradients, strict=True):
            size = None if gradient is None else gradient.detach().abs().sum()
            seen = total.get(name)
            total[name] = size if seen is None else seen if size is None else seen + size
    found = []
    for name, size in total.items():
        if size is None:
            fix = "use it, or freeze or remove it"
            found.append(f"parameter {name!r} does not enter {what}; {fix}")
        elif not torch.isfinite(size):
            found.append(f"parameter {name!r} gets a gradient of {what} that is not finite")
        elif size == 0:
            found.append(
                f"parameter {name!r} gets a gradient of {what} that is zero everywhere, in "
                f"{num_seeds} draws; look for a detach, a dead ReLU or a later layer that is zero"
            )
    return found
