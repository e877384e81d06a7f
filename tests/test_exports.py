"""Results in the files that others work with: tables, and volumes in register with the input."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from analysis_table import (
    class_tree,
    depth_tree,
    finding_tree,
    grader_tree,
    number_tree,
    pixel_tree,
)
from monai.data import MetaTensor
from monai.transforms import Compose, Orientation, Spacing
from nibabel.processing import resample_from_to
from posterior_trees import array
from scipy.special import xlogy
from torch import nn

from ppl_med.analysis import exports, scoring, segmentation, uncertainty
from ppl_med.inference import MeanFieldNormal, predict
from ppl_med.models import BayesianSegmenter


def test_a_table_of_classes_has_a_row_a_case(tmp_path: Path) -> None:
    tree = class_tree()
    frame = exports.to_frame(tree)
    probs = array(tree, "posterior/probs")
    assert frame["id"].tolist() == [f"c{index}" for index in range(12)]
    assert frame["age"].tolist() == [40.0 + index for index in range(12)]
    assert frame["site"].tolist() == [index % 2 for index in range(12)]
    np.testing.assert_allclose(frame["probability_y"], probs.mean(("chain", "draw"))[:, 1])
    spread = probs.stack(all=("chain", "draw")).std("all", ddof=1)
    np.testing.assert_allclose(frame["sd_z"], spread[:, 2])
    figures = uncertainty.entropy(tree)
    np.testing.assert_allclose(frame["entropy"], figures["predictive_entropy"])
    np.testing.assert_allclose(frame["mutual_information"], figures["mutual_information"])
    hit = (frame["predicted"] == frame["observed"]).mean()
    assert hit == pytest.approx(float(scoring.score(tree)["accuracy"]))
    path = exports.write_csv(tree, tmp_path / "cases.csv")
    pd.testing.assert_frame_equal(pd.read_csv(path), frame, check_dtype=False)
    with pytest.raises(ValueError, match=r"ends in \.csv"):
        exports.write_csv(frame, tmp_path / "cases.txt")


def test_what_is_not_known_is_an_empty_cell() -> None:
    tree = class_tree()
    label = array(tree, "observed_data/label").copy()
    label[3] = -1
    tree["observed_data"] = xr.DataTree(xr.Dataset({"label": label}))
    assert exports.to_frame(tree)["observed"].isnull().tolist() == [n == 3 for n in range(12)]
    one = tree.isel(chain=[0], draw=[0], missing_dims="ignore")
    frame = exports.to_frame(one)
    for name in ("sd_x", "mutual_information"):  # one network does not know what it does not know
        assert frame[name].isnull().all()
    bare = tree.filter(lambda node: node.name == "posterior")
    assert "observed" not in exports.to_frame(bare)


def test_a_table_of_numbers_and_of_findings() -> None:
    tree = number_tree()
    frame = exports.to_frame(tree, level=0.5)
    drawn = array(tree, "posterior_predictive/value").stack(all=("chain", "draw"))
    parts = uncertainty.variance(tree)
    np.testing.assert_allclose(frame["mean"], array(tree, "posterior/loc").mean(("chain", "draw")))
    np.testing.assert_allclose(frame["sd"], parts["total"] ** 0.5)
    np.testing.assert_allclose(frame["sd_model"], parts["epistemic"] ** 0.5)
    ends = np.quantile(drawn, [0.25, 0.75], axis=1, method="weibull")
    np.testing.assert_allclose(frame[["lower", "upper"]].T, ends)
    assert (frame.attrs["level"], frame.attrs["attained_level"]) == (0.5, 0.5)
    frame = exports.to_frame(finding_tree())
    probs = array(finding_tree(), "posterior/probs").mean(("chain", "draw"))
    np.testing.assert_allclose(frame["probability_mass"], probs[:, 1, 1])
    assert set(frame["observed_mass"]) == {"absent", "present"}
    with pytest.raises(ValueError, match="one number per case"):
        exports.to_frame(depth_tree())


def test_a_table_of_masks_measures_in_mm_where_the_tree_knows_its_spacing() -> None:
    tree = pixel_tree(6)
    tree["constant_data"] = xr.DataTree(
        tree["constant_data"].to_dataset().assign(spacing=(("case", "axis"), [[0.5, 2.0]] * 6))
    )
    frame, found = exports.to_frame(tree), segmentation.sizes(tree, spacing=(0.5, 2.0))
    assert set(frame["size_unit"]) == {"mm^2"}
    np.testing.assert_allclose(frame["size_z"], found["mean"].sel({"class": "z"}))
    np.testing.assert_allclose(frame["size_z_upper"], found["upper"].sel({"class": "z"}))
    np.testing.assert_allclose(frame["size_z_observed"], found["grader_size"][:, 0, 1])
    dice = scoring.overlap(tree, resamples=0)["dice"]
    np.testing.assert_allclose(frame["dice_y"], dice[:, 0])
    counted = segmentation.sizes(tree, spacing="pixels")
    assert counted["mean"].attrs["units"] == "pixels"
    with pytest.raises(ValueError, match="spacing must be 'pixels'"):
        segmentation.sizes(tree, spacing="mm")
    assert not any(name.startswith("dice") for name in exports.to_frame(grader_tree()))
    affine = np.diag([0.5, -2.0, 3.0, 1.0])
    volume = tree.copy()
    volume["constant_data"] = xr.DataTree(
        xr.Dataset({"affine": (("case", "a", "b"), [affine] * 6)})
    )
    np.testing.assert_allclose(segmentation.sizes(volume)["mean"], found["mean"])
    deep = volume.map_over_datasets(
        lambda group: group.expand_dims(depth=2) if "row" in group.dims else group
    )
    frame = exports.to_frame(deep, volume="ml")
    sizes = segmentation.sizes(deep)
    assert sizes["mean"].attrs["units"] == "mm^3" and set(frame["size_unit"]) == {"ml"}
    np.testing.assert_allclose(1000 * frame["size_z"], sizes["mean"].sel({"class": "z"}))


load: Any = nibabel.load

OBLIQUE = np.array([[0.0, -1.6, 0.3, 10], [1.1, 0.0, 0.0, -20], [0.1, 0.2, 2.2, 5], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, xr.DataTree]:
    """Two volumes as files, and the tree of a tiny posterior after MONAI has turned them."""
    place = tmp_path_factory.mktemp("volumes")
    rng = np.random.default_rng(0)
    batches: list[dict[str, Any]] = []
    steps = Compose([Orientation("RAS", labels=None), Spacing((1.5, 1.5, 2.0))])
    for name, shape in (("a/1", (9, 8, 5)), ("b", (7, 10, 6))):
        path, values = place / f"{name.replace('/', '-')}.nii.gz", rng.normal(size=shape)
        nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), OBLIQUE), path)
        image = steps(MetaTensor(values[None].astype(np.float32), torch.tensor(OBLIQUE)))
        batches.append({
            "image": image[None].as_tensor(),
            "id": [name],
            "affine": image.affine[None],
            "original_affine": torch.tensor(OBLIQUE)[None],
            "spatial_shape": torch.tensor(shape)[None],
        })  # fmt: skip
    torch.manual_seed(0)
    model = BayesianSegmenter(nn.Conv3d(1, 3, 3, padding=1), ["no", "core", "edge"], spatial_dims=3)
    tree = predict(model, MeanFieldNormal(model, init_scale=0.5), batches, draws=4, progress=False)
    return place, tree


def mean_on(tree: xr.DataTree, case: int, grid: Any) -> np.ndarray:
    """Mean probabilities (class, ...) of a case on a grid, by nibabel."""
    probs = array(tree, "posterior/probs").isel(case=case).mean(("chain", "draw"))
    values = probs.values
    keep = ~np.isnan(values[0])
    size = [np.flatnonzero(keep.any(tuple({0, 1, 2} - {axis}))).max() + 1 for axis in range(3)]
    values = values[:, : size[0], : size[1], : size[2]]
    affine = array(tree, "constant_data/affine").values[case]
    return np.stack([
        resample_from_to(nibabel.Nifti1Image(one, affine), grid, 1, "nearest").get_fdata()
        for one in values
    ])  # fmt: skip


def test_maps_lie_in_register_with_the_file(
    volumes: tuple[Path, xr.DataTree], tmp_path: Path
) -> None:
    place, tree = volumes
    table = exports.write_nifti(tree, tmp_path / "maps")
    names = {"mask", "entropy", "probability_core", "probability_edge", "sd_core", "sd_edge"}
    written = {path.name for path in (tmp_path / "maps").iterdir()}
    assert written == {f"{case}_{name}.nii.gz" for case in ("a_1", "b") for name in names}
    assert sorted(set(table["id"])) == ["a/1", "b"] and len(table) == 12
    for case, file in enumerate(("a_1", "b")):
        original = load(place / f"{file.replace('_', '-')}.nii.gz")
        read = {name: load(tmp_path / f"maps/{file}_{name}.nii.gz") for name in names}
        for one in read.values():
            assert one.shape == original.shape
            np.testing.assert_allclose(one.affine, original.affine, atol=1e-5)
            assert one.header.get_xyzt_units()[0] == "mm"
        mean = mean_on(tree, case, original)
        seen = ~np.isnan(read["entropy"].get_fdata())
        assert seen.mean() > 0.7
        for index, name in ((1, "core"), (2, "edge")):
            got = read[f"probability_{name}"].get_fdata()
            np.testing.assert_allclose(got[seen], mean[index][seen], atol=1e-5)
        # mean first, entropy and class after
        entropy = -xlogy(mean, mean).sum(0)
        np.testing.assert_allclose(read["entropy"].get_fdata()[seen], entropy[seen], atol=1e-4)
        mask = np.asarray(read["mask"].dataobj)
        np.testing.assert_array_equal(mask[seen], mean.argmax(0)[seen])
        assert not mask[~seen].any()
        share = table[(table["id"] == array(tree, "posterior/probs")["case"].values[case])][
            "outside"
        ]
        assert share.tolist() == [pytest.approx((~seen).mean())] * 6


def test_maps_on_the_grid_of_the_network_are_those_of_the_tree(
    volumes: tuple[Path, xr.DataTree], tmp_path: Path
) -> None:
    _, tree = volumes
    options: dict[str, Any] = {"grid": "predicted", "classes": ["edge"], "case": "b"}
    exports.write_nifti(tree, tmp_path, maps=("sd", "mutual_information"), **options)
    found = load(tmp_path / "b_sd.nii.gz")
    probs = array(tree, "posterior/probs").isel(case=1)
    spread = probs.stack(all=("chain", "draw")).std("all", ddof=1).isel({"class": 2}).values
    size = tuple(slice(length) for length in found.shape)
    assert np.isnan(spread).sum() == spread.size - np.prod(found.shape)
    np.testing.assert_allclose(found.get_fdata(), spread[size], atol=1e-6)
    np.testing.assert_allclose(found.affine, array(tree, "constant_data/affine")[1], atol=1e-5)
    shared = load(tmp_path / "b_mutual_information.nii.gz").get_fdata()
    expected = uncertainty.entropy(tree)["mutual_information"][1].values[size]
    np.testing.assert_allclose(shared, expected, atol=1e-6)


def test_maps_take_the_grid_of_another_file(
    volumes: tuple[Path, xr.DataTree], tmp_path: Path
) -> None:
    _, tree = volumes
    affine = np.array([[2.0, 0, 0, -40], [0, 2, 0, -40], [0, 0, 2, -20], [0, 0, 0, 1]])
    other = nibabel.Nifti1Image(np.zeros((30, 30, 20), np.float32), affine)
    nibabel.save(other, tmp_path / "other.nii")
    like = {"b": tmp_path / "other.nii"}
    table = exports.write_nifti(tree, tmp_path, maps=("probability",), like=like, case=["b"])
    found = load(table["path"][0])
    assert found.shape == (30, 30, 20) and 0.5 < table["outside"][0] < 1
    seen = ~np.isnan(found.get_fdata())
    np.testing.assert_allclose(found.get_fdata()[seen], mean_on(tree, 1, other)[1][seen], atol=1e-5)
    with pytest.raises(ValueError, match="like must be a file for every case, 'a/1' among them"):
        exports.write_nifti(tree, tmp_path, like=like)


def test_what_cannot_be_written_is_refused(
    volumes: tuple[Path, xr.DataTree], tmp_path: Path
) -> None:
    _, tree = volumes
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"maps": ("masks",)}, "maps must be 'mask', "),
        ({"maps": ()}, "maps must be one or more different names"),
        ({"case": "c"}, "case must be ids of the tree, such as 'a/1'"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            exports.write_nifti(tree, tmp_path, **options)
    with pytest.raises(ValueError, match="tree has no affine"):
        exports.write_nifti(pixel_tree(), tmp_path)
    with pytest.raises(ValueError, match="none of an image"):
        exports.write_nifti(class_tree(), tmp_path)
    twins = tree.map_over_datasets(
        lambda group: group.assign_coords(case=["a/1", "a_1"]) if "case" in group.dims else group
    )
    with pytest.raises(ValueError, match="same file name 'a_1'"):
        exports.write_nifti(twins, tmp_path)
    assert not list(tmp_path.iterdir())
