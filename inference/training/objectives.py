"""What ``fit`` minimises: the negative ELBO, a tighter bound, or a constrained form of it.

An objective is called with the programs and a batch and gives a ``Loss``; all figures are in nats
for the whole data set until ``fit`` divides them by the number of cases.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor, nn

from ppl_med.checks import positive, share, whole
from ppl_med.programs import protocol
from ppl_med.programs.elbo import Terms, check_sites, elbo_terms, total
from ppl_med.programs.sites import Batch, Program, is_local, sample_sites


@dataclass
class Loss:
    """One step's loss.

    Attributes:
        value: What is differentiated, zero-dimensional.
        nll: Negative log-likelihood of every observed site.
        kl: KL divergence, or its estimate, of every latent site.
        extra: Further figures for the history, such as ``bound``.
    """

    value: Tensor
    nll: Terms
    kl: Terms
    extra: Terms = field(default_factory=dict)


class Objective(nn.Module):
    """What ``fit`` can minimise: called with a batch, it gives a ``Loss``."""

    def advance(self, nll: Tensor, num_cases: int) -> None:
        """Take note of a step that was made.

        Args:
            nll: Its negative log-likelihood in nats for all cases, the mean over its batches.
            num_cases: Size of the data set.
        """


class Elbo(Objective):
    """The evidence lower bound; ``fit``'s default."""

    def forward(
        self, model: Program, guide: Program, values: Batch, num_cases: int, weight: float | Tensor
    ) -> Loss:
        """NLL + weight * KL of one draw."""
        nll, kl = elbo_terms(model, guide, **values, num_cases=num_cases)
        return Loss(total(nll) + weight * total(kl), nll, kl)

    def settings(self) -> dict[str, Any]:
        """What a resumed run must share."""
        return {"objective": "Elbo"}


class ImportanceWeighted(Objective):
    """The importance-weighted bound of Burda, Grosse and Salakhutdinov (ICLR 2016).

        L_K = E log 1/K sum_k p(observed, z_k) / q(z_k),    z_k ~ q

    It lies between the ELBO (K = 1) and the evidence and rises with K. A normal guide under the
    ELBO shrinks rare modes; more particles undo it. Particles run as one batch: networks of the
    image alone run once.

    The more particles, the less a guide's network learns from a step (Rainforth et al., "Tighter
    variational bounds are not necessarily better", ICML 2018). So let it learn under the ELBO, with
    ``elbo_steps`` of two thirds or so of all steps, and tighten the bound at the end.

    Only for local latents: with random weights, one particle stands for all cases.

    Args:
        particles: K.
        max_plate_nesting: Plates that stand inside each other in the model.
        elbo_steps: First steps that train by the ELBO; ``kl_weight`` may go to 1 in them.

    Raises:
        ValueError: If ``particles`` is below 1 or ``elbo_steps`` below 0; at the first step where
            the model has a global latent or no density that is known; where ``kl_weight`` is not 1
            after ``elbo_steps``.
    """

    def __init__(
        self, particles: int = 8, max_plate_nesting: int = 1, *, elbo_steps: int = 0
    ) -> None:
        super().__init__()
        self.particles, self.max_plate_nesting = whole("particles", particles), max_plate_nesting
        self.elbo_steps, self.step = whole("elbo_steps", elbo_steps, least=0), 0

    def forward(
        self, model: Program, guide: Program, values: Batch, num_cases: int, weight: float
    ) -> Loss:
        """The negative bound, or ELBO at first; NLL and KL are means over the particles."""
        if self.step < self.elbo_steps:
            if self.step == 0:  # so that a model that is not fit for it is told before the steps
                with torch.no_grad():
                    self._tight(model, guide, values, num_cases)
            loss = Elbo()(model, guide, values, num_cases, weight)
            loss.extra["bound"] = -(total(loss.nll) + total(loss.kl))
            return loss
        if weight != 1:
            raise ValueError(
                f"kl_weight must be 1 with ImportanceWeighted, got {weight:g}: a weighted term "
                "gives no bound"
            )
        return self._tight(model, guide, values, num_cases)

    def advance(self, nll: Tensor, num_cases: int) -> None:
        """Count the step."""
        self.step += 1

    def _tight(self, model: Program, guide: Program, values: Batch, num_cases: int) -> Loss:
        if protocol.evidence_bound(model):
            raise ValueError(
                "ImportanceWeighted weighs draws by densities, and of this model a bound is all "
                "that is known; use objective=Elbo()"
            )
        plate = pyro.plate("particle", self.particles, dim=-1 - self.max_plate_nesting)
        with plate:
            guide_trace = poutine.trace(guide).get_trace(**values, num_cases=num_cases)
        proposed = sample_sites(guide_trace)
        for name, site in proposed.items():
            if not is_local(site):
                raise ValueError(
                    f"ImportanceWeighted: the latent {name!r} is shared by all cases; use "
                    "objective=Elbo(), or make the network deterministic"
                )
        replayed = poutine.replay(model, trace=guide_trace)
        with plate:
            model_trace = poutine.trace(replayed).get_trace(**values, num_cases=num_cases)
        sites = sample_sites(model_trace)
        check_sites(model, guide, sites, proposed)
        log_weight: Tensor | float = 0.0
        nll: Terms = {}
        kl: Terms = {}
        scale: Any = 1.0
        for name, site in sites.items():
            if not site["is_observed"] and name not in proposed:
                continue  # drawn from the prior: prior and proposal cancel
            term = self._log_prob(site)
            if site["is_observed"]:
                scale = site["scale"]
                nll[name] = -(scale * term).sum() / self.particles
            else:
                term = term - self._log_prob(proposed[name])
                kl[name] = -(site["scale"] * term).sum() / self.particles
            log_weight = log_weight + term
        assert isinstance(log_weight, Tensor)
        bound = (scale * (log_weight.logsumexp(0) - math.log(self.particles))).sum()
        return Loss(-bound, nll, kl, {"bound": bound})

    def _log_prob(self, site: Mapping[str, Any]) -> Tensor:
        """Of every particle and case, dims (particle, case)."""
        value = scale_and_mask(site["fn"].log_prob(site["value"]), 1.0, site["mask"])
        first, *_, last = value.shape
        return value.reshape(first, -1, last).sum(1)

    def settings(self) -> dict[str, Any]:
        """What a resumed run must share."""
        after = f", elbo_steps={self.elbo_steps}" if self.elbo_steps else ""
        return {"objective": f"ImportanceWeighted({self.particles}{after})"}

    def get_extra_state(self) -> int:
        """How many steps were taken, for a checkpoint."""
        return self.step

    def set_extra_state(self, state: int) -> None:
        """Resume from a checkpoint."""
        self.step = int(state)


