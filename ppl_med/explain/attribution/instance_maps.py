"""Maps of nets that say themselves where their evidence lies: additive and attention nets.

    additive     a layer (case, class, *space) whose sum over space is the logit without its bias
    attention    a layer (case, 1, *space), not negative, whose sum over space is 1

Such a layer has a coarser grid than the image. Its values are spread evenly over the pixels of each
cell, so that maps sum over the image to what they sum to on the grid: the contributions of an
additive net to the logit, the attention to 1.

Attention is no evidence for a class. It is relative within an image, sums to 1 in a healthy one as
well, and is the same whatever the target.

References: Javed et al., "Additive MIL", NeurIPS 2022; Ilse et al., "Attention-based deep multiple
instance learning", ICML 2018.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ppl_med.explain.attribution.activation_maps import find_layer
from ppl_med.explain.attribution.draw_groups import Draw
from ppl_med.explain.attribution.method import Maps, Method, Task
from ppl_med.explain.attribution.network import on_every_module
from ppl_med.explain.attribution.score import Score


@dataclass(frozen=True)
class Additive(Method):
    """The contributions of an additive net, such as ``networks.AdditiveMIL``.

    Most of a contribution may be there in every scan, such as that of the outline. With a
    ``reference`` maps say what is particular to the image: its contributions less their mean over
    the reference. They are the Shapley values of the places, each absent as in a reference image
    drawn at random (Lundberg and Lee, NeurIPS 2017, linear SHAP, which is exact for sums), and add
    up to the logit less the mean logit of the reference.

    Attributes:
        layer: The layer that returns them, a module or its name; the last one with space if None.
        reference: Images (case, channel, *space) to which contributions are relative, such as
            healthy ones of the training set; None for 0.
    """

    layer: str | nn.Module | None = None
    reference: Tensor | None = None
    name = "additive"
    unit = "{} per pixel"
    is_complete = True
    advice = "the layer is not the whole of the output; use 'integrated_gradients'"
    needs_gradient = False
    outputs = ("logit", "value")

    def validate(self, image: Tensor) -> None:
        """Raise unless the reference holds images of the same shape."""
        if self.reference is not None and self.reference.shape[1:] != image.shape[1:]:
            raise ValueError(
                f"reference has shape {tuple(self.reference.shape)}; give images of the shape "
                f"(case, *{tuple(image.shape[1:])})"
            )

    def check_function(self, draw: Draw, name: str, task: Task) -> None:
        """Raise unless the output is the layer's sum over space and a constant."""
        module = find_layer(draw, task.image[:1], self.layer, self.name)
        start = _output_of(draw, module, 0.5 * task.image)
        parts, output = _output_of(draw, module, task.image)
        fits = output.ndim == 2 and parts.shape[:2] == output.shape
        if fits:
            change = (parts - start[0]).flatten(2).sum(2)
            size = output.abs().max() + parts.abs().flatten(1).sum(1).max()
            fits = bool(((output - start[1]) - change).abs().max() <= 1e-4 * size)
        if not fits:
            raise ValueError(
                f"additive: the output of {name} is not the sum over space of the layer's values; "
                "name the layer whose values are contributions to the classes, as those of "
                "networks.AdditiveMIL are, or use method='integrated_gradients'"
            )

    def maps(self, draws: Draw, task: Task) -> Maps:
        """Contributions, spread over the pixels of their cells."""
        module = find_layer(draws, task.image[:1], self.layer, self.name)
        usual: Tensor | None = None
        if self.reference is not None:
            images = self.reference.to(task.image).split(task.batch_size)
            usual = torch.cat([_output_of(draws, module, one)[0] for one in images]).mean(0)
        found, bias, total = [], [], []
        for part in task.split(task.batch_size):
            values = self._contributions(draws, part, _output_of(draws, module, part.image)[0])
            start = self._contributions(draws, part, _output_of(draws, module, part.baseline)[0])
            rest = draws.value(part.baseline, part.rows)[0] - start.flatten(1).sum(1)
            if usual is not None:
                own = self._contributions(draws, part, usual.expand(len(values), *usual.shape))
                values, rest = values - own, rest + own.flatten(1).sum(1)
            found.append(spread(values[:, None], part.image, self.name))
            bias.append(rest)
            total.append(draws.value(part.image, part.rows)[0])
        return Maps(
            torch.cat(found)[None], torch.cat(total)[None], bias_attribution=torch.cat(bias)[None]
        )

    def _contributions(self, draw: Draw, task: Task, parts: Tensor) -> Tensor:
        """Those of all classes to the explained number, (case, *grid)."""
        assert isinstance(draw.score, Score)
        target = draw.score.target[task.rows]
        if parts.shape[1] == 1 and draw.score.output == "logit":  # the log-odds of class 1
            return parts[:, 0] * (2 * target - 1).reshape(-1, *[1] * (parts.ndim - 2))
        return parts[torch.arange(len(parts), device=parts.device), target]


