"""Masks of several graders: pairs for training, a random grader, checks, moves with the image."""

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats
from torch import nn

from ppl_med.data import (
    Batches,
    RotateAndScale,
    check_divisible,
    check_masks,
    flips_and_turns,
    flips_and_turns_with_mask,
    lesions,
    mirror_with_mask,
    one_grader_per_case,
    random_grader,
)
from ppl_med.inference import PointEstimate, fit, predict
from ppl_med.models import BayesianSegmenter

FALSE_ALARM = 1e-6


def graded(num_cases=6, num_graders=3, size=4, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(num_cases, 1, size, size)).astype(np.float32),
        "mask": rng.integers(0, 3, (num_cases, num_graders, size, size)).astype(np.int8),
        "id": np.arange(10, 10 + num_cases),
        "age": rng.normal(50, 10, num_cases),
        "site": np.array(list("abcdef"))[:num_cases],
    }


def test_every_annotation_becomes_a_case():
    arrays = graded()
    arrays["mask"][2, 1] = -1  # absent
    arrays["mask"][0, 0, 0, 0] = -1  # one pixel to ignore
    pairs = one_grader_per_case(arrays)
    expected = [f"{10 + c}/g{g}" for c in range(6) for g in range(3) if (c, g) != (2, 1)]
    assert pairs["id"].tolist() == expected and "12/g2" in expected
    for row, name in enumerate(expected):
        case, grader = int(name[:2]) - 10, int(name[-1])
        np.testing.assert_array_equal(pairs["mask"][row], arrays["mask"][case, grader])
        np.testing.assert_array_equal(pairs["image"][row], arrays["image"][case])
        assert pairs["age"][row] == arrays["age"][case] and pairs["grader"][row] == grader
        assert pairs["site"][row] == arrays["site"][case] and pairs["image_id"][row] == case + 10
    batch = next(iter(Batches(pairs, batch_size=20)))
    assert batch["mask"].shape == (17, 4, 4) and batch["mask"].dtype == torch.int64
    assert int(batch["mask"][0, 0, 0]) == -1


