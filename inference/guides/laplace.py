"""Laplace approximation: a normal at the posterior mode, as wide as the curvature there says.

    weights  ~  Normal( mode, (H + P)^-1 )

H is the Gauss-Newton matrix of all cases' likelihood (``output_curvature``), P the precision of the
model's own normal prior. While it trains, it is the maximum a posteriori that ``fit`` moves; when
the training has ended, ``fit`` adds up the curvature in one more pass over the batches::

    guide = Laplace(model, structure="kron")
    fit(model, guide, train, epochs=200)

    fit(model, Laplace(model, start=point), train, epochs=0)      around a point that is trained

Random crops and augmentation are those of one epoch. A ``kl_weight`` other than 1 tempers the
curvature as it does the mode. Draws are draws of weights, so every prediction is coherent; no
prediction is linearised.

The mode must be one: where the gradient is not small, the normal stands in the wrong place, and
``fit`` warns. ``offset`` says by how much.

References: MacKay, "A practical Bayesian framework for backpropagation networks", Neural
Computation 1992; Daxberger et al., "Laplace redux", NeurIPS 2021.
"""

import math
import warnings
from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ppl_med.checks import choice
from ppl_med.inference.guides.laplace_blocks import (
    Block,
    Dense,
    Diagonal,
    Kronecker,
    add_kronecker,
)
from ppl_med.inference.guides.output_curvature import NetworkAtMode, OutputCurvature
from ppl_med.inference.guides.point_estimate import PointEstimate
from ppl_med.inference.guides.weight_guide import WeightGuide, WeightPart
from ppl_med.programs import protocol
from ppl_med.programs.sites import Program
from ppl_med.weights import (
    Entry,
    FlatDistribution,
    FlatNormal,
    FlatPoint,
    RandomWeights,
    find_random_weights,
)
from ppl_med.weights.distributions import Shape

Structure = Literal["full", "kron", "diag", "last_layer"]
MOST_DENSE = 10_000  # weights with all their correlations: 800 MB in double precision
FAR = 1.0  # root mean square of the Newton step, in posterior standard deviations


