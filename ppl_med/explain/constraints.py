"""Training under constraints on the attribution: right for the right reasons.

    weights, z       ~  as the wrapped program says
    label | image    ~  as the wrapped program says
    factor           =  exp(-loss of the attribution of the case)         one per case

A loss of the input gradient multiplies the joint density, so what is learned is the generalised
(Gibbs) posterior

    p(weights) * product over cases of p(label | image, weights) exp(-loss(image, label; weights))

divided by its integral (Bissiri, Holmes and Walker, Journal of the Royal Statistical Society B 78,
2016). It moves belief towards functions whose attribution is as demanded, and the ``weight`` of a
constraint is how much one case of it counts against one label, in nats. A squared gradient is the
log-density of a pseudo-observation: "this gradient was seen to be 0, with a normal error of
variance 1 / (2 weight)". The ELBO of the history bounds no evidence of the labels, and leaving
cases out by their weights (PSIS-LOO) is refused, as for other trained losses.

The factor stands in the plate of cases, so that of a mini-batch is scaled by num_cases /
len(image) and unbiased. It is there in training, with labels; prediction is the wrapped program's.
The attribution is that of one function: estimators that give every example weights of its own
(flipout, local reparameterization, masks per example) draw once for the batch here.

References: Ross, Hughes and Doshi-Velez, "Right for the right reasons", IJCAI 2017, eq. 2;
Sdika, "Uncertainties and explainability" (lecture): "image is healthy => no positive attribution".
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ppl_med.checks import choice, finite, reject
from ppl_med.explain.attribution.score import class_logits
from ppl_med.programs import protocol
from ppl_med.weights.estimators import SharedWeightDraw

RightScore = Literal["sum_of_log_probabilities", "log_odds"]
SITE = "attribution_constraint"


@runtime_checkable
class Constraint(Protocol):
    """A loss of the input gradient, with a name for history and predictions.

    ``needs_mask`` says whether batches must say which pixels are irrelevant.
    """

    name: str
    needs_mask: bool

    def loss(self, logits: Tensor, image: Tensor, label: Tensor, irrelevant: Any) -> Tensor:
        """The loss in nats, dims (case,), with its graph.

        Args:
            logits: Of all classes, dims (case, class).
            image: What they are differentiated by, dims (case, channel, *space).
            label: Classes, dims (case,).
            irrelevant: Mask of pixels without evidence, dims (case, *space), or None.
        """
        ...


class NoPositiveAttribution:
    """Images of the healthy class must show no evidence of the other.

        weight * sum over pixels of max(a, 0)   for cases of the class ``healthy``, 0 for others
        a = (image - baseline) * gradient of the log-odds of ``target``

    Args:
        weight: Weight of the loss, in nats per unit of log-odds; 0 or more.
        healthy: Class whose images are constrained.
        target: Class whose evidence must not be there.
        baseline: Intensity without evidence.

    Raises:
        ValueError: If the weight is negative or the two classes are the same.
    """

    needs_mask = False

    def __init__(
        self, weight: float, healthy: int = 0, target: int = 1, baseline: float = 0.0
    ) -> None:
        self.weight = finite("weight", weight, 0)
        if healthy == target:
            reject("healthy", "another class than target", healthy)
        self.healthy, self.target, self.baseline = healthy, target, baseline
        self.name = f"no positive attribution in class {healthy}, weight {weight:g}"

    def loss(self, logits: Tensor, image: Tensor, label: Tensor, irrelevant: Any) -> Tensor:
        """As in ``Constraint``."""
        gradient = _gradient(_log_odds(logits, torch.full_like(label, self.target)), image)
        positive = ((image.detach() - self.baseline) * gradient).clamp(min=0).flatten(1).sum(1)
        return self.weight * positive * (label == self.healthy)


class RightReasons:
    """Pixels that are known to hold no evidence must not move the output (Ross et al. 2017).

        weight * sum over irrelevant pixels of (gradient of the score)^2

    Args:
        weight: Weight of the loss, in nats times intensity squared; 0 or more.
        score: ``"sum_of_log_probabilities"`` over the classes, as published, whose gradient is 0
            where all classes are equally probable; or ``"log_odds"`` of the label's class, which
            no probability saturates.

    Raises:
        ValueError: If the weight is negative or the score unknown.
    """

    needs_mask = True

    def __init__(self, weight: float, score: RightScore = "sum_of_log_probabilities") -> None:
        choice("score", score, get_args(RightScore))
        self.weight, self.score = finite("weight", weight, 0), score
        self.name = f"right reasons by {score}, weight {weight:g}"

    def loss(self, logits: Tensor, image: Tensor, label: Tensor, irrelevant: Any) -> Tensor:
        """As in ``Constraint``."""
        published = self.score == "sum_of_log_probabilities"
        score = logits.log_softmax(1).sum(1) if published else _log_odds(logits, label)
        squares = _gradient(score, image).square().sum(1)
        return self.weight * (irrelevant.to(squares) * squares).flatten(1).sum(1)


class AttributionConstrained(nn.Module):
    """A classifier's program with factors of its attribution; takes every guide of the classifier.

    Args:
        model: A Pyro program ``model(image, label=None, *, num_cases=None)`` that returns logits
            (case, class), or one logit, such as ``BayesianClassifier`` or ``LatentClassifier``.
        constraints: ``NoPositiveAttribution``, ``RightReasons``, or others with their methods.

    Raises:
        ValueError: If there is no constraint.
    """

    training_inputs = ("irrelevant",)

    def __init__(self, model: nn.Module, constraints: Sequence[Constraint]) -> None:
        super().__init__()
        if not constraints:
            raise ValueError("constraints is empty; give one, such as RightReasons(10.0)")
        self.model, self.constraints = model, list(constraints)
        self.coords = protocol.coords(model)
        self.in_channels = protocol.in_channels(model)
        self.training_loss = "; ".join(constraint.name for constraint in self.constraints)

    @property
    def likelihood(self) -> Any:
        """The wrapped program's likelihood, None where it has none."""
        return protocol.likelihood(self.model)

    def forward(
        self,
        image: Tensor,
        label: Tensor | None = None,
        irrelevant: Tensor | None = None,
        *,
        num_cases: int | None = None,
    ) -> Tensor:
        """Run the program once; in training with labels, multiply the factors.

        Args:
            image: A batch of images, dims (case, channel, *space).
            label: Observed classes, dims (case,); None draws them.
            irrelevant: Pixels known to hold no evidence, dims (case, *space), bool or weights from
                0; a case of zeros is not constrained. Used in training by ``RightReasons``.
            num_cases: Size of the whole data set when ``image`` is a mini-batch of it.

        Raises:
            ValueError: In training, if a needed mask is missing or has another shape, if BatchNorm
                mixes the cases, or if the program returns no logits (case, class).
        """
        if label is None or not self.training:
            return self.model(image, label, num_cases=num_cases)
        self._check(image, irrelevant)
        with torch.enable_grad(), SharedWeightDraw():
            leaf = image.detach().clone().requires_grad_()
            output = self.model(leaf.clone(), label, num_cases=num_cases)
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            if not isinstance(got, tuple) or len(got) != 2 or got[:1] != tuple(label.shape):
                raise ValueError(
                    f"the model returned {got}; constraints need logits (case, class) of one draw, "
                    "so train a classifier with objective=Elbo()"
                )
            logits = class_logits(protocol.prediction(self.model, output))
            losses = [c.loss(logits, leaf, label, irrelevant) for c in self.constraints]
        with poutine.block(hide=["case"]):  # the program has stated this plate itself
            plate = pyro.plate("case", num_cases or len(image), subsample=image)
        with plate:
            pyro.factor(SITE, -torch.stack(losses).sum(0))
        return output

    def _check(self, image: Tensor, irrelevant: Tensor | None) -> None:
        for name, module in self.model.named_modules():
            if isinstance(module, _BatchNorm) and module.training:
                raise ValueError(
                    f"BatchNorm {name!r} mixes the cases of a batch, so an input gradient belongs "
                    "to no one case; build the model with batch_norm='frozen', or use GroupNorm"
                )
        if not any(constraint.needs_mask for constraint in self.constraints):
            return
        wanted = (len(image), *image.shape[2:])
        if irrelevant is None or tuple(irrelevant.shape) != wanted:
            got = "missing" if irrelevant is None else f"of shape {tuple(irrelevant.shape)}"
            raise ValueError(
                f"irrelevant is {got}; RightReasons needs a mask {wanted} in every training batch, "
                "1 where a pixel holds no evidence"
            )


def _log_odds(logits: Tensor, target: Tensor) -> Tensor:
    """Of a class against all others, dims (case,)."""
    at = target[:, None]
    others = logits.scatter(1, at, -math.inf).logsumexp(1)
    return logits.gather(1, at)[:, 0] - others


def _gradient(score: Tensor, image: Tensor) -> Tensor:
    return torch.autograd.grad(score.sum(), image, create_graph=True)[0]
