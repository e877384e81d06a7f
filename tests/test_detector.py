"""Detectors: anchors, readers, torchvision's nets, the prior of the class bias, and bad input."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
import xarray as xr
from scipy import stats
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import box_iou, nms

from ppl_med.data import Batches
from ppl_med.inference import (
    SWAG,
    BernoulliDropout,
    ConcreteDropout,
    Ensemble,
    Laplace,
    LowRankNormal,
    MeanFieldNormal,
    PointEstimate,
    RadialNormal,
    fit,
    predict,
)
from ppl_med.likelihoods import Boxes, BoxField, pack_boxes
from ppl_med.likelihoods.anchors import decode, encode, match_anchors, overlap
from ppl_med.models import BayesianDetector
from ppl_med.networks import DetectorOutput, SmallDetector
from ppl_med.programs.sites import sample_sites
from ppl_med.testing import check_program
from ppl_med.weights import FanInNormal, Normal, NormalByName

CLASSES = ("a", "b")
FALSE_ALARM = 1e-6


def random_boxes(*shape: int, seed: int = 0, size: float = 64.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    start = size * 0.7 * torch.rand(*shape, 2, generator=generator)
    sides = 4 + 0.3 * size * torch.rand(*shape, 2, generator=generator)
    return torch.cat([start, start + sides], -1)


def batch(size: int = 64, channels: int = 3) -> dict[str, Any]:
    """Two images, with two boxes and none."""
    generator = torch.Generator().manual_seed(1)
    box = torch.full((2, 2, 4), torch.nan)
    box[0] = torch.tensor([[4.0, 6, 30, 28], [36, 30, 58, 60]]) * size / 64
    return {
        "image": torch.randn(2, channels, size, size, generator=generator),
        "box": box,
        "box_label": torch.tensor([[0, 1], [-1, -1]]),
    }


def small_detector(**settings: Any) -> BayesianDetector:
    torch.manual_seed(0)
    net = SmallDetector(3, 2, sizes=((16.0,), (32.0,)), width=8)
    return BayesianDetector(net, Boxes(CLASSES, **settings))


# --- anchors, beside torchvision's own


def test_overlaps_are_those_of_torchvision() -> None:
    first, second = random_boxes(7), random_boxes(5, seed=1)
    torch.testing.assert_close(overlap(first, second), box_iou(first, second))


def test_deltas_are_those_of_torchvision_and_every_encoding_is_undone() -> None:
    anchor, box = random_boxes(9), random_boxes(9, seed=1)
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    torch.testing.assert_close(encode(box, anchor, "deltas"), coder.encode_single(box, anchor))
    for encoding in ("edges", "deltas"):
        code = encode(box, anchor, encoding)  # type: ignore[arg-type]
        torch.testing.assert_close(decode(code, anchor, encoding), box)  # type: ignore[arg-type]


def test_matches_are_those_of_retinanet() -> None:
    """torchvision gives an object's best anchor back to the object that the anchor overlaps most;
    here it is the object's own, so those are left out of the comparison."""
    anchor, box = random_boxes(2, 300), random_boxes(2, 6, seed=3)
    there = torch.ones(2, 6, dtype=torch.bool)
    index, state = match_anchors(anchor, box, there, torch.ones(2, 300, dtype=torch.bool), "all")
    for case in range(2):
        shared = box_iou(box[case], anchor[case])
        found = Matcher(0.5, 0.4)(shared)  # -1 background, -2 between
        best = shared.argmax(1)
        ours = torch.where(state[case] == 1, index[case], torch.where(state[case] == 0, -1, -2))
        assert torch.equal(ours[best], torch.arange(6)), "every object has an anchor"
        others = torch.ones(300, dtype=torch.bool)
        others[best] = False
        assert torch.equal(ours[others], found[others])
    assert (state == 1).sum() > 12


def test_a_box_that_is_not_there_has_no_anchor() -> None:
    anchor, box = random_boxes(1, 50), random_boxes(1, 4)
    usable = torch.ones(1, 50, dtype=torch.bool)
    for match in ("all", "best", "centre"):
        _, state = match_anchors(anchor, box, torch.zeros(1, 4, dtype=torch.bool), usable, match)  # type: ignore[arg-type]
        assert (state == 0).all()
    _, state = match_anchors(anchor, box, torch.ones(1, 4, dtype=torch.bool), ~usable, "all")
    assert (state == -1).all(), "a place without an anchor is neither"


