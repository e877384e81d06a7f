"""The CamVid reader: on files made here, and on the real ones where they are at hand."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reader_folders import CAMVID_SIZE, write_camvid

from ppl_med.data import CAMVID_FLIPS, Batches, load_camvid, mirror_with_mask
from ppl_med.data.readers.camvid import CLASS_NAMES


def test_the_arrays_are_those_of_the_files(tmp_path):
    truth = write_camvid(tmp_path / "camvid", ("train", "val", "test"))
    splits = load_camvid(tmp_path)
    assert list(splits) == ["train", "val", "test"]
    for split, one in splits.items():
        assert one["image"].dtype == np.uint8 and one["mask"].dtype == np.int8
        assert one["sequence"].tolist() == [f"0001{split}"] * 3
        for row, name in enumerate(one["id"].tolist()):
            image, label = truth[name]
            np.testing.assert_array_equal(one["image"][row], image.transpose(2, 0, 1))
            np.testing.assert_array_equal(one["mask"][row] % 12, label)
            assert ((one["mask"][row] == -1) == (label == 11)).all()
    assert CLASS_NAMES[3] == "road" and len(CLASS_NAMES) == 11


def test_smaller_images_are_averages_and_labels_are_those_of_a_pixel(tmp_path):
    write_camvid(tmp_path)
    whole, small = load_camvid(tmp_path)["train"], load_camvid(tmp_path, size=(4, 8))["train"]
    means = whole["image"].reshape(3, 3, 4, 3, 8, 2).mean((3, 5))
    np.testing.assert_allclose(small["image"], means, atol=1)
    blocks = whole["mask"].reshape(3, 4, 3, 8, 2)
    middle = blocks[:, :, 1]
    assert ((small["mask"][..., None] == middle).any(-1)).all()


def test_flips_of_camvid_keep_what_does_not_flip(tmp_path):
    write_camvid(tmp_path)
    train = load_camvid(tmp_path)["train"]
    batches = Batches(train, transform=[mirror_with_mask, CAMVID_FLIPS])
    plain = Batches(train, transform=mirror_with_mask)
    flipped, mask = next(iter(batches))["mask"], next(iter(plain))["mask"]
    back = torch.tensor([*range(11), *CAMVID_FLIPS.classes, -1])
    assert torch.equal(back[flipped], mask) and (flipped != mask).any()


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere' is not there"):
        load_camvid(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"neither train\.txt"):
        load_camvid(tmp_path)
    write_camvid(tmp_path)
    with pytest.raises(ValueError, match=r"size is \(40, 40\), larger than the 12 x 16"):
        load_camvid(tmp_path, size=(40, 40))
    with pytest.raises(ValueError, match="all at least 1"):
        load_camvid(tmp_path, size=(0, 4))
    Image.fromarray(np.full(CAMVID_SIZE, 12, np.uint8)).save(
        tmp_path / "trainannot/0001train_001.png"
    )
    with pytest.raises(ValueError, match=r"holds 12; expected 0\.\.11"):
        load_camvid(tmp_path)
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(tmp_path / "trainannot/0001train_001.png")
    with pytest.raises(ValueError, match="expected one size"):
        load_camvid(tmp_path)
    Image.fromarray(np.zeros((*CAMVID_SIZE, 3), np.uint8)).save(
        tmp_path / "trainannot/0001train_001.png"
    )
    with pytest.raises(ValueError, match="mode RGB"):
        load_camvid(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train/0001train_000.png", r"2 name\(s\) a line"),
        ("", r"2 name\(s\) a line"),
        ("../a.png trainannot/0001train_000.png", "outside its folder"),
        ("/etc/a.png trainannot/0001train_000.png", "outside its folder"),
        ("train/0001train_000.png trainannot/0001train_000.png", "train and val share 1"),
    ],
)
def test_bad_lists_are_named(tmp_path, line, message):
    write_camvid(tmp_path)
    (tmp_path / "val.txt").write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        load_camvid(tmp_path)


def test_the_real_files():
    root = os.environ.get("PPL_MED_DATA")
    if not root or not (Path(root) / "camvid" / "train.txt").is_file():
        pytest.skip("PPL_MED_DATA names no folder that holds camvid/train.txt")
    splits = load_camvid(root, size=(90, 120))
    assert len(splits["train"]["id"]) == 367 and len(splits["val"]["id"]) == 101
    for one in splits.values():
        mask = one["mask"]
        shares = np.bincount(mask[mask >= 0], minlength=11) / mask.size
        assert (shares > 0).all() and (mask == -1).mean() < 0.1
        # The sky is above and bright, the road below.
        row = np.arange(90)[:, None] * np.ones(120)
        assert row[(mask == 0).any(0)].mean() < row[(mask == 3).any(0)].mean()
        grey = one["image"].mean(1)
        assert grey[mask == 0].mean() > grey[mask == 3].mean()
