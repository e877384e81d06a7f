"""DICOM: grey levels by the formulas of the standard, slices in their order, in their place."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reader_folders import save_dicom, write_films, write_series

from ppl_med.data import load_dicom_films, load_dicom_series
from ppl_med.data.readers.dicom_files import dicom_header, read_dicom

pydicom = pytest.importorskip("pydicom", reason="needs the extra `data`")

LEVELS = np.arange(48, dtype=np.uint16).reshape(6, 8) * 80


def test_levels_are_inverted_scaled_and_shown_through_the_window(tmp_path: Path) -> None:
    """PS3.3 C.11.2.1.2.1: ((x - (c - 0.5)) / (w - 1) + 0.5), x after slope and intercept."""
    path = tmp_path / "film.dcm"
    own: dict[str, Any] = {"BitsStored": 12, "HighBit": 11}
    save_dicom(path, LEVELS, RescaleSlope=2, RescaleIntercept=-1000, **own)
    hounsfield = LEVELS * 2.0 - 1000
    np.testing.assert_array_equal(read_dicom(path, None)[0], hounsfield)
    np.testing.assert_allclose(read_dicom(path)[0], LEVELS / 4095, rtol=1e-6)  # the bits' range
    expected = np.clip((hounsfield - 39.5) / 399 + 0.5, 0, 1)
    np.testing.assert_allclose(read_dicom(path, (40, 400))[0], expected, atol=1e-6)
    window = {"WindowCenter": [40, 60], "WindowWidth": [400, 20], "RescaleSlope": 2}
    save_dicom(path, LEVELS, RescaleIntercept=-1000, **window, **own)
    np.testing.assert_allclose(read_dicom(path)[0], expected, atol=1e-6)
    save_dicom(path, LEVELS, RescaleIntercept=-1000, **window, **own,
               PhotometricInterpretation="MONOCHROME1")  # fmt: skip
    np.testing.assert_allclose(read_dicom(path)[0], 1 - expected, atol=1e-6)
    np.testing.assert_allclose(read_dicom(path, None)[0], 7190 - 1000 - hounsfield)


@pytest.mark.parametrize("kind", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_windows_are_those_of_pydicom(kind: str, dtype: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    info = np.iinfo(dtype)
    levels = rng.integers(info.min, info.max, (6, 8), dtype=dtype, endpoint=True)
    tags = {"WindowCenter": 20, "WindowWidth": 90 if dtype == np.uint8 else 20000}
    save_dicom(tmp_path / "a.dcm", levels, VOILUTFunction=kind, **tags)
    found = pydicom.dcmread(tmp_path / "a.dcm")
    shown = pydicom.pixels.apply_windowing(found.pixel_array, found)
    low, high = float(info.min), float(info.max)
    np.testing.assert_allclose(
        read_dicom(tmp_path / "a.dcm")[0], (shown - low) / (high - low), atol=2e-6
    )


def test_a_table_of_grey_levels_is_that_of_pydicom(tmp_path: Path) -> None:
    from pydicom.dataset import Dataset

    table = Dataset()
    table.LUTDescriptor = [256, 0, 16]
    table.LUTData = (np.arange(256) ** 2).astype(np.uint16).tobytes()
    table["LUTData"].VR = "OW"
    levels = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    save_dicom(tmp_path / "a.dcm", levels, VOILUTSequence=[table])
    np.testing.assert_allclose(
        read_dicom(tmp_path / "a.dcm")[0], levels.astype(float) ** 2 / 65535, rtol=1e-6
    )


def test_colours_frames_and_other_pictures(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    save_dicom(tmp_path / "rgb.dcm", rgb)
    np.testing.assert_array_equal(read_dicom(tmp_path / "rgb.dcm"), rgb.transpose(2, 0, 1))
    stack = np.zeros((12, 8), np.uint8)
    save_dicom(tmp_path / "many.dcm", stack, Rows=6, NumberOfFrames=2)
    with pytest.raises(ValueError, match=r"many.dcm has 2 frames"):
        read_dicom(tmp_path / "many.dcm")
    with pytest.raises(ValueError, match=r"1 of 2 files .*many.dcm\) hold several frames"):
        load_dicom_films(tmp_path)
    save_dicom(tmp_path / "flat.dcm", stack, PixelAspectRatio=[2, 1])
    with pytest.raises(
        ValueError, match=r"flat.dcm .*pixels are not square \(PixelAspectRatio 2:1"
    ):
        dicom_header(tmp_path / "flat.dcm")
    save_dicom(tmp_path / "report.dcm", stack)
    found = pydicom.dcmread(tmp_path / "report.dcm")
    del found.Rows, found.PixelData
    found.save_as(tmp_path / "report.dcm")
    with pytest.raises(ValueError, match=r"report.dcm is no DICOM file .*holds no picture"):
        dicom_header(tmp_path / "report.dcm")


def test_films_come_with_patient_site_and_spacing(tmp_path: Path) -> None:
    truth = write_films(tmp_path)
    (tmp_path / "README").write_text("no film")
    (tmp_path / "deep/0.dcm").rename(tmp_path / "IM0001")  # as many scanners name them
    arrays = load_dicom_films(tmp_path)
    assert arrays["id"].tolist() == ["IM0001", *(f"deep/{k}.dcm" for k in range(1, 5))]
    levels = [truth[f"deep/{k}.dcm"] for k in range(5)]
    np.testing.assert_allclose(arrays["image"][:, 0], np.stack(levels) / 4095, rtol=1e-6)
    assert arrays["patient"].tolist() == ["p0", "p0", "p1", "p1", "p2"]
    assert arrays["site"].tolist() == ["site 0", "site 1"] * 2 + ["site 0"]
    assert (arrays["spacing"] == 0.2).all()
    assert (load_dicom_films(tmp_path, size=(3, 4))["spacing"] == 0.4).all()
    save_dicom(tmp_path / "other.dcm", np.zeros((5, 5), np.uint8))
    with pytest.raises(ValueError, match="films of 2 sizes"):
        load_dicom_films(tmp_path)


def test_films_of_other_spacing_or_of_oblong_pixels(tmp_path: Path) -> None:
    levels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    for k in range(5):
        save_dicom(tmp_path / f"{k}.dcm", levels, PixelSpacing=[0.2, 0.3 if k == 3 else 0.2])
    with pytest.raises(ValueError, match=r"not square in 1 of 5 files \(.*3.dcm 0.2 x 0.3 mm\)"):
        load_dicom_films(tmp_path)
    kept = load_dicom_films(tmp_path, spacing="mixed")
    np.testing.assert_allclose(kept["spacing"][3], [0.2, 0.3])
    made = load_dicom_films(tmp_path, spacing=(0.2, 0.2), size=(6, 8), resize="pad")
    np.testing.assert_allclose(made["spacing"], 0.2)
    with pytest.raises(ValueError, match="images of 2 sizes"):
        load_dicom_films(tmp_path, spacing=(0.2, 0.2))
    save_dicom(tmp_path / "3.dcm", levels, PixelSpacing=[0.4, 0.4])
    with pytest.raises(ValueError, match=r"differs .* in 1 of 5 files \(.*3.dcm \(0.4, 0.4\)"):
        load_dicom_films(tmp_path)
    with pytest.raises(ValueError, match="spacing must be"):
        load_dicom_films(tmp_path, spacing=(0.2, -1.0))


def test_series_of_other_spacing(tmp_path: Path) -> None:
    write_series(tmp_path)
    thick = [path for path in tmp_path.iterdir() if path.name.startswith("1-")]
    for path in thick:
        found = pydicom.dcmread(path)
        found.ImagePositionPatient = [10.0, 20.0, 2 * float(found.ImagePositionPatient[2])]
        found.save_as(path)
    before = load_dicom_series(tmp_path, spacing="mixed")
    np.testing.assert_allclose(before["spacing"][:, 0], [2, 4])
    with pytest.raises(ValueError, match=r"differs .* in 2 of 2 series \(1.2.0 \(2, 0.5, 0.25\)"):
        load_dicom_series(tmp_path)
    one = load_dicom_series(tmp_path, spacing=(4.0, 0.5, 0.25), size=(4, 5, 6), resize="pad")
    np.testing.assert_allclose(one["spacing"], [[4, 0.5, 0.25]] * 2)
    np.testing.assert_array_equal(one["image"][1], before["image"][1])
    # The middle of the outermost pixels of the first, 2 slices each, lies between them.
    old, new = before["affine"][0], one["affine"][0]
    np.testing.assert_allclose(new @ [1, 0, 0, 1], old @ [0.5, 0, 0, 1])


def test_slices_become_a_volume_in_its_place(tmp_path: Path) -> None:
    truth = write_series(tmp_path)
    arrays = load_dicom_series(tmp_path)
    assert arrays["id"].tolist() == list(truth) and arrays["patient"].tolist() == ["p0", "p1"]
    # An axial series runs from the right and the front: columns and rows turn round.
    expected = np.stack(list(truth.values()))[:, :, ::-1, ::-1] - 1024.0
    np.testing.assert_array_equal(arrays["image"][:, 0], expected)
    assert (arrays["spacing"] == [2.0, 0.5, 0.25]).all()
    for affine in arrays["affine"]:
        # Stored (slice 1, row 2, col 3) lies at x = 10 + 3 * 0.25, y = 20 + 2 * 0.5, z = 2, LPS+.
        index = [1, 5 - 1 - 2, 6 - 1 - 3, 1]
        np.testing.assert_allclose((affine @ index)[:3], [-10.75, -21.0, 2.0])
    window = load_dicom_series(tmp_path, window=(40, 400), size=(2, 4, 4), resize="scale")
    assert window["image"].shape == (2, 1, 2, 4, 4) and window["image"].max() <= 1


def test_a_series_that_is_no_volume(tmp_path: Path) -> None:
    write_series(tmp_path)
    path = next(p for p in sorted(tmp_path.iterdir())
                if pydicom.dcmread(p).ImagePositionPatient[2] == 2)  # fmt: skip
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(
        ValueError, match=r"series '1.2.0' of 3 slices: 1 of 2 gaps .*a slice is missing"
    ):
        load_dicom_series(tmp_path)
    path.write_bytes(content)
    (tmp_path / "again.dcm").write_bytes(content)
    with pytest.raises(ValueError, match=r"not 2 mm.*there twice"):
        load_dicom_series(tmp_path)
    (tmp_path / "again.dcm").unlink()
    for tag, value, message in (
        ("ImageOrientationPatient", [0, 1, 0, 0, 0, 1], "several directions"),
        ("ImagePositionPatient", None, r"1 of 4 files .* lack ImagePositionPatient"),
        ("Rows", 4, "expected one"),
    ):
        found = pydicom.dcmread(path)
        setattr(found, tag, value)
        found.save_as(path)
        with pytest.raises(ValueError, match=message):
            load_dicom_series(tmp_path)
        path.write_bytes(content)
    load_dicom_series(tmp_path)
