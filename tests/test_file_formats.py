"""Pictures and arrays of every kind of file: what is read, and what is refused before it is."""

import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reader_folders import write_bccd, write_camvid
from scipy.io import savemat

from ppl_med.data import load_bccd_counts, load_camvid
from ppl_med.data.readers import array_files, folders
from ppl_med.data.readers.array_files import read_mat, read_npz
from ppl_med.data.readers.image_files import read_classes, read_rgb

# ------------------------------------------------------------------------------------ pictures

LEVELS = np.arange(0, 65536, 257 * 5 + 3).astype(np.uint16)[:48].reshape(6, 8)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_grey_levels_of_16_bits_are_scaled_by_their_type(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"grey{suffix}"
    Image.fromarray(LEVELS).save(path)
    expected = np.rint(LEVELS / 65535 * 255).astype(np.uint8)
    assert len(np.unique(expected)) > 40
    for channel in read_rgb(path):
        np.testing.assert_array_equal(channel, expected)


def turned(pixels: np.ndarray, path: Path, tag: int, back: Any) -> None:
    """Store a picture as a camera does that was held another way."""
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(np.ascontiguousarray(back(pixels))).save(path, exif=exif)


TURNS = {
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    6: lambda a: np.rot90(a, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("tag", TURNS)
def test_a_picture_is_turned_as_its_mask_was_drawn(tag: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    turned(pixels, tmp_path / "picture.png", tag, TURNS[tag])
    turned(pixels[..., 0] % 3, tmp_path / "mask.png", tag, TURNS[tag])
    np.testing.assert_array_equal(read_rgb(tmp_path / "picture.png"), pixels.transpose(2, 0, 1))
    np.testing.assert_array_equal(read_classes(tmp_path / "mask.png", 3), pixels[..., 0] % 3)


def test_street_scenes_are_read_by_the_same_reader(tmp_path: Path) -> None:
    """Turned pictures fit their upright labels; 16 bits are no black picture."""
    truth = write_camvid(tmp_path)
    first, second = sorted(name for name in truth if "train" in name)[:2]
    turned(truth[first][0], tmp_path / f"train/{first}.png", 6, TURNS[6])
    grey = np.tile(LEVELS, (2, 2))
    Image.fromarray(grey).save(tmp_path / f"train/{second}.png")
    train = load_camvid(tmp_path)["train"]
    ids = train["id"].tolist()
    image = train["image"][ids.index(first)]
    np.testing.assert_array_equal(image, truth[first][0].transpose(2, 0, 1))
    assert train["image"][ids.index(second)].max() == np.rint(grey.max() / 257)


def test_32_bits_have_no_range(tmp_path: Path) -> None:
    for dtype in (np.int32, np.float32):
        Image.fromarray(LEVELS.astype(dtype)).save(tmp_path / "deep.tif")
        with pytest.raises(ValueError, match=r"deep\.tif has mode .*; save it with 8 or 16 bits"):
            read_rgb(tmp_path / "deep.tif")


def test_other_pictures_become_red_green_blue(tmp_path: Path) -> None:
    grey = (LEVELS >> 8).astype(np.uint8)
    alpha = np.dstack([grey] * 3 + [np.full_like(grey, 255)])
    pictures = [Image.fromarray(grey), Image.fromarray(alpha), Image.fromarray(grey).convert("P")]
    for picture in pictures:
        if picture.mode == "P":
            picture.info["transparency"] = b"\x00"
        picture.save(tmp_path / "one.png")
        for channel in read_rgb(tmp_path / "one.png"):
            np.testing.assert_array_equal(channel, grey)


@pytest.mark.parametrize("read", [read_rgb, lambda path: read_classes(path, 3)])
def test_a_picture_of_too_many_pixels_is_not_decoded(
    read: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    path = tmp_path / "huge.png"
    Image.new("L", (12000, 10000)).save(path)
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(
        ValueError, match=r"huge\.png.*12000 x 10000 pixels, and 1e\+08 are the most"
    ):
        read(path)


def test_every_flipped_bit_of_a_png_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    pixels = np.random.default_rng(0).integers(0, 3, (16, 16), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    content = bytearray(path.read_bytes())
    for place in range(8, len(content)):
        content[place] ^= 4
        path.write_bytes(content)
        try:
            read = read_classes(path, 3)
        except ValueError as error:
            assert "one.png is no picture that can be read" in str(error)
        else:  # the name of a chunk that nobody needs
            np.testing.assert_array_equal(read, pixels)
        content[place] ^= 4


# ------------------------------------------------------------------------------------ arrays


def npz(path: Path, header: bytes, content: bytes = b"") -> None:
    """An archive with one array ``a``, whatever its header says."""
    text = header.ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content)


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,)}",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (7,)}",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (-8, -1)}",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': ()}",
        b"__import__('os').mkdir('harm')",
    ],
)
def test_the_header_of_an_array_is_compared_with_the_file(
    header: bytes, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(np.lib.format, "read_array", None)
    npz(tmp_path / "one.npz", header, bytes(8))
    with pytest.raises(ValueError, match=r"one\.npz is no npz file that can be read.*download"):
        read_npz(tmp_path / "one.npz", ["a"])


def test_an_array_larger_than_the_memory_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    np.savez_compressed(tmp_path / "one.npz", a=np.zeros(10**6))
    monkeypatch.setattr(folders.os, "sysconf", lambda name: 1000)
    with pytest.raises(MemoryError, match=r"one\.npz needs more memory than there is"):
        read_npz(tmp_path / "one.npz", ["a"])


def test_every_flipped_bit_of_an_npz_is_noticed(tmp_path: Path) -> None:
    path, values = tmp_path / "one.npz", np.random.default_rng(0).integers(0, 9, 300)
    for save in (np.savez, np.savez_compressed):
        save(path, a=values)
        content = bytearray(path.read_bytes())
        for place in range(0, len(content), 11):
            content[place] ^= 16
            path.write_bytes(content)
            try:
                read = read_npz(path, ["a"])["a"]
            except ValueError as error:
                assert "one.npz" in str(error)
            else:  # a date, or a note of the program that wrote it
                np.testing.assert_array_equal(read, values)
            content[place] ^= 16


def test_a_single_array_is_no_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"one\.npy is no npz file"):
        read_npz(tmp_path / "one.npy", ["a"])


