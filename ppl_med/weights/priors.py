"""Priors over the weights of any network.

A prior is a small recipe: ``prior.parameters(layout, flat)`` gives its tensors, which
``RandomWeights`` keeps as buffers, and ``prior.distribution(**tensors)`` the distribution over the
flat vector.

Sources: Normal and scale mixture, Blundell et al., "Weight uncertainty in neural networks", ICML
2015 (the mixture is its equation 7); fan-in scaling, Neal 1996 and He et al. 2015; learnt scales,
Wu et al., ICLR 2019.
"""

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor

from ppl_med.checks import choice, inside, positive, reject
from ppl_med.weights.distributions import (
    FlatDistribution,
    FlatLaplace,
    FlatNormal,
    FlatNormalByGroup,
    FlatScaleMixture,
)
from ppl_med.weights.layout import Layout


class Prior:
    """A recipe for a distribution over the flat weights of any net.

    Attributes:
        family: The distribution, called with the tensors of ``parameters`` and ``num_weights``.
    """

    family: type[FlatDistribution]

    def parameters(self, layout: Layout, flat: Tensor) -> dict[str, Tensor]:
        """Tensors the distribution needs; kept as buffers, so that they follow ``.to(device)``.

        Args:
            layout: Names, shapes and fan-ins of the weights.
            flat: The net's present weights, dims (weight,).
        """
        raise NotImplementedError

    def distribution(self, num_weights: int, **tensors: Tensor) -> FlatDistribution:
        """The distribution over the flat vector."""
        return self.family(**tensors, num_weights=num_weights)


Centre = float | Literal["pretrained"]


def _centre(loc: Centre) -> Centre:
    if isinstance(loc, str) and loc != "pretrained":
        reject("loc", "a number or 'pretrained'", loc)
    return loc


def _centre_of(loc: Centre, flat: Tensor) -> Tensor:
    return flat.clone() if isinstance(loc, str) else flat.new_tensor(float(loc))


class Normal(Prior):
    """Independent normals of one scale.

    Args:
        scale: Standard deviation.
        loc: Centre: a number, or ``"pretrained"`` for the net's weights as they are when the
            model is built (load a checkpoint into the net first).
    """

    family = FlatNormal

    def __init__(self, scale: float = 1.0, loc: Centre = 0.0) -> None:
        self.scale, self.loc = positive("scale", scale), _centre(loc)

    def parameters(self, layout: Layout, flat: Tensor) -> dict[str, Tensor]:
        """Location (scalar or vector) and scale (scalar)."""
        return {"loc": _centre_of(self.loc, flat), "scale": flat.new_tensor(self.scale)}


class FanInNormal(Prior):
    """Normals with standard deviation ``gain / sqrt(fan_in)`` for weights.

    The output scale of a layer then does not depend on its width (Neal 1996); gain sqrt(2) keeps
    the scale through ReLU layers (He et al. 2015).

    Args:
        gain: Factor over 1/sqrt(fan_in).
        bias_scale: Standard deviation for biases and other vectors.
        loc: Centre, as of ``Normal``.
    """

    family = FlatNormal
    loc: Centre = 0.0

    def __init__(
        self, gain: float = math.sqrt(2.0), bias_scale: float = 1.0, loc: Centre = 0.0
    ) -> None:
        self.gain, self.bias_scale = positive("gain", gain), positive("bias_scale", bias_scale)
        if _centre(loc) != 0:  # files name a centre where there is one, as the first ones did
            self.loc = loc

    def parameters(self, layout: Layout, flat: Tensor) -> dict[str, Tensor]:
        """Location and a scale a weight."""
        scales = [
            flat.new_full(
                (entry.num_weights,),
                self.gain / math.sqrt(entry.fan_in) if len(entry.shape) > 1 else self.bias_scale,
            )
            for entry in layout.entries
        ]
        return {"loc": _centre_of(self.loc, flat), "scale": torch.cat(scales)}


