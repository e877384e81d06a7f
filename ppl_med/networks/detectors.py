"""Detectors whose output is one tensor: classes, edges and their noise at every anchor.

``likelihoods.Boxes`` reads the channels. torchvision's nets are used without their resizing,
standardisation, losses and thresholds: images keep their size, and come as ``Batches`` gives them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList

from ppl_med.checks import inside, reject, whole

CLASS_PRIOR = 0.01
"""Probability of an object at an anchor at the start (Lin et al., ICCV 2017, section 4.1)."""


class SmallDetector(nn.Module):
    """A one-stage detector for images of 64 to 256 pixels on a CPU, below a million weights.

    Three convolutional levels of strides 4, 8 and 16 with group norms, the last two joined from top
    to bottom (Lin et al., "Feature pyramid networks", CVPR 2017), and one head for both.

    Args:
        in_channels: Image channels.
        num_classes: Classes of objects, without a background.
        sizes: Sides of the square anchors in pixels, those of stride 8 and those of stride 16.
        ratios: Height over width of the anchors; every size comes in all of them.
        width: Channels of the joined levels and the head, a multiple of 8.
        class_prior: Probability of each class at an anchor at the start, which sets the bias.

    Attributes:
        class_bias: Name of the bias that holds the start of the class logits.
        head: Starts of the names of the layers after the features.
    """

    half_sides: Tensor
    encoding, match, proposals = "edges", "all", False
    class_bias = "classes.bias"
    head = ("classes", "edges", "log_variances")
    strides = (8, 16)

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1,
        *,
        sizes: Sequence[Sequence[float]] = ((8.0, 12.0, 18.0, 27.0), (27.0, 40.0, 60.0)),
        ratios: Sequence[float] = (1.0,),
        width: int = 64,
        class_prior: float = CLASS_PRIOR,
    ) -> None:
        super().__init__()
        if len(sizes) != 2 or not all(one > 0 for level in sizes for one in level):
            reject("sizes", "two lists of sides above 0, of strides 8 and 16", sizes)
        if len({len(level) for level in sizes}) > 1:
            most = max(map(len, sizes))
            sizes = [[*level, *[level[-1] * 1.26] * (most - len(level))] for level in sizes]
        if whole("width", width) % 8:
            reject("width", "a multiple of 8", width)
        self.in_channels, self.num_classes = in_channels, whole("num_classes", num_classes)
        self.class_prior = inside("class_prior", class_prior)
        self.sizes = tuple(tuple(map(float, level)) for level in sizes)
        self.ratios = tuple(map(float, ratios))
        half = [
            [[side / r**0.5 / 2, side * r**0.5 / 2] for side in level for r in self.ratios]
            for level in self.sizes
        ]
        self.register_buffer("half_sides", torch.tensor(half), persistent=False)
        self.stem = nn.Sequential(_Block(in_channels, 16, 2), _Block(16, width // 2, 2))
        self.middle = nn.Sequential(_Block(width // 2, width, 2), _Block(width, width, 1))
        self.top = nn.Sequential(_Block(width, width * 3 // 2, 2), _Block(width * 3 // 2, width, 1))
        self.join = _Block(width, width, 1)
        self.tower = nn.Sequential(_Block(width, width, 1), _Block(width, width, 1))
        each = len(self.sizes[0]) * len(self.ratios)
        self.classes = _ClassLayer(width, each * num_classes, class_prior)
        self.edges = _EdgeLayer(width, each * 4)
        self.log_variances = _EdgeLayer(width, each * 4, start=-3.0)

    def forward(self, image: Tensor) -> Tensor:
        """Output (case, class + 13, anchor) of images (case, channel, row, col)."""
        low = self.middle(self.stem(image))
        high = self.top(low)
        raised = nn.functional.interpolate(high, size=low.shape[2:], mode="nearest")
        parts = []
        for level, features in enumerate((self.join(low + raised), high)):
            features = self.tower(features)
            found = [
                _by_anchor(layer(features), number)
                for layer, number in (
                    (self.classes, self.num_classes), (self.edges, 4), (self.log_variances, 4),
                )
            ]  # fmt: skip
            anchors = self._anchors(level, features)
            parts.append(_joined(found, anchors.expand(len(image), -1, -1)))
        return torch.cat(parts, -1)

    def _anchors(self, level: int, features: Tensor) -> Tensor:
        """Anchors of a level in pixels, (row x col x shape, 4)."""
        rows, cols = features.shape[2:]
        stride, device = self.strides[level], features.device
        middle = torch.stack(torch.meshgrid(
            (torch.arange(cols, device=device) + 0.5) * stride,
            (torch.arange(rows, device=device) + 0.5) * stride,
            indexing="xy",
        ), -1).reshape(-1, 1, 2)  # fmt: skip
        half = self.half_sides[level].to(middle)
        return torch.cat([middle - half, middle + half], -1).reshape(-1, 4)


class _Block(nn.Sequential):
    """Convolution, group norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        convolution = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        groups = 8 if out_channels >= 16 else out_channels // 4
        super().__init__(convolution, nn.GroupNorm(groups, out_channels), nn.ReLU())


