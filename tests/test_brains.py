"""Synthetic brains: severity, labels, volumes and regions follow the stated law."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from ppl_med.data import Batches, apply_split, brains, split_patients

FALSE_ALARM = 1e-6
ATROPHY, STEEPNESS, LABEL_NOISE = 0.6, 8.0, 0.1
PER_PATIENT = ("label", "diseased", "severity", "label_probability", "age", "shape", "brain_volume")


@pytest.fixture(scope="module")
def many():
    law: dict[str, Any] = {"atrophy": ATROPHY, "steepness": STEEPNESS, "label_noise": LABEL_NOISE}
    return brains(3000, size=(12, 12, 12), seed=1, **law)


@pytest.fixture(scope="module")
def pair():
    """Scans and their healthy twins."""
    return brains(48, seed=2), brains(48, atrophy=0.0, seed=2)


def test_names_shapes_and_types(pair):
    data = pair[0]
    assert data["image"].shape == (48, 1, 24, 28, 24) and data["image"].dtype == np.float32
    assert data["mask"].shape == data["brain_mask"].shape == (48, 24, 28, 24)
    assert data["mask"].dtype == data["brain_mask"].dtype == bool
    assert len(set(data["id"])) == 48 and data["label"].dtype == np.int64
    batch = next(iter(Batches(data, batch_size=5)))
    assert batch["image"].shape == (5, 1, 24, 28, 24) and batch["patient"][0] == "brain-000000"


def test_severity_and_age_are_uniform(many):
    assert stats.kstest(many["severity"], "uniform").pvalue > FALSE_ALARM
    assert stats.kstest((many["age"] - 60) / 30, "uniform").pvalue > FALSE_ALARM


def test_labels_follow_the_law_in_every_range_of_severity(many):
    disease = 1 / (1 + np.exp(-STEEPNESS * (many["severity"] - 0.5)))
    stated = LABEL_NOISE + (1 - 2 * LABEL_NOISE) * disease
    np.testing.assert_allclose(many["label_probability"], stated, rtol=1e-12)
    for drawn, p in ((many["diseased"], disease), (many["label"], stated)):
        for rows in np.array_split(np.argsort(many["severity"]), 6):
            z = (drawn[rows] - p[rows]).sum() / np.sqrt((p[rows] * (1 - p[rows])).sum())
            assert 2 * stats.norm.sf(abs(z)) > FALSE_ALARM
    wrong = int((many["label"] != many["diseased"]).sum())
    assert stats.binomtest(wrong, 3000, LABEL_NOISE).pvalue > FALSE_ALARM


def test_volumes_follow_the_law(many):
    share = many["hippocampus_volume"] / many["brain_volume"]
    law = (1 - ATROPHY * many["severity"]) * (1 - 0.003 * (many["age"] - 75))
    z = np.log(share / law) / 0.05
    z -= np.log(2 * 0.22 * 0.36 * 0.24) / 0.05  # two ellipsoids over one
    assert stats.kstest(z, stats.norm.cdf).pvalue > FALSE_ALARM
    assert stats.pearsonr(z, many["severity"]).pvalue > FALSE_ALARM


@pytest.mark.parametrize("name", ["age", "brain_volume", "ventricle_volume", "scanner", "shape"])
def test_nuisances_do_not_know_the_disease(many, name):
    ill = many["label"] == 1
    assert stats.ks_2samp(many[name][ill], many[name][~ill]).pvalue > FALSE_ALARM
    assert stats.spearmanr(many[name], many["severity"]).pvalue > FALSE_ALARM


def test_the_disease_shows_in_the_mask_and_nowhere_else(pair):
    ill, healthy = pair
    for name in ("mask", "brain_mask", "label", "severity", "scanner"):
        np.testing.assert_array_equal(ill[name], healthy[name])
    change = (ill["image"] - healthy["image"])[:, 0]
    assert (change[~ill["mask"]] == 0).all() and (change <= 0).all(), "fluid is dark"
    assert (change.sum((1, 2, 3)) < 0).all()


def test_the_image_shows_the_volume_that_is_lost():
    settings: dict[str, Any] = {"noise": 0.0, "num_scanners": 1, "size": (36, 42, 36), "seed": 3}
    ill, healthy = brains(40, **settings), brains(40, atrophy=0.0, **settings)
    change = (healthy["image"] - ill["image"])[:, 0]
    white = np.quantile(healthy["image"].reshape(40, -1), 0.98, 1)  # the gain
    lost = healthy["hippocampus_volume"] - ill["hippocampus_volume"]
    assert np.corrcoef(change.sum((1, 2, 3)) / white, lost)[0, 1] > 0.99
    voxel = ill["spacing"].prod(1)
    np.testing.assert_allclose(
        ill["brain_mask"].sum((1, 2, 3)) * voxel, ill["brain_volume"], rtol=0.03
    )


@pytest.mark.parametrize("size", [(24, 28, 24), (12, 28, 30)])
def test_masks_are_two_and_lie_in_the_brain_where_the_affine_says(size):
    data = brains(24, size=size, seed=2)
    assert (data["mask"] <= data["brain_mask"]).all()
    steps = np.linalg.norm(data["affine"][:, :3, :3], axis=1)
    np.testing.assert_allclose(steps, data["spacing"])
    for mask, affine in zip(data["mask"], data["affine"], strict=True):
        place = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
        right, left = place[place[:, 0] > 0], place[place[:, 0] < 0]
        assert right[:, 0].min() > 5 and left[:, 0].max() < -5, "one on each side"
        assert (np.abs(right.mean(0) - [23, -3, -17]) < 8).all(), "low, and in the middle"


@pytest.mark.parametrize("label", [0, 1])
def test_the_outline_follows_the_label_as_asked(label):
    data = brains(1500, size=(12, 12, 12), shape_given_label=(0.2, 0.9), seed=4)
    long = data["shape"][data["label"] == label]
    assert stats.binomtest(int(long.sum()), len(long), (0.2, 0.9)[label]).pvalue > FALSE_ALARM


def test_the_outline_changes_the_length_and_not_the_volume():
    long, wide = (brains(20, shape=shape, seed=5) for shape in ("long", "round"))
    assert (long["shape"] == 1).all() and (wide["shape"] == 0).all()
    for name in ("brain_volume", "hippocampus_volume"):
        np.testing.assert_allclose(long[name], wide[name], rtol=1e-9)
    np.testing.assert_array_equal(long["label"], wide["label"])
    length, width = (
        [data["brain_mask"].any(axes).sum(1) for data in (long, wide)] for axes in ((1, 3), (1, 2))
    )
    assert (length[0] > length[1]).all() and (width[0] <= width[1]).all()


def test_scans_of_a_patient_share_the_patient_and_not_the_scan():
    data = brains(31, scans_per_patient=4, noise=0.02, seed=6)
    assert len(set(data["patient"])) == 8 and data["id"][5] == "brain-000001-1"
    for name in PER_PATIENT:
        values = np.append(data[name], data[name][-1]).reshape(8, 4)
        assert (values == values[:, :1]).all()
    assert len(np.unique(data["image"].reshape(31, -1), axis=0)) == 31
    parts = apply_split(data, split_patients(data["patient"], {"train": 0.5, "test": 0.5}))
    assert not set(parts["train"]["patient"]) & set(parts["test"]["patient"])


def test_the_seed_decides_everything():
    first, again, other = (brains(20, size=(12, 12, 12), seed=s) for s in (7, 7, 8))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert (first["image"] != other["image"]).any((1, 2, 3, 4)).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_cases": 0},
        {"size": (24, 24)},
        {"size": (8, 24, 24)},
        {"scans_per_patient": 0},
        {"atrophy": 1.0},
        {"steepness": 0.0},
        {"label_noise": 0.6},
        {"num_scanners": 0},
        {"noise": -1.0},
        {"shape": "flat"},
        {"shape_given_label": (0.5, 1.5)},
        {"shape_given_label": (0.5,)},
    ],
)
def test_bad_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        brains(**({"num_cases": 3} | wrong))
