"""Deterministic uncertainty quantification (DUQ): a class is a centroid, and far from all is novel.

Program:

    weights              ~  prior                                   of features and projections
    z_c                  =  W_c features(image; weights)            per case and class c
    k_c                  =  exp(-mean over dims of (z_c - e_c)² / (2 length_scale²))
    indicator_c | image  ~  Bernoulli(k_c)                          in training, for the label
    factor               =  exp(-K penalty (|d sum_c k_c / d image| - 1)²)    in training
    label | image        ~  Categorical(p), p_c proportional to k_c / (1 - k_c), at prediction

Sites and their dimensions: weights (weight), no unit; label (case), integer in 0..K-1.

Kernels do not sum to one. The predicted class is that of the largest, the uncertainty of DUQ is
1 - max_c k_c: ``predict`` stores them as ``kernel`` (chain, draw, case, class), in 0..1, and
``analysis.ood`` scores them by "duq". ``probs`` are the class given that there is exactly one, see
``ppl_med.likelihoods.kernel_classes``: they say nothing of whether there is any.

The centroids e_c are buffers, no parameters and no sites. After every optimizer step they follow
the cases of its batch, by moving averages of their number and of the sum of their z, with the
network in evaluation mode (BatchNorm by its running statistics) under a new draw of the guide:

    count_c  <-  momentum count_c + (1 - momentum) #{i : label_i = c}
    total_c  <-  momentum total_c + (1 - momentum) sum of z_c over {i : label_i = c}
    e_c      =   total_c / count_c

With random weights e_c is the mean over cases and draws, and every draw has kernels of its own
about it. Centroids stand in checkpoints and saved files. Moving averages of several processes would
be those of their summed counts and totals; ``fit`` trains in one process, and in more, centroids
refuse to move, since each process would have others.

The indicators and the factor are losses of the label, no densities, so what is learned is a
generalised (Gibbs) posterior, the ELBO of the history bounds no evidence of the labels, and leaving
cases out by their weights is refused. The published loss is this one divided by K: the ratio of its
two parts is as published, its scale against the prior that of K observed indicators.

With BatchNorm in training the gradient of the factor is that of the whole batch, as published.

Input: ``image`` (case, channel, row, col) or (case, channel, depth, row, col), float.

Reference: van Amersfoort et al., "Uncertainty estimation using a single deep deterministic neural
network", ICML 2020, arXiv:2003.02037, and the authors' code. Departs from it in the logarithms of
the cross-entropy, which are exact where theirs stop at -100 and lose their gradient before, so that
a case far from all centroids still learns; and in the optimizer, which is an argument of ``fit``.
Theirs is SGD of rate 0.05, momentum 0.9, weight decay 5e-4: the rate is for the loss divided by K,
so take 0.05 / K here (0.05 itself diverged on MNIST), and the prior in the place of the decay.
"""

from collections.abc import Sequence
from typing import Literal

import pyro
import torch
from torch import Tensor, nn

from ppl_med.checks import finite, inside, positive, whole
from ppl_med.likelihoods import KernelClasses
from ppl_med.likelihoods.interface import settings_of
from ppl_med.networks.flattened import flat_features
from ppl_med.weights import Prior, RandomWeights, Where
from ppl_med.weights.estimators import SharedWeightDraw

SITE = "duq_gradient_penalty"
_START_SD = 0.05  # of a centroid's coordinates before training, as published
_NEAREST = 1e-7  # of the exponent: a kernel of 1 would have infinite log-odds


