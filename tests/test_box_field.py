"""Anchors, and the distribution of a set of boxes at them."""

import math
from typing import Any

import torch
from scipy import stats
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import box_iou, nms

from ppl_med.likelihoods import Boxes, BoxField, pack_boxes
from ppl_med.likelihoods.anchors import decode, encode, match_anchors, overlap

CLASSES = ("a", "b")
FALSE_ALARM = 1e-6


def random_boxes(*shape: int, seed: int = 0, size: float = 64.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    start = size * 0.7 * torch.rand(*shape, 2, generator=generator)
    sides = 4 + 0.3 * size * torch.rand(*shape, 2, generator=generator)
    return torch.cat([start, start + sides], -1)


# --- anchors, beside torchvision's own


def test_overlaps_are_those_of_torchvision() -> None:
    first, second = random_boxes(7), random_boxes(5, seed=1)
    torch.testing.assert_close(overlap(first, second), box_iou(first, second))


def test_deltas_are_those_of_torchvision_and_every_encoding_is_undone() -> None:
    anchor, box = random_boxes(9), random_boxes(9, seed=1)
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    torch.testing.assert_close(encode(box, anchor, "deltas"), coder.encode_single(box, anchor))
    for encoding in ("edges", "deltas"):
        code = encode(box, anchor, encoding)
        torch.testing.assert_close(decode(code, anchor, encoding), box)


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
        _, state = match_anchors(anchor, box, torch.zeros(1, 4, dtype=torch.bool), usable, match)
        assert (state == 0).all()
    _, state = match_anchors(anchor, box, torch.ones(1, 4, dtype=torch.bool), ~usable, "all")
    assert (state == -1).all(), "a place without an anchor is neither"


# --- the field of boxes


def field(seed: int = 0, **settings: Any) -> tuple[Boxes, Tensor]:
    """Outputs at twelve anchors of two cases."""
    likelihood = Boxes(CLASSES, **settings)
    generator = torch.Generator().manual_seed(seed)
    output = torch.randn(2, 15, 12, generator=generator)
    output[:, 10:14] = random_boxes(2, 12).mT
    output[:, 14] = 1
    return likelihood.eval(), output


def log_prob(likelihood: Boxes, output: Tensor, *boxes: Tensor) -> Tensor:
    found: Tensor = likelihood.distribution(output.double()).log_prob(pack_boxes(*boxes))
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
