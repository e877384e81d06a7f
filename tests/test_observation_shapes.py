"""What users give in almost the right form: it is refused with a fix, or read as it was meant."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

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
from ppl_med.inference import (
    ConditionalNormal,
    FromPrior,
    ImportanceWeighted,
    MeanFieldNormal,
    PointEstimate,
    fit,
    predict,
)
from ppl_med.likelihoods import FocalLoss, StudentT
from ppl_med.models import (
    BayesianClassifier,
    BayesianRegressor,
    BayesianSegmenter,
    DenseRegressor,
    LatentClassifier,
    ProbabilisticUNet,
    StochasticSegmentationNetwork,
)
from ppl_med.models.site_temperature import SiteTemperature
from ppl_med.networks import GaussianEncoder, SelectOutput

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


# ------------------------------------------------------------------- order of the cases in predict


class Images(Dataset):
    """Case k is bright by k; with ids, if told."""

    def __init__(self, ids: bool = False) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        one = {"image": torch.full((1, 2, 2), float(index))}
        return one | ({"id": index} if self.ids else {})


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter([{"image": torch.zeros(1, 2, 2), "label": 0}] * 4)


class CountedStream(Stream):
    def __len__(self) -> int:
        return 4


def linear_classifier(net: nn.Module | None = None) -> BayesianClassifier:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    return BayesianClassifier(net or flat, ["no", "yes"])


@pytest.mark.parametrize(
    "order",
    [
        {"shuffle": True},
        {"sampler": WeightedRandomSampler([1.0] * 8, 8)},
        {"sampler": SubsetRandomSampler([3, 1, 2])},
        {"batch_sampler": BatchSampler(RandomSampler(Images()), 4, False)},
    ],
    ids=["shuffle", "weighted", "subset", "batch sampler"],
)
def test_a_shuffled_loader_without_ids_is_refused_in_predict(order: dict[str, Any]) -> None:
    model = linear_classifier()
    guide = PointEstimate(model)
    with pytest.raises(ValueError, match=r"order of a \w*Sampler and have no 'id'.*shuffle=False"):
        predict(model, guide, DataLoader(Images(), **order), draws=1, progress=False)


def test_ids_tell_the_cases_of_a_shuffled_loader() -> None:
    model = linear_classifier()
    guide = PointEstimate(model)
    in_order = predict(model, guide, DataLoader(Images(), 3), draws=1, progress=False)
    loader = DataLoader(Images(ids=True), 3, shuffle=True)
    shuffled = predict(model, guide, loader, draws=1, progress=False)
    assert np.asarray(shuffled["posterior/case"]).tolist() != list(range(8))
    by_id = shuffled["posterior/probs"].sortby("case")
    np.testing.assert_allclose(by_id, in_order["posterior/probs"], rtol=1e-6)


def test_streams_need_a_length() -> None:
    model = linear_classifier()
    guide = PointEstimate(model)
    for verb in (fit, predict):
        for given in (Stream(), DataLoader(Stream(), 2)):
            with pytest.raises(
                TypeError, match=r"Stream is an IterableDataset without a length.*__len__"
            ):
                verb(model, guide, given, progress=False)
    counted = DataLoader(CountedStream(), 2)
    fit(model, guide, counted, progress=False)
    assert predict(model, guide, counted, draws=1, progress=False)["posterior"].sizes["case"] == 4


# ------------------------------------------------------------------------ nets of several outputs


class Several(nn.Module):
    """A map of two classes, and another output, in the form asked for."""

    def __init__(self, form: Any, volume: bool = False) -> None:
        super().__init__()
        self.form, self.conv = form, nn.Conv2d(1, 2, 1)
        self.head = nn.Linear(64 * 2, 2)

    def forward(self, image: torch.Tensor) -> Any:
        found = self.conv(image)
        return self.form(found, self.head(found.flatten(1)))


FORMS: dict[str, tuple[Any, str, Any]] = {
    "dict": (
        lambda a, b: {"out": a, "aux": b},
        r"dict with the keys \['out', 'aux'\].*'out'",
        "out",
    ),
    "tuple": (lambda a, b: (a, b), r"tuple of 2 outputs.*SelectOutput\(net, 0\)", 0),
    "list": (lambda a, b: [a, b], r"list of 2 outputs.*SelectOutput\(net, 0\)", 0),
}


@pytest.mark.parametrize("form", FORMS)
def test_nets_of_several_outputs_are_told_how_to_choose(form: str) -> None:
    make, match, key = FORMS[form]
    net, mask = Several(make), torch.zeros(6, 8, 8).long()
    kinds: list[tuple[Any, dict[str, Any]]] = [
        (BayesianSegmenter(net, ["a", "b"]), {"mask": mask}),
        (BayesianClassifier(net, ["a", "b"]), {"label": mask[:, 0, 0]}),
        (BayesianRegressor(net), {"value": torch.zeros(6)}),
        (DenseRegressor(net), {"depth": torch.zeros(6, 8, 8)}),
        (StochasticSegmentationNetwork(1, ["a", "b"], net=net), {"mask": mask}),
    ]
    for model, observed in kinds:
        guide = (
            FromPrior("noise", "z")
            if isinstance(model, StochasticSegmentationNetwork)
            else PointEstimate(model)
        )
        with pytest.raises(ValueError, match=match):
            fit(model, guide, [{"image": IMAGE, **observed}], progress=False)
    model = BayesianSegmenter(SelectOutput(net, key), ["a", "b"], where="net.conv.*")
    guide = PointEstimate(model)
    fit(model, guide, [{"image": IMAGE, "mask": mask}], progress=False)
    tree = predict(model, guide, [{"image": IMAGE}], draws=1, progress=False)
    expected = net.conv(IMAGE).detach()
    assert tree["posterior/probs"].shape[2:] == expected.shape


def test_the_chosen_output_is_that_of_the_net() -> None:
    nested = SelectOutput(Several(lambda a, b: {"out": [a, b]}), "out", 1)
    assert torch.equal(nested(IMAGE), nested.net(IMAGE)["out"][1])
    with pytest.raises(ValueError, match=r"dict, which has no 'aux' but the keys \['out'\]"):
        SelectOutput(nested.net, "aux")(IMAGE)
    with pytest.raises(ValueError, match="keys must be"):
        SelectOutput(nested.net)


# --------------------------------------------------------------------- noise that no guide proposes


class Always(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.5)  # training=True is torch's default


class InTraining(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.5, self.training)


def noisy_net(noise: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), noise, nn.Linear(32, 2))


@pytest.mark.parametrize("guide", [PointEstimate, MeanFieldNormal, None])
def test_dropout_that_is_always_on_is_refused(guide: Any) -> None:
    model = linear_classifier(noisy_net(Always()))
    made = None if guide is None else guide(model)
    match = r"distribution of 'label' differs from run to run.*F\.dropout\(x, 0\.5\)"
    with pytest.raises(ValueError, match=match):
        predict(model, made, [{"image": IMAGE}], draws=2, progress=False)
    if made is not None:
        with pytest.raises(ValueError, match=match):
            fit(model, made, [{"image": IMAGE, "label": torch.zeros(6).long()}], progress=False)


def test_programs_whose_latents_are_sites_are_functions() -> None:
    """Noise in training alone, of a likelihood, of a code: all pass."""
    model = linear_classifier(noisy_net(InTraining()))
    predict(model, PointEstimate(model), [{"image": IMAGE}], draws=2, progress=False)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    noise = BayesianClassifier(wide, ["no", "yes"], likelihood="logit_normal")
    predict(noise, PointEstimate(noise), [{"image": IMAGE}], draws=2, progress=False)
    code = LatentClassifier(1, ["no", "yes"], width=2)
    predict(code, None, [{"image": IMAGE}], draws=2, progress=False)


# ------------------------------------------------------------- stock guides over latents per case


def test_stock_guides_over_latents_of_cases_are_refused() -> None:
    model = LatentClassifier(1, ["no", "yes"], width=2)
    batches = [{"image": IMAGE, "label": torch.arange(6) % 2}]
    match = r"AutoNormal proposes 'z', a latent of every case.*ConditionalNormal\(encoder, site='z'"
    guide = AutoNormal(model)
    with pytest.raises(ValueError, match=match):
        fit(model, guide, batches, progress=False)
    trained = AutoNormal(model)
    trained(**batches[0])
    for test in (batches, [{"image": IMAGE[:2]}]):
        with pytest.raises(ValueError, match=match):
            predict(model, trained, test, draws=1, progress=False)


def test_double_images_are_told_to_be_floats() -> None:
    model = linear_classifier()
    batches = [{"image": torch.zeros(4, 1, 2, 2).double(), "label": torch.zeros(4).long()}]
    for verb in (fit, predict):
        with pytest.raises(ValueError, match=r"image has dtype torch\.float64.*image\.float\(\)"):
            verb(model, PointEstimate(model), batches, progress=False)
    double = linear_classifier().double()
    fit(double, PointEstimate(double), batches, progress=False)
