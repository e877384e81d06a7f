"""Synthetic blood smears: the truth they claim is the truth they hold."""

import numpy as np
import pytest
from scipy import ndimage, stats
from sklearn.linear_model import LogisticRegression

from ppl_med.data import Batches, blood_smear

FALSE_ALARM = 1e-6


@pytest.fixture(scope="module")
def smear():
    return blood_smear(4000, parasitized=0.4, label_noise=0.08, seed=1)


def test_names_shapes_and_types(smear):
    assert smear["image"].shape == (4000, 1, 32, 32) and smear["image"].dtype == np.uint8
    assert smear["mask"].shape == (4000, 32, 32) and smear["mask"].dtype == bool
    assert smear["label"].dtype == smear["clean_label"].dtype == np.int64
    assert smear["id"][123] == "cell-000123" and len(set(smear["id"])) == 4000
    batch = next(iter(Batches(smear)))
    assert batch["image"].shape == (128, 1, 32, 32) and batch["id"][1] == "cell-000001"


@pytest.mark.parametrize("size", [16, 32, 50, 71])
def test_exactly_the_infected_cells_have_a_parasite(size):
    cells = blood_smear(2500, size=size, seed=size)
    np.testing.assert_array_equal(cells["mask"].any((1, 2)), cells["clean_label"] == 1)


@pytest.mark.parametrize("size", [16, 32, 50])
def test_the_parasite_is_the_only_difference_from_the_healthy_twin(size):
    infected = blood_smear(700, size=size, parasitized=1.0, seed=3)
    healthy = blood_smear(700, size=size, parasitized=0.0, seed=3)
    assert infected["clean_label"].all() and not healthy["clean_label"].any()
    changed = (infected["image"] != healthy["image"])[:, 0]
    np.testing.assert_array_equal(changed, infected["mask"])
    assert (infected["image"] <= healthy["image"]).all(), "a parasite is dark"
    # Putting the healthy pixels back into the mask heals the cell.
    healed = np.where(infected["mask"][:, None], healthy["image"], infected["image"])
    np.testing.assert_array_equal(healed, healthy["image"])


def test_a_parasite_lies_inside_the_cell():
    infected, healthy = (blood_smear(700, parasitized=p, seed=3) for p in (1.0, 0.0))
    for mask, image in zip(infected["mask"], healthy["image"][:, 0], strict=True):
        assert ndimage.binary_fill_holes(image > 25)[mask].all()


def test_both_classes_share_the_law_of_everything_but_the_parasite(smear):
    # Summaries of pixels that no parasite touches: artefacts outside, shape, rim.
    image, infected = smear["image"][:, 0].astype(float), smear["clean_label"] == 1
    ring = np.hypot(*np.meshgrid(*[np.linspace(-1, 1, 32)] * 2)) > 0.9
    for summary in [image[:, ring].mean(1), (image > 40).sum((1, 2)), image[:, :4].max((1, 2))]:
        assert stats.ks_2samp(summary[infected], summary[~infected]).pvalue > FALSE_ALARM


@pytest.mark.parametrize(("truth", "rate"), [(0, 0.08), (1, 0.08)])
def test_labels_are_wrong_as_often_as_asked(smear, truth, rate):
    given = smear["label"][smear["clean_label"] == truth]
    wrong = int((given != truth).sum())
    assert stats.binomtest(wrong, len(given), rate).pvalue > FALSE_ALARM


def test_cells_are_infected_as_often_as_asked(smear):
    infected = int(smear["clean_label"].sum())
    assert stats.binomtest(infected, 4000, 0.4).pvalue > FALSE_ALARM
    assert (blood_smear(50, label_noise=0.0)["label"] == blood_smear(50)["clean_label"]).all()


def test_the_seed_decides_everything():
    first, again, other = (
        blood_smear(600, seed=7),
        blood_smear(600, seed=7),
        blood_smear(600, seed=8),
    )
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    same = (first["image"] == other["image"]).all((1, 2, 3))
    assert not same.any() and (first["label"] != other["label"]).any()
    assert len(np.unique(first["image"].reshape(600, -1), axis=0)) == 600


def test_brightness_alone_does_not_give_the_class_away(smear):
    # Mean, darkest pixel and spread of the cell: artefacts must blur what they tell.
    image = smear["image"][:, 0].astype(float)
    inside = np.where(image > 60, image, np.nan)
    features = np.stack(
        [np.nanmean(inside, (1, 2)), np.nanmin(inside, (1, 2)), np.nanstd(inside, (1, 2))], 1
    )
    features = (features - features.mean(0)) / features.std(0)
    fit = LogisticRegression().fit(features[:2000], smear["clean_label"][:2000])
    assert fit.score(features[2000:], smear["clean_label"][2000:]) < 0.8


@pytest.mark.parametrize(
    "wrong",
    [{"num_cases": 0}, {"size": 8}, {"parasitized": 1.2}, {"label_noise": 0.6}],
)
def test_bad_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        blood_smear(**({"num_cases": 3} | wrong))