class FlatCurved(FlatDistribution):
    """A normal around the mode whose covariance stands in blocks; other weights are at the mode.

    Args:
        mode: Dims (weight,).
        blocks: Consecutive weights each.
    """

    def __init__(self, mode: Tensor, blocks: Iterable[Block]) -> None:
        super().__init__(mode.numel())
        self.loc, self.blocks = mode, list(blocks)

    def rsample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008
        """Draws of the vector."""
        shape = torch.Size(sample_shape)
        draws = self.loc.expand(shape + self.event_shape).clone()
        for block in self.blocks:
            noise = torch.randn((*shape, block.stop - block.start)).to(self.loc)
            draws[..., block.start : block.stop] += block.map(noise)
        return draws

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats of those weights that have one."""
        found = torch.zeros(value.shape[:-1]).to(self.loc)
        for block in self.blocks:
            deviation = (value - self.loc)[..., block.start : block.stop]
            square = block.unmap(deviation).square().sum(-1)
            size = block.stop - block.start
            constant = block.log_determinant() + 0.5 * size * math.log(2 * math.pi)
            found = found - 0.5 * square - constant
        return found


class _CurvedPart(WeightPart):
    curved: Tensor
    offset: Tensor
    log_evidence: Tensor

    def __init__(
        self, weights: RandomWeights, structure: Structure, start: WeightGuide | None
    ) -> None:
        super().__init__(weights)
        prior = weights.prior_distribution()
        if not isinstance(prior, FlatNormal):
            raise ValueError(
                f"Laplace needs a normal prior, whose precision is a constant, and the model has "
                f"{type(weights.prior).__name__}; build it with Normal(...) or FanInNormal(...)"
            )
        value = weights.initial() if start is None else _mode(start, weights)
        self.value = nn.Parameter(value)
        self.blocks = nn.ModuleList(_blocks(weights, structure, value))
        self.register_buffer("curved", torch.zeros((), dtype=torch.bool))
        self.register_buffer("offset", torch.zeros((), dtype=torch.float64))
        self.register_buffer("log_evidence", torch.zeros((), dtype=torch.float64))

    def center(self) -> Tensor:
        return self.value

    def forward(self) -> FlatDistribution:
        if self.training or not bool(self.curved):
            return FlatPoint(self.value, use_prior=True)
        blocks: Any = self.blocks
        return FlatCurved(self.value, blocks)

    def curve(
        self, model: Program, weights: RandomWeights, visits: Any, num_cases: int, kl_weight: float
    ) -> None:
        """Add up the curvature of an epoch's batches, and compute the roots."""
        network = NetworkAtMode(model, weights, self.value)
        prior: Any = weights.prior_distribution()
        precision = kl_weight * prior.stddev_vector.double().square().reciprocal()
        gradient = torch.zeros_like(self.value, dtype=torch.float64)
        num_batches, nll, all_blocks = 0, 0.0, [*self.blocks]
        for block in all_blocks:
            block.reset()
        for values, factor in visits:
            batch = network.curvature(values, factor, num_cases)
            gradient += network.gradient(batch)
            self._add(network, batch)
            num_batches, nll = num_batches + 1, nll + batch.nll
        gradient = gradient / num_batches + precision * (self.value.detach() - prior.loc)
        square, evidence = 0.0, 0.0
        for block in all_blocks:
            assert isinstance(block, Block)
            block.finish(num_batches, precision[block.start : block.stop])
            square += float(_turned(block, gradient).square().sum())
            size = block.stop - block.start
            evidence += float(block.log_determinant()) + 0.5 * size * math.log(2 * math.pi)
        evidence += kl_weight * float(prior.log_prob(self.value.detach())) - nll / num_batches
        self.log_evidence.fill_(evidence)
        self.offset.fill_(math.sqrt(square / sum(b.stop - b.start for b in all_blocks)))
        self.curved.fill_(True)

    def _add(self, network: NetworkAtMode, batch: OutputCurvature) -> None:
        layers = [block for block in self.blocks if isinstance(block, Kronecker)]
        if layers:
            add_kronecker(layers, network, batch)
            return
        for block in self.blocks:
            block.add(network, batch)  # type: ignore[operator]


def _turned(block: Block, gradient: Tensor) -> Tensor:
    """The root's transpose times the gradient, by the derivative of the map."""
    own = gradient[block.start : block.stop]
    with torch.enable_grad():
        like = next(block.buffers())
        noise = torch.zeros(len(own), dtype=like.dtype, device=like.device, requires_grad=True)
        return torch.autograd.grad(block.map(noise), noise, own.to(like))[0].double()


def _mode(guide: WeightGuide, weights: RandomWeights) -> Tensor:
    if not isinstance(guide, PointEstimate):
        raise TypeError(f"start must be a trained PointEstimate(model), got {type(guide).__name__}")
    part: Any = guide.parts[weights.site] if weights.site in guide.parts else None
    if part is None or part.layout.entries != weights.layout.entries:
        raise ValueError("start holds other weights than the model; build it over the same model")
    if not part.use_prior:
        raise ValueError(
            "start is a maximum-likelihood estimate, which is no mode of the posterior; train "
            "PointEstimate(model, use_prior=True)"
        )
    return guide.center(weights.site).to(weights.initial())


def _blocks(weights: RandomWeights, structure: Structure, like: Tensor) -> list[Block]:
    entries = weights.layout.entries
    if structure == "diag":
        return [Diagonal(0, len(like), like)]
    starts = [sum(weights.layout.sizes[:i]) for i in range(len(entries))]
    layers: dict[str, list[tuple[int, Entry]]] = {}
    for start, entry in zip(starts, entries, strict=True):
        layers.setdefault(entry.name.rpartition(".")[0], []).append((start, entry))
    groups = list(layers.values())
    if structure == "kron":
        return [Kronecker(g[0][0], [entry for _, entry in g], weights) for g in groups]
    first, last = 0, len(like)
    if structure == "last_layer":
        own = next((g for g in reversed(groups) if any(e.is_layer_weight for _, e in g)), None)
        if own is None:
            raise ValueError(
                "structure='last_layer': the random weights hold no linear or convolutional layer"
            )
        first, last = own[0][0], own[-1][0] + own[-1][1].num_weights
    if last - first > MOST_DENSE:
        raise ValueError(
            f"structure={structure!r} keeps all correlations of {last - first} weights, and at "
            f"most {MOST_DENSE} are possible; pass structure='kron' or 'diag'"
        )
    return [Dense(first, last, like)]