class NormalByName(Prior):
    """Normals that differ by parameter, such as one around its start for the bias of a detector.

    Args:
        by_name: Patterns over the names of parameters, such as ``"head.*.bias"``, and the normal
            prior of those that match; the first that matches counts.
        otherwise: Of all others; He-scaled normals by default.

    Raises:
        TypeError: A prior is no ``Normal`` or ``FanInNormal``.
        ValueError: When a model is built, if a pattern matches no random parameter.
    """

    family = FlatNormal

    def __init__(
        self,
        by_name: Mapping[str, Normal | FanInNormal],
        otherwise: Normal | FanInNormal | None = None,
    ) -> None:
        self.by_name, self.otherwise = dict(by_name), otherwise or FanInNormal()
        for prior in (*self.by_name.values(), self.otherwise):
            if not isinstance(prior, Normal | FanInNormal):
                raise TypeError(f"priors by name must be Normal or FanInNormal, got {prior!r}")

    def parameters(self, layout: Layout, flat: Tensor) -> dict[str, Tensor]:
        """Location and scale of every weight."""
        found = self.otherwise.parameters(layout, flat)
        found = {name: value.expand(len(flat)).clone() for name, value in found.items()}
        taken = set[str]()
        for pattern, prior in self.by_name.items():
            own, start = prior.parameters(layout, flat), 0
            chosen = {n for n in layout.names if fnmatchcase(n, pattern)}
            if not chosen:
                reject("by_name", f"patterns over {layout.names[:8]} ...", pattern)
            for entry in layout.entries:
                place = slice(start, start := start + entry.num_weights)
                if entry.name in chosen - taken:
                    for name, value in found.items():
                        value[place] = own[name].expand(len(flat))[place]
            taken |= chosen
        return found


class LearntNormal(Prior):
    """Normals whose scales are learnt with the guide: empirical Bayes.

    The scales bound the evidence from below, too. The best squared scale of a group is the mean
    square distance of its weights from the centre (Wu et al., "Deterministic variational inference
    for robust Bayesian neural networks", ICLR 2019, equation 13): ``fit`` takes it at every step,
    under a guide that states its moments (``MeanFieldNormal``, ``LowRankNormal``, ``RadialNormal``;
    others raise). What the data do not need narrows to nothing and costs no KL. With a scale for
    each weight the KL of independent normals is the sum of log(1 + loc^2/scale^2)/2 (Kharitonov et
    al., "Variational dropout via empirical Bayes", 2018), and nets become sparse: this is automatic
    relevance determination, whose evidence is flattered by as many scales as weights. Samplers take
    the scales as they stand.

    A point has no such optimum: all weights at 0 under a scale of 0 have an infinite density. So
    ``PointEstimate`` needs ``use_prior=False`` here, and dropout, which is one, raises.

    Args:
        by: "tensor": a scale for the weights of a layer and one for its biases. "weight": one each.
            "all": one factor over gain/sqrt(fan_in) for all.
        gain: Start of the scales, over 1/sqrt(fan_in) for weights; of biases it is the scale.
        loc: Centre, as of ``Normal``.
    """

    family = FlatNormalByGroup

    def __init__(
        self,
        by: Literal["tensor", "weight", "all"] = "tensor",
        gain: float = 1.0,
        loc: Centre = 0.0,
    ) -> None:
        self.by = choice("by", by, ("tensor", "weight", "all"))
        self.gain, self.loc = positive("gain", gain), _centre(loc)

    def parameters(self, layout: Layout, flat: Tensor) -> dict[str, Tensor]:
        """A log-factor a group, and for each weight its group and its scale at factor 1."""
        entries, counts = layout.entries, torch.tensor(layout.sizes, device=flat.device)
        start = [
            self.gain / math.sqrt(e.fan_in) if len(e.shape) > 1 else self.gain for e in entries
        ]
        num_groups = {"tensor": len(entries), "weight": len(flat), "all": 1}[self.by]
        group = torch.arange(len(entries), device=flat.device).repeat_interleave(counts)
        if self.by != "tensor":
            group = torch.arange(len(flat), device=flat.device) * (self.by == "weight")
        return {
            "loc": _centre_of(self.loc, flat),
            "log_factor": flat.new_zeros(num_groups),
            "counts": torch.bincount(group, minlength=num_groups),
            "group": group,
            "start": flat.new_tensor(start).repeat_interleave(counts),
        }


class Laplace(Prior):
    """Independent Laplace distributions around 0, which favour sparse weights.

    Args:
        scale: b, the mean absolute value of a weight.
    """

    family = FlatLaplace

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = positive("scale", scale)

    def parameters(self, layout: Layout, flat: Tensor) -> dict[str, Tensor]:
        """Location and scale, scalars."""
        return {"loc": flat.new_tensor(0.0), "scale": flat.new_tensor(self.scale)}


class ScaleMixture(Prior):
    """Blundell's mixture of a wide and a narrow normal.

    Args:
        wide: Standard deviation of the wide component.
        narrow: Standard deviation of the narrow component.
        mixing: Probability of the wide component, in (0, 1).
    """

    family = FlatScaleMixture

    def __init__(
        self, wide: float = 1.0, narrow: float = math.exp(-6), mixing: float = 0.5
    ) -> None:
        self.wide, self.narrow = positive("wide", wide), positive("narrow", narrow)
        self.mixing = inside("mixing", mixing)

    def parameters(self, layout: Layout, flat: Tensor) -> dict[str, Tensor]:
        """The three numbers as tensors."""
        return {name: flat.new_tensor(getattr(self, name)) for name in ("wide", "narrow", "mixing")}
