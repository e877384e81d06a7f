"""Occlusion: how much the output falls when a part of the image is replaced by the baseline.

    a(pixel) = f(x) - f(x with the pixel's part replaced)

Parts are patches on a grid, or regions given by labels. Where patches overlap, a pixel has the mean
over the patches that cover it. No gradient is taken, so any function can be explained.

References: Zeiler and Fergus, "Visualizing and understanding convolutional networks", ECCV 2014.
The bookkeeping is captum's ``Occlusion`` and ``FeatureAblation``.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import captum.attr
import numpy as np
import torch
from torch import Tensor

from ppl_med.checks import reject, whole
from ppl_med.explain.attribution.draw_groups import Draw
from ppl_med.explain.attribution.method import Maps, Method, Task
from ppl_med.explain.function_checks import map_dims

Size = int | tuple[int, ...]


@dataclass(frozen=True)
class Occlusion(Method):
    """The fall of the output when patches or regions are replaced by the baseline.

    Attributes:
        patch: Side of a patch in pixels, one number or one per spatial axis.
        stride: Distance between patches; their side if None, so that they do not overlap.
        regions: Labels (case, [depth,] row, col) of parts to replace instead of patches, or
            ``"superpixel"`` for parts of like intensity (SLIC, needs scikit-image).
        num_superpixels: About how many superpixels a case has.
    """

    patch: Size = 8
    stride: Size | None = None
    regions: Tensor | Literal["superpixel"] | None = None
    num_superpixels: int = 50
    name = "occlusion"
    needs_gradient = False
    uses_baseline = True

    def validate(self, image: Tensor) -> None:
        """Raise unless patches fit the image, or the labels are integers on its grid."""
        for name, size in (("patch", self._patch(image)), ("stride", self._stride(image))):
            for side in size:
                whole(name, side)
            if len(size) != image.ndim - 2:
                reject(name, f"one number, or one each of {map_dims(image)[2:]}", size)
        too_large = [p > n for p, n in zip(self._patch(image), image.shape[2:], strict=True)]
        if self.regions is None and any(too_large):
            reject("patch", f"at most the image's {tuple(image.shape[2:])} pixels", self.patch)
        gap = [s > p for s, p in zip(self._stride(image), self._patch(image), strict=True)]
        if self.regions is None and any(gap):
            raise ValueError("stride must not exceed patch, which leaves pixels out")
        if isinstance(self.regions, str):
            whole("num_superpixels", self.num_superpixels)
            if self.regions != "superpixel":
                reject("regions", "'superpixel' or labels", self.regions)
            if find_spec("skimage") is None:
                raise ValueError(
                    "regions='superpixel' needs scikit-image, which is not installed; use patches, "
                    "or give labels of your own as regions"
                )
        elif self.regions is not None:
            wanted = (len(image), *image.shape[2:])
            if tuple(self.regions.shape) != wanted:
                reject("regions", f"labels of shape {wanted}", tuple(self.regions.shape))
            if self.regions.is_floating_point():
                raise TypeError(f"regions must hold integer labels, got {self.regions.dtype}")

    def _patch(self, image: Tensor) -> tuple[int, ...]:
        return self.patch if isinstance(self.patch, tuple) else (self.patch,) * (image.ndim - 2)

    def _stride(self, image: Tensor) -> tuple[int, ...]:
        if self.stride is None:
            return self._patch(image)
        return self.stride if isinstance(self.stride, tuple) else (self.stride,) * (image.ndim - 2)

    def maps(self, draws: Draw, task: Task) -> Maps:
        """All channels are replaced together, as are all pixels of a part."""
        settings = {
            "baselines": task.baseline,
            "additional_forward_args": (task.rows,),
            "perturbations_per_eval": max(1, task.batch_size // len(task.rows)),
        }
        channels = task.image.shape[1]
        if self.regions is None:
            values = captum.attr.Occlusion(lambda *at: draws.value(*at)[0]).attribute(
                task.image,
                (channels, *self._patch(task.image)),
                strides=(channels, *self._stride(task.image)),
                **settings,
            )
        else:
            values = captum.attr.FeatureAblation(lambda *at: draws.value(*at)[0]).attribute(
                task.image, feature_mask=self._labels(task)[:, None], **settings
            )
        return Maps(values[None])

    def _labels(self, task: Task) -> Tensor:
        """Labels from 0 without gaps, (case, ...)."""
        if isinstance(self.regions, Tensor):
            labels = self.regions.to(task.image.device)[task.rows]
        else:
            labels = torch.stack([_superpixels(x, self.num_superpixels) for x in task.image])
        return torch.unique(labels, return_inverse=True)[1]


def _superpixels(image: Tensor, num: int) -> Tensor:
    """SLIC labels of one image (channel, ...)."""
    from skimage.segmentation import slic

    values = image.detach().double().cpu().numpy()
    span = values.max() - values.min()
    scaled = (values - values.min()) / (span if span > 0 else 1.0)
    labels = slic(scaled, n_segments=num, channel_axis=0, start_label=0, compactness=0.1)
    return torch.from_numpy(np.asarray(labels)).to(image.device)
