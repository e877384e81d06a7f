"""Run a Pyro program on a batch as ``fit`` and ``predict`` do, and read its traces."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from ppl_med.programs import protocol
from ppl_med.programs.sites import Program, Site, scaled, signature, takes_num_cases


@dataclass(frozen=True)
class Call:
    """The arguments that a batch gives a program.

    Attributes:
        inputs: Arguments without a default, ``image`` among them.
        observations: Arguments whose default is None, as far as the batch has them.
        takes_num_cases: Whether the program takes the keyword ``num_cases``.
        training_inputs: Arguments without a site of their own; see ``bind``.
    """

    inputs: dict[str, Any]
    observations: dict[str, Any]
    takes_num_cases: bool
    training_inputs: dict[str, Any] = field(default_factory=dict)

    @property
    def num_cases(self) -> int:
        """Cases in the batch."""
        return len(self.inputs["image"])

    def arguments(self, *, observed: bool = True, num_cases: int | None = None) -> dict[str, Any]:
        """Keyword arguments of one run."""
        observations = self.observations | self.training_inputs if observed else {}
        return {**self.inputs, **observations, "num_cases": num_cases}

    def without_last_case(self) -> "Call":
        """The same batch, one case shorter."""
        parts = (self.inputs, self.observations, self.training_inputs)
        inputs, observations, aids = ({n: v[:-1] for n, v in part.items()} for part in parts)
        return Call(inputs, observations, self.takes_num_cases, aids)


def bind(model: Program, batch: Mapping[str, Any]) -> Call:
    """Pick the model's arguments from a batch.

    A model without optional arguments observes one that it needs, as a VAE its ``image``. A model
    may name in ``training_inputs`` arguments that condition no site: what its factors read
    in training besides the observations, such as a mask of an attribution constraint.

    Raises:
        ValueError: If the batch lacks an argument or every observation, has fewer than two cases,
            or entries of different length.
    """
    known = signature(model).values()
    named = [p for p in known if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    named = [p for p in named if p.name != "num_cases"]
    required = [p.name for p in named if p.default is p.empty]
    optional = [p.name for p in named if p.default is None]
    missing = [name for name in dict.fromkeys(["image", *required]) if name not in batch]
    if missing:
        raise ValueError(f"batch lacks {missing}, which the model needs; it has {sorted(batch)}")
    if "image" not in required:
        raise ValueError(
            "the model has no argument 'image' without a default; its signature must be "
            "model(image, label=None, *, num_cases=None)"
        )
    given = {name: batch[name] for name in optional if batch.get(name) is not None}
    aids = protocol.training_inputs(model)
    observations = {name: value for name, value in given.items() if name not in aids}
    if optional and not observations:
        raise ValueError(f"batch holds none of the model's observations {optional}")
    inputs = {name: batch[name] for name in required}
    lengths = {name: len(value) for name, value in {**inputs, **given}.items()}
    if len(set(lengths.values())) > 1 or lengths["image"] < 2:
        raise ValueError(f"batch needs two cases or more, as many of each entry; it has {lengths}")
    aid = {name: value for name, value in given.items() if name in aids}
    return Call(inputs, observations, takes_num_cases(model), aid)


def run(
    program: Program,
    call: Call,
    *,
    observed: bool = True,
    num_cases: int | None = None,
    replay: Trace | None = None,
    seed: int = 0,
) -> Trace:
    """Run a model or guide once, from a seed of all generators, and return its trace.

    Args:
        program: A model or guide.
        call: Its arguments.
        observed: Whether to pass the observations.
        num_cases: Size of the data set of which the batch is a part.
        replay: A trace whose latent values to take.
        seed: Seed of all random number generators.

    Raises:
        ProgramError: If the program raises; it carries the trace so far.
    """
    pyro.set_rng_seed(seed)
    if replay is not None:
        program = poutine.replay(program, trace=prune_subsample_sites(replay))
    tracer = poutine.trace(program)
    arguments = call.arguments(observed=observed, num_cases=num_cases)
    try:
        with warnings.catch_warnings():
            # A frozen parameter is no fault.
            warnings.filterwarnings("ignore", ".*not registered in the param store")
            tracer(**arguments)
    except Exception as error:
        raise ProgramError(error, tracer.trace) from error
    return tracer.trace


class ProgramError(Exception):
    """A program raised ``error``; ``trace`` has the sites it had visited."""

    def __init__(self, error: Exception, trace: Trace) -> None:
        lines = str(error).strip().splitlines() or [""]
        super().__init__(f"{type(error).__name__}: {lines[0]}")
        self.trace = trace


def log_density(site: Site) -> Tensor | None:
    """Log-density of a site's value in nats; None if its distribution declares none."""
    try:
        return site["fn"].log_prob(site["value"])
    except NotImplementedError:
        return None


def total_log_density(found: Iterable[Site]) -> Tensor:
    """Scaled log-density of sites together, in nats; those that declare none add nothing."""
    terms = [(log_density(site), site) for site in found]
    return sum(
        (scaled(term, site).sum() for term, site in terms if term is not None), torch.zeros(())
    )


def learnable(program: Program, trace: Trace) -> dict[str, Tensor]:
    """Unconstrained parameters that an optimiser would move, by name.

    ``trace`` is one of the program's, for the parameters of a plain function.
    """
    found: dict[str, Tensor] = {}
    if isinstance(program, nn.Module):
        found.update(program.named_parameters())
    known = {id(parameter) for parameter in found.values()}
    nodes: dict[str, Any] = dict(trace.nodes)
    for name, site in nodes.items():
        if site["type"] == "param":
            leaf = site["value"].unconstrained()
            if id(leaf) not in known:
                found[name] = leaf
    return {name: leaf for name, leaf in found.items() if leaf.requires_grad}


def buffers(modules: Mapping[nn.Module, str]) -> dict[str, Tensor]:
    """Copies of all buffers by name."""
    return {
        f"{path}.{name}": buffer.detach().clone()
        for module, path in modules.items()
        for name, buffer in module.named_buffers(recurse=False)
    }


def same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors agree up to the rounding of their precision; NaN agrees with NaN."""
    if first.shape != second.shape:
        return False
    return torch.allclose(first.double(), second.double(), rtol=1e-4, atol=1e-6, equal_nan=True)
