"""Likelihoods of classes: one per case, or one per pixel."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution, constraints

from ppl_med.checks import different_names, reject
from ppl_med.likelihoods.interface import Likelihood, observe, precision
from ppl_med.likelihoods.loss_distribution import ClassLoss, Loss, log_prob_of
from ppl_med.likelihoods.stored import IntegerBernoulli, site_logits

Weights = Sequence[float] | Mapping[str, float] | NDArray[Any] | Tensor


class MapCategorical(dist.Categorical):
    """Categorical of every pixel: as Pyro's, but faster where classes lie apart in memory."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability in nats."""
        if value.shape != self.logits.shape[:-1]:
            found: Tensor = super().log_prob(value)
            return found
        if self._validate_args:
            self._validate_sample(value)
        return log_prob_of(self.logits, value.long())


class PartialCategorical(dist.Categorical):
    """Categorical whose value -1 means "not observed" and has log-density 0."""

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """Integers from -1 to K-1."""
        return constraints.integer_interval(-1, self._num_events - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability in nats; 0 where the value is -1."""
        shape = torch.broadcast_shapes(value.shape, self.logits.shape[:-1])
        label = value.long().clamp(min=0).expand(shape)
        log_prob = log_prob_of(self.logits.expand(*shape, -1), label)
        return torch.where(value < 0, torch.zeros_like(log_prob), log_prob)


class ClassLikelihood(Likelihood):
    """A likelihood of K classes.

    Attributes:
        classes: Class names.
    """

    classes: tuple[str, ...]

    @property
    def num_outputs(self) -> int:
        """Channels that the network must have: one per class."""
        return len(self.classes)

    @property
    def coords(self) -> dict[str, list[Any]]:
        """The class names."""
        return {"class": list(self.classes)}

    def prediction(self, output: Tensor) -> Tensor:
        """As in ``Likelihood``: the network's own logits where they are those of the site."""
        if type(self).distribution in (Categorical.distribution, Bernoulli.distribution):
            return output
        logits = site_logits(self.distribution(output))
        assert logits is not None
        return logits

    def class_last(self, output: Tensor) -> Tensor:
        """The output with its classes on the last axis, dims (..., *event, class)."""
        return output.movedim(-1 - len(self.event), -1)

    def categorical(self, logits: Tensor) -> Any:
        """The categorical of some logits (..., *event, class), with missing labels if partial."""
        if self.event:
            kind = PartialCategorical if self.partial else MapCategorical
            return _of_map(kind, logits, len(self.event))
        return (PartialCategorical if self.partial else dist.Categorical)(logits=logits)


class Categorical(ClassLikelihood):
    """One of K classes: ``label ~ Categorical(softmax(logits))``.

    Log-densities are summed over the event axes: that is what one observation of a whole map is,
    and a mean over pixels in its place makes posterior collapse optimal in models with a latent.

    Args:
        classes: Class names, K >= 2 of them.
        event: Names of the axes after the class axis, such as ("row", "col") for one class per
            pixel.
        site: Name of the observed site.
        partial: Whether a value of -1 says that an entry was not observed; it then has no
            influence.
        class_weights: w, one per class or by class name, above 0 (``balanced_weights`` of the
            training labels gives such): training takes ``w_y log p_y`` for the label y,
            as for classes that are rare. That is a loss and no density (see ``class_loss``): the
            posterior is a generalised one, and its probabilities are those of a population in which
            class k is w_k times as frequent. Log-likelihoods at prediction are not weighted. None
            for ones.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        classes: Sequence[str],
        event: Sequence[str] = (),
        site: str = "label",
        *,
        partial: bool = False,
        class_weights: Weights | None = None,
    ) -> None:
        super().__init__()
        self.classes = different_names("classes", classes, least=2)
        self.event, self.site, self.partial = tuple(event), site, partial
        weights = _weights(class_weights, self.classes)
        self.register_buffer("class_weights", weights, persistent=False)
        if weights is not None:
            named = " ".join(f"{weight:g}" for weight in weights.tolist())
            self.training_loss = f"log-probability, weighted {named}"

    def forward(self, output: Tensor, value: Tensor | None) -> None:
        """Observe the site; in training with class weights, by the weighted loss."""
        if self.class_weights is None or not self.training or value is None:
            super().forward(output, value)
        else:
            self.observe_by_loss(output, value, self.weighted_loss)

    def observe_by_loss(self, output: Tensor, value: Tensor, loss: Loss) -> None:
        """Observe the site by a loss in the place of its log-probability."""
        logits = self.class_last(output).to(precision(output, training=True))
        observe(self.site, ClassLoss(logits, loss, partial=self.partial), self.event, value)

    def weighted_loss(self, logits: Tensor, label: Tensor, seen: Tensor) -> Tensor:
        """Minus the weighted log-probability of every entry, in nats."""
        assert self.class_weights is not None
        return -self.class_weights[label] * log_prob_of(logits.log_softmax(-1), label)

    def distribution(self, output: Tensor) -> Any:
        """Categorical of the logits."""
        return self.categorical(self.class_last(output))


class Bernoulli(ClassLikelihood):
    """Two classes from one logit: ``label ~ Bernoulli(sigmoid(logit))``.

    Args:
        classes: The two names, the negative one first.
        event: Names of the axes after the channel axis.
        site: Name of the observed site.
    """

    num_outputs = 1

    def __init__(
        self, classes: Sequence[str], event: Sequence[str] = (), site: str = "label"
    ) -> None:
        super().__init__()
        self.classes = different_names("classes", classes, least=2)
        if len(classes) != 2:
            raise ValueError(f"Bernoulli takes two classes, got {len(classes)}: {list(classes)}")
        self.event, self.site = tuple(event), site

    def distribution(self, output: Tensor) -> Any:
        """Bernoulli of the logit of the second class."""
        return IntegerBernoulli(logits=output.squeeze(-1 - len(self.event)))


def _of_map(kind: type[dist.Categorical], logits: Tensor, num_axes: int) -> dist.Categorical:
    """``kind(logits=logits)`` of a map, dims (..., *event, class), in half the time.

    The distribution's own ``logsumexp`` is slow where the classes of a pixel lie apart in memory,
    as a network gives them; a log-softmax along the axis where they stood is not.
    """
    axis = logits.dim() - 1 - num_axes
    found: Any = kind.__new__(kind)
    found.logits = found._param = logits.movedim(-1, axis).log_softmax(axis).movedim(axis, -1)
    found._num_events = logits.shape[-1]
    Distribution.__init__(found, logits.shape[:-1])
    return found


def _weights(weights: Weights | None, classes: Sequence[str]) -> Tensor | None:
    if weights is None:
        return None
    if isinstance(weights, Mapping):
        if set(weights) != set(classes):
            reject("class_weights", f"a number for each of {list(classes)}", dict(weights))
        weights = [weights[name] for name in classes]
    if len(weights) != len(classes) or not all(math.isfinite(w) and w > 0 for w in weights):
        raise ValueError(
            f"class_weights must be {len(classes)} numbers above 0, one per class, got {weights!r}"
        )
    return torch.tensor([float(weight) for weight in weights])


def balanced_weights(label: Any, num_classes: int) -> list[float]:
    """Class weights by which every class weighs the same: N / (K N_k) for the N_k labels k of N.

    Over the labels they average 1, so that the data weigh as much against the prior as before.

    Args:
        label: Training labels or masks, integers; -1 for what was not observed.
        num_classes: K.

    Raises:
        ValueError: If a class has no label, or a label no class.
    """
    flat = torch.as_tensor(label).reshape(-1)
    counts = flat[flat >= 0].long().bincount(minlength=num_classes).tolist()
    if len(counts) > num_classes or 0 in counts:
        raise ValueError(
            f"label must have each of the classes 0 to {num_classes - 1} and no other, got counts "
            f"{counts}; give class_weights by hand, or leave the class out"
        )
    return [sum(counts) / (num_classes * count) for count in counts]
