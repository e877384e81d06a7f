"""Attribution maps as NIfTI overlay exactly on the scan that was explained, wherever it lies."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from reader_folders import save_volume, write_brains
from test_brain_reader import affine, cases

from ppl_med.analysis import exports
from ppl_med.data import load_brains

nibabel = pytest.importorskip("nibabel", reason="needs the extra `data`")
DIMS = ("case", "channel", "depth", "row", "col")


def dataset(values: Any, ids: Any) -> xr.Dataset:
    mean = xr.DataArray(np.asarray(values, float), dims=DIMS, attrs={"units": "nats"})
    return xr.Dataset({"mean": mean, "sd": 0.5 * abs(mean)}, coords={"case": list(ids)})


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(affine(1, 1.5, 3), id="anisotropic"),
        pytest.param(affine(-1, 1, 2), id="flipped"),
        pytest.param(affine(1, -1, -2, turn=True), id="oblique and flipped"),
        pytest.param(affine(2, 1, 1)[:, [2, 0, 1, 3]], id="axes exchanged"),
    ],
)
def test_a_marked_voxel_is_in_the_same_place_in_mm(given: np.ndarray, tmp_path: Path) -> None:
    # The map is the image itself: its file must lie on the scan's, voxel by voxel.
    write_brains(tmp_path)
    mark, values = (2, 3, 1), np.ones((4, 5, 6), np.float32)
    values[mark] = 1000
    scan = tmp_path / "sub-00/anat/sub-00_T1w.nii.gz"
    save_volume(scan, values, given)
    found = cases(
        load_brains(tmp_path, standardize=False, spacing="mixed", size=(9, 8, 7), resize="pad")
    )
    row = found["patient"].tolist().index("sub-00")
    maps = dataset(found["image"][row : row + 1], ["sub 00"])
    table = exports.write_attribution(maps, tmp_path / "out", affine=found["affine"][row : row + 1])
    assert table["map"].tolist() == ["mean", "sd"] and (table["unit"][0], len(table)) == ("nats", 2)
    for path, factor in zip(table["path"], (1, 0.5), strict=True):
        written, original = nibabel.load(path), nibabel.load(scan)
        for form in (written.get_sform(), written.get_qform()):
            np.testing.assert_allclose(form, found["affine"][row], atol=1e-5)
        assert written.header.get_xyzt_units()[0] == "mm"
        # Every voxel of the scan, by way of mm, is the voxel of the map with its value.
        index = np.indices(original.shape).reshape(3, -1)
        world = nibabel.affines.apply_affine(original.affine, index.T)
        back = nibabel.affines.apply_affine(np.linalg.inv(written.affine), world)
        np.testing.assert_allclose(back, back.round(), atol=1e-4)
        there = written.get_fdata()[tuple(back.round().astype(int).T)]
        np.testing.assert_allclose(there, factor * values.ravel())
        peak = np.unravel_index(written.get_fdata().argmax(), written.shape)
        np.testing.assert_allclose(
            nibabel.affines.apply_affine(written.affine, peak), given[:3] @ [*mark, 1], atol=1e-4
        )


def test_a_resampled_map_lies_on_its_scan_too(tmp_path: Path) -> None:
    from nibabel.processing import resample_from_to

    write_brains(tmp_path / "in")
    given, steps = affine(-1, 1.5, 2, turn=True), np.indices((4, 5, 6))
    ramp = given[:3, :3] @ steps.reshape(3, -1) + given[:3, 3:]  # mm of each voxel
    for axis in range(3):
        values = ramp[axis].reshape(4, 5, 6).astype(np.float32)
        save_volume(tmp_path / "in/sub-00/anat/sub-00_T1w.nii.gz", values, given)
        settings: dict[str, Any] = {"spacing": "mixed", "size": (12, 10, 8), "resize": "scale"}
        found = cases(load_brains(tmp_path / "in", standardize=False, **settings))
        row = found["patient"].tolist().index("sub-00")
        maps = dataset(found["image"][row : row + 1], ["a"])
        exports.write_attribution(maps, tmp_path / "out", affine=found["affine"][row : row + 1])
        written = nibabel.load(tmp_path / "out/a_mean.nii.gz")
        back = resample_from_to(written, (values.shape, given), 1, "nearest").get_fdata()
        inner = (slice(1, -1),) * 3  # a linear map survives linear interpolation inside
        np.testing.assert_allclose(back[inner], values[inner], atol=1e-3)


def test_bad_maps_and_affines_are_named(tmp_path: Path) -> None:
    maps, right = dataset(np.ones((2, 1, 3, 3, 3)), ["a", "b"]), np.tile(np.eye(4), (2, 1, 1))
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (maps, {"affine": right[:1]}, r"affine must be of shape \(2, 4, 4\)"),
        (maps, {"affine": 0 * right}, "no map of indices to mm"),
        (maps, {"affine": right, "names": ["mcse"]}, "names must be 'mean' or 'sd'"),
        (maps.isel(depth=0, row=0), {"affine": right}, r"mean must be maps \(case"),
        (dataset(np.ones((2, 2, 3, 3, 3)), "ab"), {"affine": right}, "2 channels; choose one"),
        (dataset(np.ones((2, 1, 3, 3, 3)), ["a/1", "a 1"]), {"affine": right}, "same file name"),
    ]
    for given, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            exports.write_attribution(given, tmp_path, **options)
    with pytest.raises(TypeError, match="maps"):
        exports.write_attribution(maps["mean"], tmp_path, affine=right)  # type: ignore[arg-type]