class _ClassLayer(nn.Conv2d):
    """Logits of classes, which start at the logit of a small probability."""

    def __init__(self, in_channels: int, out_channels: int, prior: float) -> None:
        self.prior = prior
        super().__init__(in_channels, out_channels, 3, padding=1)

    def reset_parameters(self) -> None:
        """Draw new start values."""
        nn.init.normal_(self.weight, std=0.01)
        if self.bias is not None:
            nn.init.constant_(self.bias, _logit(self.prior))


class _EdgeLayer(nn.Conv2d):
    """Numbers of edges, near a start."""

    def __init__(self, in_channels: int, out_channels: int, start: float = 0.0) -> None:
        self.start = start
        super().__init__(in_channels, out_channels, 3, padding=1)

    def reset_parameters(self) -> None:
        """Draw new start values."""
        nn.init.normal_(self.weight, std=0.01)
        if self.bias is not None:
            nn.init.constant_(self.bias, self.start)


class DetectorOutput(nn.Module):
    """torchvision's RetinaNet, FCOS or Faster R-CNN, its output as one tensor.

    Edges get a variance each from a new layer beside that of the edges. What these nets compute and
    ``Boxes`` has no place for is left out: FCOS's centre-ness, which makes its score no
    probability. In Faster R-CNN the boxes of the second stage do not depend on the class, so its
    predictor is a new layer; proposals are part of the output (``Boxes(proposals=True)``).

    Args:
        net: The detector, with any backbone. RetinaNet and FCOS count classes without a background,
            Faster R-CNN with one.
        in_channels: Image channels of the backbone.

    Attributes:
        class_bias: Name of the bias that holds the start of the class logits.
        head: Starts of the names of the layers after the features.

    Raises:
        TypeError: ``net`` is none of the three.
    """

    def __init__(self, net: nn.Module, in_channels: int = 3) -> None:
        super().__init__()
        if not isinstance(net, RetinaNet | FCOS | FasterRCNN):
            raise TypeError(
                f"net is a {type(net).__name__}; expected torchvision's RetinaNet, FCOS or "
                "FasterRCNN, or a net that gives (case, class + 13, anchor) itself"
            )
        self.net, self.in_channels = net, in_channels
        self.head: tuple[str, ...]
        self.encoding, self.match, self.proposals = "deltas", "all", isinstance(net, FasterRCNN)
        if isinstance(net, FasterRCNN):
            score = net.roi_heads.box_predictor.cls_score
            self.num_classes = score.out_features - 1
            channels = net.rpn.head.cls_logits.in_channels
            each = net.rpn.head.cls_logits.out_channels
            self.log_variances = nn.Conv2d(channels, each * 4, 1)
            self.predictor = nn.Linear(score.in_features, self.num_classes + 8)
            nn.init.normal_(self.predictor.weight, std=0.01)
            nn.init.constant_(self.predictor.bias, 0.0)
            net.roi_heads.box_predictor = nn.Identity()
            self.class_bias = "predictor.bias"
            self.head = ("predictor", "log_variances", "net.rpn.head", "net.roi_heads")
        else:
            head = net.head.classification_head
            self.num_classes = head.num_classes
            regression = net.head.regression_head.bbox_reg
            self.log_variances = nn.Conv2d(
                regression.in_channels, regression.out_channels, 3, padding=1
            )
            self.class_bias = "net.head.classification_head.cls_logits.bias"
            self.head = ("net.head", "log_variances")
        nn.init.normal_(self.log_variances.weight, std=0.001)
        nn.init.constant_(self.log_variances.bias, -3.0)  # type: ignore[arg-type]
        if isinstance(net, FCOS):
            self.encoding, self.match = "edges", "centre"
            net.head.regression_head.bbox_ctrness = nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Output (case, class + 13, anchor) of images (case, channel, row, col)."""
        features = self.net.backbone(image)
        levels = [features] if isinstance(features, Tensor) else list(features.values())
        images = ImageList(image, [(image.shape[2], image.shape[3])] * len(image))
        if isinstance(self.net, FasterRCNN):
            return self._two_stages(image, features, levels, images)
        anchors = torch.stack(self.net.anchor_generator(images, levels))
        classes, regression = self.net.head.classification_head, self.net.head.regression_head
        parts: list[list[Tensor]] = []
        for level in levels:
            hidden = regression.conv(level)
            place = regression.bbox_reg(hidden)
            if isinstance(self.net, FCOS):
                place = nn.functional.relu(place)
            found = (classes.cls_logits(classes.conv(level)), place, self.log_variances(hidden))
            parts.append([
                _by_anchor(one, number)
                for one, number in zip(found, (self.num_classes, 4, 4), strict=True)
            ])  # fmt: skip
        joined = [torch.cat(one, 1) for one in zip(*parts, strict=True)]
        if isinstance(self.net, FCOS):  # distances from the middle, in anchors
            sign = image.new_tensor([-1.0, -1.0, 1.0, 1.0])
            joined[1] = sign * (joined[1] - 0.5)
        return _joined(joined, anchors)

    def _two_stages(
        self, image: Tensor, features: Any, levels: list[Tensor], images: Any
    ) -> Tensor:
        rpn, heads = self.net.rpn, self.net.roi_heads
        logits, deltas = rpn.head(levels)
        hidden = [rpn.head.conv(level) for level in levels]
        variances = [self.log_variances(one) for one in hidden]
        first = [
            torch.cat([_by_anchor(one, number) for one in level], 1)
            for level, number in ((logits, 1), (deltas, 4), (variances, 4))
        ]
        anchors = rpn.anchor_generator(images, levels)
        counts = [one.shape[1] * one.shape[2] * one.shape[3] for one in logits]
        with torch.no_grad():
            decoded = rpn.box_coder.decode(first[1].reshape(-1, 4), anchors).view(len(image), -1, 4)
            proposals, _ = rpn.filter_proposals(
                decoded, first[0].detach().reshape(len(image), -1), images.image_sizes, counts
            )
        named = features if isinstance(features, dict) else {"0": features}
        pooled = heads.box_roi_pool(named, proposals, images.image_sizes)
        found = self.predictor(heads.box_head(pooled)).split([len(one) for one in proposals])
        most = max(1, *(len(one) for one in proposals))
        second = torch.stack([_filled(one, most) for one in found])
        boxes = torch.stack([_filled(one, most, 1.0) for one in proposals])
        kind = torch.stack([
            _filled(one.new_ones(len(one), 1), most, -1.0) for one in proposals
        ])  # fmt: skip
        number = self.num_classes
        none = first[0].new_zeros(*first[0].shape[:2], number - 1)
        stage_one = _joined(
            [torch.cat([first[0], none], -1), *first[1:]], torch.stack(anchors), 0.0
        )
        parts = [second[..., :number], second[..., number : number + 4], second[..., -4:] - 3.0]
        stage_two = _joined(parts, boxes, kind)
        return torch.cat([stage_one, stage_two], -1)


def _filled(values: Tensor, size: int, fill: float = 0.0) -> Tensor:
    """Rows filled up to a number; boxes with the unit square."""
    missing = values.new_full((size - len(values), values.shape[1]), fill)
    if values.shape[1] == 4:
        missing[:, :2] = 0
    return torch.cat([values, missing])


def _by_anchor(output: Tensor, number: int) -> Tensor:
    """(case, shape x number, row, col) -> (case, row x col x shape, number)."""
    found = output.unflatten(1, (-1, number)).permute(0, 3, 4, 1, 2)
    return found.reshape(len(output), -1, number)


def _joined(parts: Sequence[Tensor], anchors: Tensor, kind: float | Tensor = 1.0) -> Tensor:
    """Logits, edges, log-variances, anchors (case, anchor, ...) as (case, output, anchor)."""
    if not isinstance(kind, Tensor):
        kind = anchors.new_full((*anchors.shape[:2], 1), kind)
    return torch.cat([*parts, anchors.to(parts[0]), kind.to(parts[0])], -1).movedim(-1, 1)


def _logit(probability: float) -> float:
    return float(torch.logit(torch.tensor(probability)))
