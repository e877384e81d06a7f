"""Gauss-Newton curvature of a program's likelihood in the weights of its network.

    H  =  sum over cases  J' (d^2 -log p / d output^2) J        J = d output / d weights

The program runs once a batch as it is, with its network's output taken for a variable: this gives
the inner Hessian of every case, whatever the likelihood. Where the likelihood is log-concave in the
output, as that of classes with logits and that of numbers with a fixed scale are, H is positive
semi-definite. All log-densities stand for the data set, as those of ``fit`` do.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor, nn

from ppl_med.programs.case_scale import CaseScale
from ppl_med.programs.elbo import terms_of, total
from ppl_med.programs.sites import Program, full_name, sample_sites
from ppl_med.weights import RandomWeights
from ppl_med.weights.tied_parameters import call_with, tied_names

MOST_OUTPUTS = 256  # numbers a case that the network gives
NEGATIVE = 1e-4  # of the largest eigenvalue: what rounding may leave below 0
ROWS = 2**24  # numbers of a block of derivatives


@dataclass
class OutputCurvature:
    """A batch at the mode.

    Attributes:
        inputs: What the network takes, dims (case, ...).
        gradient: Of -log p in the output, dims (case, output).
        roots: R with R R' the Hessian of every case, dims (case, output, output).
        share: What each case counts of the data set, dims (case,).
        nll: -log p, in nats.
    """

    inputs: Tensor
    gradient: Tensor
    roots: Tensor
    share: Tensor
    nll: float


class NetworkAtMode:
    """A model's network as a function of its random weights, at one point.

    Args:
        model: The program.
        weights: Its random weights.
        mode: Their values, dims (weight,).
    """

    def __init__(self, model: Program, weights: RandomWeights, mode: Tensor) -> None:
        self.model, self.weights, self.mode = model, weights, mode.detach()
        self._ties = tied_names(weights.net)

    def output(self, flat: Tensor, inputs: Tensor) -> Tensor:
        """Output of the network, dims (case, output)."""
        views = self.weights.layout.views(flat)
        return call_with(self.weights.net, views, (inputs,), {}, self._ties).flatten(1)

    def curvature(self, values: Any, factor: float | Tensor, num_cases: int) -> OutputCurvature:
        """Run the program on a batch, and differentiate its likelihood twice in the output.

        Raises:
            ValueError: If the program is not one whose likelihood is a log-concave function of one
                output of one network, case by case, or has other latents.
        """
        seen: list[tuple[Tensor, Tensor]] = []

        def take(module: nn.Module, inputs: Any, options: Any, output: Any) -> Tensor:
            given = [*inputs, *options.values()]
            if seen or len(given) != 1 or not isinstance(output, Tensor):
                raise ValueError(
                    f"Laplace needs a network that {full_name(self.model)} calls once, with one "
                    "input and one tensor for output; use another guide, such as MeanFieldNormal"
                )
            seen.append((given[0], output.detach().requires_grad_()))
            return seen[0][1]

        point = poutine.condition(self.model, {self.weights.site: self.mode})
        handle = self.weights.register_forward_hook(take, with_kwargs=True)
        try:
            with torch.enable_grad(), CaseScale(factor):
                trace = poutine.trace(point).get_trace(**values, num_cases=num_cases)
                self._check_latents(trace)
                trace.nodes[self.weights.site]["is_observed"] = False
                nll = total(terms_of(trace, poutine.Trace())[0])
                inputs, output = seen[0]
                gradient, roots = self._derivatives(nll, output)
        finally:
            handle.remove()
        each = torch.as_tensor(factor, dtype=torch.float64, device=output.device)
        share = each.expand(len(output)) / len(output)
        return OutputCurvature(inputs, gradient, roots, share, float(nll.detach()))

    def _check_latents(self, trace: poutine.Trace) -> None:
        sites = sample_sites(trace)
        others = [n for n, s in sites.items() if not s["is_observed"]]
        if others:
            raise ValueError(
                f"Laplace is a posterior over weights alone, and {full_name(self.model)} has the "
                f"latent {others[0]!r} besides; use another guide, such as MeanFieldNormal"
            )

    def _derivatives(self, nll: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient and root of the Hessian of every case."""
        size = output[0].numel()
        if size > MOST_OUTPUTS:
            raise ValueError(
                f"the network gives {size} numbers a case; Laplace takes the Hessian of each case "
                f"and so at most {MOST_OUTPUTS}; use another guide, such as MeanFieldNormal"
            )
        (gradient,) = torch.autograd.grad(nll, output, create_graph=True)
        flat = gradient.flatten(1)
        rows = []
        for column in flat.sum(0):
            if not column.requires_grad:
                rows.append(torch.zeros_like(flat))
                continue
            (row,) = torch.autograd.grad(column, output, retain_graph=True, allow_unused=True)
            rows.append(torch.zeros_like(flat) if row is None else row.detach().flatten(1))
        hessians = torch.stack(rows, 1).double()
        values, vectors = torch.linalg.eigh(0.5 * (hessians + hessians.mT))
        largest = values.abs().amax(-1, keepdim=True)
        if bool((values < -NEGATIVE * largest).any()):
            raise ValueError(
                "Laplace needs a likelihood that is log-concave in the network's output, and here "
                "one is not, such as that of Gaussian() with a scale that the network gives; use "
                "one that is (Gaussian(heteroscedastic=False), classes), or another guide"
            )
        roots = vectors * values.clamp_min(0).sqrt().unsqueeze(-2)
        return flat.detach(), roots.to(output)

    def gradient(self, batch: OutputCurvature) -> Tensor:
        """Gradient of -log p in the weights, dims (weight,)."""
        flat = self.mode.clone().requires_grad_()
        with torch.enable_grad():
            output = self.output(flat, batch.inputs)
            return torch.autograd.grad(output, flat, batch.gradient)[0]

    def rows(self, batch: OutputCurvature, start: int, stop: int) -> Iterator[Tensor]:
        """Blocks of R' J, dims (case and output, weight), whose squares sum to H.

        Of the weights from ``start`` to ``stop`` alone.
        """
        before, part, after = self.mode.tensor_split((start, stop))

        def of_case(one: Tensor, root: Tensor) -> Tensor:
            def output(values: Tensor) -> Tensor:
                return self.output(torch.cat([before, values, after]), one[None])[0]

            pull = torch.func.vjp(output, part)[1]
            return torch.stack([pull(column)[0] for column in root.unbind(-1)])

        step = max(1, ROWS // max(1, batch.roots.shape[-1] * len(part)))
        each = torch.func.vmap(of_case)
        for inputs, roots in zip(batch.inputs.split(step), batch.roots.split(step), strict=True):
            yield each(inputs, roots).flatten(0, 1)
