"""An exponential moving average of what is trained, which takes its place when the training ends.

    a_1 = p_1                                          p_n: a parameter after optimizer step n
    a_n = d_n a_(n-1) + (1 - d_n) p_n                  d_n = min(decay, (1 + n) / (10 + n))

It stands for the last 1 / (1 - decay) steps or so, and before there are ten times as many for the
last tenth of them: the start, which is bad, is soon forgotten. The optimizer never sees it.

Of a guide, locations are averaged and spreads are left as trained: what states itself as one
(``protocol.spreads``), and what Pyro keeps under a constraint, such as a scale above 0. The average
of the locations is less noisy than their last values; a posterior that is narrower for it would be
wrong. Where a network gives both, as in ``ConditionalNormal``, all of its weights are averaged.

Running statistics of BatchNorm belong to the weights that they were seen under, and those of
training, averaged or not, can cost a good net more than the average gains. So they are measured
anew under the averages (``torch.optim.swa_utils.update_bn``), in a pass over the training batches
before every validation and at the end. In between, for callbacks and in the checkpoint of an
unfinished run, a model with such layers is as it is trained; any other is the average there, too.

References: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", SIAM
Journal on Control and Optimization 30, 1992; for diffusion Ho et al., "Denoising diffusion
probabilistic models", NeurIPS 2020, appendix B. The decay at the start is that of TensorFlow's
``tf.train.ExponentialMovingAverage`` with ``num_updates``.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, AutoGuide, AutoGuideList, AutoNormalizingFlow
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ppl_med.programs import protocol
from ppl_med.programs.parameters import free_parameters, modules_of, named_modules_of, parts_of
from ppl_med.programs.sites import Program, full_name


class MovingAverage:
    """The average of a member's parameters.

    Args:
        decay: Share of the average that a step leaves, in (0, 1), once there are enough steps.
        tensors: What is averaged.
        as_trained: Names of the parameters that are not.

    Attributes:
        steps: Optimizer steps so far.
    """

    def __init__(self, decay: float, tensors: Sequence[Tensor], as_trained: Sequence[str]) -> None:
        self.decay, self.tensors, self.as_trained = decay, list(tensors), list(as_trained)
        self.steps = 0
        self._values: list[Tensor] = []

    @torch.no_grad()
    def update(self) -> None:
        """Take a step that was made."""
        self.steps += 1
        if self.steps == 1:
            self._values = [tensor.detach().clone() for tensor in self.tensors]
            return
        decay = decay_at(self.decay, self.steps)
        get_ema_multi_avg_fn(decay)(self._values, self.tensors, self.steps)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the averages stand in the parameters' place while the block runs."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for tensor, value in zip(self.tensors, self._values, strict=bool(self._values)):
            held = tensor.clone()
            tensor.copy_(value)
            value.copy_(held)

    @torch.no_grad()
    def take_place(self) -> None:
        """Give the parameters their averages."""
        for tensor, value in zip(self.tensors, self._values, strict=bool(self._values)):
            tensor.copy_(value)

    def notes(self) -> dict[str, Any]:
        """What a history says of it."""
        return {"average": self.decay, "left_as_trained": "; ".join(self.as_trained)}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"steps": self.steps, "values": list(self._values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Counterpart of ``state_dict``."""
        self.steps = state["steps"]
        pairs = zip(state["values"], self.tensors, strict=bool(state["values"]))
        self._values = [value.to(tensor) for value, tensor in pairs]


def decay_at(decay: float, step: int) -> float:
    """Share of the average that a step leaves; the first one is 1."""
    return min(decay, (1 + step) / (10 + step))


def moving_average(
    decay: float, trained: Sequence[Tensor], pair: tuple[Program, Program]
) -> MovingAverage:
    """The average of a model and a guide.

    Args:
        decay: Of the average, in (0, 1).
        trained: All parameters that are trained.
        pair: Model and guide, once they have run.

    Raises:
        ValueError: If a part of them follows the steps of the parameters in tensors of its own,
            which would not fit the average; if parameters are too coarse to be averaged, or all of
            them are spreads.
    """
    model, guide = pair
    if protocol.step_followers(guide):
        raise ValueError(
            f"average must be None with {full_name(guide)}, which collects the steps of the "
            "weights by itself: its mean is an average already"
        )
    if protocol.after_steps(model):
        raise ValueError(
            f"average must be None with {full_name(model)}: after every step it moves tensors, "
            "such as centroids, that belong to the weights as they are then, not to their average"
        )
    spreads = _spreads(model, guide)
    averaged = [parameter for parameter in trained if id(parameter) not in spreads]
    if not averaged:
        raise ValueError("average must be None: no location is trained, of which it would be one")
    coarse = [p.dtype for p in averaged if not p.is_complex() and torch.finfo(p.dtype).bits < 32]
    if coarse:
        raise ValueError(
            f"average must be None where parameters are {coarse[0]}, which is too coarse for the "
            "small steps of an average; call .float() on model and guide, and use "
            "precision='bfloat16'"
        )
    still = [spreads[id(parameter)] for parameter in trained if id(parameter) in spreads]
    return MovingAverage(decay, averaged, sorted(still))


def moving_norms(pair: tuple[Program, Program]) -> list[nn.Module]:
    """Norm layers of two programs in training mode whose running statistics move.

    Raises:
        ValueError: If one is of a kind whose statistics cannot be measured anew.
    """
    parts = {id(part): part for program in pair for part in parts_of(program)}
    found = [
        part
        for part in parts.values()
        if part.training and getattr(part, "running_mean", None) is not None
    ]
    for part in found:
        if not isinstance(part, _BatchNorm):
            raise ValueError(
                f"average must be None with {type(part).__name__}, whose running statistics would "
                "not be those of the averaged weights; use a norm layer without any, or BatchNorm"
            )
    return found


def _spreads(model: Program, guide: Program) -> dict[int, str]:
    """By id, names of the parameters of a guide that are no location."""
    stated = {id(parameter) for parameter in protocol.spreads(guide)}
    for part in parts_of(guide):
        stated |= {id(parameter) for parameter in _of_pyro(part)}
    found = {}
    for reached, module in named_modules_of(guide).items():
        for name, parameter in module.named_parameters():
            if id(parameter) in stated:
                found[id(parameter)] = ".".join(filter(None, ("guide", reached, name)))
    kept = pyro.get_param_store().get_state()["constraints"]
    for name, value in free_parameters(model, guide).items():
        if _bounds(kept.get(name)):
            found[id(value)] = name
    own = {id(p) for module in modules_of(model) for p in module.parameters()}
    return {key: name for key, name in found.items() if key not in own}


def _of_pyro(part: nn.Module) -> Iterator[Tensor]:
    """Parameters of one PyroModule that are no location."""
    if isinstance(part, AutoDelta | AutoNormalizingFlow | AutoGuideList):
        return
    if isinstance(part, AutoGuide):  # everything besides its locations is a factor of its spread
        for name, parameter in part.named_parameters():
            if not {"loc", "locs"} & set(name.removesuffix("_unconstrained").split(".")):
                yield parameter
        return
    for name, (constraint, _) in getattr(part, "_pyro_params", {}).items():
        free = part._parameters.get(f"{name}_unconstrained")
        if free is not None and _bounds(constraint):
            yield free


def _bounds(constraint: Any) -> bool:
    """Whether a constraint is one."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint not in (None, constraints.real)
