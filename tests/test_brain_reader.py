"""Brain scans and their participants: OASIS, ADNI and BIDS written here; splits by participant."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reader_folders import AFFINE, save_volume, write_brains

from ppl_med.data import Batches, apply_split, brains, check_splits, load_brains, slices_of

nibabel = pytest.importorskip("nibabel", reason="needs the extra `data`")
TURN = np.deg2rad(20)
ROTATION = np.array(
    [[np.cos(TURN), -np.sin(TURN), 0], [np.sin(TURN), np.cos(TURN), 0], [0, 0, 1.0]]
)


def affine(*steps: float, turn: bool = False) -> np.ndarray:
    """Voxel to mm: steps along right, front, up; negative where an axis runs the other way."""
    out = np.eye(4)
    out[:3, :3] = (ROTATION if turn else np.eye(3)) @ np.diag(steps)
    out[:3, 3] = 11, -7, 5
    return out


def cases(splits: Any) -> dict[str, Any]:
    """All splits as one, by name of the array."""
    names = next(iter(splits.values()))
    return {name: np.concatenate([part[name] for part in splits.values()]) for name in names}


def write_oasis(folder: Path, people: int = 12) -> None:
    lines = ["ID,M/F,Hand,Age,Educ,SES,MMSE,CDR,eTIV,nWBV,ASF,Delay"]
    for k in range(people):
        rating = ("", "0", "0.5", "1")[k % 4]
        for session in (1, 2) if k == 1 else (1,):
            name = f"OAS1_{k + 1:04d}_MR{session}"
            lines.append(f"{name},F,R,{60 + k},,,,{rating},1400,0.7,1.2,N/A")
            values = np.random.default_rng(k).uniform(1, 9, (4, 4, 4)).astype(np.float32)
            save_volume(folder / f"disc1/{name}/{name}_t88_masked_gfc.nii.gz", values)
    (folder / "oasis_cross-sectional.csv").write_text("\n".join(lines) + "\n")


def test_bids_scans_are_those_of_the_files(tmp_path: Path) -> None:
    truth = write_brains(tmp_path)
    splits = load_brains(tmp_path, standardize=False)
    assert splits.classes == ("AD", "CN") and list(splits) == ["train", "val", "test"]
    found = cases(splits)
    assert set(found["id"]) == set(truth) and found["image"].shape == (11, 1, 6, 5, 4)
    for image, name, label, age, who in zip(
        *(found[key] for key in ("image", "id", "label", "age", "patient")), strict=True
    ):
        np.testing.assert_array_equal(image[0], truth[name].transpose(2, 1, 0))
        number = int(name[4:6])
        assert (who, age, label) == (f"sub-{number:02d}", 60 + number, number % 2)
    batch = next(iter(Batches(splits["train"], batch_size=2)))
    assert batch["affine"].shape == (2, 4, 4) and batch["sex"][0] in "FM"


def test_standardized_over_the_voxels_that_are_not_0(tmp_path: Path) -> None:
    write_brains(tmp_path)
    for image in cases(load_brains(tmp_path))["image"]:
        inside = image[..., 1:]
        assert (image[..., 0] == 0).all() and inside.mean() == pytest.approx(0, abs=1e-5)
        assert inside.std() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(affine(1, 1.5, 3), id="anisotropic"),
        pytest.param(affine(-1, 1, 2), id="flipped"),
        pytest.param(affine(1, -1, -2, turn=True), id="oblique and flipped"),
        pytest.param(affine(1, 1, 1)[:, [2, 0, 1, 3]], id="axes exchanged"),
    ],
)
@pytest.mark.parametrize("how", [{}, {"size": (8, 8, 8)}, {"size": (8, 8, 8), "resize": "pad"}])
def test_a_marked_voxel_stays_where_it_is_in_mm(
    given: np.ndarray, how: dict[str, Any], tmp_path: Path
) -> None:
    write_brains(tmp_path)
    mark, values = (2, 3, 1), np.full((4, 5, 6), 1.0, np.float32)
    values[mark] = 1000
    save_volume(tmp_path / "sub-00/anat/sub-00_T1w.nii.gz", values, given)
    found = cases(
        load_brains(tmp_path, standardize=False, spacing="mixed", **{"size": (6, 6, 6)} | how)
    )
    row = found["patient"].tolist().index("sub-00")
    image = found["image"][row, 0].astype(float)
    weight = np.where(image > 1.5, image - 1, 0)
    weight /= weight.sum()
    place = (np.indices(image.shape) * weight).sum((1, 2, 3))
    world = found["affine"][row] @ [*place, 1]
    expected = given @ [*mark, 1]
    # Linear interpolation moves the centre of mass of a voxel by less than half a new voxel.
    np.testing.assert_allclose(world, expected, atol=0.5 * found["spacing"][row].max())
    if how.get("resize") == "pad":
        np.testing.assert_allclose(world, expected, atol=1e-5)


def test_mixed_spacings_are_told_or_resampled(tmp_path: Path) -> None:
    write_brains(tmp_path)
    values = np.random.default_rng(1).uniform(1, 9, (8, 10, 12)).astype(np.float32)
    half = AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
    save_volume(tmp_path / "sub-04/anat/sub-04_T1w.nii.gz", values, half)
    with pytest.raises(ValueError, match=r"spacing differs from the median.*1 of 11.*sub-04"):
        load_brains(tmp_path)
    steps = tuple(np.abs(np.diag(AFFINE))[2::-1].tolist())
    found = cases(load_brains(tmp_path, spacing=steps, size=(6, 5, 4)))
    np.testing.assert_allclose(found["spacing"], np.tile(steps, (11, 1)))


def test_oasis_ratings_and_sessions(tmp_path: Path) -> None:
    write_oasis(tmp_path)
    with pytest.raises(ValueError, match=r"3 of 13 rows \(OAS1_0001_MR1.*have no label.*drop"):
        load_brains(tmp_path)
    splits = load_brains(tmp_path, incomplete="drop", shares={"train": 0.5, "test": 0.5})
    assert splits.classes == ("healthy", "dementia")
    found = cases(splits)
    assert len(found["id"]) == 10 and "OAS1_0001" not in found["patient"]
    np.testing.assert_array_equal(found["label"], found["CDR"] > 0)
    # A second session is the same person, in the same split.
    assert (found["patient"] == "OAS1_0002").sum() == 2
    assert sum("OAS1_0002" in part["patient"] for part in splits.values()) == 1


def test_adni_names_images_and_keeps_the_groups_that_are_asked_for(tmp_path: Path) -> None:
    lines = ["Image Data ID,Subject,Group,Sex,Age,Visit"]
    for k in range(18):
        group = ("CN", "MCI", "AD")[k // 2 % 3]
        lines.append(f"I{1000 + k},{k // 2:03d}_S_0001,{group},M,70,1")
        values = np.random.default_rng(k).uniform(1, 9, (4, 4, 4)).astype(np.float32)
        save_volume(
            tmp_path / f"ADNI/{k // 2:03d}_S_0001/MPRAGE/2010/I{1000 + k}/x_I{1000 + k}.nii", values
        )
    (tmp_path / "ADNI.csv").write_text("\n".join(lines) + "\n")
    found = cases(load_brains(tmp_path, classes=("CN", "AD")))
    assert len(found["id"]) == 12 and len(set(found["patient"])) == 6
    np.testing.assert_array_equal(found["label"], found["Group"] == "AD")
    with pytest.raises(ValueError, match=r"has no \['Alzheimer'\].*'AD', 'CN', 'MCI'"):
        load_brains(tmp_path, classes=("CN", "Alzheimer"))


def test_what_has_no_partner_is_named(tmp_path: Path) -> None:
    write_brains(tmp_path)
    (tmp_path / "sub-02/anat/sub-02_T1w.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"1 of 10 rows \(sub-02\) have no scan"):
        load_brains(tmp_path)
    save_volume(tmp_path / "sub-77/anat/sub-77_T1w.nii.gz", np.ones((4, 5, 6), np.float32))
    assert len(cases(load_brains(tmp_path, incomplete="drop"))["id"]) == 10
    table = tmp_path / "participants.tsv"
    table.write_text(table.read_text() + "sub-02\t1\tF\tAD\n")
    with pytest.raises(ValueError, match=r"participants\.tsv.*1 of 11 rows \(sub-02\) stand twice"):
        load_brains(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("participant_id", "name", "no column of participants, participant_id"),
        ("group", "team", "no column of labels.*name it by label="),
        ("\tAD", "\tCN", "holds one class"),
    ],
)
def test_bad_tables_are_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    write_brains(tmp_path)
    table = tmp_path / "participants.tsv"
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(ValueError, match=rf"participants\.tsv.*{message}"):
        load_brains(tmp_path)


def test_bad_folders_and_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no participants\.tsv"):
        load_brains(tmp_path)
    write_brains(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no scan"):
        load_brains(tmp_path, files="*.mgz")
    save_volume(tmp_path / "sub-03/anat/sub-03_T1w.nii.gz", np.ones((4, 5, 6), np.float32))
    with pytest.raises(ValueError, match=r"sub-03_T1w.*one level"):
        load_brains(tmp_path)


# --- slices


@pytest.fixture(scope="module")
def scans() -> dict[str, Any]:
    return brains(12, size=(12, 14, 16), scans_per_patient=2, seed=1)


@pytest.mark.parametrize(("axis", "place"), [("depth", 2), ("row", 3), ("col", 4)])
def test_slices_are_those_of_the_volume(scans: dict[str, Any], axis: str, place: int) -> None:
    found = slices_of(scans, axis, at=(0.5, 0.25))
    number = [int(share * scans["image"].shape[place]) for share in (0.25, 0.5)]
    assert found["slice"].tolist() == number * 12
    expected = [scans["image"][k].take(at, place - 1) for k in range(12) for at in number]
    np.testing.assert_array_equal(found["image"], expected)
    masks = [scans["mask"][k].take(at, place - 2) for k in range(12) for at in number]
    np.testing.assert_array_equal(found["mask"], masks)
    assert found["id"][3] == f"brain-000000-1/{number[1]:03d}" and "affine" not in found
    np.testing.assert_array_equal(found["patient"], np.repeat(scans["patient"], 2))
    assert found["spacing"].shape == (24, 2)
    assert next(iter(Batches(found)))["image"].ndim == 4


def test_a_split_by_slice_is_refused(scans: dict[str, Any]) -> None:
    slices = slices_of(scans, at=(0.2, 0.3, 0.4, 0.5, 0.6))
    mixed = np.random.default_rng(0).random(len(slices["id"])) < 0.5
    parts = {
        name: {key: values[kept] for key, values in slices.items()}
        for name, kept in (("train", mixed), ("test", ~mixed))
    }
    with pytest.raises(ValueError, match="patients of train and patients of test share 6"):
        check_splits(parts, "patient")
    half = {
        name: {key: values[kept] for key, values in scans.items()}
        for name, kept in (("train", slice(0, 12, 2)), ("test", slice(1, 12, 2)))
    }
    with pytest.raises(ValueError, match="patients of train and patients of test share 6"):
        slices_of(half)
    people = sorted(set(scans["patient"]))
    whole = slices_of(apply_split(scans, {"train": people[:3], "test": people[3:]}), "col")
    assert {name: len(part["id"]) for name, part in whole.items()} == {"train": 24, "test": 24}


def test_slices_without_patients_or_of_pictures_are_refused(scans: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match='no "patient"'):
        slices_of({name: scans[name] for name in ("image", "label")})
    with pytest.raises(ValueError, match="image must be volumes"):
        slices_of({"image": scans["image"][:, :, 0], "patient": scans["patient"]})
    with pytest.raises(ValueError, match="axis must be"):
        slices_of(scans, "channel")
    with pytest.raises(ValueError, match="at must be"):
        slices_of(scans, at=(1.5,))
