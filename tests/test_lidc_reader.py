"""The LIDC reader, and the crops that come out of the community's pickle."""

import codecs
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from reader_folders import crops, lidc_contents

from ppl_med.data import (
    Batches,
    check_masks,
    convert_lidc_pickle,
    load_lidc,
    load_lidc_crops,
    one_grader_per_case,
    random_grader,
)
from ppl_med.data.readers.lidc import CLASS_NAMES


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "val"):
        np.savez(tmp_path / f"lidc_{split}.npz", **lidc_contents(split))
    return tmp_path


def test_the_arrays_are_those_of_the_files(folder):
    splits = load_lidc(folder)
    assert list(splits) == ["train", "val"]
    for split, one in splits.items():
        arrays = lidc_contents(split)
        assert one["image"].dtype == np.float32 and one["mask"].dtype == np.int8
        np.testing.assert_allclose(one["image"][:, 0] * 255, arrays["images"], atol=1e-4)
        np.testing.assert_array_equal(one["mask"], arrays["masks"])
        np.testing.assert_array_equal(one["reader_present"], arrays["reader_present"] > 0)
        assert one["id"][3] == f"P-{split}-1/n1/s5" and one["patient"][3] == f"P-{split}-1"
    assert not splits["train"]["mask"][0, 0].any(), "an empty mask is an answer"
    batch = next(iter(Batches(splits["val"], transform=random_grader)))
    assert batch["mask"].shape == (6, 128, 128) and batch["mask"].dtype == torch.int64
    assert len(CLASS_NAMES) == 2


def test_a_test_split_is_read_where_there_is_one(tmp_path):
    (tmp_path / "lidc").mkdir()
    for split in ("train", "val", "test"):
        np.savez(tmp_path / "lidc" / f"lidc_{split}.npz", **lidc_contents(split + "x" * len(split)))
    assert list(load_lidc(tmp_path)) == ["train", "val", "test"]


def test_absent_readers_may_count_as_no_answer(folder):
    present = lidc_contents("train")["reader_present"] > 0
    train = load_lidc(folder, absent="ignore")["train"]
    assert (train["mask"][~present] == -1).all() and (train["mask"][present] >= 0).all()
    assert len(one_grader_per_case(train)["id"]) == present.sum()
    whole = load_lidc(folder)["train"]
    dropped = one_grader_per_case(whole, drop_absent=True)
    np.testing.assert_array_equal(dropped["mask"], one_grader_per_case(train)["mask"])


def test_a_crop_keeps_the_middle(folder):
    small, whole = load_lidc(folder, size=64)["train"], load_lidc(folder)["train"]
    np.testing.assert_array_equal(small["image"], whole["image"][:, :, 32:96, 32:96])
    np.testing.assert_array_equal(small["mask"], whole["mask"][:, :, 32:96, 32:96])


def test_averages_keep_the_mean_and_every_outline(folder):
    arrays = lidc_contents("train")
    arrays["masks"][1, 0] = 0
    arrays["masks"][1, 0, 61, 61] = 1  # a quarter of a block: below half, and all there is
    np.savez(folder / "lidc_train.npz", **arrays)
    small = load_lidc(folder, size=64, resize="average")["train"]
    whole = load_lidc(folder)["train"]
    expected = torch.nn.functional.avg_pool2d(torch.from_numpy(whole["image"]), 2)
    np.testing.assert_allclose(small["image"], expected, atol=1e-6)
    shares = torch.nn.functional.avg_pool2d(torch.from_numpy(whole["mask"]).float(), 2).numpy()
    full = shares.max((2, 3)) >= 0.5
    np.testing.assert_array_equal(small["mask"][full], (shares >= 0.5)[full])
    np.testing.assert_array_equal(small["mask"].any((2, 3)), whole["mask"].any((2, 3)))
    assert small["mask"][1, 0].sum() == 1 and small["mask"][1, 0, 30, 30] == 1


def test_a_patient_in_two_splits_raises(folder):
    arrays = lidc_contents("val")
    arrays["patient"] = np.where(np.arange(6) == 2, b"P-train-0", arrays["patient"])
    np.savez(folder / "lidc_val.npz", **arrays)
    with pytest.raises(ValueError, match="patients of train and patients of val share 1"):
        load_lidc(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((6, 128, 128))}, "images is float64"),
        ({"images": np.zeros((6, 64, 64), np.uint8)}, r"images is uint8 \(6, 64"),
        ({"masks": np.zeros((5, 4, 128, 128), np.uint8)}, "masks has shape"),
        ({"masks": np.full((6, 4, 128, 128), 2, np.uint8)}, "masks holds"),
        ({"masks": np.ones((6, 4, 128, 128), np.uint8)}, "absent from case"),
        ({"reader_present": np.ones((6, 3))}, "reader_present has shape"),
        ({"slice": np.ones(5, int)}, "slice has shape"),
    ],
)
def test_files_of_another_form_are_named(folder, changes, message):
    np.savez(folder / "lidc_val.npz", **(lidc_contents("val") | changes))
    with pytest.raises(ValueError, match=message):
        load_lidc(folder)


