"""Generalized ODIN: logits divided by how familiar the case is, both read off the features.

Program:

    weights        ~  prior                                        of features, h and g
    f              =  features(image; weights)                     per case
    label | image  ~  Categorical(softmax(h(f) / g(f)))

    g              =  sigmoid(BatchNorm(w . f + b))                in (0, 1)
    h_c            =  w_c . f + b_c             similarity="inner"
                      -|f - w_c|²                          "euclidean"
                      w_c . f / (|w_c| |f|)                "cosine"

Sites and their dimensions: weights (weight), no unit; label (case), integer in 0..K-1.

``predict`` stores h as ``dividend`` (chain, draw, case, class) and g as ``divisor`` (chain, draw,
case); ``analysis.ood`` scores -max_c h_c by "generalized_odin" and -g by
"generalized_odin_divisor". The step along the image that the paper adds is ``explain.odin`` of

    draws = functions(model.score_program("dividend"), guide)
    best = choose_epsilon(draws, image, confidence="output").attrs["best"]
    odin(draws, image, confidence="output", epsilon=best)

Treat it as unreproduced: a public implementation finds an AUROC of 49.0 where the paper has 98.7.
So measure it on data of your own before use.

The w_c of "euclidean" and "cosine" are places among the features and not to be drawn to the origin:
the paper decays all weights but them. A prior is such a decay, so by default they are no random
weights but are trained without a prior; ``where`` says otherwise. (Nor should an optimizer of yours
decay them: ``weight_decay`` of torch takes all parameters.)

In training BatchNorm takes mean and variance of g over the batch, which so needs two cases or more.

Input: ``image`` (case, channel, row, col) or (case, channel, depth, row, col), float.

Reference: Hsu et al., "Generalized ODIN: detecting out-of-distribution image without learning from
out-of-distribution data", CVPR 2020, arXiv:2002.11297, section 3. Departs from it in the weights,
which are random.
"""

from collections.abc import Sequence
from typing import Literal

import pyro
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ppl_med.checks import choice, whole
from ppl_med.likelihoods import DividedLogits
from ppl_med.likelihoods.interface import settings_of
from ppl_med.networks.flattened import flat_features
from ppl_med.weights import Prior, RandomWeights, Where
from ppl_med.weights.layout import DETERMINISTIC

SIMILARITIES = ("inner", "euclidean", "cosine")
PARTS = ("dividend", "divisor")


class GeneralizedODINClassifier(nn.Module):
    """The joint p(label, weights | image) of a network whose logits are h / g.

    Takes every guide of ``BayesianClassifier``; ``PointEstimate`` is the model as published.

    Args:
        features: Network from images to features (case, feature), or (case, ...), flattened.
        classes: Class names, in the order of the labels.
        num_features: Features of a case, flattened.
        similarity: What h is; "cosine" does best in the paper.
        prior: Prior over the random weights; He-scaled normals by default.
        where: Which parameters are random; names start with ``features.``, ``divisor.`` or
            ``dividend.``. None for all but norm layers, PReLU and the w_c of "euclidean" and
            "cosine"; else see ``RandomWeights``.
        batch_norm: Whether running statistics follow training; see ``RandomWeights``.

    Raises:
        ValueError: If two classes share a name or the similarity is unknown; on a run, if
            ``features`` gives another number than ``num_features``, or in training, if a batch has
            one case.
    """

    def __init__(
        self,
        features: nn.Module,
        classes: Sequence[str],
        num_features: int,
        *,
        similarity: str = "cosine",
        prior: Prior | None = None,
        where: Where = None,
        batch_norm: Literal["update", "frozen"] = "update",
    ) -> None:
        super().__init__()
        self.similarity = choice("similarity", similarity, SIMILARITIES)
        self.likelihood = DividedLogits(classes)
        whole("num_features", num_features)
        net = _Quotient(features, num_features, len(self.likelihood.classes), similarity)
        if where is None and similarity != "inner":
            where = _all_but_places
        self.network = RandomWeights(net, prior, where, batch_norm=batch_norm)
        self.coords = self.likelihood.coords

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        """Run once, conditioned on ``label`` if given: h and the log-odds of g, (case, class + 1).

        Args:
            image: A batch of images, dims (case, channel, row, col) or (…, depth, row, col).
            label: Observed classes, dims (case,), integers; None draws them.
            num_cases: Size of the whole data set when ``image`` is a mini-batch of it.
        """
        output = self.network(image)
        self.likelihood.check_output(output, image)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            self.likelihood(output, label)
        return output

    def settings(self) -> str:
        """What a resumed run must share and no shape shows."""
        return settings_of(self)

    def score_program(self, part: str) -> nn.Module:
        """A program that returns h (case, class) or g (case, 1) in the place of both.

        ``functions(model.score_program("dividend"), guide)`` are what ``explain.odin`` and
        ``choose_epsilon`` take with ``confidence="output"``, one function per draw.

        Args:
            part: "dividend", whose largest entry is high on familiar images, or "divisor".

        Raises:
            ValueError: On another part.
        """
        return _ScoreProgram(self, choice("part", part, PARTS))


class _ScoreProgram(nn.Module):
    def __init__(self, model: GeneralizedODINClassifier, part: str) -> None:
        super().__init__()
        self.model, self.part = model, part

    def of_member(self, member: GeneralizedODINClassifier) -> nn.Module:
        """The same of an ensemble's member; see ``protocol.of_member``."""
        return _ScoreProgram(member, self.part)

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        output: Tensor = self.model.network(image)
        return output[:, :-1] if self.part == "dividend" else output[:, -1:].sigmoid()


class _Quotient(nn.Module):
    """Images to h and the log-odds of g, (case, class + 1)."""

    def __init__(
        self, features: nn.Module, num_features: int, num_classes: int, similarity: str
    ) -> None:
        super().__init__()
        self.features, self.num_features = features, num_features
        self.divisor = nn.Sequential(nn.Linear(num_features, 1), nn.BatchNorm1d(1))
        self.dividend = _Dividend(num_features, num_classes, similarity)

    def forward(self, image: Tensor) -> Tensor:
        """Of images (case, channel, ...)."""
        if self.divisor.training and self.divisor[1].training and len(image) < 2:
            raise ValueError(
                "a training batch has one case, and BatchNorm of g needs two or more: use another "
                "batch size, or drop the last batch"
            )
        features = flat_features(self.features(image), self.num_features)
        return torch.cat([self.dividend(features), self.divisor(features)], 1)


class _Dividend(nn.Linear):
    """h, dims (case, class), of features (case, feature); w_c are the rows of its weight."""

    def __init__(self, num_features: int, num_classes: int, similarity: str) -> None:
        super().__init__(num_features, num_classes, bias=similarity == "inner")
        self.similarity = similarity

    def reset_parameters(self) -> None:
        """He-scaled normals."""
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        """As the module's text says."""
        if self.similarity == "inner":
            return super().forward(features)
        if self.similarity == "cosine":
            return normalize(features, dim=1) @ normalize(self.weight, dim=1).T
        return -(features.unsqueeze(1) - self.weight).square().sum(2)


def _all_but_places(name: str, module: nn.Module) -> bool:
    return not isinstance(module, (*DETERMINISTIC, _Dividend))
