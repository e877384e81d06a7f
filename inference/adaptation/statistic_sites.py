"""Programs whose BatchNorm statistics are sites, or those of each batch.

    mean_l, variance_l  =  sites of every BatchNorm layer l       of the source, unless proposed
    observation | image ~  the program, its layers normalising by them

The network of the program is the one that was trained, not a copy: it is left as it was after every
run, buffers included.
"""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ppl_med.programs.parameters import named_modules_of
from ppl_med.weights.call_cache import caching

MEAN, VARIANCE, WEIGHT, BIAS = "norm_mean", "norm_variance", "norm_weight", "norm_bias"
SHARE = "source_share"
Statistics = dict[str, tuple[Tensor, Tensor]]


def norm_layers(program: Any) -> dict[str, _BatchNorm]:
    """BatchNorm layers with running statistics of a program, by name.

    Raises:
        ValueError: If there are none.
    """
    found: dict[str, _BatchNorm] = {}
    for reached, owner in named_modules_of(program).items():
        for name, module in owner.named_modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                if module not in found.values():
                    found[".".join(filter(None, (reached, name))) or "norm"] = module
    if not found:
        raise ValueError(
            "model has no BatchNorm layer with running statistics, so there is nothing to adapt; "
            "nets with GroupNorm, LayerNorm or none normalise every image by itself already"
        )
    return found


@contextmanager
def normalising_by(layers: Mapping[str, _BatchNorm], values: Statistics) -> Iterator[None]:
    """Let layers normalise by given statistics in this block; layers without any keep their own."""
    before = {name: (one.running_mean, one.running_var) for name, one in layers.items()}
    try:
        for name, (mean, variance) in values.items():
            set_statistics(layers[name], mean, variance)
        yield
    finally:
        for name, (first, second) in before.items():
            layers[name]._buffers["running_mean"], layers[name]._buffers["running_var"] = (
                first,
                second,
            )


