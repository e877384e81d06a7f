"""Batches, augmentation, standardisation and the checks on batches."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import DataLoader

from ppl_med.data import (
    Batches,
    check_batch,
    check_disjoint,
    flips_and_turns,
    standardization,
)

FALSE_ALARM = 1e-6


def cases(num_cases=10, channels=2, size=5, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (num_cases, channels, size, size), dtype=np.uint8),
        "label": rng.integers(0, 3, num_cases),
        "id": [f"case-{k}" for k in range(num_cases)],
        "age": rng.normal(50, 10, num_cases),
        "site": ["A", "B"] * (num_cases // 2),
    }


def equal(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


def test_a_batch_holds_the_arrays():
    arrays = cases()
    first, last = Batches(arrays, batch_size=6)
    assert first["image"].dtype == torch.float32 and first["label"].dtype == torch.int64
    assert len(last["image"]) == 4 and last["id"] == arrays["id"][6:]
    assert first["site"] == ["A", "B"] * 3
    np.testing.assert_array_equal(first["image"], np.float32(arrays["image"][:6]) / np.float32(255))
    np.testing.assert_array_equal(last["label"], arrays["label"][6:])
    np.testing.assert_array_equal(last["age"], arrays["age"][6:])
    check_batch(first, num_classes=3, in_channels=2)


def test_positions_stand_for_missing_ids_and_labels_are_optional():
    batch = next(iter(Batches({"image": np.zeros((3, 1, 2, 2), np.float32)})))
    assert batch["id"] == [0, 1, 2] and "label" not in batch


@pytest.mark.parametrize("dtype", [np.uint8, np.float64, np.float16])
def test_standardised_training_images_have_mean_0_and_sd_1(dtype):
    images = cases(300)["image"].astype(dtype)
    images[:, 1] //= 3
    loc, scale = standardization(images)
    batches = Batches({"image": images}, batch_size=7, loc=loc, scale=scale)
    pixels = torch.cat([batch["image"] for batch in batches]).double()
    torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.zeros(2).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        pixels.std((0, 2, 3), correction=0), torch.ones(2).double(), atol=1e-5, rtol=0
    )
    before = images.copy()
    next(iter(batches))
    np.testing.assert_array_equal(images, before)


def test_volumes_pass():
    images = np.random.default_rng(0).normal(size=(4, 2, 3, 5, 6)).astype(np.float32)
    batch = next(iter(Batches({"image": images}, loc=[0.5, -1], scale=[2, 3])))
    expected = (images - np.reshape([0.5, -1], (2, 1, 1, 1))) / np.reshape([2, 3], (2, 1, 1, 1))
    np.testing.assert_allclose(batch["image"], expected, rtol=1e-6, atol=1e-6)


def test_each_epoch_visits_every_case_once_in_its_own_order():
    batches = Batches(cases(100), batch_size=8, shuffle=True)
    orders = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        orders.append([one for batch in batches for one in batch["id"]])
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(batches.ids)
    assert orders[0] != orders[1] != batches.ids
    assert len(batches) == 13 and len(Batches(cases(100), batch_size=8, drop_last=True)) == 12


def test_a_batch_depends_on_seed_epoch_and_index_alone():
    settings: dict[str, Any] = {
        "batch_size": 8,
        "shuffle": True,
        "seed": 3,
        "augment": flips_and_turns,
    }
    whole = list(Batches(cases(50), **settings).iterate(4))
    resumed = list(Batches(cases(50), **settings).iterate(4, start=5))
    assert len(whole) == 7 and all(map(equal, whole[5:], resumed))
    other = next(Batches(cases(50), **(settings | {"seed": 4})).iterate(4))
    assert not torch.equal(whole[0]["image"], other["image"])


def test_no_two_batches_are_augmented_alike():
    one = np.random.default_rng(0).normal(size=(1, 1, 4, 4)).repeat(64, axis=0)
    batches = Batches({"image": one}, batch_size=32, augment=flips_and_turns)
    drawn = [batch["image"] for epoch in range(2) for batch in batches.iterate(epoch)]
    assert not any(torch.equal(a, b) for k, a in enumerate(drawn) for b in drawn[:k])


def test_a_bad_pixel_is_found_in_a_large_set():
    image = np.zeros((2500, 1, 2, 2), np.float32)
    image[1700, 0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="first in case 1700;"):
        Batches({"image": image})


def test_shuffling_is_uniform():
    # Where does case 0 land over epochs? Uniform over 10 places.
    batches = Batches({"image": np.zeros((10, 1, 1, 1), np.uint8)}, shuffle=True)
    places = [next(batches.iterate(epoch))["id"].index(0) for epoch in range(2000)]
    assert stats.chisquare(np.bincount(places, minlength=10)).pvalue > FALSE_ALARM


def test_a_subset_keeps_the_settings():
    arrays = cases(20)
    batches = Batches(arrays, batch_size=4, loc=[0.2, 0.3], scale=0.5, shuffle=True, seed=9)
    few = batches.subset([7, 2, 5])
    assert few.ids == ["case-7", "case-2", "case-5"] and few.shuffle and few.seed == 9
    ordered = next(iter(batches.subset(arrays["label"] == 1, shuffle=False)))
    assert set(ordered["label"].tolist()) == {1}
    expected = next(iter(Batches(arrays, loc=[0.2, 0.3], scale=0.5)))
    rows = np.flatnonzero(arrays["label"] == 1)
    torch.testing.assert_close(ordered["image"], expected["image"][rows][:4])
    assert batches.first(6).ids == batches.ids[:6] and batches.first(99).num_cases == 20


def test_flips_and_turns_draws_the_eight_symmetries_equally_often():
    square = torch.arange(9.0).reshape(3, 3)
    turns = [square.rot90(k) for k in range(4)]
    group = torch.stack(turns + [one.fliplr() for one in turns])
    image = square.expand(4000, 2, 3, 3)
    drawn = flips_and_turns(image, torch.Generator().manual_seed(1))
    which = (drawn[:, :, None] == group).all(-1).all(-1)  # case, channel, member of the group
    assert (which.sum(-1) == 1).all(), "not a symmetry"
    assert torch.equal(which[:, 0], which[:, 1]), "channels moved apart"
    counts = which[:, 0].sum(0).numpy()
    assert stats.chisquare(counts).pvalue > FALSE_ALARM


def test_flips_and_turns_refuses_what_it_cannot_turn():
    with pytest.raises(ValueError, match="square"):
        flips_and_turns(torch.zeros(2, 1, 3, 4), torch.Generator())


IMAGE = np.zeros((4, 1, 3, 3), np.float32)
NAN = IMAGE.copy()
NAN[2, 0, 1, 1] = np.nan


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ({"label": [0]}, ValueError, 'no "image"'),
        ({"image": IMAGE[:0]}, ValueError, "image has shape .*no pixels"),
        ({"image": IMAGE[:, 0]}, ValueError, r"image\[:, None\]"),
        ({"image": IMAGE.astype(np.int16)}, TypeError, "image has dtype"),
        ({"image": NAN}, ValueError, "image holds NaN.*case 2"),
        ({"image": np.full((1, 1, 2, 2), 1e300)}, ValueError, "image holds NaN or inf"),
        ({"image": IMAGE, "label": [0.0, 1, 1, 0]}, TypeError, "label has dtype"),
        ({"image": IMAGE, "label": [0, 1, -1, 0]}, ValueError, "label is -1 in case 2"),
        ({"image": IMAGE, "label": [[0], [1], [1], [0]]}, ValueError, r"use label\[:, 0\]"),
        ({"image": IMAGE, "label": [0, 1, 1]}, ValueError, "label has 3 entries"),
        ({"image": IMAGE, "label": list("abcd")}, TypeError, "label has dtype"),
        ({"image": IMAGE, "id": list("abb")}, ValueError, "id has 3 entries"),
        ({"image": IMAGE, "id": list("abbc")}, ValueError, "duplicate.*'b'"),
        ({"image": IMAGE, "id": [1.0, 2.0, 3.0, 4.0]}, TypeError, "id is of dtype"),
        ({"image": IMAGE, "id": ["a", "b", 1, 2]}, TypeError, "mixture"),
        ({"image": IMAGE, "id": np.array([b"a", b"b", b"c", b"d"])}, TypeError, "decode"),
        ({"image": IMAGE, "age": [1, 2]}, ValueError, "age has 2 entries"),
        ({"image": IMAGE, "age": 3}, ValueError, "age is a single value"),
        ({"image": IMAGE, "age": [None] * 4}, TypeError, "age is of dtype"),
    ],
)
def test_bad_arrays_are_named(arrays, error, message):
    with pytest.raises(error, match=message):
        Batches(arrays)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 5, "drop_last": True}, "batch_size"),
        ({"scale": 0}, "scale must be positive"),
        ({"seed": -1}, "seed must be"),
        ({"loc": [1, 2, 3]}, "loc must be"),
        ({"loc": np.nan}, "loc must be"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Batches({"image": IMAGE}, **settings)


def test_an_augmentation_may_not_leave_the_mask_behind():
    arrays = {"image": IMAGE, "mask": np.zeros((4, 3, 3), bool)}
    assert next(iter(Batches(arrays)))["mask"].dtype == torch.bool
    with pytest.raises(ValueError, match="mask"):
        Batches(arrays, augment=flips_and_turns)
    with pytest.raises(ValueError, match="augment turned shape"):
        next(iter(Batches({"image": IMAGE}, augment=lambda image, generator: image[:, :, 1:])))


def batch(**changes):
    return {"image": torch.zeros(4, 1, 3, 3), "label": torch.tensor([0, 1, 1, 0])} | changes


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([torch.zeros(4, 1, 3, 3)], TypeError, "batch is a list"),
        ({"x": 1}, ValueError, 'no "image"'),
        (batch(image=IMAGE), TypeError, "image is a ndarray"),
        (batch(image=torch.zeros(4, 1, 3, 3, dtype=torch.uint8)), TypeError, "image has dtype"),
        (batch(image=torch.zeros(4, 3, 3)), ValueError, "image has shape"),
        (batch(image=torch.zeros(0, 1, 3, 3)), ValueError, "empty"),
        (batch(image=torch.zeros(4, 3, 3, 3)), ValueError, "3 channel.*takes 1"),
        (batch(image=torch.zeros(4, 3, 3, 1)), ValueError, "movedim"),
        (batch(image=torch.tensor(NAN)), ValueError, "position 2;"),
        (batch(image=torch.tensor(NAN), id=list("abcd")), ValueError, "position 2 .id 'c'"),
        (batch(label=torch.tensor([0.0, 1, 1, 0])), TypeError, "label has dtype"),
        (batch(label=[0, 1, 1, 0]), TypeError, "label is a list"),
        (batch(label=torch.tensor([0, 1, 2, 0])), ValueError, r"0\.\.1, but is 2.*position 2"),
        (batch(label=torch.tensor([0, -1, 1, 0])), ValueError, "position 1"),
        (batch(label=torch.zeros(4, 1).long()), ValueError, r"label\[:, 0\]"),
        (batch(label=torch.zeros(3).long()), ValueError, "label has 3 entries"),
        (batch(id=list("abc")), ValueError, "id has 3 entries"),
    ],
)
def test_bad_batches_are_named(given, error, message):
    with pytest.raises(error, match=message):
        check_batch(given, num_classes=2, in_channels=1)


def test_good_batches_pass():
    check_batch(batch(id=list("abcd"), spacing=1.0, name="CT", weight=torch.tensor(2.0)))
    check_batch({"image": torch.full((2, 1, 3, 3), 3e38)}, in_channels=1)  # finite, sum overflows
    check_batch({"image": torch.zeros(2, 1, 3, 3, 3), "label": None})
    rows = [{"image": torch.rand(1, 5, 5), "label": k % 2, "id": f"case-{k}"} for k in range(5)]
    for one in DataLoader(rows, batch_size=2):  # type: ignore[arg-type]
        check_batch(one, num_classes=2, in_channels=1)


def test_shared_ids_raise():
    check_disjoint(["a", "b"], ["c"])
    check_disjoint(np.array([1, 2]), torch.tensor([3]))
    with pytest.raises(ValueError, match=r"calibration and test share 1 id.*'b'"):
        check_disjoint(["a", "b"], np.array(["b", "c"]))
    with pytest.raises(ValueError, match=r"train and val share 7 id.*0, 1, 2, 3, 4, [.]{3}"):
        check_disjoint(range(9), torch.arange(7), names=("train", "val"))


@pytest.mark.parametrize(
    ("images", "message"),
    [(NAN, "NaN"), (IMAGE, "constant"), (IMAGE[:0], "shape"), (IMAGE[0], "shape")],
)
def test_standardization_refuses(images, message):
    with pytest.raises(ValueError, match=message):
        standardization(images)


def test_readers_and_generators_need_no_torch():
    program = (
        "import sys; sys.modules['torch'] = None; import ppl_med.data as data; "
        "data.blood_smear(2); data.load_malaria; data.check_disjoint; data.standardization"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
