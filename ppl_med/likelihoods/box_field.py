"""The distribution of a set of boxes given the output of a detector at its anchors."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid, pad

from ppl_med.likelihoods.anchors import Encoding, Match, decode, encode, match_anchors
from ppl_med.likelihoods.inverse_transform import Uniform, transformed
from ppl_med.likelihoods.stored import Parameters, in_double, stored_parameters, stored_values

EXTRA = 13  # channels after the classes: 4 places, 4 log-variances, 4 of the anchor, 1 of its kind
LOG_VARIANCE_RANGE = (-10.0, 10.0)
NOT_READ = -2
"""Label in the value at every place of a reader who did not look at the case."""
PLACES = 5  # numbers of a box in the value: its edges and its label
_CASES_AT_ONCE = (64, 4)  # suppression takes their square; and where all anchors are kept
_NODES = 16  # of the noise of each encoded edge, by which "deltas" become pixels
_LEAST = 1e-16  # of uniform numbers, whose quantile must be finite


@dataclass(frozen=True)
class FieldSettings:
    """How boxes are encoded, matched and kept; see ``Boxes``."""

    num_classes: int
    noise: str
    encoding: Encoding
    match: Match
    focal: float
    least_score: float
    nms: float
    most: int
    keep_anchors: bool
    proposals: bool


class BoxField(TorchDistribution):
    """Of every anchor a class or none, and of an object's anchors its edges.

    The value, dims (case, box, 5 x grader), has of every reader x_min, y_min, x_max, y_max in
    pixels and the label, which is negative where there is no box; readers are independent.

    Args:
        output: Dims (..., case, class + 13, anchor); see ``Boxes``.
        settings: See ``Boxes``.
    """

    arg_constraints = {"output": constraints.real}  # noqa: RUF012

    def __init__(self, output: Tensor, settings: FieldSettings) -> None:
        self.output, self.settings = output, settings
        self._detections: dict[str, Tensor] | None = None
        places = output.shape[-1] if settings.keep_anchors else settings.most
        super().__init__(output.shape[:-2], torch.Size((places, PLACES)), validate_args=False)

    @property
    def support(self) -> Any:
        """Numbers, NaN where there is no box."""
        return constraints.independent(constraints.real, 2)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "BoxField":
        """The same with more batch dims."""
        return BoxField(self.output.expand(*batch_shape, *self.output.shape[-2:]), self.settings)

    # ------------------------------------------------------------------------------------ density

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats of all readers' boxes together, dims (..., case)."""
        shape = torch.broadcast_shapes(value.shape[:-2], self.batch_shape)
        output = self.output.expand(*shape, *self.output.shape[-2:]).flatten(0, -3)
        value = value.expand(*shape, *value.shape[-2:]).reshape(-1, *value.shape[-2:])
        readers = value.to(output).unflatten(-1, (-1, PLACES)).unbind(2)
        found: Tensor = sum(self._of_reader(output, one) for one in readers)  # type: ignore[assignment]
        return found.reshape(shape)

    def _of_reader(self, output: Tensor, value: Tensor) -> Tensor:
        """Log-density of one reader's boxes, value (case, box, 5)."""
        label = value[..., 4].nan_to_num(nan=-1.0).long()
        box, there = value[..., :4].nan_to_num(nan=0.0), label >= 0
        logits, place, log_variance, anchor, kind = self._parts(output)
        # Places without an anchor may have no size.
        unit = torch.cat([anchor.new_zeros(2), anchor.new_ones(2)])
        anchor = torch.where((kind < 0)[..., None], unit, anchor)
        found = output.new_zeros(len(output))
        for stage in (0.0, 1.0) if self.settings.proposals else (1.0,):
            usable = kind == stage
            index, state = match_anchors(anchor, box, there, usable, self.settings.match)
            target = label.gather(1, index)
            classes = self._class_term(logits, target, state, stage)
            numbers = torch.arange(box.shape[1], device=box.device)
            one = (index[..., None] == numbers) & (state == 1)[..., None]
            share = (one / one.sum(1, keepdim=True).clamp(min=1)).sum(-1)
            at = box.gather(1, index[..., None].expand(-1, -1, 4))
            code = encode(at, anchor, self.settings.encoding)
            density = self._noise(place, log_variance).log_prob(code).sum(-1)
            edges = torch.where(state == 1, share * density, torch.zeros_like(density))
            found = found + classes.sum(1) + edges.sum(1)
        read = (label != NOT_READ).all(1)
        return torch.where(read, found, torch.zeros_like(found))

    def _class_term(self, logits: Tensor, target: Tensor, state: Tensor, stage: float) -> Tensor:
        """Log-probability of every anchor's class or none, 0 where it is neither."""
        if stage == 0:
            of_label = torch.where(
                state == 1, logsigmoid(logits[..., 0]), logsigmoid(-logits[..., 0])
            )
        else:
            log_probs = pad(logits, (1, 0)).log_softmax(-1)
            wanted = torch.where(state == 1, target.clamp(min=0) + 1, 0)
            of_label = log_probs.gather(-1, wanted[..., None])[..., 0]
        if self.settings.focal > 0:
            others = torch.log(-torch.expm1(of_label.clamp(max=-1e-6)))
            of_label = (self.settings.focal * others).exp() * of_label
        return torch.where(state >= 0, of_label, torch.zeros_like(of_label))

    def _noise(self, place: Tensor, log_variance: Tensor) -> Any:
        """Of encoded edges."""
        sd = _sd(log_variance)
        if self.settings.noise == "normal":
            return torch.distributions.Normal(place, sd, validate_args=False)
        return torch.distributions.Laplace(place, sd / math.sqrt(2), validate_args=False)

    def _parts(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Logits (case, anchor, class), encoded edges, log-variances, anchors, and their kind."""
        by_anchor = output.movedim(-2, -1)
        number = self.settings.num_classes
        logits, place, log_variance, anchor, kind = by_anchor.split([number, 4, 4, 4, 1], -1)
        return logits, place, log_variance, anchor.detach(), kind[..., 0].detach()

    # ----------------------------------------------------------------------------------- detections

    def detections(self) -> dict[str, Tensor]:
        """What is kept of every case: "probs" (..., case, class, box), "loc" and "sd" (..., 4).

        Boxes with less than the least score are left out, then those that overlap a more probable
        one; the rest is NaN. Where all anchors are kept, they stand in their order.
        """
        if self._detections is None:
            output = self.output.detach().flatten(0, -3)
            parts = [
                self._found(one) for one in output.split(_CASES_AT_ONCE[self.settings.keep_anchors])
            ]
            found = [torch.cat(one) for one in zip(*parts, strict=True)]
            self._detections = {
                name: part.reshape(*self.batch_shape, *part.shape[1:])
                for name, part in zip(("probs", "loc", "sd"), found, strict=True)
            }
        return self._detections

    def _found(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities (case, class, box), places and standard deviations (case, box, 4)."""
        logits, place, log_variance, anchor, kind = self._parts(output)
        probs = pad(logits, (1, 0)).softmax(-1)[..., 1:]
        settings, usable = self.settings, kind == 1
        wrong = usable & ~torch.cat([logits, place, log_variance], -1).isfinite().all(-1)
        if wrong.any():
            raise ValueError(
                f"the network's output is not finite at {int(wrong.sum())} anchor(s) of "
                f"{int(wrong.any(1).sum())} image(s), where it would find nothing; look at its "
                "weights, whose training may have diverged, and at the images"
            )
        if settings.keep_anchors:
            loc, sd = self._in_pixels(place, log_variance, anchor)
            probs, loc, sd = (
                torch.where(usable[..., None], one, math.nan) for one in (probs, loc, sd)
            )
            return probs.mT, loc, sd
        score = probs.sum(-1)
        case, index = (usable & (score >= settings.least_score)).nonzero(as_tuple=True)
        box = decode(place[case, index], anchor[case, index], settings.encoding)
        kept = _suppressed(box, score[case, index], case, settings.nms)
        case, index = case[kept], index[kept]
        order = case.argsort(stable=True)  # by falling score in every case
        case, index = case[order], index[order]
        first = torch.searchsorted(case, torch.arange(len(output), device=case.device))
        rank = torch.arange(len(case), device=case.device) - first[case]
        case, index, rank = (one[rank < settings.most] for one in (case, index, rank))
        at = case, index
        parts = (probs[at], *self._in_pixels(place[at], log_variance[at], anchor[at]))
        stored = []
        for part in parts:
            room = part.new_full((len(output), settings.most, part.shape[-1]), math.nan)
            room[case, rank] = part
            stored.append(room)
        return stored[0].mT, stored[1], stored[2]

    def _in_pixels(self, place: Tensor, log_variance: Tensor, anchor: Tensor) -> Any:
        """Mean and standard deviation of edges in pixels, dims (..., 4)."""
        sd, encoding = _sd(log_variance), self.settings.encoding
        if encoding == "edges":  # linear
            side = anchor[..., 2:] - anchor[..., :2]
            size = torch.cat([side, side], -1)
            return decode(place, anchor, encoding), sd * size
        noise, weight = (torch.from_numpy(one).to(place) for one in _nodes(self.settings.noise))
        lead = [-1, *[1] * (place.dim() - 1)]
        at = decode(place + sd * noise.view(*lead, 4), anchor, encoding)
        weight = weight.view(*lead, 1)
        mean = (weight * at).sum(0)
        return mean, (weight * (at - mean).square()).sum(0).sqrt()

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Sets of boxes: each detection is there by its probability, with noise on its edges."""
        batch = self.expand(torch.Size((*sample_shape, *self.batch_shape)))
        return batch.drawn(lambda shape, suffix="": torch.rand(shape, dtype=torch.float64))

    def drawn(self, uniform: Uniform) -> Tensor:
        """A set of boxes as a function of uniform numbers, dims (..., case, box, 5)."""
        found = self.detections()
        u = uniform(torch.Size((*self.batch_shape, self.event_shape[0], PLACES)))
        noise = _standard(u[..., :4].clamp(_LEAST, 1 - _LEAST), self.settings.noise)
        u, noise = u.to(found["loc"]), noise.to(found["loc"])  # single precision rounds to 0 or 1
        edges = found["loc"] + found["sd"] * noise
        steps = found["probs"].nan_to_num().cumsum(-2)
        label = (u[..., 4].unsqueeze(-2) >= steps).sum(-2)
        there = label < self.settings.num_classes
        value = torch.cat([edges, label[..., None].to(edges)], -1)
        absent = value.new_tensor([math.nan] * 4 + [-1.0])
        return torch.where(there[..., None], value, absent)


def _sd(log_variance: Tensor) -> Tensor:
    """Standard deviation of encoded edges."""
    return (0.5 * log_variance.clamp(*LOG_VARIANCE_RANGE)).exp()


def _suppressed(box: Tensor, score: Tensor, case: Tensor, most: float) -> Tensor:
    """Boxes that are left in every case, by falling score of all.

    torchvision moves the boxes of each case beyond those of the last. Edges below 0 would reach
    back, and in single precision one huge edge would blur all others.
    """
    from torchvision.ops import batched_nms  # only here: it takes torch's compiler along

    box = box.double()
    if len(box):
        box = box - box.min()
    kept: Tensor = batched_nms(box, score.double(), case, most)
    return kept


@cache
def _nodes(noise: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gauss nodes (node, edge) and weights (node) of noise of variance 1.

    An edge in pixels takes noise from its axis alone: one grid for columns serves rows too.
    """
    if noise == "normal":
        at, weight = np.polynomial.hermite_e.hermegauss(_NODES)
    else:
        half, weight = np.polynomial.laguerre.laggauss(_NODES // 2)
        at, weight = np.concatenate([-half, half]) / math.sqrt(2), np.tile(weight, 2)
    weight = weight / weight.sum()
    middle, size = (one.ravel() for one in np.meshgrid(at, at))
    return np.stack([middle, middle, size, size], 1), np.outer(weight, weight).ravel()


def _standard(u: Tensor, noise: str) -> Tensor:
    """Quantiles of a noise of mean 0 and standard deviation 1."""
    if noise == "normal":
        return torch.special.ndtri(u)
    away = 0.5 - (u - 0.5).abs()
    return -(u - 0.5).sign() * torch.log(2 * away.clamp(min=1e-300)) / math.sqrt(2)


def pack_boxes(box: Tensor, label: Tensor, present: Tensor | None = None) -> Tensor:
    """The value of ``BoxField``, dims (case, box, 5 x grader).

    Args:
        box: Dims (case, box, 4) or (case, grader, box, 4).
        label: The same dims without the last.
        present: Whether a reader looked at the case, dims (case, grader); None for all.
    """
    if present is not None:
        label = torch.where(present.bool()[..., None], label, NOT_READ)
    packed = torch.cat([box, label[..., None].to(box)], -1)
    return packed if packed.dim() == 3 else packed.movedim(1, 2).flatten(2)


@transformed.register
def _(fn: BoxField, uniform: Uniform) -> Tensor:
    return fn.drawn(uniform)


@in_double.register
def _(fn: BoxField) -> BoxField:
    return fn if fn.output.dtype == torch.float64 else BoxField(fn.output.double(), fn.settings)


@stored_parameters.register
def _(fn: BoxField, names: Any) -> Parameters:
    """Edges as mean and scale in pixels, with the variance where it is not the squared scale."""
    found, plates = fn.detections(), list(names[:-2])
    axis = "anchor" if fn.settings.keep_anchors else "box"
    edges, classes = [*plates, axis, "edge"], [*plates, "class", axis]
    stored = {"edge_loc": (edges, found["loc"]), "edge_scale": (edges, found["sd"])}
    if fn.settings.noise == "laplace":
        stored["edge_scale"] = (edges, found["sd"] / math.sqrt(2))
        stored["edge_variance"] = (edges, found["sd"].square())
    return stored | {"box_probs": (classes, found["probs"])}


@stored_values.register
def _(fn: BoxField, name: str, value: Tensor, names: Any) -> Parameters:
    """Boxes and their labels apart, with an axis of readers where there are several."""
    plates = list(names[:-2])
    parts = value.unflatten(-1, (-1, PLACES)).movedim(-2, -3)
    readers = ["grader"] if parts.shape[-3] > 1 else []
    parts = parts if readers else parts.squeeze(-3)
    label = parts[..., 4].nan_to_num(nan=-1.0).long()
    return {
        f"{name}_edge": ([*plates, *readers, "box", "edge"], parts[..., :4]),
        f"{name}_label": ([*plates, *readers, "box"], label),
    }