def test_missing_things_and_bad_arguments_are_named(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="nowhere' is not there"):
        load_lidc(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="neither lidc_train"):
        load_lidc(tmp_path / "empty")
    with pytest.raises(ValueError, match="size must be a whole number"):
        load_lidc(folder, size=200)
    with pytest.raises(ValueError, match=r"size must be a divisor of 128"):
        load_lidc(folder, size=60, resize="average")
    np.savez(folder / "lidc_val.npz", images=np.zeros(3))
    with pytest.raises(ValueError, match=r"lacks \['masks'"):
        load_lidc(folder)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_crops_come_out_of_their_pickle_unchanged(tmp_path, protocol):
    given = crops()
    given["LIDC-1_slice"]["image"] = np.asfortranarray(given["LIDC-1_slice"]["image"])
    given["LIDC-2_slice"]["image"] = given["LIDC-2_slice"]["image"].astype(">f4")
    given["LIDC-3_slice"]["masks"] = np.stack(given["LIDC-3_slice"]["masks"]).astype(np.uint8)
    (tmp_path / "data.pickle").write_bytes(pickle.dumps(given, protocol))
    assert convert_lidc_pickle(tmp_path / "data.pickle", tmp_path / "data.npz") == 5
    arrays = load_lidc_crops(tmp_path / "data.npz")
    assert arrays["id"].tolist() == list(given)
    assert arrays["patient"].tolist() == [str(one["series_uid"]) for one in given.values()]
    for row, one in enumerate(given.values()):
        np.testing.assert_array_equal(arrays["image"][row, 0], one["image"].astype(np.float32))
        np.testing.assert_array_equal(arrays["mask"][row], np.stack(one["masks"]))
    check_masks(arrays["image"], arrays["mask"], num_classes=2)
    assert not [one for one in os.listdir(tmp_path) if one.endswith(".tmp")]


