"""Anchors, and the distribution of a set of boxes at them."""

import math
from typing import Any

import pytest
import torch
from box_batches import CLASSES, random_boxes
from scipy import stats
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import box_iou, nms

from ppl_med.likelihoods import Boxes, BoxField, pack_boxes
from ppl_med.likelihoods.anchors import Match, decode, encode, match_anchors, overlap

FALSE_ALARM = 1e-6


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


@pytest.mark.parametrize("match", ["all", "best"])
def test_every_object_has_an_anchor_whatever_their_order(match: Match) -> None:
    """Few anchors and many objects, so that several want the same."""
    anchor, box = random_boxes(50, 30), random_boxes(50, 5, seed=2)
    label = torch.arange(5).expand(50, 5)
    there, usable = torch.ones(50, 5, dtype=torch.bool), torch.ones(50, 30, dtype=torch.bool)
    index, state = match_anchors(anchor, box, there, usable, match)
    wanted = overlap(anchor, box).argmax(1)
    shared = torch.tensor([len(set(one.tolist())) < 5 for one in wanted])
    assert shared.sum() >= 5, "no two objects want one anchor"
    owned = torch.stack([((index == one) & (state == 1)).any(1) for one in range(5)], 1)
    seen = (overlap(anchor, box) > 0).any(1)
    assert torch.equal(owned, seen)
    turned = match_anchors(anchor, box.flip(1), there, usable, match)
    assert torch.equal(turned[1], state)
    same = label.flip(1).gather(1, turned[0])[state == 1] == index[state == 1]
    assert same.all()


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


@pytest.mark.parametrize("encoding", ["edges", "deltas"])
def test_a_place_without_an_anchor_has_no_gradient_even_without_size(encoding: Any) -> None:
    likelihood, output = field(encoding=encoding)
    box, label = random_boxes(2, 2, seed=4).double(), torch.tensor([[0, 1], [1, 1]])
    alone = log_prob(likelihood, output[..., :-1], box, label)
    output[:, 10:14, -1], output[:, 14, -1] = 0, -1
    found = log_prob(likelihood, output.requires_grad_(), box, label)
    torch.testing.assert_close(found, alone)
    (gradient,) = torch.autograd.grad(found.sum(), output)
    assert (gradient[..., -1] == 0).all()
    assert gradient.isfinite().all()


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
    torch.testing.assert_close(width, expected, rtol=1e-7, atol=0.0)
    middle = (found["loc"][:, :12, 2:] + found["loc"][:, :12, :2]) / 2
    there = (anchor[..., 2:] + anchor[..., :2]) / 2 + place[..., :2] * size
    torch.testing.assert_close(middle, there)
    half = expected**2 * math.expm1(sd**2) / 4
    edge = ((sd * size) ** 2 + half).sqrt()
    torch.testing.assert_close(found["sd"][:, :12], edge.repeat(1, 1, 2), rtol=1e-7, atol=0.0)


@pytest.mark.parametrize("sd", [0.05, 0.4])
def test_a_laplace_in_deltas_has_its_moments_in_pixels(sd: float) -> None:
    """E exp(L) = 1 / (1 - b^2) of a Laplace of scale b around 0."""
    likelihood, output = field(encoding="deltas", least_score=0.0, nms=0.999)
    output[:, 2:6], output[:, 6:10], output[:, 10:14] = 0, 2 * math.log(sd), torch.tensor(
        [0.0, 0.0, 10.0, 20.0]
    )[:, None]  # fmt: skip
    found, b = likelihood.distribution(output.double()).detections(), sd / math.sqrt(2)
    first, second = 1 / (1 - b**2), 1 / (1 - 4 * b**2)
    edge = [5 * side * math.sqrt(4 * sd**2 + second - first**2) for side in (1.0, 2.0)]
    expected = torch.tensor([*edge, *edge], dtype=torch.float64)
    torch.testing.assert_close(found["sd"][0, 0], expected, rtol=1e-3, atol=0.0)
    mean = torch.tensor([5 - 5 * first, 10 - 10 * first, 5 + 5 * first, 10 + 10 * first])
    torch.testing.assert_close(found["loc"][0, 0], mean.double(), rtol=1e-3, atol=1e-3)


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


@pytest.mark.parametrize("first", [[44.0, 44, 64, 64], [0, 0, 1e8, 1e8]])
@pytest.mark.parametrize("second", [[-21.0, -21, -1, -1], [10, 10, 20, 20]])
def test_what_is_found_in_a_case_does_not_hang_on_the_others(first: Any, second: Any) -> None:
    """One box reaches outside its image, or is huge."""
    output = torch.zeros(2, 14, 2)
    output[:, 0] = torch.tensor([3.0, 2.0])
    output[:, 9:13] = torch.tensor([[0.0, 0, 10, 10], [30, 30, 40, 40]]).T
    output[:, 13] = 1
    for case, box in enumerate((first, second)):
        output[case, 1:5, 0] = encode(torch.tensor(box), output[case, 9:13, 0], "edges")
    together = Boxes(["a"]).distribution(output).detections()
    for case in range(2):
        alone = Boxes(["a"]).distribution(output[[case]]).detections()
        for name, values in alone.items():
            torch.testing.assert_close(together[name][[case]], values, equal_nan=True)
        assert alone["probs"].isfinite().sum() == 2


def test_draws_of_edges_are_finite_at_the_ends_of_the_unit_interval() -> None:
    """Numbers nearer to 1 than single precision knows."""
    for noise in ("normal", "laplace"):
        likelihood, output = field(noise=noise, least_score=0.0)
        for end in (0.0, 1 - 1e-12):
            drawn = likelihood.distribution(output).drawn(
                lambda shape, suffix="", end=end: torch.full(shape, end, dtype=torch.float64)
                .index_fill(-1, torch.tensor([4]), 0.0)
            )  # fmt: skip
            assert not drawn.isinf().any()
            assert drawn[..., :4].isfinite().any()


@pytest.mark.parametrize("keep", ["boxes", "anchors"])
@pytest.mark.parametrize("channel", [0, 3, 7])
def test_a_net_that_diverged_does_not_find_nothing(keep: Any, channel: int) -> None:
    likelihood, output = field(keep=keep)
    output[1, channel, 5] = torch.nan
    with pytest.raises(ValueError, match=r"not finite at 1 anchor.* of 1 image"):
        likelihood.distribution(output).detections()


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
