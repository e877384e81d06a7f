"""Natural-gradient steps for independent normals: variational online Newton (IVON).

With s = 1/scale^2 the precision, L the loss in nats for all cases and g its gradients,

    d    =  g_scale / scale                                the natural gradient, 0 at the optimum
    s   <-  s + rate d + (rate d)^2 / (2 s)                which stays positive
    loc <-  loc - learning_rate * momentum(g_loc) / s      a Newton step

For L = NLL + KL and a prior of precision p, d is h + p - s with h the expected curvature of the
NLL, estimated by the draws of the step: so the precision is the data's curvature plus the prior's,
averaged over the last 1/rate steps, wherever it started. Under Adam each scale goes at its own pace
instead, and after a few thousand steps is still about what it was at first.

Any estimator of the guide serves, since all give unbiased gradients of the scales.

Source: Shen et al., "Variational learning is effective for large deep networks", ICML 2024
(algorithm 1; its steps of loc leave the prior out of the momentum, these have it inside). The
correction of the precision is Lin, Schmidt and Khan, "Handling the positive-definite constraint in
the Bayesian learning rule", ICML 2020.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ppl_med.checks import finite, inside, positive, reject, share
from ppl_med.inference.guides.weight_guide import inverse_softplus
from ppl_med.programs.protocol import independent_normals


class VariationalOnlineNewton:
    """Natural-gradient steps for the normals of a guide, Adam for all other parameters.

    ::

        fit(model, MeanFieldNormal(model), batches, optimizer=VariationalOnlineNewton())

    The schedule of ``fit`` scales the rate of the precisions, too: the last ones average over ever
    more steps.

    Args:
        learning_rate: Step of the locations in units of a full Newton step.
        momentum: Share of the last direction that each new one keeps, in [0, 1).
        precision_rate: Weight of each new step in the precisions, in (0, 1): they average the
            curvature over about its inverse of steps.
        radius: Most that a location moves in one step, over its scale at the learning rate 1; it
            bounds steps where the curvature is still badly known.
        other_rate: Adam's learning rate for parameters that are of no normal: a model's
            deterministic layers.
        other_decay: Their weight decay, decoupled from the gradient as in AdamW.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        learning_rate: float = 0.1,
        *,
        momentum: float = 0.9,
        precision_rate: float = 0.01,
        radius: float = 10.0,
        other_rate: float = 1e-3,
        other_decay: float = 0.0,
    ) -> None:
        self.learning_rate = positive("learning_rate", learning_rate)
        self.momentum = share("momentum", momentum)
        self.precision_rate = inside("precision_rate", precision_rate)
        self.radius, self.other_rate = (
            positive("radius", radius),
            positive("other_rate", other_rate),
        )
        self.other_decay = finite("other_decay", other_decay, least=0)

    def build(self, parameters: list[Tensor], guide: Any, num_cases: int) -> torch.optim.Optimizer:
        """The optimizer of a run.

        Args:
            parameters: All that are trained.
            guide: Whose normals take natural-gradient steps.
            num_cases: Size of the data set, by which ``fit`` has divided the loss.

        Raises:
            ValueError: If the guide has no independent normals among the parameters.
        """
        known = {id(parameter) for parameter in parameters}
        pairs = [p for p in independent_normals(guide) if id(p[0]) in known and id(p[1]) in known]
        if not pairs:
            raise ValueError(
                f"optimizer=VariationalOnlineNewton moves independent normals, and "
                f"{type(guide).__name__} has none that are trained; use MeanFieldNormal, or Adam"
            )
        paired = {id(parameter) for pair in pairs for parameter in pair}
        groups: list[dict[str, Any]] = [
            {
                "params": list(pair),
                "lr": self.learning_rate,
                "momentum": self.momentum,
                "precision_rate": self.precision_rate,
                "radius": self.radius,
                "num_cases": num_cases,
            }
            for pair in pairs
        ]
        others = [parameter for parameter in parameters if id(parameter) not in paired]
        if others:
            rates = {"lr": self.other_rate, "weight_decay": self.other_decay}
            groups.append({"params": others, **rates})
        return _OnlineNewton(groups)


class _OnlineNewton(torch.optim.AdamW):
    """Groups with a ``precision_rate`` are a location and its raw scale; the others are Adam's."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, weight_decay=0.0)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of all parameters."""
        for group in self.param_groups:
            if "precision_rate" in group:
                self._newton(group)
        super().step()

    def _newton(self, group: dict[str, Any]) -> None:
        loc, raw_scale = group["params"]
        if loc.grad is None or raw_scale.grad is None:
            return
        scale = softplus(raw_scale)
        by_scale = group["num_cases"] * raw_scale.grad / torch.sigmoid(raw_scale)
        state = self.state[loc]
        if not state:
            state["momentum"] = torch.zeros_like(loc)
            state["step"] = torch.zeros((), device=loc.device)
        state["step"] += 1
        share = group["momentum"]
        state["momentum"].lerp_(loc.grad, 1 - share)
        debias = 1 - share ** state["step"].to(loc.device)  # of an earlier checkpoint on the CPU
        # In units of the precision, so that no square overflows: d / s = by_scale * scale.
        rate = group["precision_rate"] * group["lr"] / group.get("initial_lr", group["lr"])
        relative = rate * by_scale * scale
        new_scale = scale * torch.rsqrt(1 + relative + 0.5 * relative.square())
        step = group["num_cases"] * state["momentum"] / debias * new_scale.square()
        most = group["radius"] * new_scale
        loc.sub_(group["lr"] * torch.maximum(torch.minimum(step, most), -most))
        raw_scale.copy_(inverse_softplus(new_scale))
        loc.grad = raw_scale.grad = None  # so that Adam leaves them


def refuse_rates(learning_rate: Any) -> None:
    """Raise where rates by pattern meet natural-gradient steps, which have their own."""
    if not isinstance(learning_rate, float):
        fix = "VariationalOnlineNewton(learning_rate=...) has the rates; freeze by requires_grad_"
        reject("learning_rate", "one number with VariationalOnlineNewton", learning_rate, fix)
