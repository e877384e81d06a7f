"""One training step, written in every way that is compared. Each is built from a ``Problem``.

Peers of other packages are in ``peers.py``.
"""

import contextlib
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from problems import NUM_CASES, Problem
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from pyro.optim import Adam  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus

from ppl_med.inference import BernoulliDropout, MeanFieldNormal, PointEstimate, elbo_terms, fit
from ppl_med.inference.guides.mean_field import Estimator
from ppl_med.programs.elbo import total
from ppl_med.weights import RandomWeights
from ppl_med.weights.layout import DETERMINISTIC

LEARNING_RATE = 1e-4
INIT_SCALE = 0.05  # start of a weight's standard deviation, in units of 1/sqrt(fan_in)


@dataclass
class Variant:
    """A step that can be run again and again.

    Attributes:
        step: Forward, backward, optimizer.
        backward: Forward and backward only; None where they cannot be told apart.
        parameters: What it trains, where that is known.
        around: Context that it needs, entered outside the timing.
        close: Ends what the variant has started.
        draw: The network's output on images under a fresh draw of its weights; None where other
            code than a network's does that.
    """

    step: Callable[[], Any]
    backward: Callable[[], Any] | None
    parameters: Sequence[Tensor] = field(default_factory=list)
    around: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    close: Callable[[], Any] = lambda: None
    draw: Callable[[Tensor], Tensor] | None = None


def from_loss(loss: Callable[[], Tensor], parameters: list[nn.Parameter]) -> Variant:
    """A variant that trains with one fused Adam, as ``fit`` does.

    Args:
        loss: Forward pass, in nats per case.
        parameters: What is trained.
    """
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE, fused=True)

    def backward() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()

    def step() -> None:
        backward()
        optimizer.step()

    return Variant(step, backward, parameters)


def deterministic(problem: Problem) -> Variant:
    """The network itself: the floor of the ratios."""
    net = problem.net().train()
    return from_loss(lambda: problem.loss(net(problem.image)), list(net.parameters()))


def handwritten(problem: Problem) -> Variant:
    """Mean-field normals over a flat vector in plain torch, closed-form KL: the method's floor."""
    weights: RandomWeights = problem.model().network  # type: ignore[assignment]
    net, layout = weights.net.train(), weights.layout
    prior_scale = weights.prior_distribution().scale
    start = torch.cat(
        [torch.full((e.num_weights,), INIT_SCALE / math.sqrt(e.fan_in)) for e in layout.entries]
    ).to(prior_scale)
    loc = nn.Parameter(weights.initial())
    raw_scale = nn.Parameter(start.expm1().log())
    others = [p for p in net.parameters() if p.requires_grad]

    def loss() -> Tensor:
        scale = softplus(raw_scale)
        flat = loc + scale * torch.randn_like(loc)
        output = functional_call(net, layout.views(flat), (problem.image,))
        ratio, shift = scale / prior_scale, loc / prior_scale
        kl = (0.5 * (ratio.square() + shift.square() - 1) - ratio.log()).sum()
        return problem.loss(output) + kl / NUM_CASES

    return from_loss(loss, [loc, raw_scale, *others])


def _ours(problem: Problem, guide_of: Callable[[nn.Module], nn.Module]) -> Variant:
    model = problem.model()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "estimator='local' is biased")
        guide = guide_of(model).to(problem.image.device)
    model.train()
    guide.train()
    batch = problem.batch()

    def loss() -> Tensor:
        with pyro.validation_enabled(False):
            nll, kl = elbo_terms(model, guide, **batch, num_cases=NUM_CASES)
        return (total(nll) + total(kl)) / NUM_CASES

    parameters = [p for m in (model, guide) for p in m.parameters() if p.requires_grad]
    return from_loss(loss, parameters)


def mean_field(problem: Problem, estimator: Estimator) -> Variant:
    """``MeanFieldNormal`` with a gradient estimator."""
    return _ours(problem, lambda m: MeanFieldNormal(m, INIT_SCALE, estimator))


def dropout(problem: Problem) -> Variant:
    """``BernoulliDropout``, one mask an example."""
    return _ours(problem, lambda m: BernoulliDropout(m, 0.1))


def point_estimate(problem: Problem) -> Variant:
    """``PointEstimate``, maximum a posteriori."""
    return _ours(problem, PointEstimate)


class _Paced:
    """One batch over and over; each next one waits until the benchmark asks for a step.

    ``fit`` runs in a thread of its own and is timed from outside, by what it costs to get from one
    batch to the next.
    """

    def __init__(self, batch: dict[str, Tensor]) -> None:
        self.batch, self.num_cases = batch, NUM_CASES
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.error: BaseException | None = None
        self.closed = False

    def __len__(self) -> int:
        return 10**6

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        yield self.batch
        while True:
            self.done.release()
            self.go.acquire()
            if self.closed:
                raise RuntimeError("closed")
            yield self.batch

    def run(self, fit_once: Callable[[], Any]) -> None:
        """The thread."""
        try:
            fit_once()
        except BaseException as error:
            self.error = error
        self.done.release()

    def step(self) -> None:
        """One step of ``fit``, from batch to batch."""
        self.go.release()
        self.wait()

    def close(self) -> None:
        """End the thread, so that its model and guide can go."""
        self.closed = True
        self.go.release()
        self.done.acquire()

    def wait(self) -> None:
        """Until the step is done."""
        self.done.acquire()
        if self.error is not None:
            raise RuntimeError(f"fit stopped: {self.error}") from self.error


