"""One draw of a program's global latents, and running the program with it.

Draw s of chain c is one function: the same weights serve every case, patch and batch.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import torch
from numpy.typing import NDArray
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_med.inference.noise import derive_seed, sample_by_case
from ppl_med.inference.programs import Program, argument_names, is_local, sample_sites

Inputs = Mapping[str, Any]
Globals = dict[str, Tensor]


class _Substitute(Messenger):
    """Give latent sites their values; draw the others by numbers that belong to the case."""

    def __init__(
        self, values: Mapping[str, Tensor], keys: tuple[int, int, int], cases: NDArray[np.integer]
    ) -> None:
        super().__init__()
        self.values, self.keys, self.cases = values, keys, cases

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or site_is_subsample(msg):
            return
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True
        elif is_local(msg):
            value = sample_by_case(msg["fn"], self.keys, msg["name"], self.cases)
            if value is not None:
                msg["value"], msg["done"] = value, True


class Sampler:
    """Draws functions of one (model, guide) pair.

    Args:
        model: The model, in evaluation mode.
        guide: The guide, in evaluation mode; None draws from the prior.
        example: Inputs of one case, without observations.
        seed: Seed of all draws.
        chain: Index of the member.
    """

    def __init__(
        self, model: Program, guide: Program | None, example: Inputs, seed: int, chain: int
    ) -> None:
        self.model, self.guide, self.example = model, guide, example
        self.seed, self.chain = seed, chain
        model_sites = sample_sites(_trace(model, example))
        arguments = set(argument_names(model))
        self.observed = [name for name in model_sites if name in arguments]
        latents = {
            name: site
            for name, site in model_sites.items()
            if name not in arguments and not site["is_observed"]
        }
        self.local = [name for name, site in latents.items() if is_local(site)]
        self.globals = [name for name in latents if name not in self.local]
        self.guide_has_local = guide is not None and any(
            is_local(site) for site in sample_sites(_trace(guide, example)).values()
        )

    def draw(self, draw: int) -> Globals:
        """Global latents of one draw; the same for the same (seed, chain, draw)."""
        device = _device(self.example)
        devices = [device.index or 0] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(derive_seed(self.seed, self.chain, draw))
            program = self.guide if self.guide is not None else self.model
            sites = sample_sites(_trace(program, self.example))
        return {name: sites[name]["value"] for name in self.globals if name in sites}

    def run(
        self, values: Globals, draw: int, inputs: Inputs, cases: NDArray[np.integer]
    ) -> poutine.Trace:
        """Trace the model on a batch with the draw's latents.

        Args:
            values: What ``draw`` gave.
            draw: Index of the draw.
            inputs: A batch without observations.
            cases: Position of each of its cases in the data set.
        """
        keys = (self.seed, self.chain, draw)
        if self.guide_has_local:
            with _Substitute(values, keys, cases):
                sites = sample_sites(_trace(self.guide, inputs))
            proposed = {n: site["value"] for n, site in sites.items() if is_local(site)}
            values = values | proposed
        with _Substitute(values, keys, cases):
            return _trace(self.model, inputs)


def _trace(program: Any, inputs: Inputs) -> poutine.Trace:
    with pyro.validation_enabled(False):
        return poutine.trace(program).get_trace(**inputs)


def _device(inputs: Inputs) -> torch.device:
    tensors = [value for value in inputs.values() if isinstance(value, Tensor)]
    return tensors[0].device if tensors else torch.device("cpu")