@dataclass(frozen=True)
class Attention(Method):
    """Where an attention net looks, such as ``networks.AttentionMIL``; it knows no class.

    Attributes:
        layer: The layer that returns the attention, a module or its name; if None the only one
            whose values fit.
    """

    layer: str | nn.Module | None = None
    name = "attention"
    unit = "share of attention per pixel"
    needs_gradient = False

    def check_function(self, draw: Draw, name: str, task: Task) -> None:
        """Raise unless the layer's values are shares that sum to 1 over space."""
        self._attention(draw, task.image, name)

    def maps(self, draws: Draw, task: Task) -> Maps:
        """Attention, spread over the pixels of its cells."""
        parts = task.split(task.batch_size)
        found = [
            spread(self._attention(draws, part.image, "a function"), part.image, self.name)
            for part in parts
        ]
        return Maps(torch.cat(found)[None])

    def _attention(self, draw: Draw, image: Tensor, name: str) -> Tensor:
        """The layer's values (case, 1, *grid)."""
        if self.layer is not None:
            module = find_layer(draw, image[:1], self.layer, self.name)
            found = [_output_of(draw, module, image)[0]]
        else:
            found = _outputs(draw, image)
        fits = [values for values in found if _are_shares(values, image)]
        if len(fits) != 1:
            raise ValueError(
                f"attention: {name} has {len(fits)} layers that return shares (case, 1, *space) "
                "which sum to 1 over space; name one with layer=, or use "
                "method='integrated_gradients'"
            )
        return fits[0]


def spread(maps: Tensor, image: Tensor, method: str) -> Tensor:
    """Divide each value (case, channel, *grid) evenly among the pixels of its cell of the image.

    Raises:
        ValueError: The grid is finer than the image.
    """
    for axis in range(2, image.ndim):
        size, cells = image.shape[axis], maps.shape[axis]
        if cells > size:
            raise ValueError(
                f"{method}: the layer's grid {tuple(maps.shape[2:])} is finer than the image "
                f"{tuple(image.shape[2:])}; name a layer within the image's size"
            )
        cell = torch.arange(size, device=maps.device) * cells // size
        count = torch.bincount(cell, minlength=cells)[cell].to(maps)
        shape = [-1 if one == axis else 1 for one in range(maps.ndim)]
        maps = maps.index_select(axis, cell) / count.reshape(shape)
    return maps


def _are_shares(values: Tensor, image: Tensor) -> bool:
    if values.ndim != image.ndim or values.shape[1] != 1 or max(values.shape[2:]) < 2:
        return False
    total = values.flatten(1).sum(1)
    return bool((values >= 0).all()) and torch.allclose(total, torch.ones_like(total), atol=1e-4)


@torch.no_grad()
def _output_of(draw: Draw, module: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's output, and the function's."""
    kept: list[Tensor] = []
    with module.register_forward_hook(lambda m, i, output: kept.append(output.clone())):
        output = draw.function(image.clone())
    return kept[0], output


@torch.no_grad()
def _outputs(draw: Draw, image: Tensor) -> list[Tensor]:
    """Outputs of all modules that return a tensor."""
    kept: list[Tensor] = []

    def hook(called: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            kept.append(output.clone())

    with on_every_module(hook):
        draw.function(image.clone())
    return kept
