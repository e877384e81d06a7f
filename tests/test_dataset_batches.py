"""Data sets of dicts, MONAI's and others: names, crops, order, random transforms, files."""

import warnings
from typing import Any

import nibabel
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, WeightedRandomSampler

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of decoders that MONAI looks for
    import monai.data
    from monai import transforms

from ppl_med.data import Batches, DatasetBatches, RotateAndScale, flips_and_turns
from ppl_med.inference import MeanFieldNormal, fit, functions, predict
from ppl_med.inference.adapted import adapted
from ppl_med.inference.batches import as_loader
from ppl_med.inference.data_digest import data_digest
from ppl_med.models import BayesianClassifier, BayesianSegmenter

IMAGE = {"image": torch.zeros(1, 4, 4)}


class Listed(Dataset):
    """Any items."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def crops_of(counts):
    """Volume v gives counts[v] crops, whose pixels are v."""
    image = [torch.full((1, 2, 2), float(v)) for v in range(len(counts))]
    return Listed([[{"image": image[v]}] * count for v, count in enumerate(counts)])


def volumes(folder, num=3, zooms=(1.0, 1.0, 2.0), size=(6, 5, 4)):
    """Random volumes with labels, turned and shifted in space; dicts of paths."""
    random = np.random.default_rng(0)
    affine = np.diag([-zooms[0], zooms[1], zooms[2], 1.0])  # columns run to the left
    affine[:3, 3] = 10, 20, 30
    found = []
    for case in range(num):
        place = folder / f"case_{case}"
        place.mkdir(parents=True)
        grey = random.normal(size=size).astype(np.float32)
        arrays = {"image": grey, "label": (grey > 0).astype(np.uint8)}
        for name, values in arrays.items():
            nibabel.save(nibabel.Nifti1Image(values, affine), place / f"{name}.nii.gz")
        paths = {name: str(place / f"{name}.nii.gz") for name in arrays}
        found.append({**paths, "patient": f"p{case}"})
    return found


def loading(*more):
    both = ["image", "label"]
    load = transforms.LoadImaged(both, reader="NibabelReader", ensure_channel_first=True)
    return transforms.Compose([load, *more])


def turned():
    return transforms.Orientationd(["image", "label"], axcodes="RAS", labels=None)


def random_crops(num=2):
    return transforms.RandCropByPosNegLabeld(
        ["image", "label"], label_key="label", spatial_size=(3, 3, 3), num_samples=num
    )


def mean_model(image, label=None, *, num_cases=None):
    """The mean of the pixels, with a learnt level."""
    level = pyro.sample("level", dist.Normal(0.0, 10.0))
    with pyro.plate("case", num_cases or len(image), subsample=image):
        pyro.sample("label", dist.Normal(level + image.mean((1, 2, 3)), 1.0), obs=label)


def segmenter():
    torch.manual_seed(0)
    net = torch.nn.Conv3d(1, 2, 1)
    return BayesianSegmenter(net, ["outside", "inside"], spatial_dims=3)


# ------------------------------------------------------------------------------- crops


@pytest.mark.parametrize("counts", [[2, 2, 2, 2], [1, 3, 2, 2], [1, 1, 1, 1]])
@pytest.mark.parametrize("kind", ["batches", "loader", "weighted"])
def test_crops_share_the_weight_of_their_volume(counts, kind):
    data = crops_of(counts)
    given: Any
    if kind == "batches":
        given = DatasetBatches(data, batch_size=3, shuffle=True)
    else:
        # Without replacement, so that every volume is seen once.
        sampler = WeightedRandomSampler([1.0, 2.0, 1.0, 5.0], 4, replacement=False)
        given = DataLoader(data, 3, sampler=sampler if kind == "weighted" else None)
    loader = as_loader(adapted(given), None)
    assert loader.num_cases == 4
    weight = torch.zeros(4)
    for batch, factor in loader.open(0, 0, 0):
        size = len(batch["image"])
        each = torch.as_tensor(factor) * loader.num_cases / size / loader.num_batches
        weight.index_add_(0, batch["image"][:, 0, 0, 0].long(), each.expand(size).float())
    assert torch.allclose(weight, torch.ones(4))


@pytest.mark.parametrize("copies", [1, 3])
def test_copies_of_a_case_do_not_count_as_further_cases(copies):
    label = torch.randn(4, generator=torch.Generator().manual_seed(0))
    items = [[{"image": torch.ones(1, 2, 2), "label": label[i]}] * copies for i in range(4)]
    guide = AutoDelta(mean_model)
    history = fit(mean_model, guide, Listed(items), epochs=1, learning_rate=1e-12, progress=False)
    level = guide.median()["level"]
    expected = -dist.Normal(level + 1, 1.0).log_prob(label).mean()
    assert float(history["nll"].mean()) == pytest.approx(float(expected), rel=1e-6)


def test_more_crops_than_volumes_fit_and_are_not_predicted():
    data = Listed([[{"image": torch.ones(1, 2, 2), "label": torch.tensor(0.0)}] * 5] * 2)
    guide = AutoDelta(mean_model)
    fit(mean_model, guide, DatasetBatches(data, batch_size=2), progress=False)
    with pytest.raises(ValueError, match=r"several crops of one volume.*window="):
        predict(mean_model, guide, data, draws=2, progress=False)


# ------------------------------------------------------------------------------- names


def test_keys_rename_entries_and_say_what_is_wrong():
    data = Listed([{"pixels": torch.ones(1, 2, 2), "target": torch.tensor(1.0)}] * 3)
    keys = {"pixels": "image", "target": "label"}
    arrays = {"pixels": np.ones((3, 1, 2, 2), np.float32), "target": np.ones(3, np.float32)}
    several = [{name: torch.from_numpy(values) for name, values in arrays.items()}]
    for given in (data, DataLoader(data), several):
        guide = AutoDelta(mean_model)
        fit(mean_model, guide, given, keys=keys, validation=given, progress=False)
        tree = predict(mean_model, guide, given, keys=keys, draws=2, progress=False)
        assert "label" in tree["observed_data"]
    arrays["image"] = arrays.pop("pixels")
    fit(
        mean_model, AutoDelta(mean_model), Batches(arrays), keys={"target": "label"}, progress=False
    )
    with pytest.raises(ValueError, match=r"keys must be a dict.*each name once"):
        fit(mean_model, guide, data, keys={"a": "label", "b": "label"})
    with pytest.raises(ValueError, match=r"keys names \['mask'\], which batches do not have"):
        fit(mean_model, guide, data, keys={"mask": "label"})
    with pytest.raises(ValueError, match=r"gives the name 'pixels'.*rename that too"):
        fit(mean_model, guide, data, keys={"target": "pixels"})


def test_ids_are_names_of_files_or_places(tmp_path):
    items = volumes(tmp_path)
    first = next(iter(DatasetBatches(monai.data.Dataset(items, loading()), batch_size=3)))
    assert first["id"] == [f"case_{case}/image" for case in range(3)]
    one = Subset(monai.data.Dataset(items, loading()), [1])
    assert next(iter(DatasetBatches(one)))["id"] == ["image"]
    shuffled = DatasetBatches(Listed([IMAGE] * 5), batch_size=5, shuffle=True)
    assert sorted(next(iter(shuffled))["id"]) == list(range(5))
    named = Listed([{**IMAGE, "id": "a"}, {**IMAGE, "id": "b"}])
    assert next(iter(DatasetBatches(named, batch_size=2)))["id"] == ["a", "b"]


def test_what_is_no_data_set_of_dicts_is_named():
    with pytest.raises(TypeError, match="arrays go to Batches"):
        DatasetBatches({"image": np.zeros((2, 1, 4, 4))})
    with pytest.raises(ValueError, match="dataset is empty"):
        DatasetBatches(Listed([]))
    pairs = Listed([(torch.ones(1, 2, 2), torch.tensor(0.0))] * 2)
    with pytest.raises(TypeError, match=r"an item must be a dict .* got tuple"):
        fit(mean_model, AutoDelta(mean_model), pairs)
    unlike = Listed([{"image": torch.zeros(1, 4, n)} for n in (4, 5, 6)])
    with pytest.raises(ValueError, match=r"'image' has 3 shapes.*\(1, 4, 5\).*batch_size=1"):
        next(iter(DatasetBatches(unlike, batch_size=3)))
    with pytest.raises(ValueError, match=r"only some have \['label'\], as is seen at position 1"):
        mixed = Listed([IMAGE, {**IMAGE, "label": torch.tensor(0)}])
        next(iter(DatasetBatches(mixed, batch_size=2)))


# ------------------------------------------------------------------------------- order


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a["image"], b["image"]) for a, b in zip(one, other, strict=True)
    )


def test_a_resumed_epoch_and_workers_see_the_same_crops(tmp_path):
    data = monai.data.CacheDataset(volumes(tmp_path), loading(random_crops()), progress=False)
    batches = DatasetBatches(data, batch_size=2, shuffle=True, seed=3)
    whole = list(batches.iterate(1))
    before = torch.get_rng_state()
    assert same(list(batches.iterate(1, start=1)), whole[1:])
    assert torch.equal(torch.get_rng_state(), before)
    assert same(
        list(DatasetBatches(data, batch_size=2, shuffle=True, seed=3, workers=1).iterate(1)), whole
    )
    assert not same(list(batches.iterate(2)), whole)
    single = DatasetBatches(data, shuffle=True, seed=3)
    assert torch.equal(next(iter(single.iterate(1)))["image"], whole[0]["image"][:2])


def test_transforms_of_torch_and_numpy_are_seeded_too():
    class Noisy(Listed):
        def __getitem__(self, index):
            return {"image": torch.randn(1, 2, 2) + float(np.random.random())}  # noqa: NPY002

    batches = DatasetBatches(Noisy([0] * 4), batch_size=2)
    whole = list(batches.iterate(0))
    torch.rand(1), np.random.random()  # noqa: NPY002
    assert same(list(batches.iterate(0, start=1)), whole[1:])
    assert not same(whole[:1], whole[1:])


def test_a_loader_of_monai_resumes_with_the_same_crops(tmp_path):
    data = monai.data.Dataset(volumes(tmp_path), loading(random_crops()))
    loader = as_loader(adapted(monai.data.DataLoader(data, batch_size=1)), None)
    whole = [batch for batch, _ in loader.open(1, 0, 0)]
    list(loader.open(2, 0, 0))
    resumed = [batch for batch, _ in loader.open(1, 1, 0)]
    assert same(resumed, whole[1:])
    assert not same([batch for batch, _ in loader.open(2, 0, 0)], whole)


class Broken(monai.data.Dataset):
    """Fails once, at an item of the second epoch."""

    left = 16

    def __getitem__(self, index):
        self.left -= 1
        if self.left == 0:
            raise OSError("the disk is gone")
        return super().__getitem__(index)


@pytest.mark.parametrize("kind", [DatasetBatches, monai.data.DataLoader])
def test_a_killed_run_with_random_transforms_equals_one_that_was_not(kind, tmp_path):
    items = [{"image": torch.zeros(1, 2, 2), "label": torch.tensor(float(v))} for v in range(4)]
    noise = transforms.RandGaussianNoised("image", prob=1.0, std=5.0)
    levels = []
    for way in (monai.data.Dataset, Broken):
        batches = kind(way(items, noise), shuffle=True)
        guide = AutoDelta(mean_model)
        options: dict[str, Any] = {"checkpoint": tmp_path / way.__name__, "checkpoint_every": 0.0}
        options |= {"epochs": 3, "learning_rate": 0.1, "progress": False}
        if way is Broken:
            with pytest.raises(OSError, match="the disk is gone"):
                fit(mean_model, guide, batches, **options)
            guide = AutoDelta(mean_model)
        fit(mean_model, guide, batches, resume=way is Broken, **options)
        levels.append(guide.median()["level"])
    assert torch.equal(*levels)


def test_samplers_that_keep_their_state_visit_as_torchs_do():
    own: dict[str, Any] = {"__module__": "torchdata.stateful_dataloader.sampler"}
    own |= {"data_source": range(4), "__len__": lambda self: 4}
    sampler = type("RandomSampler", (Sampler,), own)()
    loader = DataLoader(Listed([IMAGE] * 4), sampler=sampler)
    assert as_loader(adapted(loader), None).num_cases == 4


def test_workers_that_live_on_are_told_of_where_a_run_may_be_resumed(tmp_path):
    data = Listed([{"image": torch.ones(1, 2, 2), "label": torch.tensor(0.0)}] * 2)
    loader = DataLoader(data, num_workers=1, persistent_workers=True)
    with pytest.warns(UserWarning, match="persistent_workers=True.*resumes exactly"):
        fit(mean_model, AutoDelta(mean_model), loader, checkpoint=tmp_path / "c.pt", progress=False)


def test_a_resumed_run_notices_other_data():
    one, other = (Listed([{"image": torch.full((1, 2, 2), v)}] * 4) for v in (0.0, 1.0))
    digests = [data_digest(DatasetBatches(data), ["image"]) for data in (one, one, other)]
    assert digests[0] == digests[1] != digests[2]


# ------------------------------------------------------------------------------- space


def test_the_affine_leads_from_the_predicted_array_to_the_file(tmp_path):
    items = volumes(tmp_path)
    data = monai.data.Dataset(items, loading(turned()))
    model = segmenter()
    guide = MeanFieldNormal(model)
    options: dict[str, Any] = {"keys": {"label": "mask"}, "progress": False}
    fit(model, guide, data, **options)
    tree = predict(model, guide, data, draws=2, window=(4, 4, 4), **options)
    constant = tree["constant_data"].dataset
    assert constant["patient"].values.tolist() == ["p0", "p1", "p2"]
    assert constant["filename_or_obj"].values.tolist() == [item["image"] for item in items]
    assert np.allclose(constant["spacing"], [1.0, 1.0, 2.0])
    assert (constant["image_shape"] == [6, 5, 4]).all()
    file: Any = nibabel.load(items[1]["label"])
    assert np.allclose(constant["original_affine"][1], file.affine)
    seen = tree["observed_data"].dataset["mask"].values[1]
    index = np.argwhere(seen == 1)
    world = nibabel.affines.apply_affine(constant["affine"].values[1], index)
    back = nibabel.affines.apply_affine(np.linalg.inv(file.affine), world).round().astype(int)
    assert (np.asarray(file.dataobj)[tuple(back.T)] == 1).all()
    assert len(index) == np.asarray(file.dataobj).sum()


def test_other_ways_of_giving_the_same_volumes(tmp_path):
    items = volumes(tmp_path / "files")
    keys = {"label": "mask"}
    expected = next(
        iter(DatasetBatches(monai.data.Dataset(items, loading()), batch_size=2, keys=keys))
    )
    plain = monai.data.Dataset(items, loading())
    cache: dict[str, Any] = {
        "cache_dir": tmp_path / "cache",
        "track_meta": True,
        "weights_only": False,
    }
    kept = monai.data.PersistentDataset(items, loading(), **cache)
    ways = [
        DatasetBatches(kept, batch_size=2),
        monai.data.DataLoader(plain, batch_size=2, num_workers=1),
        DataLoader(plain, batch_size=2),  # torch's own collate function loses metadata
        [next(iter(monai.data.DataLoader(plain, batch_size=2)))],
    ]
    for way in ways:
        batch = next(iter(adapted(way, keys)))
        assert type(batch["image"]) is torch.Tensor
        for name in ("image", "mask", "affine", "spacing", "image_shape", "spatial_shape"):
            assert torch.equal(batch[name], expected[name]), name
        assert batch["filename_or_obj"] == expected["filename_or_obj"]
    assert expected["mask"].shape == (2, 6, 5, 4)


def test_geometry_is_in_mm_towards_right_front_up_or_is_not_there():
    space = {"affine": torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])), "space": "LPS"}
    given = monai.data.MetaTensor(torch.zeros(1, 2, 2, 2), meta=space)
    batch = next(iter(DatasetBatches(Listed([{"image": given}]))))
    assert batch["affine"][0].diag().tolist() == [-2, -3, 4, 1]
    assert batch["spacing"].tolist() == [[2, 3, 4]]
    nowhere = {"image": monai.data.MetaTensor(torch.zeros(1, 2, 2, 2))}
    picture = {
        "image": monai.data.MetaTensor(
            torch.zeros(1, 2, 2), meta={"mode": "L", "filename_or_obj": "a.png"}
        )
    }
    assert set(next(iter(DatasetBatches(Listed([nowhere]))))) == {"image", "id"}
    found = next(iter(DatasetBatches(Listed([picture]))))
    assert set(found) == {"image", "id", "filename_or_obj"}


def test_volumes_of_different_sizes_are_predicted_each_by_itself(tmp_path):
    items = [*volumes(tmp_path / "a", 1), *volumes(tmp_path / "b", 1, size=(4, 5, 6))]
    model = segmenter()
    tree = predict(
        model, MeanFieldNormal(model), monai.data.Dataset(items, loading()),
        keys={"label": "mask"}, draws=2, progress=False,
    )  # fmt: skip
    shapes = tree["constant_data"].dataset["image_shape"]
    assert shapes.values.tolist() == [[6, 5, 4], [4, 5, 6]]
    assert (tree["observed_data"].dataset["mask"].values[0, :, :, 4:] == -1).all()
    assert tree["posterior"].dataset["case"].values.tolist() == ["a/case_0/image", "b/case_0/image"]


def test_functions_take_images_of_monai():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    model = BayesianClassifier(net, ["a", "b"])
    function = functions(model, MeanFieldNormal(model), draws=1)[0]
    image = torch.rand(2, 1, 2, 2)
    found = function(monai.data.MetaTensor(image).requires_grad_())
    assert type(found) is torch.Tensor
    assert torch.equal(found, function(image))


# ------------------------------------------------------------------------------- bad input


def test_masks_of_one_channel_are_maps_and_one_hot_masks_are_refused():
    image = torch.zeros(1, 2, 2, 2)
    model = segmenter()
    guide = MeanFieldNormal(model)
    fit(model, guide, Listed([{"image": image, "mask": image}]), progress=False)
    hot = Listed([{"image": image, "mask": torch.cat([image, image + 1])}])
    with pytest.raises(ValueError, match=r"one-hot.*AsDiscreted\('mask', argmax=True\)"):
        fit(model, guide, hot, progress=False)
    flat = Listed([{"image": image[..., 0], "mask": image[..., 0]}])
    with pytest.raises(ValueError, match=r"2 axes of space.*spatial_dims=2"):
        fit(model, guide, flat, progress=False)


def test_missing_files_mixed_spacing_and_series_are_told_before_training(tmp_path):
    items = [*volumes(tmp_path / "a", 3), *volumes(tmp_path / "b", 1, zooms=(1.0, 1.0, 3.0))]
    model = segmenter()
    guide = MeanFieldNormal(model)
    options: dict[str, Any] = {"keys": {"label": "mask"}, "progress": False}
    data = monai.data.Dataset(items, loading())
    for given in (data, monai.data.DataLoader(data), DatasetBatches(data)):
        with pytest.raises(
            ValueError, match=r"1 of 4 files.*1 x 1 x 3 mm, where .* 1 x 1 x 2 mm.*Spacingd"
        ):
            fit(model, guide, given, **options)
    fit(model, guide, DatasetBatches(data, mixed_spacing=True), seed=1, **options)
    same = transforms.Spacingd(["image", "label"], pixdim=(1, 1, 2), mode="nearest")
    fit(model, guide, monai.data.Dataset(items, loading(same)), seed=2, **options)
    predict(model, guide, data, draws=1, **options)
    series = nibabel.Nifti1Image(np.zeros((6, 5, 4, 2), np.float32), np.eye(4))
    nibabel.save(series, items[3]["image"])
    with pytest.raises(
        ValueError, match=r"1 of 4 files of 'image'.*\(6, 5, 4, 2\), where.*one volume of a series"
    ):
        fit(model, guide, data, **options)
    items[1]["label"] = items[2]["label"] = "nowhere.nii.gz"
    for verb in (fit, predict):
        with pytest.raises(FileNotFoundError, match="2 of 4 files of 'label' are missing: nowhere"):
            verb(model, guide, data, **options)


def test_pixels_that_are_not_square_are_not_turned():
    spacing = np.array([[1.0, 1.0], [1.0, 2.0], [0.5, 1.0]])
    arrays = {
        "image": np.zeros((3, 1, 4, 4), np.float32),
        "spacing": spacing,
        "id": ["a", "b", "c"],
    }
    for steps in ({"augment": flips_and_turns}, {"transform": [RotateAndScale()]}):
        with pytest.raises(ValueError, match=r"2 of 3 cases.*'b' \(1 x 2\), 'c' \(0.5 x 1\)"):
            Batches(arrays, **steps)
    Batches(arrays)
    Batches(arrays | {"spacing": spacing[:1].repeat(3, 0)}, augment=flips_and_turns)
