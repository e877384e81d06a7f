"""Where chains start: at draws of the prior or of a guide, with a finite density."""

from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_med.inference.guides.ensemble import members_of
from ppl_med.inference.sampling.target import Inputs, Target
from ppl_med.programs.sites import Program, sample_sites, to_device

MOST_TRIES = 100


class Starts:
    """Starts of chains.

    Args:
        target: What is sampled.
        model: The model.
        inputs: Its arguments in the first batch.
        guide: Whose draws to start from; None takes the prior.
    """

    def __init__(
        self, target: Target, model: Program, inputs: Inputs, guide: Program | None
    ) -> None:
        self.target, self.inputs = target, inputs
        self.programs = [model] if guide is None else [q for _, q in members_of(model, guide)]
        self.from_prior = guide is None

    def of_chain(self, chain: int) -> Tensor:
        """The start of a chain, dims (weight,); draws from the generators as they are.

        Raises:
            ValueError: No draw has a finite density, or the guide lacks a latent.
        """
        for _ in range(MOST_TRIES):
            vector = self._draw(self.programs[chain % len(self.programs)])
            if self._is_finite(vector):
                return vector
        where = "the prior" if self.from_prior else "start"
        raise ValueError(
            f"of {MOST_TRIES} draws of {where}, none has a finite posterior density with a finite "
            "gradient: look for extreme or missing values in the batches, or pass start=a guide "
            "that was trained by fit"
        )

    def _draw(self, program: Any) -> Tensor:
        target = self.target
        inputs = to_device(self.inputs, target.device)
        if self.from_prior:
            inputs = target.converted(self.inputs)
        with torch.no_grad():
            sites = sample_sites(poutine.trace(program).get_trace(**inputs))
        absent = [name for name in target.coordinates.names if name not in sites]
        if absent:
            raise ValueError(
                f"start proposes no {absent[0]!r}, a latent of the model; pass a guide of it"
            )
        values = {name: sites[name]["value"] for name in target.coordinates.names}
        return target.coordinates.vector(values)

    def _is_finite(self, vector: Tensor) -> bool:
        vector = vector.detach().requires_grad_(True)
        value = self.probe(vector)
        (gradient,) = torch.autograd.grad(value, vector)
        return bool(value.isfinite() & gradient.isfinite().all())

    def probe(self, vector: Tensor) -> Tensor:
        """The potential; of a target that reads a batch a step, its estimate from the first."""
        target = self.target
        if target.pieces:
            return target.potential(vector)
        return target.estimate(vector, target.converted(self.inputs), 1.0)