def test_centre_matches_are_those_of_fcos() -> None:
    """By torchvision's own loss: its matches are caught where it hands them to the head."""
    net = fcos()
    caught: list[list[Tensor]] = []
    net.head.compute_loss = lambda targets, out, anchors, found: caught.append(found) or {}  # type: ignore[assignment,func-returns-value,assignment]
    boxes = random_boxes(5, seed=5)
    net.train()([torch.zeros(3, 64, 64)], [{"boxes": boxes, "labels": torch.zeros(5).long()}])
    output = DetectorOutput(net)(torch.zeros(1, 3, 64, 64))
    anchor = output[:, -5:-1].mT
    there = torch.ones(1, 5, dtype=torch.bool)
    index, state = match_anchors(anchor, boxes[None], there, output[:, -1] == 1, "centre")
    ours = torch.where(state[0] == 1, index[0], -1)
    assert torch.equal(ours, caught[0][0])
    assert (ours >= 0).sum() > 5


# --- the field of boxes


def field(match: str = "all", seed: int = 0, **settings: Any) -> tuple[Boxes, Tensor]:
    """Outputs at twelve anchors of two cases."""
    likelihood = Boxes(CLASSES, match=match, **settings)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    output = torch.randn(2, 15, 12, generator=generator)
    output[:, 10:14] = random_boxes(2, 12).mT
    output[:, 14] = 1
    return likelihood.eval(), output


def log_prob(likelihood: Boxes, output: Tensor, *boxes: Tensor | None) -> Tensor:
    found: Tensor = likelihood.distribution(output.double()).log_prob(pack_boxes(*boxes))  # type: ignore[arg-type]
    return found


def test_readers_are_independent_and_one_who_did_not_look_says_nothing() -> None:
    likelihood, output = field()
    box, label = random_boxes(2, 3, 4, seed=4).double(), torch.randint(2, (2, 3, 4))
    label[0, 1] = -1  # this reader found nothing
    box[0, 1] = torch.nan
    alone = [log_prob(likelihood, output, box[:, one], label[:, one]) for one in range(3)]
    torch.testing.assert_close(log_prob(likelihood, output, box, label), sum(alone))
    present = torch.tensor([[True, True, False], [True, True, True]])
    some = log_prob(likelihood, output, box, label, present)
    torch.testing.assert_close(some[0], alone[0][0] + alone[1][0])
    torch.testing.assert_close(some[1], sum(one[1] for one in alone))
    nothing = torch.cat([torch.zeros(2, 1, 12), output[:, :2]], 1).log_softmax(1)[:, 0].sum(1)
    torch.testing.assert_close(alone[1][0], nothing[0].double(), rtol=1e-6, atol=1e-6)


def test_places_after_the_last_box_and_their_number_say_nothing() -> None:
    likelihood, output = field()
    box, label = random_boxes(2, 2, seed=4).double(), torch.tensor([[0, 1], [1, 1]])
    more = torch.cat([box, torch.full((2, 3, 4), torch.nan)], 1)
    labels = torch.cat([label, torch.full((2, 3), -1)], 1)
    here, there = (log_prob(likelihood, output, *one) for one in ((box, label), (more, labels)))
    torch.testing.assert_close(here, there)
    turned = log_prob(likelihood, output, box.flip(1), label.flip(1))
    torch.testing.assert_close(here, turned)


def test_edges_of_an_object_count_once_however_many_anchors_it_has() -> None:
    """Anchors that are copies: with "all" the edges' part is that of one."""
    likelihood, output = field()
    one = output[:, :, :1].double()
    box, label = one[:, 10:14].mT + 0.5, torch.zeros(2, 1).long()
    density = {}
    for number in (1, 4):
        copies = one.expand(-1, -1, number)
        classes = torch.cat([0 * one[:, :1], one[:, :2]], 1).log_softmax(1)[:, 1, 0]
        density[number] = log_prob(likelihood, copies, box, label) - number * classes
    torch.testing.assert_close(density[1], density[4])