def test_readers_who_did_not_mark_may_be_dropped():
    arrays = graded()
    present = np.ones((6, 3), bool)
    present[1, [0, 2]] = present[5, 1] = False
    arrays["mask"][~present] = 0
    arrays["reader_present"] = present
    kept = one_grader_per_case(arrays)
    assert len(kept["id"]) == 18
    np.testing.assert_array_equal(kept["reader_present"], present.ravel())
    few = one_grader_per_case(arrays, drop_absent=True)
    assert len(few["id"]) == 15 and few["reader_present"].all()
    assert "11/g1" in few["id"] and "11/g0" not in few["id"]
    arrays["reader_present"] = np.zeros((6, 3), bool)
    with pytest.raises(ValueError, match=r"id 10. has no annotation left"):
        one_grader_per_case(arrays, drop_absent=True)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"mask": np.zeros((6, 4, 4), int)}, ValueError, "grader"),
        ({"mask": np.zeros((6, 3, 4, 5), int)}, ValueError, r"mask has shape .* of size \(4, 4\)"),
        ({"mask": np.zeros((5, 3, 4, 4), int)}, ValueError, "6 images but 5 masks"),
        (
            {"mask": np.full((6, 3, 4, 4), 0.5)},
            TypeError,
            "float64 and 288 of 288 entries are no whole",
        ),
        ({"mask": np.full((6, 3, 4, 4), 255)}, ValueError, "255 in case 0 .id 10.*such as 255"),
        ({"mask": np.full((6, 3, 4, 4), -1)}, ValueError, "id 10.*nobody annotated"),
        ({"age": [1, 2]}, ValueError, "age has shape"),
        (
            {"mask": [np.zeros((3 - k // 5, 4, 4), int) for k in range(6)]},
            ValueError,
            r"mask sizes differ: .* \(2, 4, 4\) in case 5 .id 15.*absent graders",
        ),
    ],
)
def test_bad_graded_arrays_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        one_grader_per_case(graded() | changes, num_classes=3)
    with pytest.raises(ValueError, match=r"lacks \['mask'\]"):
        one_grader_per_case({"image": np.zeros((1, 1, 2, 2))})
    with pytest.raises(ValueError, match="drop_absent needs"):
        one_grader_per_case(graded(), drop_absent=True)


def test_a_random_grader_is_any_of_those_who_annotated():
    mask = np.broadcast_to(np.arange(4)[:, None, None], (3000, 4, 2, 2)).astype(np.int8).copy()
    mask[:, 2] = -1
    mask[:, 3, 0, 0] = -1  # a pixel to ignore is no absence
    arrays = {"image": np.zeros((3000, 1, 2, 2), np.float32), "mask": mask}
    batches = Batches(arrays, batch_size=3000, transform=random_grader)
    batch = next(iter(batches))
    assert batch["mask"].shape == (3000, 2, 2)
    counts = torch.bincount(batch["grader"], minlength=4).numpy()
    assert counts[2] == 0 and torch.equal(batch["mask"][:, 1, 1], batch["grader"])
    assert stats.chisquare(counts[[0, 1, 3]]).pvalue > FALSE_ALARM
    again, later = next(iter(batches)), next(batches.iterate(1))
    assert torch.equal(batch["mask"], again["mask"])
    assert not torch.equal(batch["mask"], later["mask"])


def test_a_random_grader_needs_graders():
    image = torch.zeros(2, 1, 3, 3)
    for batch in ({"image": image}, {"image": image, "mask": torch.zeros(2, 3, 3)}):
        with pytest.raises(ValueError, match="random_grader needs"):
            random_grader(batch, torch.Generator())
    mask = torch.zeros(2, 2, 3, 3).long()
    mask[1] = -1
    with pytest.raises(ValueError, match="position 1"):
        random_grader({"image": image, "mask": mask}, torch.Generator())


def test_check_masks_names_the_case():
    image, mask = np.zeros((3, 1, 4, 4)), np.zeros((3, 4, 4), int)
    check_masks(image, mask, num_classes=1)
    with pytest.raises(ValueError, match=r"mask holds 1 in case 0; class ids are 0\.\.0"):
        check_masks(image, mask + 1, num_classes=1)
    check_masks(torch.zeros(2, 1, 3, 4, 4), torch.zeros(2, 5, 3, 4, 4).long())
    check_masks(list(image), list(mask), ids=list("abc"))
    odd = [np.zeros((1, 4, 4)), np.zeros((1, 4, 4)), np.zeros((1, 5, 4))]
    with pytest.raises(ValueError, match=r"image sizes differ.*\(1, 5, 4\).*case 2 .id 'c'"):
        check_masks(odd, list(mask), ids=list("abc"))
    mask[1, 2, 2] = -2
    with pytest.raises(ValueError, match=r"-2 in case 1 .id 'b'"):
        check_masks(image, mask, ids=list("abc"))
    mask[1] = -1
    with pytest.raises(ValueError, match="-1 everywhere in case 1: nobody"):
        check_masks(image, mask)
    with pytest.raises(ValueError, match="image is empty"):
        check_masks(image[:0], mask[:0])
    with pytest.raises(ValueError, match=r"image\[:, None\]"):
        check_masks(image[:, 0], mask)
    with pytest.raises(ValueError, match="ids has 2 entries"):
        check_masks(image, mask, ids=[1, 2])


def test_sizes_a_network_cannot_halve_are_padded_as_told():
    check_divisible((128, 64), 4)
    check_divisible((5, 7), 0)
    with pytest.raises(ValueError, match=r"pad to 192 x 240, .*\(0, 0, 0, 12\)"):
        check_divisible((180, 240), 4)
    with pytest.raises(ValueError, match=r"pad to 4 x 8 x 8, .*\(0, 2, 0, 0, 0, 1\)"):
        check_divisible((3, 8, 6), 1 + 1)
    padded = torch.nn.functional.pad(torch.zeros(1, 1, 3, 8, 6), (0, 2, 0, 0, 0, 1))
    check_divisible(padded.shape[2:], 2)
    with pytest.raises(ValueError, match="num_halvings must be"):
        check_divisible((4, 4), -1)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (np.zeros((6, 4, 5), int), ValueError, "mask has shape"),
        (np.zeros((5, 4, 4), int), ValueError, "mask has 5 entries"),
        (np.full((6, 4, 4), 0.5), TypeError, "mask has dtype"),
        (np.full((6, 4, 4), -2), ValueError, "mask holds -2"),
        (np.full((6, 4, 4), 255, np.uint8), ValueError, "255, which is no class id"),
        (np.zeros((6, 1, 1, 4, 4), int), ValueError, "mask has shape"),
    ],
)
def test_batches_refuse_bad_masks(mask, error, message):
    with pytest.raises(error, match=message):
        Batches(graded() | {"mask": mask})


