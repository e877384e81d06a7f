"""All images of a domain, seen by one pair of model and guide.

Layer by layer in the order in which they run: with everything before it adapted, the inputs of a
layer over all batches are summed up, channel by channel, in float64,

    mean = sum x / n        variance = sum x^2 / n - mean^2

so the variance between batches counts, and the result is exactly what BatchNorm in training mode
gives on the whole domain as one batch. A domain that is one batch needs one pass.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ppl_med.checks import reject
from ppl_med.data.reversible import Augmentation, check_augmentations, symmetries
from ppl_med.inference.adaptation.statistic_sites import (
    Statistics,
    norm_layers,
    normalising_by,
    pooled,
    scaling_by,
    set_statistics,
    source_statistics,
)
from ppl_med.inference.batches import first_batch
from ppl_med.inference.prediction.posterior_sampler import PosteriorSampler
from ppl_med.likelihoods import site_logits
from ppl_med.likelihoods.stored import class_logits
from ppl_med.programs.isolation import preserved_state
from ppl_med.programs.parameters import move, set_mode
from ppl_med.programs.sites import (
    batch_size,
    select_arguments,
    to_device,
    without_observations,
)


class _Found(Exception):
    """Nothing after this layer is needed."""


class Domain:
    """All images of a domain, seen by one pair.

    Args:
        pair: Model and guide, which are moved to the device and left in evaluation mode.
        batches: Images of the domain.
        device: Where to run.
        seed: Seed of all draws.
        chain: Index of the pair.
        bar: Told of every batch.

    Raises:
        ValueError: The model has no BatchNorm or runs a layer of it twice, the guide proposes
            latents of every case, or the domain has one case.
    """

    def __init__(
        self,
        pair: tuple[Any, Any],
        batches: Any,
        device: torch.device,
        seed: int,
        chain: int,
        bar: Any,
    ) -> None:
        self.pair, self.batches, self.device, self.bar = pair, batches, device, bar
        self.layers = norm_layers(pair[0])
        move(pair, device)
        set_mode(pair, False)
        first = to_device(select_arguments(pair[0], first_batch(batches)), device)
        one = {n: v[:1] if isinstance(v, Tensor) else v for n, v in first.items()}
        with preserved_state(*pair), torch.no_grad():
            bare = without_observations(pair[0], one)
        self.names = set(bare)
        self.sampler = PosteriorSampler(*pair, bare, seed, chain)
        if self.sampler.guide_has_local:
            raise ValueError(
                "guide proposes latents of every case (a conditional guide), which is not adapted; "
                "adapt a model whose weights are random, or its network alone"
            )
        sizes = [batch_size(self.images(batch)) for batch in batches]
        self.num_batches, self.num_cases = len(sizes), sum(sizes)
        if self.num_cases < 2:
            raise ValueError("batches hold one case: a domain needs two or more")
        self._check_calls(bare)

    def _check_calls(self, example: dict[str, Any]) -> None:
        """Raise where one pass runs a layer twice: one set of statistics is not two."""
        with preserved_state(*self.pair), torch.no_grad(), _counting(self.layers) as calls:
            self.sampler.run(self.sampler.draw(0), 0, example, np.zeros(1, dtype=int))
        several = sorted(name for name, number in calls.items() if number > 1)
        if several:
            raise ValueError(
                f"the BatchNorm layers {several} run more than once in a pass, on inputs with "
                "statistics of their own, so that no one set suits all; give every place in the "
                'network its own layer and train it, or adapt with statistics="batch"'
            )

    def statistics(self, draw: int, share: float, scales: Statistics | None = None) -> Statistics:
        """Statistics of every layer, in the order in which they run.

        Args:
            draw: Whose weights the network has.
            share: Of the source.
            scales: Weights and biases of layers in the place of their own.
        """
        source, found = source_statistics(self.layers), Statistics()
        values = self.sampler.draw(draw)
        waiting = dict(self.layers)
        with preserved_state(*self.pair), torch.no_grad(), scaling_by(self.layers, scales or {}):
            if self.num_batches == 1:
                return self._at_once(values, draw, share)
            while waiting:
                name, own = self._next(values, draw, waiting, found)
                found |= pooled(source, {name: own}, share)
                del waiting[name]
        return found

    def _at_once(self, values: dict[str, Tensor], draw: int, share: float) -> Statistics:
        """Statistics of every layer in one pass, where all images are one batch."""
        source, found = source_statistics(self.layers), Statistics()

        def hook_of(name: str) -> Any:
            def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                one = pooled(source, {name: _moments(_sums(inputs[0]))}, share)
                found.update(one)
                set_statistics(self.layers[name], *one[name])

            return hook

        for inputs, cases in self.passed():
            with normalising_by(self.layers, {}), _hooked(self.layers, hook_of):
                self.sampler.run(values, draw, inputs, cases)
        self.bar.update(len(self.layers) - 1)
        self._check_run(set(self.layers) - set(found))
        return found

    def _check_run(self, waiting: Iterable[str]) -> None:
        """Raise where layers do not run."""
        if waiting:
            raise ValueError(
                f"the BatchNorm layers {sorted(waiting)} do not run when the model "
                "predicts; they cannot be adapted"
            )

    def _next(
        self,
        values: dict[str, Tensor],
        draw: int,
        waiting: Mapping[str, _BatchNorm],
        known: Statistics,
    ) -> tuple[str, tuple[Tensor, Tensor]]:
        """The layer that runs first among those that wait, and the statistics of its inputs."""
        sums: dict[str, list[Any]] = {}
        for inputs, cases in self.passed():
            with _summing(waiting, sums), normalising_by(self.layers, known):
                try:
                    self.sampler.run(values, draw, inputs, cases)
                except _Found:
                    pass
                else:
                    self._check_run(waiting)
        if len(sums) != 1:
            raise ValueError(
                f"the layers {sorted(sums)} run in another order from batch to batch; the network "
                "must do the same with every batch"
            )
        name, found = next(iter(sums.items()))
        return name, _moments(found)

    def information(
        self, draw: int, statistics: Statistics, views: Sequence[Augmentation]
    ) -> tuple[float, float]:
        """What predictions tell of the class, and how much of it is by the view alone, in nats.

        Over all places (cases, or pixels) and views v, with p_v a prediction and p its mean over
        the views of a place: H(mean p) - mean H(p), high where each place is certain and all
        classes are in use; and mean H(p) - mean H(p_v), 0 where the views agree.
        """
        values = self.sampler.draw(draw)
        mean: Any = 0.0
        entropies, number = np.zeros(2), 0
        with preserved_state(*self.pair), torch.no_grad():
            for inputs, cases in self.passed():
                with normalising_by(self.layers, statistics):
                    found = self.views(values, draw, inputs, cases, views)
                found = [one.double() for one in found]
                probs = torch.stack(found).exp().mean(0)
                apart = torch.stack([entropy_of(one) for one in found]).mean(0)
                own = entropy_of(probs.clamp(min=1e-300).log())
                entropies += float(own.sum()), float((own - apart).sum())
                number += own.numel()
                mean = mean + probs.sum((0, *range(2, probs.ndim)))
        mean = mean / number
        total = float(entropy_of(mean.clamp(min=1e-300).log(), 0))
        return total - entropies[0] / number, float(entropies[1] / number)

    def views(
        self,
        values: dict[str, Tensor],
        draw: int,
        inputs: dict[str, Any],
        cases: np.ndarray,
        views: Sequence[Augmentation],
    ) -> list[Tensor]:
        """Log-probabilities of the images under every augmentation, maps moved back.

        Raises:
            ValueError: A view of a model of maps cannot be undone, or not at every pixel.
        """
        found = []
        for one in views:
            seen = inputs | {"image": one.move(inputs["image"], int(cases[0]))}
            own = self.log_probs(values, draw, seen, cases)
            if own.ndim > 2:
                own = one.undo(own) if one.undo is not None else own * torch.nan
                if not own.isfinite().all():
                    raise ValueError(
                        f"view {one.name!r} cannot be undone at every pixel, and the model "
                        "predicts maps: use symmetries(2), symmetries(4) or symmetries(8)"
                    )
            found.append(own)
        return found

    def log_probs(
        self, values: dict[str, Tensor], draw: int, inputs: dict[str, Any], cases: np.ndarray
    ) -> Tensor:
        """Log-probabilities of the observed site, dims (case, class, *space).

        Raises:
            ValueError: The model has no site of classes.
        """
        nodes: dict[str, Any] = dict(self.sampler.run(values, draw, inputs, cases).nodes)
        for name in self.sampler.observed:
            logits = site_logits(nodes[name]["fn"])
            if logits is not None:
                return class_logits(logits).log_softmax(1)
        raise ValueError(
            "model has no site of classes, whose entropy could be measured; adapt its statistics "
            "by adapt without evidence"
        )

    def passed(self) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        """One pass over the domain: what the program reads of each batch, and its positions."""
        position = 0
        for batch in self.batches:
            inputs = self.images(batch)
            cases = np.arange(position, position + batch_size(inputs))
            position += len(cases)
            self.bar.update()
            yield inputs, cases

    def images(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What the program reads of a batch, without observations, on the device."""
        chosen = select_arguments(self.pair[0], batch)
        return to_device({n: v for n, v in chosen.items() if n in self.names}, self.device)