def test_a_wrong_checksum_of_a_matlab_file_is_said(tmp_path: Path, monkeypatch: Any) -> None:
    path, values = tmp_path / "one.mat", np.random.default_rng(0).normal(size=(200, 200))
    savemat(path, {"a": values}, do_compression=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_mat(path, ["a"])["a"], values)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the checksum itself
    with pytest.raises(ValueError, match=r"one\.mat is no MATLAB file.*incorrect data check"):
        read_mat(path, ["a"])
    # SciPy may never come to the checksum, as in one file of Make3D.
    monkeypatch.setattr("scipy.io.loadmat", lambda *_, **__: {"a": values})
    with pytest.warns(UserWarning, match=r"one\.mat can be read but may be damaged \(.*incorrect"):
        np.testing.assert_array_equal(read_mat(path, ["a"])["a"], values)
    path.write_bytes(content)
    monkeypatch.setattr(array_files, "_MOST_COMPRESSED", 1000)
    with pytest.raises(ValueError, match=r"one\.mat is no MATLAB file.*more than 1000 bytes"):
        read_mat(path, ["a"])


# ------------------------------------------------------------------------------------ text


def test_a_file_of_boxes_has_an_end(tmp_path: Path, monkeypatch: Any) -> None:
    write_bccd(tmp_path)
    path = tmp_path / "Annotations/BloodImage_val1.xml"
    path.write_text("<annotation>" + "<object/>" * 200_000 + "</annotation>")
    monkeypatch.setattr("xml.etree.ElementTree.parse", None)
    with pytest.raises(ValueError, match=r"BloodImage_.*is no XML file|larger than the 1048576"):
        load_bccd_counts(tmp_path)


def test_entities_that_multiply_are_refused(tmp_path: Path) -> None:
    write_bccd(tmp_path)
    path = tmp_path / "Annotations/BloodImage_val1.xml"
    laughs = "".join(f'<!ENTITY l{k} "{f"&l{k - 1};" * 10 if k else "ha" * 50}">' for k in range(9))
    text = f"<!DOCTYPE a [{laughs}]><a><object><name>&l8;</name></object></a>"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"BloodImage_val1\.xml is no XML file that can be read"):
        load_bccd_counts(tmp_path)


def test_a_lack_of_memory_names_the_file(tmp_path: Path, monkeypatch: Any) -> None:
    def none(*_: Any) -> None:
        raise MemoryError

    Image.fromarray(LEVELS).save(tmp_path / "one.png")
    monkeypatch.setattr(Image, "open", none)
    with pytest.raises(MemoryError, match=r"one\.png needs more memory than there is"):
        read_rgb(tmp_path / "one.png")