def test_masks_come_as_int64_whatever_integers_they_are():
    for dtype in (np.int8, np.uint8, np.uint16, np.int32):
        batch = next(iter(Batches(graded() | {"mask": graded()["mask"].astype(dtype)})))
        assert batch["mask"].dtype == torch.int64
        np.testing.assert_array_equal(batch["mask"], graded()["mask"])
    few = Batches(graded(), transform=random_grader).subset([1, 2])
    assert next(iter(few))["mask"].shape == (2, 4, 4)


def labelled(size=(5, 5), num_cases=2000):
    """Masks that repeat the pixels, so that moving apart shows."""
    rng = np.random.default_rng(0)
    mask = rng.permuted(np.tile(np.arange(np.prod(size)), (num_cases, 1)), axis=1)
    mask = mask.reshape(num_cases, *size)
    return {
        "image": np.stack([mask, 2 * mask], 1).astype(np.float32),
        "mask": np.stack([mask, -1 - 0 * mask], 1),
        "depth": mask.astype(np.float32),
    }


@pytest.mark.parametrize("move", [flips_and_turns_with_mask, mirror_with_mask])
def test_image_and_mask_move_together(move):
    batch = next(iter(Batches(labelled(), batch_size=2000, transform=move)))
    moved = (batch["image"][:, 0] != torch.from_numpy(labelled()["image"][:, 0])).any(2).any(1)
    chance = 7 / 8 if move is flips_and_turns_with_mask else 1 / 2
    assert stats.binomtest(int(moved.sum()), 2000, chance).pvalue > FALSE_ALARM
    assert torch.equal(batch["image"][:, 0].long(), batch["mask"][:, 0])
    assert torch.equal(batch["image"][:, 1], 2 * batch["depth"]) and (batch["mask"][:, 1] < 0).all()


def test_moves_with_masks_are_those_without():
    image = torch.rand(50, 1, 6, 6)
    alone = flips_and_turns(image, torch.Generator().manual_seed(3))
    batch = flips_and_turns_with_mask({"image": image}, torch.Generator().manual_seed(3))
    assert torch.equal(alone, batch["image"])
    with pytest.raises(ValueError, match="square"):
        flips_and_turns_with_mask({"image": image[:, :, :4]}, torch.Generator())
    oblong = mirror_with_mask({"image": image[:, :, :4]}, torch.Generator().manual_seed(1))["image"]
    kept = (oblong == image[:, :, :4]).all(3).all(2).all(1)
    assert torch.equal(oblong[~kept], image[~kept][:, :, :4].flip(3)) and 0 < kept.sum() < 50


class Fixed(torch.Generator):
    """A generator in name only, for a rotation whose draws are replaced."""


