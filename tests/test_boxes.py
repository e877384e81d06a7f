"""Boxes: what is refused and why, and that they stay around what they surround."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppl_med.data import (
    Batches,
    MoveWithBoxes,
    RotateAndScale,
    check_boxes,
    flips_and_turns,
    flips_and_turns_with_mask,
    mirror_with_mask,
)


def arrays(cases: int = 4, size: tuple[int, int] = (20, 30), **changes: Any) -> dict[str, Any]:
    """Two boxes a case and one in the last, painted: channel c holds the box of class c."""
    rng, (rows, cols) = np.random.default_rng(0), size
    image = np.zeros((cases, 2, rows, cols), np.float32)
    box = np.full((cases, 3, 4), np.nan, np.float32)
    label = np.full((cases, 3), -1, np.int64)
    for case in range(cases):
        for one in range(1 if case == cases - 1 else 2):
            left, top = rng.integers(4, cols - 10), rng.integers(4, rows - 10)
            right, bottom = left + rng.integers(3, 6), top + rng.integers(3, 6)
            image[case, one, top:bottom, left:right] = 1
            box[case, one], label[case, one] = (left, top, right, bottom), one
    count = (label >= 0).sum(-1)
    ids = np.array([f"film{k}" for k in range(cases)])
    return {"image": image, "box": box, "box_label": label, "num_boxes": count, "id": ids} | changes


def changed(name: str, place: Any, value: Any) -> dict[str, Any]:
    found = arrays()
    found[name][place] = value
    return found


def painted(image: Tensor) -> list[float]:
    """The box around what is brighter than one half, dims (row, col)."""
    rows, cols = (image > 0.5).nonzero().T
    return [int(cols.min()), int(rows.min()), int(cols.max()) + 1, int(rows.max()) + 1]


def test_good_boxes_pass_in_every_form() -> None:
    found = arrays()
    check_boxes(found, 2)
    check_boxes({name: torch.as_tensor(found[name]) for name in ("image", "box", "box_label")}, 2)
    check_boxes({"box": found["box"], "box_label": found["box_label"]})
    graded = {name: np.stack([found[name]] * 3, 1) for name in ("box", "box_label", "num_boxes")}
    check_boxes(found | graded, 2)
    nothing = {"box": np.full((2, 1, 4), np.nan, np.float32), "box_label": np.full((2, 1), -1)}
    check_boxes(nothing | {"image": np.zeros((2, 1, 5, 5)), "num_boxes": np.zeros(2, int)}, 1)


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("box", (1, 0), [9, 2, 3, 5], r"case 1 \(id 'film1'\).*x_max 3 not above x_min 9: swap"),
        ("box", (2, 1, 3), -1, "y_max -1 not above y_min .*: swap these edges"),
        ("box", (1, 0), [4, 2, 4, 5], "x_max 4 not above x_min 4: drop the box, which has no area"),
        (
            "box",
            (0, 0),
            [25, 3, 31, 9],
            r"\(25, 3, 31, 9\) of case 0 .*outside its image of 30",
        ),
        ("box", (0, 0), [-1, 3, 9, 9], "outside its image.*clip boxes to their image"),
        ("box", (0, 0), [100, 3, 200, 9], "scale them where the image was resized"),
        ("box", (2, 0, 1), np.nan, "case 2 .*is not finite but has a class"),
        ("box", (2, 0, 1), np.inf, "is not finite but has a class"),
        ("box", (2, 2), [1, 1, 2, 2], "has edges but the label -1"),
        ("box_label", (0, 0), 2, r"box_label is 2 in case 0.*in 0\.\.1: drop the box"),
        ("box_label", (0, 0), -2, "box_label is -2 in case 0.*after the last box stands -1"),
        ("num_boxes", 1, 3, "num_boxes is 3 but there are 2 boxes in case 1"),
    ],
)
def test_a_wrong_box_is_named(name: str, place: Any, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_boxes(changed(name, place, value), 2)
    if "in 0" not in message:
        with pytest.raises(ValueError, match=message):
            Batches(changed(name, place, value))


def test_labels_that_count_a_background_are_told() -> None:
    found = arrays()
    label = np.where(found["box_label"] < 0, -1, found["box_label"] + 1)
    with pytest.raises(ValueError, match=r"run from 1 to 2.*no background class: subtract 1"):
        check_boxes(found | {"box_label": label}, 2)
    gap = changed("box", (0, 0), np.nan)
    gap["box_label"][0, 0], gap["num_boxes"][0] = -1, 1
    with pytest.raises(ValueError, match=r"case 0 .*after an empty place; move boxes to the front"):
        check_boxes(gap)
    graded = {name: np.stack([found[name]] * 2, 1) for name in ("box", "box_label")}
    graded["box"][3, 1, 0] = [5, 5, 4, 6]
    with pytest.raises(ValueError, match="case 3, grader 1"):
        check_boxes(graded)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"box": np.zeros((4, 3, 5), np.float32)}, ValueError, r"expected \(case, box, 4\)"),
        ({"box": np.zeros((4, 3, 4), int)}, TypeError, "expected float32"),
        ({"box_label": np.zeros((4, 2), int)}, ValueError, r"box_label has shape \(4, 2\)"),
        ({"box_label": np.zeros((4, 3))}, TypeError, "box_label has dtype float64"),
        ({"num_boxes": np.zeros((4, 1), int)}, ValueError, r"num_boxes has shape \(4, 1\)"),
        ({"num_boxes": np.zeros(4)}, TypeError, "num_boxes has dtype"),
        ({"image": np.zeros((4, 1, 3, 20, 30))}, ValueError, "image has shape"),
    ],
)
def test_wrong_arrays_are_named(changes: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_boxes(arrays(**changes))
    with pytest.raises(ValueError, match=r"lacks \['box_label'\]"):
        check_boxes({"box": arrays()["box"]})


def moved(batch: dict[str, Any], monkeypatch: Any, draws: list[Tensor], **settings: Any) -> Any:
    left = iter(draws)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: next(left))
    out = MoveWithBoxes(**settings)(batch, torch.Generator())
    monkeypatch.undo()
    return out


@pytest.mark.parametrize("choice", list(product([0.0, 1.0], repeat=3)))
def test_flips_and_turns_are_exact_and_undone(choice: Any, monkeypatch: Any) -> None:
    batch = next(iter(Batches(arrays(size=(24, 24)))))
    draw = torch.tensor(choice)[:, None].expand(3, 4)
    one = moved(batch, monkeypatch, [draw], mirror=True, upend=True, turn=True)
    for case, number in ((0, 0), (0, 1), (2, 1), (3, 0)):
        assert one["box"][case, number].tolist() == painted(one["image"][case, number])
    check_boxes(one, 2)
    turned = choice[2] < 0.5
    back = draw if not turned else draw[[1, 0, 2]]  # the inverse: transposed first, then flipped
    two = moved(one, monkeypatch, [back], mirror=True, upend=True, turn=True)
    torch.testing.assert_close(two["image"], batch["image"], rtol=0, atol=0)
    torch.testing.assert_close(two["box"], batch["box"], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "settings",
    [
        {"mirror": True, "upend": True},
        {"shift": 4.0},
        {"factor": 1.3},
        {"mirror": True, "shift": 3.0, "factor": 1.2},
    ],
)
def test_a_painted_box_stays_around_its_paint(settings: Any, seed: int) -> None:
    batch = next(iter(Batches(arrays(12), transform=MoveWithBoxes(**settings), seed=seed)))
    check_boxes(batch, 2)
    exact, off = settings.keys() <= {"mirror", "upend"}, []
    for case, number in np.argwhere(batch["box_label"].numpy() >= 0):
        channel = int(batch["box_label"][case, number])
        found = np.array(painted(batch["image"][case, channel]))
        off.append(np.abs(found - batch["box"][case, number].numpy()).max())
    assert max(off) == 0 if exact else 0 < max(off) <= 0.5 + 1e-5  # pixels above one half


def test_boxes_that_leave_the_image_are_cut_or_left_out(monkeypatch: Any) -> None:
    batch = next(iter(Batches(arrays(3))))
    batch["box"][0, :2] = torch.tensor([[0.0, 0, 8, 4], [8, 0, 16, 4]])
    right = torch.tensor([[0.0] * 3, [-1.0] * 3, [0.0] * 3]) / 2 + 0.5
    draws = [torch.zeros(3, 3), right.double()]
    out = moved(batch, monkeypatch, draws, shift=7.0, least_share=0.25)
    assert out["num_boxes"].tolist()[0] == 1 and out["box_label"][0].tolist() == [1, -1, -1]
    assert out["box"][0, 0].tolist() == [1, 0, 9, 4] and out["box"][0, 1:].isnan().all()
    assert batch["num_boxes"][0] == 2, "the batch given stays"
    out = moved(batch, monkeypatch, draws, shift=7.0, least_share=0.125)
    assert out["box"][0, :2].tolist() == [[0, 0, 1, 4], [1, 0, 9, 4]]
    assert out["box_label"][0].tolist() == [0, 1, -1]
    graders = {name: batch[name][:, None].repeat_interleave(2, 1)
               for name in ("box", "box_label", "num_boxes")}  # fmt: skip
    both = moved(batch | graders, monkeypatch, draws, shift=7.0)
    assert both["box"].shape == (3, 2, 3, 4) and both["num_boxes"][0].tolist() == [1, 1]
    assert both["box"][0, 1, 0].tolist() == [1, 0, 9, 4]


def test_transforms_for_masks_take_boxes_along_or_refuse_them() -> None:
    for move, size in ((flips_and_turns_with_mask, (24, 24)), (mirror_with_mask, (20, 30))):
        batch = next(iter(Batches(arrays(16, size), transform=move)))
        for case in range(16):
            assert batch["box"][case, 0].tolist() == painted(batch["image"][case, 0])
    with pytest.raises(ValueError, match=r"RotateAndScale cannot move box.*use MoveWithBoxes"):
        next(iter(Batches(arrays(), transform=RotateAndScale())))
    with pytest.raises(ValueError, match=r"augment moves the image but not \['box'\]"):
        Batches(arrays(size=(20, 20)), augment=flips_and_turns)


def test_wrong_moves_are_named() -> None:
    with pytest.raises(ValueError, match="moves nothing"):
        MoveWithBoxes()
    wrongs: list[dict[str, Any]] = [
        {"shift": -1.0},
        {"factor": 0.5},
        {"least_share": 0.0, "mirror": True},
    ]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            MoveWithBoxes(**wrong)
    with pytest.raises(ValueError, match="turns square ones"):
        next(iter(Batches(arrays(), transform=MoveWithBoxes(turn=True))))
    with pytest.raises(ValueError, match=r"lacks \['box', 'box_label'\].*mirror_with_mask"):
        MoveWithBoxes(mirror=True)({"image": torch.zeros(1, 1, 4, 4)}, torch.Generator())
    spacing = np.tile([[1.0, 2.0]], (4, 1))
    with pytest.raises(ValueError, match="turns images, which needs square pixels"):
        Batches(arrays(size=(9 * 3, 27), spacing=spacing), transform=MoveWithBoxes(turn=True))
    Batches(arrays(spacing=spacing), transform=MoveWithBoxes(mirror=True))
