"""What is explained: one number per case, read off the output of a function draw.

class       output (case, class)             the logit, log-probability or probability of a class
region      output (case, class, *space)     the same, averaged over the pixels of a region
number      output (case,) or (case, value)  the number itself
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ppl_med.explain.function_checks import map_dims, per_case
from ppl_med.likelihoods.stored import class_logits as class_logits

Output = Literal["logit", "log_probability", "probability", "value"]


def region_mean(values: Tensor, region: Tensor | None) -> Tensor:
    """Average values (case, *space) over a region whose weights sum to 1; None without space."""
    return values if region is None else (values * region).flatten(1).sum(1)


@dataclass(frozen=True)
class Score:
    """One number per case from the output of a function draw.

    ``target`` (case,) is the class, or the position of the number; ``region`` holds weights (case,
    *space) that sum to 1 over space, None for outputs without space.
    """

    output: Output
    target: Tensor
    region: Tensor | None = None

    def __call__(self, output: Tensor, rows: Tensor) -> Tensor:
        """Read the number off an output (point, class, *space) of the cases ``rows``, (point,)."""
        region = None if self.region is None else self.region[rows]
        return region_mean(self._by_class(output, self.target[rows]), region)

    def _by_class(self, output: Tensor, target: Tensor) -> Tensor:
        if output.ndim == 1:
            output = output[:, None]
        if self.output != "value":
            one_logit = output.shape[1] == 1
            output = class_logits(output)
            if self.output == "log_probability":
                output = output.log_softmax(1)
            elif self.output == "probability":
                output = output.softmax(1)
            elif one_logit:  # the log-odds: the logit of class 1 minus that of class 0
                output = output * 2
        index = per_case(target, output).expand(-1, 1, *output.shape[2:])
        return output.gather(1, index)[:, 0]

    def check(self, name: str, output: object) -> None:
        """Raise unless a function's output for two images has the axes and classes needed."""
        check_axes(name, output, self.region, number=self.output == "value")
        assert isinstance(output, Tensor)
        num = 1 if output.ndim == 1 else output.shape[1]
        what = "numbers"
        if self.output != "value":
            num, what = max(2, num), "classes"
        low, high = int(self.target.min()), int(self.target.max())
        if low < 0 or high >= num:
            raise ValueError(
                f"target runs from {low} to {high}; the functions know {what} 0 to {num - 1}"
            )


def check_axes(name: str, output: object, region: Tensor | None, number: bool = False) -> None:
    """Raise unless two images gave an output whose space is that of the region."""
    wanted = "numbers (case,) or (case, value)" if number else "logits (case, class)"
    axes = 2 if region is None else 1 + region.ndim
    if not isinstance(output, Tensor) or len(output) != 2:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"{name} returned {got} for 2 images; it must return {wanted}")
    if output.ndim == axes or (number and output.ndim == 1 and region is None):
        if region is not None and output.shape[2:] != region.shape[1:]:
            raise ValueError(
                f"region covers {tuple(region.shape[1:])} pixels, {name} returned "
                f"{tuple(output.shape[2:])}; give the region on the grid of the output"
            )
        return
    got = f"{name} returned {tuple(output.shape)} for 2 images"
    if region is None and output.ndim > 2:
        raise ValueError(f"{got}; a map of logits needs region=, the pixels to explain")
    if region is not None and output.ndim <= 2:
        raise ValueError(f"{got}, which has no space; leave region out")
    raise ValueError(f"{got}; it must return {wanted}")


def as_region(region: Tensor | None, image: Tensor) -> Tensor | None:
    """Return a region as weights (case, *space) that sum to 1, on the image's device."""
    if region is None:
        return None
    if not isinstance(region, Tensor):
        raise TypeError(f"region must be a tensor of 0 and 1, got {type(region).__name__}")
    space = map_dims(image)[2:]
    if region.ndim != 1 + len(space) or len(region) != len(image):
        raise ValueError(
            f"region must be (case, {', '.join(space)}), got shape {tuple(region.shape)} for "
            f"images {tuple(image.shape)}"
        )
    weights = region.to(image)
    if not bool(((weights == 0) | (weights == 1)).all()):
        raise ValueError("region holds values other than 0 and 1; choose one, as in mask == 1")
    count = weights.flatten(1).sum(1)
    if not bool((count > 0).all()):
        empty = torch.nonzero(count == 0).flatten().tolist()
        raise ValueError(f"region is empty in cases {empty}; leave those cases out")
    return weights / per_case(count, weights)