def test_rotation_by_a_quarter_is_exact(monkeypatch):
    batch = next(iter(Batches(labelled(num_cases=3))))
    monkeypatch.setattr(
        torch, "rand", lambda *shape, generator: torch.tensor([[1.0] * 3, [0.5] * 3])
    )
    turned = RotateAndScale(degrees=90, factor=1)(batch, Fixed())
    quarter = torch.rot90(batch["mask"][:, 0], 1, (1, 2))
    assert torch.equal(turned["mask"][:, 0], quarter)
    torch.testing.assert_close(turned["image"][:, 0], quarter.float(), atol=1e-4, rtol=0)


def test_rotation_keeps_shapes_on_oblong_images():
    # A disc off the middle of an oblong image stays a disc of its area times the zoom squared.
    row, col = np.mgrid[:60, :100] + 0.5
    disc = (np.hypot(row - 30, col - 62) < 9)[None].repeat(200, 0)
    arrays = {"image": disc[:, None].astype(np.float32), "mask": disc.astype(np.int8)}
    for factor, tolerance in [(1.0, 0.05), (1.5, 0.05)]:
        move = RotateAndScale(degrees=60, factor=factor)
        batch = next(iter(Batches(arrays, batch_size=200, transform=move)))
        area = (batch["mask"] == 1).sum((1, 2)).numpy() / disc[0].sum()
        assert ((area > (1 - tolerance) / factor**2) & (area < (1 + tolerance) * factor**2)).all()
        if factor > 1:
            # uniform on the logarithmic scale
            share = (np.log(area) / np.log(factor) / 2 + 1) / 2
            assert stats.kstest(share, "uniform").pvalue > FALSE_ALARM
        inside = batch["mask"] >= 0
        overlap = ((batch["image"][:, 0] > 0.5) == (batch["mask"] == 1))[inside]
        assert overlap.float().mean() > 0.995
        assert not inside.all(), "what was outside is not annotated"
        # Farther from the middle by the zoom, and no other angle than asked.
        weight = (batch["mask"] == 1).numpy()
        centre = [(weight * a).sum((1, 2)) / weight.sum((1, 2)) for a in (row, col)]
        reach = np.hypot(centre[0] - 30, centre[1] - 50)
        np.testing.assert_allclose(reach, 12 * np.sqrt(area), atol=0.6)
        angle = np.arctan2(centre[0] - 30, centre[1] - 50) * 180 / np.pi
        assert stats.kstest((angle / 60 + 1) / 2, "uniform").pvalue > FALSE_ALARM