class Runs:
    """Runs a function when a pickle that holds it is loaded."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize(
    "function", [os.mkdir, eval, getattr, np.load, np.memmap, np.array, bytearray, pickle.loads]
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_pickle_runs_nothing(tmp_path, function, protocol):
    argument = str(tmp_path / "harm") if function is not eval else "__import__('os').mkdir('harm')"
    given = crops(2)
    given["harm"] = Runs(function, argument)
    (tmp_path / "data.pickle").write_bytes(pickle.dumps(given, protocol))
    with pytest.raises(ValueError, match="refused"):
        convert_lidc_pickle(tmp_path / "data.pickle", tmp_path / "data.npz")
    assert os.listdir(tmp_path) == ["data.pickle"], "something was run or written"


def test_arrays_of_objects_and_other_codecs_are_refused(tmp_path):
    given = crops(1)
    given["LIDC-0_slice"]["image"] = np.array([[None, 1.0]], object)
    (tmp_path / "data.pickle").write_bytes(pickle.dumps(given))
    with pytest.raises(ValueError, match=r"crop 'LIDC-0_slice'.*refused dtype"):
        convert_lidc_pickle(tmp_path / "data.pickle", tmp_path / "data.npz")
    (tmp_path / "data.pickle").write_bytes(pickle.dumps(Runs(codecs.encode, "a", "zlib"), 2))
    with pytest.raises(ValueError, match="refused to encode"):
        convert_lidc_pickle(tmp_path / "data.pickle", tmp_path / "data.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((64, 64))}, r"image of shape \(64, 64\)"),
        ({"image": np.full((128, 128), 300.0)}, "from 300"),
        ({"image": [1, 2]}, "no plain array where one belongs: found list"),
        ({"masks": [np.full((128, 128), 2)] * 4}, "other values than 0 and 1"),
        ({"masks": []}, "masks of shapes"),
        ({"masks": [np.zeros((128, 128))] * 3}, "expected one shape"),
    ],
)
def test_pickles_of_other_content_are_named(tmp_path, changes, message):
    given = crops(2)
    given["LIDC-1_slice"] |= changes
    (tmp_path / "data.pickle").write_bytes(pickle.dumps(given))
    with pytest.raises(ValueError, match=message):
        convert_lidc_pickle(tmp_path / "data.pickle", tmp_path / "data.npz")
    assert not (tmp_path / "data.npz").exists()


def test_what_is_no_pickle_of_crops_is_named(tmp_path):
    path = tmp_path / "data.pickle"
    for content, message in [
        (b"nonsense", "no pickle"),
        (pickle.dumps([1]), "no dict"),
        (pickle.dumps({"a": 1}), "expected a dict"),
        (pickle.dumps({"a": {"image": 1}}), "lacks"),
        (pickle.dumps(crops())[:-100], "no pickle"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            convert_lidc_pickle(path, tmp_path / "data.npz")
    np.savez(tmp_path / "other.npz", images=np.zeros(2))
    with pytest.raises(ValueError, match=r"lacks.*convert_lidc_pickle"):
        load_lidc_crops(tmp_path / "other.npz")


BOMBS = {
    "tuples of twice a tuple, hashed": b"}" + b"K\x00" + b"2\x86" * 40 + b"K\x00s.",
    "tuples out of the memory": b"\x80\x04}K\x00\x94"
    + b"".join(b"h%c\x86\x94" % k + b"h%c" % k for k in range(1, 30))
    + b"s.",
    "the place 2^30 of the memory": b"\x80\x02Nr\xff\xff\xff\x3f.",
    "a text of 2^40 bytes": b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"abc.",
    "a bytearray of 2^34 bytes": b"\x80\x05\x96" + (2**34).to_bytes(8, "little") + b"abc.",
    "a frame of 2^40 bytes": b"\x80\x04\x95" + (2**40).to_bytes(8, "little") + b"N.",
    "a tuple in a tuple, ten thousand deep": b"\x80\x04}N" + b"\x85" * 10**4 + b"Ns.",
    "a list in a list, ten thousand deep": b"\x80\x04" + b"]" * 10**4 + b"a" * (10**4 - 1) + b".",
    "a list in itself": b"\x80\x04]\x94h\x00a.",
    "the same list twice": b"\x80\x04]\x94h\x00\x86.",
    "a list that was filled before": b"\x80\x04]Na\x94h\x00\x86.",
    "a set": b"\x80\x04\x8f.",
    "more than is there": b"\x80\x04\x86.",
    "a mark for a thing": b"\x80\x04(\x85.",
    "no mark": b"\x80\x04NNt.",
    "nothing in the memory": b"\x80\x04h\x07.",
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_a_pickle_that_asks_for_the_moon_is_refused_at_once(content, tmp_path):
    path = tmp_path / "data.pickle"
    path.write_bytes(content)
    start = time.process_time()
    with pytest.raises(ValueError, match=r"data\.pickle is no pickle of arrays alone"):
        convert_lidc_pickle(path, tmp_path / "data.npz")
    assert time.process_time() - start < 5
    assert os.listdir(tmp_path) == ["data.pickle"]


def test_one_array_in_thousands_of_places_is_refused(tmp_path):
    given, mask = crops(1), np.zeros((128, 128), np.uint8)
    given["LIDC-0_slice"]["masks"] = [mask] * 2000
    (tmp_path / "data.pickle").write_bytes(pickle.dumps(given))
    with pytest.raises(ValueError, match=r"crop 'LIDC-0_slice'.*one array in thousands of places"):
        convert_lidc_pickle(tmp_path / "data.pickle", tmp_path / "data.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((5, 64, 64), np.float32)}, r"images is float32 \(5, 64, 64\)"),
        ({"images": np.full((5, 128, 128), np.nan, np.float32)}, "other values than 0..1"),
        ({"images": np.full((5, 128, 128), 255, np.uint8)}, "other values than 0..1"),
        ({"images": np.zeros((0, 128, 128), np.float32)}, "0..1, or none"),
        ({"masks": np.zeros((4, 4, 128, 128), np.uint8)}, r"masks has shape \(4,"),
        ({"masks": np.full((5, 4, 128, 128), 2, np.uint8)}, "other values than 0 and 1"),
        ({"masks": np.full((5, 4, 128, 128), 0.5)}, "other values than 0 and 1"),
        ({"series_uid": np.array(["a"] * 4)}, "series_uid must hold one text for every image"),
        ({"series_uid": np.array(["a"] * 4 + [""])}, "series_uid must hold one text"),
        ({"name": np.arange(5)}, "name must hold one text for every image"),
        ({"name": np.array(["a"] * 5)}, "two crops have one name"),
    ],
)
def test_crops_of_another_form_are_named(changes, message, tmp_path):
    (tmp_path / "data.pickle").write_bytes(pickle.dumps(crops()))
    convert_lidc_pickle(tmp_path / "data.pickle", tmp_path / "data.npz")
    with np.load(tmp_path / "data.npz") as file:
        np.savez(tmp_path / "other.npz", **({name: file[name] for name in file.files} | changes))
    with pytest.raises(ValueError, match=rf"other\.npz: .*{message}.*convert_lidc_pickle"):
        load_lidc_crops(tmp_path / "other.npz")


def test_the_real_files():
    root = os.environ.get("PPL_MED_DATA")
    if not root or not (Path(root) / "lidc" / "lidc_train.npz").is_file():
        pytest.skip("PPL_MED_DATA names no folder that holds lidc/lidc_train.npz")
    for one in load_lidc(root, size=64, resize="average").values():
        check_masks(one["image"], one["mask"], num_classes=2, ids=one["id"].tolist())
        assert one["image"].shape[1:] == (1, 64, 64) and len(set(one["id"])) == len(one["id"])
        assert one["image"].min() >= 0 and one["image"].max() <= 1
        assert one["reader_present"].any(1).all() and one["mask"].any((1, 2, 3)).all()
        # Graders who outlined the same nodule agree more than chance would have it.
        masks = one["mask"].astype(float)
        both = masks[:, 0].mean((1, 2)) > 0
        both &= masks[:, 1].mean((1, 2)) > 0
        overlap = (masks[both, 0] * masks[both, 1]).mean()
        assert overlap > 10 * masks[both, 0].mean() * masks[both, 1].mean()
