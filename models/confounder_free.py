"""Confounder-free classifier: its features predict the class and not a confounder.

Program:

    weights             ~  prior                                      of features and predictor
    f                   =  features(image; weights)                   per case
    label | image       ~  Categorical(softmax(predictor(f; weights)))    per case
    factor              =  exp(-weight * r²)                          per case, in training
    r                   =  correlation(adversary(f), confounder)      over the controls of the batch

Sites and their dimensions: weights (weight), no unit; label (case), integer in 0..K-1.

The factor is a loss and no density: with its ``weight`` in nats per case, what is learned is the
generalised (Gibbs) posterior p(weights) * likelihood * exp(-weight * num_cases * r²), which moves
belief towards functions from whose features the adversary cannot tell the confounder. The ELBO of
the history bounds no evidence of the labels, and leaving cases out by their weights is refused.

The adversary is a net with parameters of its own and no prior. They are trained against the ELBO:
their gradients are reversed, so that one step of one optimizer makes the features worse for the
adversary and the adversary better at what is left. It sees the controls only, cases of one class,
in which the disease cannot be the reason for a dependence. r² of a mini-batch of m controls is
above 0 for independent variables, by 1 / (m - 1) for an adversary that has not learned the batch;
use batches with many controls, and confounder values that differ among them.

Input: ``image`` (case, channel, row, col) or (case, channel, depth, row, col), float;
``confounder`` (case), a number or 0 and 1, needed in training.

Reference: Zhao, Adeli and Pohl, "Training confounder-free deep learning models for medical
applications", Nature Communications 11, 2020. Departs from it in that one optimizer makes all
three updates at once, by a reversed gradient (Ganin et al., JMLR 17, 2016).
"""

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppl_med.checks import finite, whole
from ppl_med.likelihoods import ClassLikelihood, class_likelihood
from ppl_med.weights import Prior, RandomWeights, Where
from ppl_med.weights.estimators import SharedWeightDraw
from ppl_med.weights.tied_parameters import call_with

SITE = "confounder_adversary"
_SMALL = 1e-6  # of a variance, beside which a batch's counts as constant