class DUQClassifier(nn.Module):
    """The joint p(label, weights | image) of a network with a centroid per class.

    Takes every guide of ``BayesianClassifier``; ``PointEstimate`` is DUQ as published. Train it
    without ``accumulate``: centroids move after every step by the cases of one batch.

    Args:
        features: Network from images to features (case, feature), or (case, ...), flattened.
        classes: Class names, in the order of the labels.
        num_features: Features of a case, flattened.
        centroid_dim: Coordinates of a centroid; as many as features by default.
        length_scale: Of the kernels.
        penalty: Weight of the gradient penalty, relative to the mean over classes of the
            cross-entropy (lambda of the paper, there 0.5 on CIFAR-10); 0 for none.
        momentum: Share of the old average that is kept in a step.
        batch_size: Cases of a training batch: counts start at batch_size / K.
        prior: Prior over the random weights; He-scaled normals by default.
        where: Which parameters are random; names start with ``features.`` or ``projection.``; see
            ``RandomWeights``.
        batch_norm: Whether running statistics follow training; see ``RandomWeights``.

    Raises:
        ValueError: If a number is out of its range or two classes share a name; on a run, if
            ``features`` gives another number than ``num_features``; in training, if there is more
            than one process.
    """

    def __init__(
        self,
        features: nn.Module,
        classes: Sequence[str],
        num_features: int,
        *,
        centroid_dim: int | None = None,
        length_scale: float = 0.1,
        penalty: float = 0.5,
        momentum: float = 0.999,
        batch_size: int = 128,
        prior: Prior | None = None,
        where: Where = None,
        batch_norm: Literal["update", "frozen"] = "update",
    ) -> None:
        super().__init__()
        self.likelihood = KernelClasses(classes)
        self.length_scale = positive("length_scale", length_scale)
        self.penalty = finite("penalty", penalty, 0)
        num_classes, num_features = (
            len(self.likelihood.classes),
            whole("num_features", num_features),
        )
        size = num_features if centroid_dim is None else whole("centroid_dim", centroid_dim)
        self.centroids = Centroids(
            num_classes,
            size,
            inside("momentum", momentum),
            whole("batch_size", batch_size) / num_classes,
        )
        net = _Embedding(features, num_features, num_classes, size)
        self.network = RandomWeights(net, prior, where, batch_norm=batch_norm)
        self.coords = self.likelihood.coords
        self.training_loss = f"gradient penalty of kernels, weight {penalty:g}"

    def forward(
        self, image: Tensor, label: Tensor | None = None, *, num_cases: int | None = None
    ) -> Tensor:
        """Run once, conditioned on ``label`` if given: log-odds of the kernels, dims (case, class).

        Args:
            image: A batch of images, dims (case, channel, row, col) or (…, depth, row, col).
            label: Observed classes, dims (case,), integers; None draws them.
            num_cases: Size of the whole data set when ``image`` is a mini-batch of it.
        """
        loss = None
        if label is None or not self.training:
            exponent = self.exponent(image)
        else:
            with torch.enable_grad(), SharedWeightDraw():
                # A program around this one may differentiate by the image as well.
                point = image if image.requires_grad else image.detach().clone().requires_grad_()
                exponent = self.exponent(point)
                if self.penalty:
                    loss = self.penalty * len(self.coords["class"]) * gradient_loss(exponent, point)
        output = log_odds(exponent)
        self.likelihood.check_output(output, image)
        with pyro.plate("case", num_cases or len(image), subsample=image):
            self.likelihood(output, label)
            if loss is not None:
                pyro.factor(SITE, -loss)
        return output

    def exponent(self, image: Tensor) -> Tensor:
        """-log k of every case and class, dims (case, class)."""
        return self.centroids.distance(self.network(image)) / (2 * self.length_scale**2)

    def settings(self) -> str:
        """What a resumed run must share and no shape shows."""
        return settings_of(self)

    def after_step(self, image: Tensor, label: Tensor) -> None:
        """Let the centroids follow the cases of a step; see ``protocol.after_steps``."""
        self.centroids.follow(self.network(image), label)


def gradient_loss(exponent: Tensor, image: Tensor) -> Tensor:
    """(|d sum_c k_c / d image| - 1)² of every case, dims (case,), with its graph.

    Args:
        exponent: -log k, dims (case, class), computed from ``image``.
        image: Dims (case, ...), with a gradient.
    """
    total = (-exponent).exp().sum()
    slope = torch.autograd.grad(total, image, create_graph=True)[0]
    return (slope.flatten(1).norm(dim=1) - 1).square()


def log_odds(exponent: Tensor) -> Tensor:
    """Log k / (1 - k) of kernels k = exp(-exponent), exact in both tails."""
    near = exponent.clamp(min=_NEAREST)
    return -near - torch.log(-torch.expm1(-near))


class Centroids(nn.Module):
    """Moving averages of the embeddings of every class.

    Args:
        num_classes: K.
        size: Coordinates of a centroid.
        momentum: Share of the old average that is kept.
        start_count: Cases of each class that the start counts for.
    """

    count: Tensor
    total: Tensor

    def __init__(self, num_classes: int, size: int, momentum: float, start_count: float) -> None:
        super().__init__()
        self.momentum, self.start_count = momentum, start_count
        self.register_buffer("count", torch.empty(num_classes))
        self.register_buffer("total", torch.empty(num_classes, size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the centroids anew, N(0, 0.05²) in every coordinate."""
        with torch.no_grad():
            self.count.fill_(self.start_count)
            self.total.normal_(0, _START_SD).mul_(self.start_count)

    def settings(self) -> str:
        """What a resumed run must share and no shape shows."""
        return settings_of(self)

    def distance(self, embedding: Tensor) -> Tensor:
        """Mean squared difference to the centroids, dims (case, class).

        Args:
            embedding: z_c, dims (case, class, dim).
        """
        if embedding.dtype != torch.float64:
            embedding = embedding.float()
        return (embedding - self.total / self.count.unsqueeze(1)).square().mean(-1)

    def follow(self, embedding: Tensor, label: Tensor) -> None:
        """Move towards the embeddings of some cases.

        Args:
            embedding: z_c, dims (case, class, dim), without gradient.
            label: Classes, dims (case,).

        Raises:
            ValueError: If there is more than one process.
        """
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        if together and torch.distributed.get_world_size() > 1:
            raise ValueError(
                "centroids follow the cases of one process, and there are "
                f"{torch.distributed.get_world_size()}, which would each have others; train "
                "DUQClassifier in one process, without torch.distributed"
            )
        classes = torch.arange(len(self.count), device=label.device)
        chosen = (label.unsqueeze(1) == classes).to(self.total)
        sums = torch.einsum("nk,nkd->kd", chosen, embedding.to(self.total))
        self.count.mul_(self.momentum).add_(chosen.sum(0), alpha=1 - self.momentum)
        self.total.mul_(self.momentum).add_(sums, alpha=1 - self.momentum)


class _Projection(nn.Linear):
    """All W_c below each other, started as published."""

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")


class _Embedding(nn.Module):
    """Images to z (case, class, dim)."""

    def __init__(self, features: nn.Module, num_features: int, num_classes: int, size: int) -> None:
        super().__init__()
        self.features, self.shape = features, (num_classes, size)
        self.projection = _Projection(num_features, num_classes * size, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """Of images (case, channel, ...)."""
        features = flat_features(self.features(image), self.projection.in_features)
        return self.projection(features).unflatten(1, self.shape)