@pytest.mark.parametrize("wrong", [{"degrees": -1}, {"degrees": 200}, {"factor": 0.9}])
def test_bad_rotations_are_named(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        RotateAndScale(**wrong)
    with pytest.raises(ValueError, match="RotateAndScale moves images"):
        RotateAndScale()({"image": torch.zeros(1, 1, 2, 3, 3)}, torch.Generator())


def test_lesions_pass_from_graders_to_batches():
    arrays = lesions(5, size=32)
    pairs = one_grader_per_case(arrays, num_classes=2)
    assert len(pairs["id"]) == 20 and pairs["mode_probability"].shape == (20, 4)
    batch = next(iter(Batches(pairs, transform=[RotateAndScale(), flips_and_turns_with_mask])))
    assert set(batch["mask"].unique().tolist()) <= {-1, 0, 1}


def one_hot(mask):
    return np.moveaxis(np.eye(2, dtype=mask.dtype)[mask], -1, 1)


@pytest.mark.parametrize("space", [(6, 6), (3, 6, 6)], ids=["2d", "3d"])
@pytest.mark.parametrize(
    ("change", "fix"),
    [
        (lambda mask: mask[:, None], r"of size 1.*use mask\[:, 0\]"),
        (one_hot, r"one-hot.*use mask\.argmax\(1\)"),
        (lambda mask: one_hot(mask)[:, ::-1], r"use mask\.argmax\(1\)"),
        (lambda mask: one_hot(mask).astype(np.float32), r"use mask\.argmax\(1\)"),
        (lambda mask: one_hot(mask).astype(bool), r"use mask\.argmax\(1\)"),
    ],
    ids=["channel", "one-hot", "reversed", "float", "bool"],
)
def test_an_axis_of_channels_or_classes_is_not_one_of_graders(space, change, fix):
    rng = np.random.default_rng(3)
    image = rng.normal(size=(4, 1, *space)).astype(np.float32)
    classes = rng.integers(0, 2, (4, *space))
    arrays = {"image": image, "mask": np.ascontiguousarray(change(classes))}
    kinds = (Batches, one_grader_per_case, lambda both: check_masks(both["image"], both["mask"]))
    for kind in kinds:
        with pytest.raises(ValueError, match=fix):
            kind(arrays)
    tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
    if not tensors["mask"].is_floating_point():
        with pytest.raises(ValueError, match=fix):
            random_grader(tensors, torch.Generator())
    model = BayesianSegmenter(
        (nn.Conv2d if len(space) == 2 else nn.Conv3d)(1, 2, 1),
        ["no", "yes"],
        spatial_dims=len(space),
    )
    guide = PointEstimate(model)
    with pytest.raises(ValueError, match=fix):
        fit(model, guide, [tensors], progress=False)
    with pytest.raises(ValueError, match=fix):
        predict(model, guide, [tensors], draws=1, progress=False)


def test_two_graders_who_mostly_disagree_are_graders():
    mask = one_hot(np.random.default_rng(0).integers(0, 2, (3, 4, 4)))
    mask[0, :, 0, 0] = 0  # in one pixel nobody saw anything
    Batches({"image": np.zeros((3, 1, 4, 4), np.float32), "mask": mask})


def test_a_map_of_classes_under_label_is_told_where_it_belongs():
    image, classes = torch.zeros(3, 1, 4, 4), torch.zeros(3, 4, 4).long()
    with pytest.raises(ValueError, match='a map of classes stands under "mask"'):
        Batches({"image": image, "label": classes})
    model = BayesianSegmenter(nn.Conv2d(1, 2, 1), ["no", "yes"])
    for verb in (fit, predict):
        with pytest.raises(ValueError, match=r"observes mask: pass keys=\{'label': 'mask'\}"):
            verb(model, PointEstimate(model), [{"image": image, "label": classes}], progress=False)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_whole_floats_are_classes_and_fractions_are_refused(dtype):
    rng = np.random.default_rng(4)
    image = rng.normal(size=(4, 1, 6, 6)).astype(np.float32)
    mask = rng.integers(-1, 2, (4, 6, 6))
    given = Batches({"image": image, "mask": mask.astype(dtype)})
    batch = next(iter(given))
    assert batch["mask"].dtype == torch.int64
    assert np.array_equal(batch["mask"], mask)
    model = BayesianSegmenter(nn.Conv2d(1, 2, 1), ["no", "yes"])
    guide = PointEstimate(model)
    loose = [{"image": torch.from_numpy(image), "mask": torch.from_numpy(mask.astype(dtype))}]
    expected = predict(model, guide, given, draws=1, progress=False)
    tree = predict(model, guide, loose, draws=1, progress=False)
    xr.testing.assert_identical(tree["observed_data/mask"], expected["observed_data/mask"])
    assert np.array_equal(tree["log_likelihood/mask"], expected["log_likelihood/mask"])
    fit(model, guide, loose, progress=False)
    for value in (0.5, 0.999, np.nan):
        bad = mask.astype(dtype)
        bad[2, 1, 3:5] = value
        with pytest.raises(TypeError, match="2 of 144 entries are no whole numbers"):
            Batches({"image": image, "mask": bad})
        for verb in (fit, predict):
            with pytest.raises(TypeError, match="2 of 144 entries are no whole numbers"):
                verb(model, guide, [loose[0] | {"mask": torch.from_numpy(bad)}], progress=False)