class ConfounderFreeClassifier(nn.Module):
    """The joint p(label, weights | image) of a network, with an adversary on its features.

    Takes every guide of ``BayesianClassifier``. In prediction it is that model.

    Args:
        features: Network from images to features (case, feature), or (case, ...), flattened.
        predictor: Network from the output of ``features`` to logits (case, class).
        classes: Class names, in the order of the labels.
        num_features: Features of a case, flattened.
        adversary: Network from flattened features (case, feature) to one number (case, 1). By
            default two layers, of 32 units; a constant added to its output would change nothing.
        weight: Weight of the factor, in nats per case; at 0 it acts on neither adversary nor model.
        control: Class whose cases the adversary sees.
        prior: Prior over the random weights; He-scaled normals by default.
        where: Which parameters are random; names start with ``features.`` or ``predictor.``; see
            ``RandomWeights``.
        likelihood: As in ``BayesianClassifier``.

    Raises:
        ValueError: If the classes or the likelihood do not fit, the weight is negative or the
            control is not a class; on a run, if the output does not fit the classes, or in training
            with labels, if the confounder is missing or has another shape.
    """

    training_inputs = ("confounder",)

    def __init__(
        self,
        features: nn.Module,
        predictor: nn.Module,
        classes: Sequence[str],
        num_features: int,
        adversary: nn.Module | None = None,
        *,
        weight: float = 1.0,
        control: int = 0,
        prior: Prior | None = None,
        where: Where = None,
        likelihood: str | ClassLikelihood = "categorical",
    ) -> None:
        super().__init__()
        self.weight = finite("weight", weight, 0)
        self.control = whole("control", control, 0, len(classes) - 1)
        self.network = RandomWeights(_Tapped(features, predictor), prior, where)
        self.likelihood = class_likelihood(likelihood, classes, (), "label")
        self.num_features = num_features
        self.adversary = adversary or nn.Sequential(
            nn.Linear(num_features, 32), nn.LeakyReLU(0.1), nn.Linear(32, 1, bias=False)
        )
        self.coords = {"class": list(classes)}
        self.training_loss = f"adversary of a confounder within class {control}, weight {weight:g}"

    def forward(
        self,
        image: Tensor,
        label: Tensor | None = None,
        confounder: Tensor | None = None,
        *,
        num_cases: int | None = None,
    ) -> Tensor:
        """Run once, conditioned on ``label`` if given: logits, dims (case, class).

        Args:
            image: A batch of images, dims (case, channel, row, col) or (…, depth, row, col).
            label: Observed classes, dims (case,), integers; None draws them.
            confounder: Dims (case,), finite numbers; in training those of controls count.
            num_cases: Size of the whole data set when ``image`` is a mini-batch of it.
        """
        if label is None or not self.training:
            logits, _ = self._parts(image)
            loss = None
        else:
            if confounder is None or confounder.shape != label.shape:
                got = "missing" if confounder is None else f"of shape {tuple(confounder.shape)}"
                raise ValueError(
                    f"confounder is {got}; every training batch needs one number per case, "
                    f"({len(image)},)"
                )
            with SharedWeightDraw():
                logits, features = self._parts(image)
            loss = self.weight * self.squared_correlation(features, label, confounder)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            self.likelihood(logits, label)
            if loss is not None:
                pyro.factor(SITE, -loss.expand(len(image)))
        return logits

    def squared_correlation(self, features: Tensor, label: Tensor, confounder: Tensor) -> Tensor:
        """r² of the adversary's output and the confounder among the controls of a batch, 0 to 1.

        It is 0 where the confounder is the same in all controls; the adversary's parameters get its
        gradient reversed.

        Args:
            features: Dims (case, feature).
            label: Classes, dims (case,).
            confounder: Dims (case,).
        """
        reversed_weights = {
            name: _Reversed.apply(parameter)
            for name, parameter in self.adversary.named_parameters()
        }
        output = call_with(self.adversary, reversed_weights, (features,))[:, 0].float()
        chosen = (label == self.control).to(output)
        share = chosen / chosen.sum().clamp(min=1)
        left = output - (share * output).sum()
        right = confounder.to(output)
        right = right - (share * right).sum()
        covariance = (share * left * right).sum()
        variances = (share * left.square()).sum(), (share * right.square()).sum()
        return covariance.square() / ((variances[0] + _SMALL) * (variances[1] + _SMALL))

    def feature_program(self) -> nn.Module:
        """A program that returns features (case, feature) instead of logits.

        ``functions(model.feature_program(), guide)`` are feature extractors, one per draw, whose
        dependence on the confounder ``ppl_med.explain.confounding.dependence`` measures.
        """
        return _FeatureProgram(self)

    def _parts(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and features of one pass."""
        output, num = self.network(image), self.likelihood.num_outputs
        expected = (len(image), num + self.num_features)
        if tuple(output.shape) != expected:
            raise ValueError(
                f"predictor and features gave {output.shape[1:]} numbers per case together, but "
                f"{num} output(s) for classes {list(self.likelihood.classes)} and num_features="
                f"{self.num_features} are needed"
            )
        return output[:, :num], output[:, num:]


class _Tapped(nn.Module):
    """Logits and features side by side, (case, class + feature)."""

    def __init__(self, features: nn.Module, predictor: nn.Module) -> None:
        super().__init__()
        self.features, self.predictor = features, predictor
        in_channels = getattr(features, "in_channels", None)
        if in_channels is not None:
            self.in_channels = in_channels

    def forward(self, image: Tensor) -> Tensor:
        """Both, of images (case, channel, ...)."""
        features = self.features(image)
        return torch.cat([self.predictor(features), features.flatten(1)], 1)


class _FeatureProgram(nn.Module):
    def __init__(self, model: ConfounderFreeClassifier) -> None:
        super().__init__()
        self.model = model

    def of_member(self, member: ConfounderFreeClassifier) -> nn.Module:
        """The same of an ensemble's member; see ``protocol.of_member``."""
        return _FeatureProgram(member)

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        return self.model._parts(image)[1]


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient has the other sign."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]
