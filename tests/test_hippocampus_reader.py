"""The hippocampus reader: on volumes written here by nibabel, and on the real ones."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from reader_folders import AFFINE, save_volume, write_hippocampus

from ppl_med.data import Batches, load_hippocampus

nibabel = pytest.importorskip("nibabel", reason="needs the extra `data`")


def test_the_arrays_are_those_of_the_files(tmp_path: Path) -> None:
    truth = write_hippocampus(tmp_path / "hippocampus", ("train", "val", "test"))
    splits = load_hippocampus(tmp_path, size=(8, 9, 8), standardize=False)
    assert list(splits) == ["train", "val", "test"]
    for one in splits.values():
        assert one["image"].shape == (3, 1, 8, 9, 8) and one["image"].dtype == np.float32
        assert one["mask"].shape == (3, 8, 9, 8) and one["mask"].dtype == np.int8
        np.testing.assert_allclose(one["voxel_volume"], 1.0)
        np.testing.assert_allclose(one["spacing"], [[2.0, 1.0, 0.5]] * 3)
        for row, name in enumerate(one["id"].tolist()):
            grey, label = (values.transpose(2, 1, 0) for values in truth[name])
            starts = [(new - old) // 2 for new, old in zip((8, 9, 8), grey.shape, strict=True)]
            place = tuple(
                slice(start, start + old) for start, old in zip(starts, grey.shape, strict=True)
            )
            np.testing.assert_array_equal(one["image"][row, 0][place], grey)
            np.testing.assert_array_equal(one["mask"][row][place], label)
            assert (one["mask"][row] > 0).sum() == (label > 0).sum()
            assert set(np.unique(one["image"][row])) == set(np.unique(grey)), "borders repeat"
    assert next(iter(Batches(splits["train"])))["voxel_volume"].shape == (3,)


def test_each_volume_is_standardized_over_its_own_voxels(tmp_path: Path) -> None:
    truth = write_hippocampus(tmp_path)
    train = load_hippocampus(tmp_path, size=(8, 9, 8))["train"]
    grey = truth["hippocampus_train1"][0].transpose(2, 1, 0)
    expected = (grey - grey.mean(dtype=float)) / grey.std(dtype=float)
    np.testing.assert_allclose(train["image"][1, 0, 1:7, :, :7], expected, rtol=1e-4, atol=1e-5)


def test_other_orientations_and_voxels_end_on_the_same_axes(tmp_path: Path) -> None:
    truth = write_hippocampus(tmp_path)
    plain = load_hippocampus(tmp_path, size=(8, 9, 8))["train"]
    for part, values in zip(("imagesTr", "labelsTr"), truth["hippocampus_train0"], strict=True):
        turned = values[::-1].transpose(1, 2, 0)  # rows, depth, columns from right to left
        affine = np.zeros((4, 4))
        affine[0, 2], affine[1, 0], affine[2, 1] = -0.5, 1.0, 2.0
        affine[0, 3], affine[3, 3] = 2.5, 1  # where the last of six columns lies
        save_volume(
            tmp_path / part / "hippocampus_train0.nii.gz", np.ascontiguousarray(turned), affine
        )
    turned_back = load_hippocampus(tmp_path, size=(8, 9, 8))["train"]
    for name in plain:
        np.testing.assert_array_equal(plain[name], turned_back[name])


def test_outside_may_be_ignored(tmp_path: Path) -> None:
    truth = write_hippocampus(tmp_path)
    train = load_hippocampus(tmp_path, size=(10, 10, 10), outside="ignore")["train"]
    voxels = [truth[name][1].size for name in train["id"]]
    assert (train["mask"] >= 0).sum((1, 2, 3)).tolist() == voxels


def test_no_labelled_voxel_is_cut_silently(tmp_path: Path) -> None:
    write_hippocampus(tmp_path)
    cropped = load_hippocampus(tmp_path, size=(6, 7, 5))["train"]
    assert cropped["mask"].shape == (3, 6, 7, 5)
    message = (
        r"size is \(6, 6, 5\), which would cut labelled pixels of 2 case\(s\): hippocampus_train1"
    )
    with pytest.raises(ValueError, match=message) as caught:
        load_hippocampus(tmp_path, size=(6, 6, 5))
    assert "(6, 7, 5) or more loses none" in str(caught.value)


def test_bad_arguments_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"size must be \(depth, rows, cols\)"):
        load_hippocampus(tmp_path, size=(4, 0, 4))
    with pytest.raises(FileNotFoundError, match="nowhere' is not there"):
        load_hippocampus(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"neither train\.txt, val\.txt, imagesTr"):
        load_hippocampus(tmp_path)


def test_bad_files_are_named(tmp_path: Path) -> None:
    truth = write_hippocampus(tmp_path)
    name = "hippocampus_train0"
    image, label = (tmp_path / part / f"{name}.nii.gz" for part in ("imagesTr", "labelsTr"))
    grey, classes = truth[name]

    def expect(message: str, error: type[Exception] = ValueError) -> None:
        with pytest.raises(error, match=message):
            load_hippocampus(tmp_path)
        save_volume(image, grey)
        save_volume(label, classes)

    save_volume(label, classes + np.uint8(2))
    expect(r"labelsTr.*holds \[2 3 4\]; expected 0, 1 and 2")
    save_volume(label, classes[:-1])
    expect(r"image \(6, 8, 5\) and label \(5, 8, 5\) do not lie on one grid")
    save_volume(label, classes, np.diag([1.0, 1, 1, 1]))
    expect("do not lie on one grid")
    save_volume(image, np.where(classes == 1, np.nan, grey).astype(np.float32))
    expect("NaN or infinite voxels")
    save_volume(image, np.stack([grey, grey], -1))
    expect(r"shape \(6, 8, 5, 2\); expected three axes")
    save_volume(image, grey, unit="meter")
    expect("is in meter; expected mm")
    image.write_bytes(b"no volume")
    expect("no NIfTI file that can be read")
    label.unlink()
    expect("needs 1 file.* not there", FileNotFoundError)
    (tmp_path / "val.txt").write_text(f"{name}.nii.gz\n")
    expect("train and val share 1")
    (tmp_path / "val.txt").write_text("../a.nii.gz\n")
    expect("outside its folder")
    (tmp_path / "val.txt").write_text("\n")
    expect(r"1 name\(s\) a line")


def test_a_last_axis_of_one_is_no_axis(tmp_path: Path) -> None:
    """What programs that save a 3D volume as a time series of one leave behind."""
    truth = write_hippocampus(tmp_path)
    plain = load_hippocampus(tmp_path, size=(8, 9, 8))["train"]
    grey, label = truth["hippocampus_train0"]
    save_volume(tmp_path / "imagesTr/hippocampus_train0.nii.gz", grey[..., None])
    save_volume(tmp_path / "labelsTr/hippocampus_train0.nii.gz", label[..., None, None])
    for name, values in load_hippocampus(tmp_path, size=(8, 9, 8))["train"].items():
        np.testing.assert_array_equal(values, plain[name])


TURN = np.deg2rad(10)


@pytest.mark.parametrize(
    ("change", "message", "same"),
    [
        (
            {(0, 0): 0.75},
            r"spacing differs by 0\.25 mm, \(0\.5, 1\.0, 2\.0\) and \(0\.75,",
            "direction",
        ),
        (
            {(1, 3): 3.0},
            r"origin differs by 3 mm, \(0\.0, 0\.0, 0\.0\) and \(0\.0, 3\.0",
            "spacing",
        ),
        (
            {
                (1, 1): np.cos(TURN),
                (1, 2): -2 * np.sin(TURN),
                (2, 1): np.sin(TURN),
                (2, 2): 2 * np.cos(TURN),
            },
            r"direction differs by 10 degrees",
            "origin",
        ),
    ],
)
def test_the_error_says_how_two_grids_differ(
    change: dict[tuple[int, int], float], message: str, same: str, tmp_path: Path
) -> None:
    truth = write_hippocampus(tmp_path)
    affine = AFFINE.copy()
    for place, value in change.items():
        affine[place] = value
    label = truth["hippocampus_train1"][1]
    save_volume(tmp_path / "labelsTr/hippocampus_train1.nii.gz", label, affine)
    with pytest.raises(ValueError, match=message) as caught:
        load_hippocampus(tmp_path, size=(8, 9, 8))
    assert same not in str(caught.value) and "hippocampus_train1" in str(caught.value)


def test_one_flipped_bit_in_a_volume_is_an_error(tmp_path: Path) -> None:
    """A reader that stops after the last voxel never comes to the checksum."""
    write_hippocampus(tmp_path)
    rng = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        path = tmp_path / part / "hippocampus_val1.nii.gz"
        content = bytearray(path.read_bytes())
        for place in rng.integers(18, len(content), 40):  # before that stands the file's name
            bit = 1 << rng.integers(8)
            content[place] ^= bit
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"hippocampus_val1.*no NIfTI file"):
                load_hippocampus(tmp_path, size=(8, 9, 8))
            content[place] ^= bit
        path.write_bytes(content)
    load_hippocampus(tmp_path, size=(8, 9, 8))


def test_a_header_that_tells_of_more_than_the_file_holds(tmp_path: Path) -> None:
    write_hippocampus(tmp_path)
    path = tmp_path / "imagesTr/hippocampus_val1.nii.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    for sizes, message in (((30000, 30000, 3000), "more than it can hold"), ((1, 1, 1), "")):
        content[42:48] = np.array(sizes, "<i2").tobytes()
        path.write_bytes(gzip.compress(bytes(content) + bytes(2**22 * (sizes == (1, 1, 1)))))
        with pytest.raises(ValueError, match=message or "more than the .* voxels of its header"):
            load_hippocampus(tmp_path, size=(8, 9, 8))


def test_the_real_volumes(data_folder: Path) -> None:
    if not (data_folder / "hippocampus" / "train.txt").is_file():
        pytest.skip("PPL_MED_DATA names no folder that holds hippocampus/train.txt")
    splits = load_hippocampus(data_folder)
    assert len(splits["train"]["id"]) == 150 and len(splits["val"]["id"]) == 25
    for one in splits.values():
        volume = one["voxel_volume"][:, None] * [
            [(mask == part).sum() for part in (1, 2)] for mask in one["mask"]
        ]
        # One hippocampus of an adult is 2 to 5 ml (Barnes et al., Neurobiology of Aging 2009).
        total = volume.sum(1)
        assert (total > 1500).all() and (total < 5500).all() and 2500 < total.mean() < 4000
        row = np.arange(64)[:, None]
        front, back = ((one["mask"] == part).sum((0, 1, 3)) for part in (1, 2))
        assert (row[:, 0] @ front) / front.sum() > (row[:, 0] @ back) / back.sum()
    with pytest.raises(ValueError, match="would cut labelled pixels"):
        load_hippocampus(data_folder, size=(16, 48, 32))