def inside_fit(problem: Problem, **options: Any) -> Variant:
    """The step as ``fit`` runs it: checks of the batch, schedule and history included."""
    model = problem.model()
    guide = MeanFieldNormal(model, INIT_SCALE, "shared")
    paced = _Paced(problem.batch())

    def fit_once() -> None:
        device = problem.image.device
        fit(model, guide, paced, schedule="cosine", device=device, progress=False, **options)

    threading.Thread(target=paced.run, args=(fit_once,), daemon=True).start()
    paced.wait()
    parameters = [p for m in (model, guide) for p in m.parameters() if p.requires_grad]
    return Variant(paced.step, None, parameters, close=paced.close)


class _Observed(PyroModule):
    """A network with ``PyroSample`` priors on every parameter but those of norm layers."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        net = problem.net()
        scales = _prior_scales(problem)
        modules = dict(net.named_modules())
        to_pyro_module_(net)
        for path, module in modules.items():
            if isinstance(module, DETERMINISTIC):
                continue
            for name, value in list(module.named_parameters(recurse=False)):
                scale = scales[f"{path}.{name}".lstrip(".")]
                prior = dist.Normal(torch.zeros_like(value.detach()), scale).to_event(value.dim())
                setattr(module, name, PyroSample(prior))
        self.net = net

    def forward(self, image: Tensor, target: Tensor | None = None) -> Tensor:
        """The program."""
        output = self.net(image)
        with pyro.plate("case", NUM_CASES, subsample=image):
            likelihood = dist.Categorical(logits=output.movedim(1, -1))
            pyro.sample("observed", likelihood.to_event(output.dim() - 2), obs=target)
        return output


def _prior_scales(problem: Problem) -> dict[str, Tensor]:
    weights: RandomWeights = problem.model().network  # type: ignore[assignment]
    return weights.layout.views(weights.prior_distribution().stddev_vector)


def _svi(problem: Problem, guide_of: Callable[[Any], Any], elbo: Any) -> Variant:
    """Stock Pyro: SVI, one optimizer a parameter, validation off, a parameter store of its own."""
    model = _Observed(problem).train()
    store = pyro.get_param_store()
    state: dict[str, Any] = {"params": {}, "constraints": {}}

    @contextlib.contextmanager
    def around() -> Any:
        with store.scope(state), pyro.validation_enabled(False):  # type: ignore[arg-type]
            yield

    with around():
        guide = guide_of(model)
        svi = SVI(model, guide, Adam({"lr": LEARNING_RATE}), elbo)
        arguments = (problem.image, problem.target)
        svi.step(*arguments)
        parameters = list(store.named_parameters())
    return Variant(
        lambda: svi.step(*arguments),
        lambda: elbo.loss_and_grads(model, guide, *arguments),
        [parameter for _, parameter in parameters],
        around,
    )


def autonormal(problem: Problem, elbo: Any) -> Variant:
    """``AutoNormal`` over ``PyroSample`` priors."""
    return _svi(problem, lambda model: AutoNormal(model, init_scale=1e-2), elbo)


def site_per_parameter(problem: Problem) -> Variant:
    """A guide by hand: one normal site a parameter, ``TraceMeanField_ELBO``."""

    def guide_of(model: Any) -> Callable[..., None]:
        trace = pyro.poutine.trace(model).get_trace(problem.image[:2])
        values = {n: s["value"].detach() for n, s in trace.nodes.items() if n.startswith("net.")}

        def guide(image: Tensor, target: Tensor | None = None) -> None:
            for name, value in values.items():
                loc = pyro.param(f"{name}.loc", value.clone)
                scale = pyro.param(
                    f"{name}.scale",
                    partial(torch.full_like, value, 1e-2),
                    constraint=dist.constraints.positive,
                )
                pyro.sample(name, dist.Normal(loc, scale).to_event(value.dim()))

        return guide

    return _svi(problem, guide_of, TraceMeanField_ELBO())


FLOOR, HAND = "deterministic", "mean-field by hand, flat"
VARIANTS: dict[str, Callable[[Problem], Variant]] = {
    FLOOR: deterministic,
    HAND: handwritten,
    "ppl_med mean-field, shared": lambda p: mean_field(p, "shared"),
    "ppl_med mean-field, shared, in fit": inside_fit,
    "ppl_med mean-field, auto": lambda p: mean_field(p, "auto"),
    "ppl_med mean-field, flipout": lambda p: mean_field(p, "flipout"),
    "ppl_med mean-field, local": lambda p: mean_field(p, "local"),
    "ppl_med Bernoulli dropout": dropout,
    "ppl_med point estimate": point_estimate,
    "Pyro AutoNormal, Trace_ELBO": lambda p: autonormal(p, Trace_ELBO()),
    "Pyro AutoNormal, TraceMeanField_ELBO": lambda p: autonormal(p, TraceMeanField_ELBO()),
    "Pyro site per parameter": site_per_parameter,
}