def set_statistics(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Let a layer normalise by these, in a block of ``normalising_by``, which restores its own."""
    own = layer.running_mean
    assert own is not None
    layer._buffers["running_mean"], layer._buffers["running_var"] = mean.to(own), variance.to(own)


@contextmanager
def scaling_by(layers: Mapping[str, _BatchNorm], values: Statistics) -> Iterator[None]:
    """Let layers scale and shift by given weights and biases in this block."""
    before = {name: dict(layers[name]._parameters) for name in values}
    try:
        for name, pair in values.items():
            parameters: dict[str, Any] = layers[name]._parameters
            parameters.update(zip(("weight", "bias"), pair, strict=True))
        yield
    finally:
        for name, own in before.items():
            layers[name]._parameters.update(own)


class _Wrapped(nn.Module):
    """A program with the arguments, names and attributes of another, which it runs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        original = model.forward if isinstance(model, nn.Module) else model
        own = type(self).run

        @functools.wraps(original)
        def forward(*inputs: Any, **options: Any) -> Any:
            return own(self, *inputs, **options)

        self.forward = forward

    def run(self, *inputs: Any, **options: Any) -> Any:
        """Run the program once."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


class StatisticSites(_Wrapped):
    """A program whose BatchNorm statistics are latent sites.

    Sites ``norm_mean.<layer>`` and ``norm_variance.<layer>``, dims (channel,), are those of the
    source under the model, and what the guide proposes under the guide.

    Args:
        model: A program with BatchNorm layers, trained.
        scales: Whether the weights and biases by which the layers scale and shift are sites too,
            ``norm_weight.<layer>`` and ``norm_bias.<layer>``.
        source_share: Parameters of the Beta prior of the site ``source_share``; None has no such
            site.

    Raises:
        ValueError: If it has none.
    """

    def __init__(
        self, model: Any, *, scales: bool = False, source_share: tuple[float, float] | None = None
    ) -> None:
        super().__init__(model)
        layers = norm_layers(model)
        self.norms = tuple(layers)
        self.scaled = tuple(scaled_layers(layers)) if scales else ()
        self.source_share = source_share

    def run(self, *inputs: Any, **options: Any) -> Any:
        """Run the program with the statistics of the sites."""
        layers = norm_layers(self.model)
        if self.source_share is not None:
            a, b = (torch.tensor(one) for one in self.source_share)
            pyro.sample(SHARE, dist.Beta(a, b))
        values = {
            name: (
                _site(f"{MEAN}.{name}", layers[name].running_mean),
                _site(f"{VARIANCE}.{name}", layers[name].running_var),
            )
            for name in self.norms
        }
        scales = {
            name: (
                _site(f"{WEIGHT}.{name}", layers[name].weight),
                _site(f"{BIAS}.{name}", layers[name].bias),
            )
            for name in self.scaled
        }
        # Outputs that `predict` keeps for all draws are those of one set of statistics.
        with normalising_by(layers, values), scaling_by(layers, scales), caching():
            return self.model(*inputs, **options)


class BatchStatistics(_Wrapped):
    """A program that normalises every batch by its own statistics.

    Predictions of a case then depend on the cases beside it: order and size of batches matter.
    ``predict`` refuses a batch of one case; the program itself, run on one image, normalises by the
    source's statistics.

    Args:
        model: A program with BatchNorm layers, trained.

    Raises:
        ValueError: If it has none.
    """

    least_cases = 2

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        norm_layers(model)

    def run(self, *inputs: Any, **options: Any) -> Any:
        """Run the program with the statistics of this batch."""
        layers = norm_layers(self.model)
        image = next(value for value in (*inputs, *options.values()) if isinstance(value, Tensor))
        with nullcontext() if len(image) < self.least_cases else by_batch(layers):
            return self.model(*inputs, **options)


@contextmanager
def by_batch(layers: Mapping[str, _BatchNorm]) -> Iterator[None]:
    """Let layers normalise by the batch, their running statistics staying as they are."""
    before = {name: (one.training, one.track_running_stats) for name, one in layers.items()}
    held = {name: dict(one._buffers) for name, one in layers.items()}
    try:
        for one in layers.values():
            one.training, one.track_running_stats = True, False
            one._buffers["running_mean"] = one._buffers["running_var"] = None
        yield
    finally:
        for name, one in layers.items():
            one.training, one.track_running_stats = before[name]
            one._buffers.update(held[name])


def _site(name: str, source: Tensor | None) -> Tensor:
    assert source is not None
    return pyro.sample(name, dist.Delta(source.detach()).to_event(1))


def as_sites(values: Statistics, scales: Statistics | None = None) -> dict[str, Tensor]:
    """Values of the sites of ``StatisticSites``."""
    found = {}
    for name, (mean, variance) in values.items():
        found[f"{MEAN}.{name}"], found[f"{VARIANCE}.{name}"] = mean, variance
    for name, (weight, bias) in (scales or {}).items():
        found[f"{WEIGHT}.{name}"], found[f"{BIAS}.{name}"] = weight, bias
    return found


def scaled_layers(layers: Mapping[str, _BatchNorm]) -> dict[str, _BatchNorm]:
    """Those that scale and shift by parameters.

    Raises:
        ValueError: If there are none.
    """
    found = {name: one for name, one in layers.items() if one.affine}
    if not found:
        raise ValueError(
            "no BatchNorm layer of the model scales and shifts (affine=False), so entropy has "
            "nothing to change; use adapt"
        )
    return found


def source_statistics(layers: Mapping[str, _BatchNorm]) -> Statistics:
    """What the layers hold, float64."""
    found: Statistics = {}
    for name, one in layers.items():
        assert isinstance(one.running_mean, Tensor) and isinstance(one.running_var, Tensor)
        found[name] = one.running_mean.detach().double(), one.running_var.detach().double()
    return found


def pooled(source: Statistics, domain: Statistics, share: float) -> Statistics:
    """Statistics of ``share`` source cases and ``1 - share`` of the domain, taken together.

    The variance counts the distance of the means too, as that of the pooled cases does.
    """
    found: Statistics = {}
    for name, (mean, variance) in domain.items():
        first, spread = (one.to(mean) for one in source[name])
        apart = share * (1 - share) * torch.square(first - mean)
        found[name] = (
            share * first + (1 - share) * mean,
            share * spread + (1 - share) * variance + apart,
        )
    return found
