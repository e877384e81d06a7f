"""Mean-field normal guide: Bayes by Backprop, one independent normal a weight.

    weights  ~  Normal(loc, softplus(raw_scale)^2)        independently

Gradient estimators (training only; prediction always draws weights):

- ``shared``: one draw for the whole batch; exact for every net, and the default: it reaches a
  given held-out NLL and ELBO first (``tests/benchmarks/time_to_nll.py``).
- ``flipout``: per-example sign flips of one draw (Wen et al., ICLR 2018).
- ``local``: noise on layer outputs (Kingma et al., NeurIPS 2015). Exact only for linear layers
  with (batch, features) input: on a convolution it draws independent noise per pixel, which is no
  posterior over weights. It warns there.
- ``auto``: local where it is exact, flipout elsewhere.

Flipout and local give every example weights of its own, so they are exact where an example's
output depends on that example alone, and where axis 0 of a layer's input is the example.
BatchNorm in training mixes examples: their expected loss then differs from that of ``shared``
(by 2 to 5 per cent in a net of two such layers); ``batch_norm="frozen"`` cures it. A layer on
(token, batch, feature) input with as many tokens as examples takes tokens for examples.

Reference: Blundell et al., "Weight uncertainty in neural networks", ICML 2015.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_med.checks import choice, positive
from ppl_med.inference.guides.latent_guide import LatentNormals
from ppl_med.inference.guides.weight_guide import WeightGuide, WeightPart, inverse_softplus
from ppl_med.weights import FlatNormal, RandomWeights, find_random_weights
from ppl_med.weights.estimators import LazyWeights, NormalEstimator, WeightEstimator

Estimator = Literal["auto", "shared", "flipout", "local"]


class _PerExampleNormal(FlatNormal):
    """The same distribution, drawn by an estimator: its value is a ``LazyWeights``."""

    def __init__(self, part: "_NormalPart") -> None:
        super().__init__(part.loc, part.scale)
        self.part = part

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor | LazyWeights:  # type: ignore[override]  # noqa: B008
        if sample_shape:
            return super().rsample(sample_shape)
        locs = self.part.layout.views(self.loc)
        scales = self.part.layout.views(self.scale)
        estimators: dict[str, WeightEstimator | Tensor] = {
            name: NormalEstimator(
                locs[name], scales[name], self.part.estimator, self.part.warn_of_tokens
            )
            for name in locs
        }
        return self.part.lazy(estimators)

    def shared_draw(self) -> Tensor:
        """A plain draw of the vector, for a Monte Carlo KL."""
        return FlatNormal.rsample(self)


class _NormalPart(WeightPart):
    independent, spread = True, ("raw_scale",)

    def __init__(
        self,
        weights: RandomWeights,
        init_scale: float,
        estimator: Estimator,
        start: WeightGuide | None,
    ) -> None:
        super().__init__(weights)
        self.estimator, self.warned_of_tokens = estimator, False
        loc = weights.initial() if start is None else _start(start, weights)
        scales = [
            loc.new_full((entry.num_weights,), init_scale / math.sqrt(entry.fan_in))
            for entry in self.layout.entries
        ]
        self.loc = nn.Parameter(loc)
        self.raw_scale = nn.Parameter(inverse_softplus(torch.cat(scales)))
        if estimator == "local" and any(entry.is_convolution for entry in self.layout.entries):
            warnings.warn(
                "estimator='local' is biased on convolutions: it draws independent noise per "
                "pixel, which is no posterior over weights; use estimator='auto'",
                stacklevel=4,
            )

    def warn_of_tokens(self) -> None:
        """Warn, once a guide, that ``local`` met a linear layer on tokens."""
        if not self.warned_of_tokens:
            self.warned_of_tokens = True
            warnings.warn(
                "estimator='local' is biased on linear layers with (batch, token, feature) input: "
                "it draws independent noise per token, which is no posterior over weights; use "
                "estimator='auto'",
                stacklevel=2,
            )

    @property
    def scale(self) -> Tensor:
        """Standard deviation of every weight, dims (weight,)."""
        return softplus(self.raw_scale)

    def center(self) -> Tensor:
        return self.loc

    def forward(self) -> FlatNormal:
        if self.training and self.estimator != "shared":
            return _PerExampleNormal(self)
        return FlatNormal(self.loc, self.scale)


def _start(guide: WeightGuide, weights: RandomWeights) -> Tensor:
    """Another guide's mean of the same weights."""
    if not isinstance(guide, WeightGuide):
        raise TypeError(
            f"start must be a guide over weights, such as a trained PointEstimate(model), got "
            f"{type(guide).__name__}"
        )
    site, entries = weights.site, weights.layout.entries
    if site not in guide.parts or entries != guide.layout(site).entries:
        raise ValueError(
            f"start holds other weights at the site {site!r} than the model; build it "
            "over the same model"
        )
    center = guide.center(site)
    if not center.isfinite().all():
        raise ValueError("start holds weights that are not finite; train it again")
    return center.to(weights.initial())


class MeanFieldNormal(WeightGuide):
    """Independent normals over all of a model's global latents.

    Args:
        model: A model with ``RandomWeights``, or any Pyro program with global latents.
        init_scale: Start of the standard deviation, in units of 1/sqrt(fan_in) of each weight's
            layer; for other latent sites in units of their unconstrained space.
        estimator: Gradient estimator for training; see the module's text.
        example: A batch, needed only where the model has latent sites other than weights (such
            as ``PyroSample`` priors): they are read off a trace of it.
        start: A trained guide over the same weights, such as a ``PointEstimate``, whose mean the
            locations start from; None starts them at the network's own values. A large net finds
            a far better optimum from there than from noise.

    Raises:
        TypeError: If ``start`` is no guide over weights.
        ValueError: On an unknown estimator or a scale that is not positive; if ``start`` holds
            other weights than the model; if the model has latents per case (use
            ``ConditionalNormal``); if it has none at all.

    Warns:
        UserWarning: If ``estimator="local"`` is used on convolutions; for linear layers with
            (batch, token, feature) input, when training first meets them.
    """

    def __init__(
        self,
        model: Any,
        init_scale: float = 0.05,
        estimator: Estimator = "shared",
        example: Mapping[str, Any] | None = None,
        start: WeightGuide | None = None,
    ) -> None:
        choice("estimator", estimator, get_args(Estimator))
        init_scale = positive("init_scale", init_scale)
        weights = find_random_weights([model])
        if weights or example is None:
            super().__init__(model, lambda found: _NormalPart(found, init_scale, estimator, start))
        else:
            nn.Module.__init__(self)
            self.parts = nn.ModuleDict()
        self.latents: LatentNormals | None = None
        if example is not None:
            self.latents = LatentNormals(model, example, frozenset(weights), init_scale)
        if not self.parts and not (self.latents and len(self.latents.sites)):
            raise ValueError("model has no latent site: there is nothing to infer")

    def forward(self, *inputs: Any, **options: Any) -> None:
        """Propose every global latent; the arguments are the model's and are not used."""
        super().forward(*inputs, **options)
        if self.latents is not None:
            self.latents()