def test_a_normal_in_deltas_has_the_moments_of_the_lognormal_in_pixels() -> None:
    """Width w0 exp(N(m, s^2)): mean w0 exp(m + s^2/2); the middle is linear."""
    likelihood, output = field(encoding="deltas", noise="normal", least_score=0.0, nms=0.999)
    sd = 0.3
    output[:, 2:6], output[:, 6:10] = 0.1 * output[:, 2:6], 2 * math.log(sd)
    found = likelihood.distribution(output.double()).detections()
    anchor, place = output[:, 10:14].mT.double(), output[:, 2:6].mT.double()
    order = torch.cat([torch.zeros(2, 1, 12), output[:, :2]], 1).softmax(1)[:, 1:].sum(1)
    order = order.argsort(1, descending=True)[..., None].expand(-1, -1, 4)
    anchor, place = anchor.gather(1, order), place.gather(1, order)
    size = anchor[..., 2:] - anchor[..., :2]
    width = found["loc"][:, :12, 2:] - found["loc"][:, :12, :2]
    expected = size * (place[..., 2:] + sd**2 / 2).exp()
    # 256 antithetic draws of a lognormal of variance coefficient 0.31: 5 sd of the mean are 10 %
    torch.testing.assert_close(width, expected, rtol=0.1, atol=0.0)
    middle = (found["loc"][:, :12, 2:] + found["loc"][:, :12, :2]) / 2
    there = (anchor[..., 2:] + anchor[..., :2]) / 2 + place[..., :2] * size
    torch.testing.assert_close(middle, there, rtol=0, atol=0.5)


def test_detections_are_those_of_torchvisions_suppression() -> None:
    likelihood, output = field(least_score=0.3, nms=0.4, most=5, seed=3)
    fn = likelihood.distribution(output)
    found = fn.detections()
    for case in range(2):
        probs = torch.cat([torch.zeros(1, 12), output[case, :2]]).softmax(0)[1:]
        score = probs.sum(0)
        kept = (score >= 0.3).nonzero()[:, 0]
        box = decode(output[case, 2:6].T, output[case, 10:14].T, "edges")[kept]
        kept = kept[nms(box, score[kept], 0.4)][:5]
        torch.testing.assert_close(found["probs"][case, :, : len(kept)], probs[:, kept])
        assert found["probs"][case, :, len(kept) :].isnan().all()
        assert len(kept) > 1


def test_drawn_boxes_are_there_as_often_as_their_probability_says() -> None:
    """z-test at 1e-6 of existence, class and the noise of an edge."""
    likelihood, output = field(noise="laplace")
    fn: BoxField = likelihood.distribution(output[:1].double())
    found, number = fn.detections(), 4000
    drawn = fn.sample(torch.Size([number]))[:, 0]
    probs = found["probs"][0].nan_to_num()
    z = stats.norm.isf(FALSE_ALARM / 2)
    for name in range(2):
        share = (drawn[..., 4] == name).double().mean(0)
        error = (probs[name] * (1 - probs[name]) / number).sqrt()
        assert ((share - probs[name]).abs() <= z * error + 1e-12).all()
    first = drawn[:, 0, 0][drawn[:, 0, 4] >= 0].numpy()
    law = stats.laplace(float(found["loc"][0, 0, 0]), float(found["sd"][0, 0, 0]) / math.sqrt(2))
    assert stats.kstest(first, law.cdf).pvalue > FALSE_ALARM


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
    model = BayesianDetector(nn.Conv2d(3, 4, 1), CLASSES)
    with pytest.raises(ValueError, match="net gave an output of shape"):
        model(batch()["image"])


# --- the program


def test_the_class_bias_has_a_prior_around_its_start() -> None:
    model = small_detector()
    fn = model.network.prior_distribution()
    views = {n: model.network.layout.views(v) for n, v in (("loc", fn.loc), ("scale", fn.scale))}
    start = torch.tensor(0.01).logit()
    torch.testing.assert_close(views["loc"]["classes.bias"], start.expand(2))
    assert (views["scale"]["classes.bias"] == 1).all()
    assert (views["loc"]["edges.bias"] == 0).all()
    weights = views["scale"]["tower.0.0.weight"]
    torch.testing.assert_close(weights, torch.full_like(weights, math.sqrt(2 / (8 * 9))))
    net = SmallDetector(3, 2, width=8)
    plain = BayesianDetector(net, CLASSES, where="edges.*")
    assert plain.network.layout.names == ["edges.weight", "edges.bias"]


def test_a_prior_by_name_needs_names_and_normals() -> None:
    net = SmallDetector(3, 2, width=8)
    with pytest.raises(ValueError, match="by_name must be patterns over"):
        BayesianDetector(net, CLASSES, prior=NormalByName({"head.*": Normal(1.0)}))
    both = NormalByName({"*.bias": Normal(2.0), "classes.*": Normal(3.0)}, FanInNormal(1.0))
    model = BayesianDetector(net, CLASSES, prior=both)
    scale = model.network.layout.views(model.network.prior_distribution().scale)
    assert (scale["classes.bias"] == 2).all() and (scale["classes.weight"] == 3).all()


