"""Losses of masks that read a pixel's label together with those around it.

    SpatialSmoothing     cross-entropy against labels smoothed where classes meet
    NeighbourAware       cross-entropy, and logits near the classes' shares around the pixel

Both are losses and no densities: a pixel's term holds its neighbours' labels too, so they sum to
one over no label; see ``class_loss`` for what that does to the posterior. Away from borders between
classes ``SpatialSmoothing`` is ``Categorical``. Pixels that were not annotated have no term and
count in no neighbourhood; the image's border is continued by its outermost pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv3d, pad

from ppl_med.checks import finite, is_whole, reject
from ppl_med.likelihoods.class_loss import LossLikelihood
from ppl_med.likelihoods.loss_distribution import log_prob_of

_CONVOLUTIONS = {2: conv2d, 3: conv3d}


class SpatialSmoothing(LossLikelihood):
    """Spatially varying label smoothing (SVLS): uncertain labels at borders; a loss, no density.

    Cross-entropy against one-hot labels convolved with a normal kernel whose centre weighs as much
    as all neighbours together (Islam and Glocker, "Spatially varying label smoothing: capturing
    uncertainty from expert annotations", IPMI 2021, eq. 3 to 5).

    Args:
        event: Names of the spatial axes, two or three.
        size: Width of the kernel in pixels, odd, 3 or more.
        sigma: Standard deviation of the kernel, in pixels.
        classes, site, partial: As in ``Categorical``.
    """

    kernel: Tensor

    def __init__(
        self,
        classes: Sequence[str],
        event: Sequence[str] = ("row", "col"),
        size: int = 3,
        sigma: float = 1.0,
        site: str = "mask",
        *,
        partial: bool = True,
    ) -> None:
        super().__init__(classes, event, site, partial=partial)
        if not sigma > 0:
            reject("sigma", "above 0", sigma)
        self.register_buffer("kernel", _svls_kernel(_dims(event), size, sigma), persistent=False)
        self.training_loss = f"spatially varying label smoothing, size {size}, sigma {sigma:g}"

    def loss(self, logits: Tensor, label: Tensor, seen: Tensor) -> Tensor:
        """Cross-entropy against the smoothed labels, in nats."""
        target = shares(label, seen, len(self.classes), self.kernel).to(logits)
        return -(target * logits.log_softmax(-1)).sum(-1)


class NeighbourAware(LossLikelihood):
    """Neighbour-aware calibration (NACL): cross-entropy plus a penalty on logits; a loss.

    The penalty is ``weight * mean_k |logit_k - share_k|``, with the shares of the classes among
    the pixels of a box around the pixel, itself included (Murugesan et al., "Trust your neighbours:
    penalty-based constraints for model calibration", MICCAI 2023, eq. 5; Medical Image Analysis
    2025; the mean over classes is that of MONAI's ``NACLLoss``, which continues the image by no
    class at all).

    Args:
        event: Names of the spatial axes, two or three.
        size: Width of the box in pixels, odd, 3 or more.
        weight: Weight of the penalty, 0 or more; 0 is ``Categorical``.
        classes, site, partial: As in ``Categorical``.
    """

    kernel: Tensor

    def __init__(
        self,
        classes: Sequence[str],
        event: Sequence[str] = ("row", "col"),
        size: int = 3,
        weight: float = 0.1,
        site: str = "mask",
        *,
        partial: bool = True,
    ) -> None:
        super().__init__(classes, event, site, partial=partial)
        finite("weight", weight, 0)
        self.weight = weight
        _check_size(size)
        self.register_buffer("kernel", torch.ones([size] * _dims(event)), persistent=False)
        self.training_loss = f"neighbour-aware calibration, size {size}, weight {weight:g}"

    def loss(self, logits: Tensor, label: Tensor, seen: Tensor) -> Tensor:
        """Cross-entropy and penalty, in nats."""
        target = shares(label, seen, len(self.classes), self.kernel).to(logits)
        penalty = (logits - target).abs().mean(-1)
        return self.weight * penalty - log_prob_of(logits.log_softmax(-1), label)


def shares(label: Tensor, seen: Tensor, num_classes: int, kernel: Tensor) -> Tensor:
    """Weighted shares of the classes among the annotated pixels around every pixel.

    Labels and whether they were annotated have dims (..., *space), the shares (..., *space, class):
    sums of one, or zeros where nothing around was annotated. The kernel has as many dims as the
    space, of odd sizes.
    """
    space = kernel.dim()
    classes = torch.arange(num_classes, device=label.device)
    counted = (label.unsqueeze(-1) == classes) & seen.unsqueeze(-1)
    counted = counted.movedim(-1, -1 - space)
    flat = counted.reshape(-1, 1, *label.shape[-space:]).to(kernel)
    margins = [width // 2 for width in reversed(kernel.shape) for _ in range(2)]
    wide = pad(flat, margins, mode="replicate")
    with torch.autocast(wide.device.type, enabled=False):  # shares must sum to one
        summed = _CONVOLUTIONS[space](wide, kernel[None, None]).reshape(counted.shape)
    summed = summed.movedim(-1 - space, -1)
    total = summed.sum(-1, keepdim=True)
    return summed / torch.where(total > 0, total, torch.ones_like(total))


def _svls_kernel(space: int, size: int, sigma: float) -> Tensor:
    """Neighbours sum to one, and so does the centre."""
    _check_size(size)
    squares = (torch.arange(size, dtype=torch.float64) - size // 2) ** 2
    distance = sum(torch.meshgrid(*[squares] * space, indexing="ij"), torch.zeros(()))
    kernel = (-distance / (2 * sigma**2)).exp()
    centre = (size // 2,) * space
    kernel[centre] = 0.0
    kernel = kernel / kernel.sum()
    kernel[centre] = 1.0
    return kernel.float()


def _dims(event: Sequence[str]) -> int:
    if isinstance(event, str) or len(event) not in _CONVOLUTIONS:
        raise ValueError(
            f"event must name two or three spatial axes, such as ('row', 'col'), got {event!r}; a "
            "label of a whole case has no neighbours"
        )
    return len(event)


def _check_size(size: int) -> None:
    if not is_whole(size) or size < 3 or size % 2 == 0:
        reject("size", "an odd whole number, 3 or more", size)
