"""What users give in almost the right form: it is refused with a fix, or read as it was meant."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ppl_med.data import (
    Batches,
    RotateAndScale,
    check_disjoint,
    one_grader_per_case,
    standardization,
)
from ppl_med.data.readers.folders import read_list
from ppl_med.data.readers.image_files import check_size, read_classes, read_rgb
from ppl_med.data.splits import data_digest
from ppl_med.inference import ConditionalNormal, ImportanceWeighted, fit
from ppl_med.likelihoods import FocalLoss, StudentT
from ppl_med.models import (
    BayesianRegressor,
    DenseRegressor,
    LatentClassifier,
    ProbabilisticUNet,
    StochasticSegmentationNetwork,
)
from ppl_med.models.site_temperature import SiteTemperature
from ppl_med.networks import GaussianEncoder

IMAGE = torch.randn(6, 1, 8, 8)


@pytest.mark.parametrize("width", [1, 6])
def test_numbers_of_another_shape_are_refused_and_not_broadcast(width: int) -> None:
    model = BayesianRegressor(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
    model(IMAGE, torch.zeros(6))
    with pytest.raises(ValueError, match=rf"value has shape \(6, {width}\), but \(6,\) is needed"):
        model(IMAGE, torch.zeros(6, width))


def test_the_fix_for_a_spare_axis_is_named() -> None:
    model = DenseRegressor(nn.Conv2d(1, 2, 1))
    model(IMAGE, torch.zeros(6, 8, 8))
    with pytest.raises(ValueError, match=r"\(6, 8, 8\) is needed.*use depth\[:, 0\]"):
        model(IMAGE, torch.zeros(6, 1, 8, 8))


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (torch.zeros(6, 1, dtype=torch.long), r"site must be of shape \(6,\).*got \(6, 1\)"),
        (torch.tensor([0, 1, -1, 0, 0, 1]), "site holds -1; sites are numbered 0 to 1"),
        (torch.tensor([0, 1, 2, 0, 0, 1]), "site holds 2"),
    ],
)
def test_sites_that_no_case_can_have_are_refused(site: Any, message: str) -> None:
    model = SiteTemperature(["north", "south"], ["a", "b"])
    with pytest.raises(ValueError, match=message):
        model(torch.randn(6, 2, 1, 1), site)


@pytest.mark.parametrize("classes", ["lesion", ["a", "a"], ["one"]])
@pytest.mark.parametrize("kind", [ProbabilisticUNet, StochasticSegmentationNetwork])
def test_every_model_of_classes_looks_at_their_names(kind: Any, classes: Any) -> None:
    with pytest.raises(ValueError, match="classes must be two or more different names"):
        kind(1, classes)


def test_a_stochastic_segmentation_network_takes_a_net_of_the_user() -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"rank": 3, "spatial_dims": 3}
    volume, mask = torch.randn(2, 1, 4, 8, 8), torch.zeros(2, 4, 8, 8, dtype=torch.long)
    model = StochasticSegmentationNetwork(1, ["a", "b"], net=nn.Conv3d(1, 10, 1), **settings)
    assert model(volume, mask).shape == (2, 2, 4, 8, 8)
    model = StochasticSegmentationNetwork(1, ["a", "b"], net=nn.Conv3d(1, 9, 1), **settings)
    with pytest.raises(ValueError, match=r"\(2, 9, 4, 8, 8\) but \(2, 10, 4, 8, 8\) is needed"):
        model(volume, mask)


def test_a_latent_classifier_takes_the_tighter_bound() -> None:
    torch.manual_seed(0)
    model = LatentClassifier(1, ["a", "b"], latent_dim=2, width=4)
    guide = ConditionalNormal(GaussianEncoder(1, 2, 4, num_classes=2))
    batches = Batches({"image": IMAGE.numpy(), "label": [0, 1] * 3}, batch_size=6)
    history = fit(
        model, guide, batches, epochs=1, learning_rate=1e-3, progress=False,
        objective=ImportanceWeighted(3),
    )  # fmt: skip
    assert np.isfinite(history["bound"]).all()


def test_weights_of_classes_may_be_arrays() -> None:
    for weights in (np.array([1.0, 2.0]), torch.tensor([1.0, 2.0]), [1.0, 2.0]):
        loss = FocalLoss(["a", "b"], 2, weights)
        assert loss.class_weights is not None and loss.class_weights.tolist() == [1, 2]
        assert "weighted" in loss.training_loss
    assert "weighted" not in FocalLoss(["a", "b"]).training_loss


@pytest.mark.parametrize("df", [2.5, 30.0, 1000.0])
def test_any_degrees_of_freedom_are_kept(df: float) -> None:
    assert float(StudentT(df=df).df) == pytest.approx(df, rel=1e-5)


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64"])
def test_wide_unsigned_integers_are_labels_and_metadata(dtype: str) -> None:
    values = np.array([0, 1, 2, 0, 1, 2], dtype)
    arrays = {"image": IMAGE.numpy(), "label": values, "age": values}
    batch = next(iter(Batches(arrays, batch_size=6)))
    assert batch["label"].tolist() == batch["age"].tolist() == values.tolist()


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_transform_in_place_leaves_the_data_as_they_are(shuffle: bool) -> None:
    def halve(batch: Any, generator: Any) -> Any:
        batch["depth"].mul_(0.5)
        return batch

    depth = np.ones((6, 8, 8), np.float32)
    arrays = {"image": IMAGE.numpy(), "depth": depth}
    batches = Batches(arrays, batch_size=3, shuffle=shuffle, transform=halve)
    for _ in range(2):
        assert all((batch["depth"] == 0.5).all() for batch in batches)
    assert (depth == 1).all()


def test_maps_that_turn_keep_their_values_and_say_what_was_not_seen() -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.normal(size=(8, 1, 12, 16)).astype(np.float32),
        "depth": rng.choice([1.0, 7.0], (8, 12, 16)),
        "lesion": rng.integers(0, 3, (8, 12, 16)).astype(np.uint8),
        "mask": rng.integers(0, 3, (8, 12, 16)),
    }
    move = RotateAndScale(degrees=40, factor=1.3)
    batch = next(iter(Batches(arrays, batch_size=8, transform=move)))
    outside = batch["depth"].isnan()
    assert 0 < outside.sum() < outside.numel() / 2
    assert set(batch["depth"][~outside].tolist()) == {1.0, 7.0}, "no depth between two"
    assert torch.equal(batch["lesion"] == -1, outside)
    assert torch.equal(batch["mask"] == -1, outside)
    assert set(batch["lesion"].unique().tolist()) == {-1, 0, 1, 2}


def test_a_constant_channel_is_found_in_double_precision() -> None:
    images = np.random.default_rng(0).normal(size=(50, 2, 9, 9))
    images[:, 1] = 0.1
    with pytest.raises(ValueError, match=r"constant in channel\(s\) \[1\]"):
        standardization(images)
    images[:, 1] = 0.1 + 1e-6 * images[:, 0]
    _, scale = standardization(images)
    assert scale[1] == pytest.approx(1e-6, rel=0.05)


def test_strings_held_as_objects_have_the_digest_of_strings() -> None:
    plain = {"id": np.array(["a", "bc"]), "patient": np.array(["p", "q"])}
    objects = {name: values.astype(object) for name, values in plain.items()}
    assert data_digest(plain) == data_digest(objects)
    with pytest.raises(TypeError, match="id is of dtype object"):
        data_digest({"id": np.array([1, "a"], object)})


def test_names_in_a_list_may_hold_blanks(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("sub 01.nii.gz \n\nsub 02.nii.gz\n")
    assert read_list(path) == ["sub 01.nii.gz", "sub 02.nii.gz"]


@pytest.mark.parametrize("read", [read_rgb, lambda path: read_classes(path, 3)])
def test_a_broken_picture_is_named(tmp_path: Path, read: Any) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs the extra `data`")
    path = tmp_path / "cut.png"
    image.fromarray(np.random.default_rng(0).integers(0, 3, (64, 64)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cut\.png is no picture"):
        read(path)
    path.write_text("")
    with pytest.raises(ValueError, match=r"cut\.png is no picture"):
        read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.png")


@pytest.mark.parametrize("size", [128, (128,), (0, 4)])
def test_a_size_that_is_none_is_named(size: Any) -> None:
    with pytest.raises(ValueError, match=r"size must be \(rows, cols\)"):
        check_size(size, ("rows", "cols"))


def test_what_is_missing_or_ragged_is_told_or_made_up_for() -> None:
    arrays = {"image": IMAGE.numpy(), "mask": np.zeros((6, 2, 8, 8), np.int8), "id": None}
    assert one_grader_per_case(arrays)["id"].tolist()[:3] == ["0/g0", "0/g1", "1/g0"]
    ragged = [np.zeros((1, 8, 8), np.float32), np.zeros((1, 9, 8), np.float32)]
    with pytest.raises(ValueError, match="image holds arrays of different shapes"):
        Batches({"image": ragged})
    with pytest.raises(ValueError, match="share 1 id"):
        check_disjoint([torch.tensor(1), torch.tensor(2)], [torch.tensor(2)])
