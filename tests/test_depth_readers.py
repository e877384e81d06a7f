"""NYU Depth v2 and Make3D: read from small files of their formats, written here."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from reader_folders import CASES, COLS, PARTS, ROWS, write_make3d, write_nyuv2
from scipy.io import savemat

from ppl_med.data import Batches, load_make3d, load_nyuv2


def test_nyuv2_undoes_the_reversed_axes_and_keeps_the_official_split(tmp_path: Path) -> None:
    truth = write_nyuv2(tmp_path / "nyuv2")
    splits = load_nyuv2(tmp_path)
    numbers = {"train": [1, 2, 4], "test": [3, 5]}
    assert list(splits) == list(numbers)
    for split, one in splits.items():
        assert one["id"].tolist() == [f"nyuv2-{number:04d}" for number in numbers[split]]
        assert one["scene"].tolist() == [f"kitchen_{(n - 1) // 2}" for n in numbers[split]]
        assert one["num_masked"].tolist() == [0] * len(numbers[split])
        for index, number in enumerate(numbers[split]):
            for channel in range(3):
                expected = truth["images"][:, :, channel, number - 1]
                np.testing.assert_array_equal(one["image"][index, channel], expected)
            np.testing.assert_array_equal(one["depth"][index], truth["depths"][..., number - 1])
        assert next(iter(Batches(one)))["depth"].shape == (len(numbers[split]), ROWS, COLS)


def test_nyuv2_masks_and_counts_what_was_not_measured(tmp_path: Path) -> None:
    truth = write_nyuv2(tmp_path, splits=False)
    one = load_nyuv2(tmp_path, raw=True)["all"]
    assert one["num_masked"].tolist() == [0, 5, 0, 0, 0]
    missing = np.isnan(one["depth"])
    assert missing.sum((1, 2)).tolist() == one["num_masked"].tolist()
    np.testing.assert_array_equal(missing[1], ~(truth["raw"][..., 1] > 0))
    capped = load_nyuv2(tmp_path, max_depth=4.0)["all"]
    beyond = truth["depths"].transpose(2, 0, 1) >= 4.0
    np.testing.assert_array_equal(np.isnan(capped["depth"]), beyond)
    assert capped["num_masked"].tolist() == beyond.sum((1, 2)).tolist()


def test_nyuv2_at_a_third_takes_depths_at_the_middle(tmp_path: Path) -> None:
    truth = write_nyuv2(tmp_path, scenes=False)
    one = load_nyuv2(tmp_path, size=(2, 8))["train"]
    assert one["image"].shape == (3, 3, 2, 8) and "scene" not in one
    np.testing.assert_array_equal(one["depth"][1], truth["depths"][1::3, :, 1])


def test_nyuv2_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither nyu_depth_v2_labeled\.mat"):
        load_nyuv2(tmp_path)
    write_nyuv2(tmp_path)
    with pytest.raises(ValueError, match="max_depth must be"):
        load_nyuv2(tmp_path, max_depth=-1.0)
    with pytest.raises(ValueError, match=r"size must be"):
        load_nyuv2(tmp_path, size=(0, 4))
    with pytest.raises(FileNotFoundError, match=r"split_file .*other\.mat' is not there"):
        load_nyuv2(tmp_path, split_file=tmp_path / "other.mat")
    split = tmp_path / "splits.mat"
    for numbers, message in [
        ({"trainNdxs": [1], "testNdxs": [9]}, r"split 'test' names cases beyond 1\.\.5"),
        ({"trainNdxs": [0], "testNdxs": [2]}, "split 'train' names cases beyond"),
        ({"trainNdxs": [1, 2], "testNdxs": [2]}, "train and test share 1"),
        ({"trainNdxs": [1, 2]}, r"lacks \['testNdxs'\]"),
    ]:
        savemat(split, numbers)
        with pytest.raises(ValueError, match=message):
            load_nyuv2(tmp_path)
    split.unlink()
    path = tmp_path / "nyu_depth_v2_labeled.mat"
    with h5py.File(path, "a") as file:
        del file["depths"]
        with pytest.raises(ValueError, match=r"lacks \['depths'\]"):
            load_nyuv2(tmp_path)
        file["depths"] = np.ones((CASES, ROWS, COLS), np.float32)
    with pytest.raises(ValueError, match=r"expected uint8 \(case, 3, col, row\)"):
        load_nyuv2(tmp_path)
    savemat(path, {"depths": np.ones((2, 2))})
    with pytest.raises(ValueError, match=r"no HDF5 file; expected MATLAB's version 7\.3"):
        load_nyuv2(tmp_path)


def test_make3d_pairs_files_and_masks_beyond_70_m(tmp_path: Path) -> None:
    truth = write_make3d(tmp_path / "make3d")
    splits = load_make3d(tmp_path, size=(10, 18))
    assert list(splits) == ["train", "test"]
    for split, one in splits.items():
        assert one["id"].tolist() == PARTS[split]
        for row, part in enumerate(PARTS[split]):
            colour, grid = truth[part]
            difference = one["image"][row].astype(int) - colour[:, None, None]
            assert one["image"].shape[1:] == (3, 10, 18) and np.abs(difference).max() <= 3
            expected = grid[..., 3].astype(np.float32).repeat(2, 0).repeat(2, 1)
            expected[:2, [0, 1, 2, 3, 6, 7]] = np.nan
            expected[2:4, :4] = np.nan
            np.testing.assert_array_equal(one["depth"][row], expected)
            assert one["num_masked"][row] == 4 * 5
    everything = load_make3d(tmp_path, size=(5, 9), max_depth=None)["train"]
    assert everything["num_masked"].tolist() == [3, 3]
    assert everything["depth"][0, 0, 0] == np.float32(81.9)
    assert next(iter(Batches(everything)))["depth"].shape == (2, 5, 9)


def test_make3d_does_without_a_test_set(tmp_path: Path) -> None:
    write_make3d(tmp_path, ("train",))
    assert list(load_make3d(tmp_path, size=(4, 4))) == ["train"]


def test_make3d_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither Train400Img, Train400Depth"):
        load_make3d(tmp_path)
    write_make3d(tmp_path)
    with pytest.raises(ValueError, match="max_depth must be"):
        load_make3d(tmp_path, max_depth=0.0)
    with pytest.raises(ValueError, match="size must be"):
        load_make3d(tmp_path, size=(4, -1))
    grid = tmp_path / "Train400Depth" / f"depth_sph_corr-{PARTS['train'][0]}.mat"
    for content in ({"Position3DGrid": np.ones((5, 9))}, {"depth": np.ones((5, 9, 4))}):
        savemat(grid, content)
        with pytest.raises(ValueError, match=r"op2.*(lacks|expected \(row, col, 4\))"):
            load_make3d(tmp_path)
    grid.write_bytes(b"no numbers at all, but enough bytes for a header of MATLAB" * 4)
    with pytest.raises(ValueError, match=r"no MATLAB file of version 5"):
        load_make3d(tmp_path)
    grid.unlink()
    with pytest.raises(FileNotFoundError, match="needs 1 file"):
        load_make3d(tmp_path)
    picture = tmp_path / "Train400Img" / f"img-{PARTS['train'][0]}.jpg"
    picture.unlink()
    (tmp_path / "Train400Img" / f"img-{PARTS['train'][1]}.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="no picture that can be read"):
        load_make3d(tmp_path)
    (tmp_path / "Train400Img" / f"img-{PARTS['train'][1]}.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="holds no files img-"):
        load_make3d(tmp_path)
    (tmp_path / "Gridlaserdata").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="none of its depths: Gridlaserdata"):
        load_make3d(tmp_path)
