"""What is ranked: latents, predictions, functions of them, and the joint log-likelihood."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_med.inference.prediction.posterior_sampler import PosteriorSampler
from ppl_med.likelihoods import in_double, log_prob_in_double, stored_parameters
from ppl_med.programs.sites import (
    Program,
    batch_size,
    sample_sites,
    scaled,
    select_arguments,
    site_dims,
    without_observations,
)
from ppl_med.weights import find_random_weights

LOG_LIKELIHOOD = "log_likelihood"
FEW_ENTRIES = 20  # sites with more are ranked only where they are named
FEW_CASES = 4  # of the design, where nothing else is said
PREDICTIONS = ("probs", "loc", "mean", "quantile")
Values = dict[str, Tensor]
Quantities = Sequence[str] | Mapping[str, Callable[[Values], Any]]


class Evaluation:
    """From latents to the quantities that are ranked.

    Args:
        model: The program, in evaluation mode.
        data: The batch that the inference saw, observations included.
        at: Inputs to predict at; None: the first cases of ``data``.
        quantities: Names or functions; None: latents that are no weights, and predictions.
    """

    def __init__(
        self,
        model: Program,
        data: Mapping[str, Any],
        at: Mapping[str, Any] | None,
        quantities: Quantities | None,
    ) -> None:
        self.quantities, self.weights = quantities, set(find_random_weights([model]))
        self.data = select_arguments(model, data)
        self.sampler = one_case_sampler(model, None, self.data)
        self.at = None if at is None else self.sampler.bare(select_arguments(model, at))

    def __call__(self, latents: Values) -> dict[str, np.ndarray]:
        """Quantities of one draw of the latents, float64."""
        trace = self._run(latents, self.sampler.bare(self.data))
        sites = sample_sites(trace)
        log_likelihood = sum(
            scaled(
                log_prob_in_double(sites[name]["fn"], self.data[name]).double(), sites[name]
            ).sum()
            for name in self.sampler.observed
        )
        noted = {
            n: s["value"] for n, s in sites.items() if (s["infer"] or {}).get("_deterministic")
        }
        shown = trace if self.at is None else self._run(latents, self.at)
        predictions = self._predictions(shown, FEW_CASES if self.at is None else None)
        values = {**noted, **latents, **predictions}
        chosen = self._chosen(latents, values)
        return {n: _array(v) for n, v in {**chosen, LOG_LIKELIHOOD: log_likelihood}.items()}

    def _run(self, latents: Values, inputs: Mapping[str, Any]) -> Any:
        with torch.no_grad():
            return self.sampler.run(latents, 0, inputs, np.arange(batch_size(inputs)))

    def _predictions(self, trace: Any, cases: int | None) -> Values:
        sites, found = sample_sites(trace), {}
        for name in self.sampler.observed:
            prefix = "" if len(self.sampler.observed) == 1 else f"{name}_"
            own = stored_parameters(in_double(sites[name]["fn"]), site_dims(trace, name))
            for parameter, (dims, value) in own.items():
                first = value.movedim(dims.index("case"), 0) if "case" in dims else value
                found[prefix + parameter] = first[:cases] if "case" in dims else first
        return found

    def _chosen(self, latents: Values, values: Values) -> dict[str, Any]:
        if isinstance(self.quantities, Mapping):
            return {name: function(values) for name, function in self.quantities.items()}
        if self.quantities is not None:
            unknown = [name for name in self.quantities if name not in values]
            if unknown:
                raise ValueError(
                    f"quantities names {unknown}; the program has {sorted(values)}, or pass a dict "
                    "of functions of these"
                )
            return {name: values[name] for name in self.quantities}
        of_all = {n: v for n, v in latents.items() if n not in {*self.weights, *self.sampler.local}}
        small = {n: v for n, v in of_all.items() if v.numel() <= FEW_ENTRIES}
        told = {n: v for n, v in values.items() if n.removeprefix("_").endswith(PREDICTIONS)}
        return {**small, **{n: v for n, v in told.items() if n not in latents}}


def one_case_sampler(
    model: Program, guide: Program | None, data: Mapping[str, Any], seed: int = 0, chain: int = 0
) -> PosteriorSampler:
    """What draws functions of a pair, made as ``predict`` makes it, of the first case."""
    one = {n: v[:1] if isinstance(v, Tensor) else v for n, v in data.items()}
    return PosteriorSampler(model, guide, without_observations(model, one), seed, chain)


def _array(value: Any) -> np.ndarray:
    plain = value.detach().cpu() if isinstance(value, Tensor) else value
    return np.asarray(plain, dtype=np.float64)