class Laplace(WeightGuide):
    """A normal at the maximum a posteriori, with the curvature's covariance.

    Args:
        model: A model with one ``RandomWeights`` under a normal prior and no other latent, whose
            likelihood is log-concave in the network's output: classes, or numbers with a noise
            that is not the network's.
        structure: Which correlations are kept: ``"kron"``, those inside a layer as a Kronecker
            product; ``"full"``, all of them; ``"diag"``, none; ``"last_layer"``, those of the last
            layer, the others stay at the mode.
        start: A trained ``PointEstimate`` with ``use_prior=True`` whose value it starts from; with
            ``fit(epochs=0)`` it stays there.

    Raises:
        TypeError: If ``start`` is no ``PointEstimate``.
        ValueError: If the model is trained by a loss or a bound, its prior is not normal, ``start``
            is a maximum-likelihood estimate or holds other weights, the structure does not suit the
            net, or there are several ``RandomWeights``. On other faults of the model, ``fit``
            raises when training has ended.
    """

    def __init__(
        self, model: Any, structure: Structure = "kron", start: WeightGuide | None = None
    ) -> None:
        choice("structure", structure, get_args(Structure))
        if losses := protocol.training_losses(model):
            raise ValueError(
                "Laplace needs a likelihood, whose curvature it takes, and the model is trained "
                f"by {'; '.join(losses)}; use a plain likelihood, or another guide"
            )
        if protocol.evidence_bound(model):
            raise ValueError(
                "Laplace needs a likelihood, whose curvature it takes, and of this model a bound "
                "is all that is known; use another guide, such as MeanFieldNormal"
            )
        super().__init__(model, lambda found: _CurvedPart(found, structure, start))
        if len(self.parts) != 1:
            raise ValueError(
                f"Laplace is a posterior over one RandomWeights, and the model holds "
                f"{sorted(self.parts)}; use another guide, such as MeanFieldNormal"
            )

    def _part(self) -> _CurvedPart:
        (part,) = self.parts.values()
        assert isinstance(part, _CurvedPart)
        return part

    def _known(self, name: str) -> float:
        part = self._part()
        return float(getattr(part, name)) if bool(part.curved) else math.nan

    @property
    def offset(self) -> float:
        """Root mean square of the Newton step to the mode, in posterior standard deviations.

        NaN before ``fit`` has ended.
        """
        return self._known("offset")

    @property
    def log_evidence(self) -> float:
        """Laplace's log marginal likelihood of the data in nats, by which priors are compared.

        Of ``"last_layer"`` with the other weights as they are. NaN before ``fit`` has ended.
        """
        return self._known("log_evidence")

    @torch.no_grad()
    def before_training(self) -> None:
        """Called by ``fit`` before it trains: no curvature of an earlier point is that of this one.

        Held-out scores meanwhile are those of the point, as in a training from the start.
        """
        self._part().curved.fill_(False)

    def after_training(
        self, model: Program, visits: Any, *, num_cases: int, kl_weight: float
    ) -> None:
        """Called by ``fit`` when the training has ended; see ``protocol.after_trainings``."""
        ((_, weights),) = find_random_weights([model]).items()
        with torch.no_grad():
            self._part().curve(model, weights, visits, num_cases, kl_weight)
        if not self.offset <= FAR:
            warnings.warn(
                "the point is no mode of the posterior: the Newton step there is "
                f"{self.offset:.2g} posterior standard deviations a weight, so that the Laplace "
                "approximation stands in the wrong place; train longer, with schedule='cosine', "
                "without weight decay",
                stacklevel=2,
            )
