"""Class flips and the scenes made of them: stated figures, frequencies, determinism."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from ppl_med.data import CAMVID_FLIPS, SCENE_FLIPS, Batches, ClassFlips, FreshBatches, scenes
from ppl_med.data.synthetic.scene_generator import THINNEST

FALSE_ALARM = 1e-6


@pytest.fixture(scope="module")
def many():
    return scenes(20_000, seed=1)


def class_distance(first, second):
    """1 - mean IoU over the ten classes that flip or are flipped to, absent ones left out."""
    ious = []
    for one in range(10):
        a, b = first == one, second == one
        if (a | b).any():
            ious.append((a & b).sum() / (a | b).sum())
    return 1 - np.mean(ious)


def test_the_stated_figures():
    p = SCENE_FLIPS.mode_probabilities()
    assert p.shape == (32,) and p.sum() == pytest.approx(1, abs=1e-12)
    chance = np.array([8, 7, 6, 5, 4]) / 17
    np.testing.assert_array_equal(SCENE_FLIPS.probabilities, chance)
    assert -(p @ np.log(p)) == pytest.approx(3.1696, abs=5e-5)
    assert -(p @ np.log(p)) == pytest.approx(stats.entropy([chance, 1 - chance]).sum(), abs=1e-12)
    assert stats.entropy(np.full(32, 1 / 32), p) == pytest.approx(0.320, abs=5e-4)
    assert -np.log(p[0]) == pytest.approx(2.219, abs=5e-4), "nothing flipped is the likeliest"


def test_the_expected_distance_of_two_masks_is_as_stated():
    modes = SCENE_FLIPS.mode_masks(scenes(1, seed=0)["unflipped_mask"][0])
    distance = np.array([[class_distance(a, b) for b in modes] for a in modes])
    p = SCENE_FLIPS.mode_probabilities()
    assert p @ distance @ p == pytest.approx(0.5798, abs=5e-5)
    # The energy distance of always giving the likeliest mode.
    assert 2 * (p @ distance)[p.argmax()] - p @ distance @ p == pytest.approx(0.3906, abs=5e-5)


def test_modes_are_all_masks_and_nothing_else():
    unflipped = scenes(1, seed=2)["unflipped_mask"][0]
    modes = SCENE_FLIPS.mode_masks(unflipped)
    assert modes.shape == (32, 32, 32) and modes.dtype == np.int8
    assert len(np.unique(modes.reshape(32, -1), axis=0)) == 32
    np.testing.assert_array_equal(modes[0], unflipped)
    for number, mode in enumerate(modes):
        for k in range(5):
            expected = k + 5 * (number >> k & 1)
            assert (mode[unflipped == k] == expected).all()


def test_the_five_classes_of_camvid():
    assert CAMVID_FLIPS.classes == (3, 4, 8, 9, 5) and CAMVID_FLIPS.num_classes == 16
    assert CAMVID_FLIPS.class_names[11:] == (
        "road 2",
        "pavement 2",
        "car 2",
        "pedestrian 2",
        "tree 2",
    )
    mask = np.array([[0, 3, 4], [5, 8, 9], [-1, 1, 10]], np.int8)
    every = CAMVID_FLIPS.mode_masks(mask)
    np.testing.assert_array_equal(every[-1], [[0, 11, 12], [15, 13, 14], [-1, 1, 10]])
    assert (every[:, 2] == mask[2]).all(), "classes that do not flip, and -1, stay"


def test_distinct_modes_merge_what_an_absent_class_would_tell_apart():
    mask = np.array([[3, 3, 9], [0, -1, 3]])
    masks, probabilities = CAMVID_FLIPS.distinct_modes(mask)
    assert len(masks) == 4 and probabilities.sum() == pytest.approx(1, abs=1e-12)
    every, p = CAMVID_FLIPS.mode_masks(mask), CAMVID_FLIPS.mode_probabilities()
    for one, probability in zip(masks, probabilities, strict=True):
        same = (every == one).all((1, 2))
        assert p[same].sum() == pytest.approx(probability, abs=1e-12)


def test_scenes_draw_the_modes_as_often_as_stated(many):
    counts = np.bincount(many["mode"], minlength=32)
    expected = SCENE_FLIPS.mode_probabilities() * len(many["mode"])
    assert stats.chisquare(counts, expected).pvalue > FALSE_ALARM


def test_the_mask_is_the_mode_and_the_intensity_tells_the_class(many):
    for case in range(0, 20_000, 500):
        modes = SCENE_FLIPS.mode_masks(many["unflipped_mask"][case])
        np.testing.assert_array_equal(many["mask"][case], modes[many["mode"][case]])
    residual = many["image"][:2000, 0] - (many["unflipped_mask"][:2000] - 2.0)
    assert stats.kstest(residual.ravel() / 0.1, "norm").pvalue > FALSE_ALARM


@pytest.mark.parametrize("size", [24, 32, 64])
def test_every_class_is_in_every_scene_and_never_thin(size):
    for unflipped in scenes(400, size=size, seed=size)["unflipped_mask"]:
        # A band crosses every row or every column: there it is at least THINNEST pixels wide.
        counts = [np.stack([(unflipped == k).sum(axis) for k in range(5)]).min() for axis in (0, 1)]
        assert max(counts) >= THINNEST


def test_all_orders_of_the_classes_are_equally_likely(many):
    unflipped = many["unflipped_mask"]
    edge = np.where(
        (unflipped[:, 0] == unflipped[:, 0, :1]).all(1)[:, None],
        unflipped[:, :, 0],
        unflipped[:, 0, :],
    )
    first = np.array([row[np.sort(np.unique(row, return_index=True)[1])][:5] for row in edge])
    assert stats.chisquare(np.bincount(first[:, 0], minlength=5)).pvalue > FALSE_ALARM
    assert stats.chisquare(np.bincount(first[:, -1], minlength=5)).pvalue > FALSE_ALARM


def test_graders_of_one_scene_flip_independently():
    graded = scenes(4000, num_graders=3, seed=4)
    assert graded["mask"].shape == (4000, 3, 32, 32) and graded["mode"].shape == (4000, 3)
    p = SCENE_FLIPS.mode_probabilities()
    same = int((graded["mode"][:, 0] == graded["mode"][:, 1]).sum())
    assert stats.binomtest(same, 4000, float(p @ p)).pvalue > FALSE_ALARM
    np.testing.assert_array_equal(graded["image"], scenes(4000, seed=4)["image"])


def test_the_seed_decides_everything():
    first, again, other = scenes(50, seed=7), scenes(50, seed=7), scenes(50, seed=8)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert not (first["unflipped_mask"] == other["unflipped_mask"]).all((1, 2)).any()
    assert (first["mode"] != other["mode"]).any()


def flipping_batches(**settings):
    arrays = scenes(64, seed=3)
    arrays = {"image": arrays["image"], "mask": arrays["unflipped_mask"]}
    return Batches(arrays, batch_size=16, transform=SCENE_FLIPS, **settings)


def test_a_transform_flips_anew_and_repeatably():
    batches = flipping_batches(shuffle=True, seed=5)
    first = list(batches.iterate(0))
    for one, again in zip(first, flipping_batches(shuffle=True, seed=5).iterate(0), strict=True):
        assert torch.equal(one["mask"], again["mask"]) and one["mask"].dtype == torch.int64
    resumed = next(flipping_batches(shuffle=True, seed=5).iterate(0, start=2))
    assert torch.equal(first[2]["mask"], resumed["mask"])
    unshuffled = [next(flipping_batches(seed=s).iterate(e))["mask"] for s, e in [(0, 0), (0, 1)]]
    assert not torch.equal(*unshuffled), "every epoch flips anew"
    assert torch.equal(unshuffled[0] % 5, unshuffled[1] % 5)


def test_the_transform_has_the_stated_probabilities():
    mask = torch.arange(5).repeat(20_000, 1)[:, None]
    mask[:, :, 4] = torch.where(torch.arange(20_000)[:, None] % 2 == 0, 4, -1)
    batch = {"image": torch.zeros(20_000, 1, 1, 5), "mask": mask}
    generator = torch.Generator().manual_seed(1)
    flipped = SCENE_FLIPS(batch, generator)["mask"]
    assert torch.equal(flipped[1::2, 0, 4], torch.full((10_000,), -1)), "-1 stays"
    number = ((flipped[::2, 0] >= 5) * 2 ** torch.arange(5)).sum(1).numpy()
    expected = SCENE_FLIPS.mode_probabilities() * 10_000
    assert stats.chisquare(np.bincount(number, minlength=32), expected).pvalue > FALSE_ALARM
    assert torch.equal(batch["mask"], mask), "the batch given is left alone"


def test_a_class_flips_as_a_whole_and_graders_apart():
    mask = torch.full((500, 2, 4, 4), 3)
    batch = {"image": torch.zeros(500, 1, 4, 4), "mask": mask}
    flipped = SCENE_FLIPS(batch, torch.Generator().manual_seed(2))["mask"].flatten(2)
    assert (flipped == flipped[..., :1]).all()
    both = int((flipped[:, 0, 0] == flipped[:, 1, 0]).sum())
    chance = 5 / 17
    assert stats.binomtest(both, 500, chance**2 + (1 - chance) ** 2).pvalue > FALSE_ALARM


def test_fresh_batches_repeat_and_never_meet_twice():
    batches = FreshBatches(scenes, batch_size=8, num_batches=4, seed=2)
    assert len(batches) == 4 and batches.num_cases == 32
    first = list(batches)
    twin = FreshBatches(scenes, batch_size=8, num_batches=4, seed=2)
    for one, again in zip(first, twin, strict=True):
        assert one["id"] == again["id"] and torch.equal(one["image"], again["image"])
        assert torch.equal(one["mask"], again["mask"]) and one["mask"].dtype == torch.int64
    resumed = next(batches.iterate(0, start=3))
    assert torch.equal(resumed["image"], first[3]["image"]) and resumed["id"] == first[3]["id"]
    batches.set_epoch(1)
    images = torch.cat([b["image"] for b in [*first, *batches]]).flatten(1)
    assert len(torch.unique(images, dim=0)) == 64
    ids = [one for b in [*first, *batches] for one in b["id"]]
    assert len(set(ids)) == 64 and ids[0] == "0/000000" and ids[-1] == "1/000031"
    other = next(iter(FreshBatches(scenes, batch_size=8, seed=3)))
    assert not torch.equal(other["image"], first[0]["image"])


def test_fresh_batches_take_the_settings_of_batches():
    batches = FreshBatches(scenes, batch_size=4, keep=("image", "mask"), scale=2.0)
    plain = FreshBatches(scenes, batch_size=4)
    one, whole = next(iter(batches)), next(iter(plain))
    assert one.keys() == {"image", "mask", "id"} and "mode" in whole
    torch.testing.assert_close(one["image"] * 2, whole["image"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size must be"),
        ({"num_batches": 0}, "num_batches must be"),
        ({"seed": -1}, "seed must be"),
        ({"keep": ("image", "depth")}, "keep names .'depth'"),
    ],
)
def test_bad_fresh_batches_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        FreshBatches(scenes, **wrong)


@pytest.mark.parametrize(
    ("classes", "probabilities", "message"),
    [
        ((), (), "classes is"),
        ((0, 0), (0.5, 0.5), "classes is"),
        ((2,), (0.5,), r"ids in 0\.\.1"),
        ((0,), (0.5, 0.5), "probabilities is"),
        ((0,), (1.5,), "probabilities is"),
    ],
)
def test_bad_flips_are_named(classes, probabilities, message):
    with pytest.raises(ValueError, match=message):
        ClassFlips(("a", "b"), classes, probabilities)


def test_masks_that_cannot_be_flipped_are_named():
    with pytest.raises(ValueError, match=r"holds 7.*0\.\.4"):
        SCENE_FLIPS.mode_masks(np.full((2, 2), 7))
    with pytest.raises(ValueError, match="dtype float64"):
        SCENE_FLIPS.mode_masks(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="flips has shape"):
        SCENE_FLIPS.flip(np.zeros((3, 2, 2), int), np.zeros((3, 4), bool))
    with pytest.raises(ValueError, match='no "mask"'):
        SCENE_FLIPS({"image": torch.zeros(1, 1, 2, 2)}, torch.Generator())
    with pytest.raises(ValueError, match="unflipped"):
        batch = {"image": torch.zeros(1, 1, 2, 2), "mask": torch.full((1, 2, 2), 5)}
        SCENE_FLIPS(batch, torch.Generator())


@pytest.mark.parametrize(
    "wrong", [{"num_cases": 0}, {"size": 8}, {"num_graders": 0}, {"noise": -1}]
)
def test_bad_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        scenes(**({"num_cases": 3} | wrong))


def test_the_numpy_side_needs_no_torch():
    program = (
        "import sys; sys.modules['torch'] = None; import numpy as np; import ppl_med.data as data; "
        "data.SCENE_FLIPS.mode_masks(data.scenes(2)['unflipped_mask'][0]); data.lesions(2); "
        "data.load_lidc; data.load_camvid; data.split_patients; data.convert_lidc_pickle; "
        "data.one_grader_per_case({'image': np.zeros((1, 1, 2, 2)), "
        "'mask': np.zeros((1, 2, 2, 2), int)})"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