def checked_views(views: Any) -> list[Augmentation]:
    """Augmentations whose predictions can be compared; a ValueError unless there are two."""
    found = check_augmentations(symmetries(2) if views is None else views)
    if len(found) < 2:
        reject("views", "two augmentations or more, such as symmetries(2)", views)
    return found


def entropy_of(log_probs: Tensor, dim: int = 1) -> Tensor:
    """Entropy over the classes, nats; log-probabilities hold no -inf."""
    return -(log_probs.exp() * log_probs).sum(dim)


def _sums(value: Tensor) -> list[Any]:
    """Count, sum and sum of squares of every channel, float64."""
    flat = value.detach().double().transpose(0, 1).flatten(1)
    return [flat.shape[1], flat.sum(1), flat.square().sum(1)]


def _moments(sums: list[Any]) -> tuple[Tensor, Tensor]:
    """Mean and variance from sums."""
    count, total, squares = sums
    mean = total / count
    return mean, (squares / count - mean.square()).clamp(min=0)


@contextmanager
def _hooked(layers: Mapping[str, _BatchNorm], hook_of: Any) -> Iterator[None]:
    """Run ``hook_of(name)`` before every run of these layers."""
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(hook_of(name)).remove)
        yield


@contextmanager
def _counting(layers: Mapping[str, _BatchNorm]) -> Iterator[Counter[str]]:
    """Count how often each of these layers runs."""
    calls: Counter[str] = Counter()

    def hook_of(name: str) -> Any:
        return lambda *_: calls.update([name])

    with _hooked(layers, hook_of):
        yield calls


@contextmanager
def _summing(waiting: Mapping[str, _BatchNorm], sums: dict[str, list[Any]]) -> Iterator[None]:
    """Add up the inputs of the first of these layers that runs, and stop there."""

    def hook_of(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            own = _sums(inputs[0])
            sums[name] = (
                [a + b for a, b in zip(sums[name], own, strict=True)] if name in sums else own
            )
            raise _Found

        return hook

    with _hooked(waiting, hook_of):
        yield
