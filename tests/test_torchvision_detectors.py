"""torchvision's detectors as programs: their boxes and matches are its own."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from box_batches import CLASSES, batch, random_boxes
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from ppl_med.inference import (
    MeanFieldNormal,
    fit,
    predict,
)
from ppl_med.likelihoods import Boxes
from ppl_med.likelihoods.anchors import decode, match_anchors
from ppl_med.models import BayesianDetector
from ppl_med.networks import DetectorOutput

# --- torchvision's nets


def fpn_backbone() -> nn.Module:
    torch.manual_seed(0)
    net = resnet18(norm_layer=lambda channels: nn.GroupNorm(8, channels))
    return _resnet_fpn_extractor(net, 5, returned_layers=[2, 3, 4])


def retinanet() -> RetinaNet:
    anchors = AnchorGenerator(tuple((8 * 2**i,) for i in range(4)), ((1.0,),) * 4)
    return RetinaNet(fpn_backbone(), 2, anchor_generator=anchors)


def fcos() -> FCOS:
    anchors = AnchorGenerator(tuple((8 * 2**i,) for i in range(4)), ((1.0,),) * 4)
    fixed: Any = {"min_size": 64, "max_size": 64, "image_mean": [0] * 3, "image_std": [1] * 3}
    return FCOS(fpn_backbone(), 2, anchor_generator=anchors, **fixed)


def faster_rcnn() -> FasterRCNN:
    anchors = AnchorGenerator(tuple((8 * 2**i,) for i in range(4)), ((1.0,),) * 4)
    return FasterRCNN(
        fpn_backbone(), rpn_anchor_generator=anchors, box_head=TwoMLPHead(256 * 49, 16),
        box_predictor=FastRCNNPredictor(16, 3), rpn_pre_nms_top_n_train=50,
        rpn_post_nms_top_n_train=20, rpn_pre_nms_top_n_test=50, rpn_post_nms_top_n_test=20,
    )  # fmt: skip


OUTSIDE: dict[str, Callable[[], nn.Module]] = {
    "retinanet": retinanet,
    "fcos": fcos,
    "faster-rcnn": faster_rcnn,
}


@pytest.mark.filterwarnings("ignore:the KL is")  # two cases, and many weights
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_net_of_torchvision_is_a_program_in_the_head_alone(name: str) -> None:
    model = BayesianDetector(DetectorOutput(OUTSIDE[name]()), CLASSES, where="head")
    data = batch(32)
    assert model.network.layout.names
    assert not any("backbone" in one for one in model.network.layout.names)
    guide = MeanFieldNormal(model, init_scale=0.01, estimator="shared")
    history = fit(model, guide, [data], epochs=1, learning_rate=1e-4, progress=False)
    assert np.isfinite(history["nll"]).all()
    tree = predict(model, guide, [data], draws=2, progress=False)
    assert tree["posterior/edge_loc"].dims == ("chain", "draw", "case", "box", "edge")
    assert np.isfinite(tree["log_likelihood/box"]).all()


def test_boxes_of_retinanet_are_those_of_torchvision() -> None:
    net, image = retinanet().eval(), batch()["image"]
    output = DetectorOutput(net).eval()(image)
    with torch.no_grad():
        features = list(net.backbone(image).values())
        raw = net.head(features)
    anchors = output[:, -5:-1].mT
    expected = BoxCoder((1.0,) * 4).decode_single(
        raw["bbox_regression"].flatten(0, 1), anchors.flatten(0, 1)
    )
    ours = decode(output[:, 2:6].mT, anchors, "deltas").flatten(0, 1)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(output[:, :2].mT, raw["cls_logits"])


def test_boxes_of_fcos_are_those_of_torchvision() -> None:
    net, image = fcos().eval(), batch()["image"]
    output = DetectorOutput(net).eval()(image)
    with torch.no_grad():
        raw = net.head(list(net.backbone(image).values()))
    anchors = output[:, -5:-1].mT.flatten(0, 1)
    expected = BoxLinearCoder(normalize_by_size=True).decode(
        raw["bbox_regression"].flatten(0, 1), anchors
    )
    torch.testing.assert_close(decode(output[:, 2:6].mT.flatten(0, 1), anchors, "edges"), expected)


def test_another_net_is_refused() -> None:
    with pytest.raises(TypeError, match="expected torchvision's RetinaNet"):
        DetectorOutput(nn.Conv2d(3, 4, 1))
    with pytest.raises(TypeError, match=r"torchvision's RetinaNet.*networks\.DetectorOutput"):
        BayesianDetector(retinanet(), CLASSES)
    with pytest.raises(ValueError, match=r"give Boxes\(\.\.\., encoding='deltas'\)"):
        BayesianDetector(DetectorOutput(retinanet()), Boxes(CLASSES, keep="anchors"))
    with pytest.raises(ValueError, match="give Boxes"):
        BayesianDetector(DetectorOutput(faster_rcnn()), Boxes(CLASSES))
    model = BayesianDetector(nn.Conv2d(3, 4, 1), CLASSES)
    with pytest.raises(ValueError, match="net gave an output of shape"):
        model(batch()["image"])


def test_centre_matches_are_those_of_fcos() -> None:
    """By torchvision's own loss: its matches are caught where it hands them to the head."""
    net = fcos()
    caught: list[list[Tensor]] = []

    def compute_loss(targets: Any, outputs: Any, anchors: Any, matched: Any) -> dict[str, Any]:
        caught.append(matched)
        return {}

    net.head.compute_loss = compute_loss
    boxes = random_boxes(5, seed=5)
    net.train()([torch.zeros(3, 64, 64)], [{"boxes": boxes, "labels": torch.zeros(5).long()}])
    output = DetectorOutput(net)(torch.zeros(1, 3, 64, 64))
    anchor = output[:, -5:-1].mT
    there = torch.ones(1, 5, dtype=torch.bool)
    index, state = match_anchors(anchor, boxes[None], there, output[:, -1] == 1, "centre")
    ours = torch.where(state[0] == 1, index[0], -1)
    assert torch.equal(ours, caught[0][0])
    assert (ours >= 0).sum() > 5
