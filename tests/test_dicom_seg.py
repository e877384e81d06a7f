"""Segmentation objects of DICOM lie on the slices of their series."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import xarray as xr
from posterior_trees import array
from reader_folders import save_dicom

from ppl_med.analysis import exports

highdicom: Any = pytest.importorskip("highdicom")

DEEP, ROWS, COLS = 4, 6, 5
SPACING = (1.5, 0.8)  # of rows, of columns
ORIGIN = np.array([-10.0, 20.0, 5.0])


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("series")
    rng = np.random.default_rng(0)
    study, own, frame = (pydicom.uid.generate_uid() for _ in range(3))
    for index in rng.permutation(DEEP).tolist():  # files in no order
        save_dicom(
            place / f"{rng.integers(10**6)}.dcm",
            rng.integers(0, 900, (ROWS, COLS)).astype(np.uint16),
            ImagePositionPatient=[*ORIGIN[:2], ORIGIN[2] + 2.5 * index],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=list(SPACING),
            SliceThickness=2.5,
            SOPClassUID=pydicom.uid.CTImageStorage,
            SOPInstanceUID=pydicom.uid.generate_uid(),
            StudyInstanceUID=study,
            SeriesInstanceUID=own,
            FrameOfReferenceUID=frame,
            Modality="CT",
            PatientID="p1",
            PatientName="A^B",
            PatientBirthDate="",
            PatientSex="",
            StudyDate="20260101",
            StudyTime="120000",
            StudyID="1",
            AccessionNumber="",
            SeriesNumber=1,
            InstanceNumber=index + 1,
        )
    return place


def tree() -> xr.DataTree:
    """A posterior on the same voxels, whose axes are (x, y, z) from right to left: MONAI's RAS."""
    probs = np.random.default_rng(1).dirichlet([1.0] * 3, (1, 3, 1, COLS, ROWS, DEEP))
    affine = np.diag([SPACING[1], SPACING[0], 2.5, 1.0])  # index to RAS, x and y turned
    affine[:3, 3] = [
        -(ORIGIN[0] + (COLS - 1) * SPACING[1]), -(ORIGIN[1] + (ROWS - 1) * SPACING[0]), ORIGIN[2],
    ]  # fmt: skip
    dims = ("chain", "draw", "case", "depth", "row", "col", "class")
    names = {"case": ["ct"], "class": ["no", "core", "edge"]}
    return xr.DataTree.from_dict(
        {
            "/": xr.Dataset(attrs={"model": "Toy"}),
            "/posterior": xr.Dataset({"probs": (dims, probs)}, names),
            "/constant_data": xr.Dataset(
                {"affine": (("case", "a", "b"), affine[None])}, {"case": ["ct"]}
            ),
        }
    )


def on_slices(values: np.ndarray) -> np.ndarray:
    """Maps (x, y, z) of the tree as (slice, row, col) of the series."""
    return values[::-1, ::-1].transpose(2, 1, 0)


@pytest.mark.parametrize("kind", ["mask", "probability"])
def test_a_segmentation_lies_on_the_slices(kind: Any, series: Path, tmp_path: Path) -> None:
    given = tree()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages: generated identifiers and the like
        table = exports.write_dicom_seg(given, tmp_path / "seg", {"ct": series}, kind=kind)
        made = highdicom.seg.segread(table["path"][0])
    assert table["outside"].tolist() == [0.0]
    images = [pydicom.dcmread(file) for file in series.iterdir()]
    ordered = sorted(images, key=lambda one: float(one.ImagePositionPatient[2]))
    found = made.get_pixels_by_source_instance([one.SOPInstanceUID for one in ordered])
    mean = array(given, "posterior/probs").mean(("chain", "draw"))[0].transpose(..., "class").values
    for segment, index in enumerate((1, 2)):
        expected = mean[..., index] if kind == "probability" else mean.argmax(-1) == index
        got = found[..., segment]
        np.testing.assert_allclose(got, on_slices(expected), atol=1 / 255 if kind != "mask" else 0)


def test_what_is_no_volume_is_refused(series: Path, tmp_path: Path) -> None:
    files = sorted(series.iterdir())
    images = {file: float(pydicom.dcmread(file).ImagePositionPatient[2]) for file in files}
    gap = [file for file, place in images.items() if place != ORIGIN[2] + 2.5]
    with pytest.raises(ValueError, match="slices of different sizes, directions or distances"):
        exports.write_dicom_seg(tree(), tmp_path, {"ct": gap})
    with pytest.raises(ValueError, match="series must be series of cases of the tree"):
        exports.write_dicom_seg(tree(), tmp_path, {"mr": series})
    with pytest.raises(ValueError, match="holds no files"):
        exports.write_dicom_seg(tree(), tmp_path, {"ct": tmp_path})
    assert not list(tmp_path.iterdir())
