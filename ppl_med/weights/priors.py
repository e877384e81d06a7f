"""Priors over the weights of any network.

A prior is a small recipe: ``prior.parameters(layout, flat)`` gives its tensors, which
``RandomWeights`` keeps as buffers, and ``prior.distribution(**tensors)`` the distribution over the
flat vector.

Sources: Normal and scale mixture, Blundell et al., "Weight uncertainty in neural networks", ICML
2015 (the mixture is its equation 7); fan-in scaling, Neal 1996 and He et al. 2015.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from ppl_med.checks import inside, positive, reject
from ppl_med.weights.distributions import (
    FlatDistribution,
    FlatLaplace,
    FlatNormal,
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


class Normal(Prior):
    """Independent normals of one scale.

    Args:
        scale: Standard deviation.
        loc: Centre: a number, or ``"pretrained"`` for the net's weights as they are when the
            model is built (load a checkpoint into the net first).
    """

    family = FlatNormal

    def __init__(self, scale: float = 1.0, loc: float | Literal["pretrained"] = 0.0) -> None:
        self.scale, self.loc = positive("scale", scale), loc
        if isinstance(loc, str) and loc != "pretrained":
            reject("loc", "a number or 'pretrained'", loc)

    def parameters(self, layout: Layout, flat: Tensor) -> dict[str, Tensor]:
        """Location (scalar or vector) and scale (scalar)."""
        loc = flat.clone() if self.loc == "pretrained" else flat.new_tensor(float(self.loc))
        return {"loc": loc, "scale": flat.new_tensor(self.scale)}


class FanInNormal(Prior):
    """Normals with standard deviation ``gain / sqrt(fan_in)`` for weights.

    The output scale of a layer then does not depend on its width (Neal 1996); gain sqrt(2) keeps
    the scale through ReLU layers (He et al. 2015).

    Args:
        gain: Factor over 1/sqrt(fan_in).
        bias_scale: Standard deviation for biases and other vectors.
    """

    family = FlatNormal

    def __init__(self, gain: float = math.sqrt(2.0), bias_scale: float = 1.0) -> None:
        self.gain, self.bias_scale = positive("gain", gain), positive("bias_scale", bias_scale)

    def parameters(self, layout: Layout, flat: Tensor) -> dict[str, Tensor]:
        """Location 0 and a scale a weight."""
        scales = [
            flat.new_full(
                (entry.num_weights,),
                self.gain / math.sqrt(entry.fan_in) if len(entry.shape) > 1 else self.bias_scale,
            )
            for entry in layout.entries
        ]
        return {"loc": flat.new_tensor(0.0), "scale": torch.cat(scales)}


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