class Geco(Objective):
    """The KL under a constraint on the reconstruction (Rezende and Viola, 2018).

        minimise KL  subject to  NLL <= target,     loss = multiplier * (NLL - target) + KL

    The multiplier grows while the moving average of the NLL is above the target and falls below
    it. Relative to the target, so that its pace does not depend on the number of pixels. This is
    not the ELBO of the model: its optimum is that of a tempered one, with the KL weight
    1 / multiplier, which the history records as ``multiplier``.

    Args:
        target: NLL to reach, in nats per case: for masks, nats per pixel times pixels.
        rate: Pace of the logarithm of the multiplier.
        momentum: Of the moving average, in [0, 1).
        start: First multiplier.
        limit: The multiplier stays between 1/limit and limit.

    Raises:
        ValueError: On a target, rate, start or limit that is not positive, a momentum out of range.
    """

    multiplier: Tensor
    average: Tensor

    def __init__(
        self,
        target: float,
        rate: float = 0.01,
        momentum: float = 0.99,
        start: float = 1.0,
        limit: float = 1e4,
    ) -> None:
        super().__init__()
        for name, value in {"target": target, "rate": rate, "start": start, "limit": limit}.items():
            positive(name, value)
        share("momentum", momentum)
        self.target, self.rate, self.momentum, self.limit = target, rate, momentum, limit
        self.register_buffer("multiplier", torch.tensor(float(start)))
        self.register_buffer("average", torch.tensor(float("nan")))

    def forward(
        self, model: Program, guide: Program, values: Batch, num_cases: int, weight: float | Tensor
    ) -> Loss:
        """The Lagrangian of one draw."""
        nll, kl = elbo_terms(model, guide, **values, num_cases=num_cases)
        multiplier = self.multiplier.clone()
        value = multiplier * total(nll) + weight * total(kl)
        return Loss(value, nll, kl, {"multiplier": multiplier * num_cases})

    def advance(self, nll: Tensor, num_cases: int) -> None:
        """Let the multiplier take a step."""
        now = nll / num_cases / self.target - 1
        smoothed = self.momentum * self.average + (1 - self.momentum) * now
        self.average.copy_(torch.where(self.average.isnan(), now, smoothed))
        grown = self.multiplier * (self.rate * self.average.clamp(-10, 10)).exp()
        self.multiplier.copy_(grown.clamp(1 / self.limit, self.limit))

    def settings(self) -> dict[str, Any]:
        """What a resumed run must share."""
        names = ("target", "rate", "momentum", "limit")
        return {"objective": f"Geco({', '.join(f'{getattr(self, n):g}' for n in names)})"}