@pytest.mark.filterwarnings("ignore:the KL is")  # two cases, and thousands of weights
@pytest.mark.parametrize(
    "guide",
    [SWAG, LowRankNormal, RadialNormal, BernoulliDropout, ConcreteDropout, PointEstimate,
     partial(Ensemble, guide_factory=PointEstimate, members=2)],
    ids=lambda one: getattr(one, "__name__", "Ensemble"),
)  # fmt: skip
def test_every_guide_takes_a_detector(guide: Callable[[Any], Any]) -> None:
    model = small_detector()
    program = guide(model)
    fit(model, program, [batch()], epochs=2, learning_rate=1e-3, progress=False)
    tree = predict(model, program, [batch()], draws=2, progress=False)
    assert np.isfinite(tree["log_likelihood/box"]).all()


def test_a_curvature_of_a_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loss|likelihood"):
        model = small_detector()
        fit(model, Laplace(model), [batch()], epochs=1, progress=False)


def test_several_objects_are_observed_through_the_small_net() -> None:
    model = small_detector()
    check_program(model, batch())
    trace = poutine.trace(model).get_trace(**batch())
    assert set(sample_sites(trace)) == {"weights", "box"}


def test_draws_do_not_depend_on_the_batches() -> None:
    model = small_detector(least_score=0.0)
    guide = MeanFieldNormal(model)
    data = {name: torch.cat([one, one.flip(0)]) for name, one in batch().items()}
    trees = [
        predict(model, guide, Batches(data, batch_size=size), draws=2, seed=3, progress=False)
        for size in (4, 1)
    ]
    for group in ("posterior", "posterior_predictive"):
        one, other = (tree[group].to_dataset() for tree in trees)
        xr.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    assert "box_label" not in trees[0]["posterior"]
    assert trees[0]["observed_data/box_edge"].dims == ("case", "box", "edge")


def test_kept_anchors_stand_in_their_order() -> None:
    model = small_detector(keep="anchors")
    tree = predict(model, MeanFieldNormal(model), [batch()], draws=2, progress=False)
    number = model(batch()["image"]).shape[2]
    assert tree["posterior"].sizes["anchor"] == number
    assert np.isfinite(tree["posterior/box_probs"]).all()


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "right edge left of the left": (lambda b: b["box"][0, 0].copy_(torch.tensor([30.0, 6, 4, 28])),
                                    "swap these edges"),
    "no area": (lambda b: b["box"][0, 0].copy_(torch.tensor([4.0, 6, 4, 28])), "no area"),
    "outside": (lambda b: b["box"][0, 0].copy_(torch.tensor([4.0, 6, 90, 28])), "clip boxes"),
    "labels from 1": (lambda b: b["box_label"][0].copy_(torch.tensor([1, 2])), "subtract 1"),
    "unknown class": (lambda b: b["box_label"][0].copy_(torch.tensor([0, 7])), "in 0..1"),
    "no class": (lambda b: b.pop("box_label"), "box_label"),
    "edges after the last": (lambda b: b["box_label"][0, 1].fill_(-1), "label -1"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_boxes_are_named_before_any_work(name: str) -> None:
    spoil, said = BAD[name]
    data = batch()
    spoil(data)
    model = small_detector()
    with pytest.raises(ValueError, match=said):
        fit(model, PointEstimate(model), [data], epochs=1, progress=False)


def test_settings_are_checked() -> None:
    for settings, said in (
        ({"focal": -1.0}, "focal"), ({"least_score": 1.0}, "least_score"), ({"nms": 0.0}, "nms"),
        ({"most": 0}, "most"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            Boxes(CLASSES, **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="width"):
        SmallDetector(3, 2, width=12)
    with pytest.raises(ValueError, match="head"):
        BayesianDetector(nn.Conv2d(3, 4, 1), CLASSES, where="head")


def test_weights_of_the_small_net_are_below_a_million() -> None:
    assert sum(one.numel() for one in SmallDetector(3, 3).parameters()) < 1_000_000


def test_a_seeded_field_is_the_same(tmp_path: Any) -> None:
    pyro.set_rng_seed(0)
    model = small_detector()
    first, second = (model(batch()["image"]) for _ in range(2))
    assert not torch.equal(first, second), "weights are drawn anew in every run"
