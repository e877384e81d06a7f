"""Splits by patient: shares, files that show a change, cover and overlap."""

import json
import os

import numpy as np
import pytest
import torch
import xarray as xr

from ppl_med.analysis import conformal
from ppl_med.data import (
    Batches,
    apply_split,
    check_disjoint,
    load_split,
    save_split,
    split_patients,
)
from ppl_med.data.splits import check_splits
from ppl_med.explain.function_checks import as_case
from ppl_med.inference import PointEstimate, predict
from ppl_med.models import BayesianClassifier

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}


def data(num_cases=60):
    rng = np.random.default_rng(1)
    return {
        "image": rng.random((num_cases, 1, 4, 4)),
        "mask": rng.integers(0, 2, (num_cases, 4, 4, 4)),
        "id": np.arange(num_cases),
        "patient": np.array([f"p{k}" for k in rng.integers(0, 20, num_cases)]),
    }


def test_a_split_divides_patients_by_shares_and_seed():
    people = [f"p{k}" for k in range(100)]
    split = split_patients(people, SHARES, seed=3)
    assert [len(one) for one in split.values()] == [60, 20, 20]
    assert sorted(who for one in split.values() for who in one) == sorted(people)
    assert split == split_patients(people[::-1] * 2, SHARES, seed=3)
    assert split != split_patients(people, SHARES, seed=4)
    for wrong in ({"a": 0.5}, {"a": 1.5, "b": -0.5}, {}):
        with pytest.raises(ValueError, match="shares is"):
            split_patients(people, wrong)
    with pytest.raises(ValueError, match="none of the 2 patients"):
        split_patients(["a", "b"], SHARES)


def test_a_split_file_comes_back_and_fits_its_data(tmp_path):
    arrays = data()
    split = split_patients(arrays["patient"], SHARES)
    save_split(tmp_path / "split.json", split, arrays)
    assert load_split(tmp_path / "split.json", arrays) == split
    assert os.listdir(tmp_path) == ["split.json"]
    parts = apply_split(arrays, split)
    assert sum(len(one["id"]) for one in parts.values()) == 60
    for name, one in parts.items():
        assert set(one["patient"]) == set(split[name])
        np.testing.assert_array_equal(one["image"], arrays["image"][one["id"]])


def test_a_changed_file_or_other_data_shows(tmp_path):
    arrays, path = data(), tmp_path / "split.json"
    split = split_patients(arrays["patient"], SHARES)
    save_split(path, split, arrays)
    for name in ("image", "mask"):
        other = arrays[name].copy()
        other[7, 0, 0, 0] += 1
        with pytest.raises(ValueError, match="made for other data"):
            load_split(path, arrays | {name: other})
    wider = arrays["patient"].astype("U40")
    assert load_split(path, arrays | {"patient": wider}) == split
    content = json.loads(path.read_text())
    content["patients"]["train"].append(content["patients"]["test"].pop())
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="changed after it was written"):
        load_split(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="no split file"):
        load_split(path)


def test_splits_must_cover_and_not_overlap(tmp_path):
    arrays = data()
    split = split_patients(arrays["patient"], SHARES)
    split["val"].append(split["train"][0])
    with pytest.raises(ValueError, match="patients of train and patients of val share"):
        save_split(tmp_path / "split.json", split, arrays)
    split["val"].pop()
    gone = split["test"].pop()
    with pytest.raises(ValueError, match=f"in no split, first .'{gone}'"):
        apply_split(arrays, split)
    with pytest.raises(ValueError, match='no "patient"'):
        apply_split({"id": [1]}, split)


def with_ids(ids):
    rng = np.random.default_rng(0)
    return {"image": rng.normal(size=(5, 1, 2, 2)).astype(np.float32), "id": ids}


def predicted(ids):
    model = BayesianClassifier(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), ["a", "b"]
    )
    batch = {"image": torch.randn(5, 1, 2, 2), "id": ids}
    return predict(model, PointEstimate(model), [batch], draws=1, progress=False)


def calibrated(ids):
    tree = predicted(list("abcde"))
    tree["observed_data"] = xr.DataTree(xr.Dataset({"label": ("case", [0, 1, 0, 1, 0])}))
    named = tree.map_over_datasets(lambda one: one.assign_coords(case=ids) if one else one)
    return conformal.calibrate(named, 0.5)


@pytest.mark.parametrize("missing", [None, float("nan"), ""], ids=["None", "NaN", "empty"])
@pytest.mark.parametrize(
    ("use", "name"),
    [
        (lambda who: split_patients(who, {"a": 0.5, "b": 0.5}), "patient"),
        (lambda who: split_patients(list(who), {"a": 0.5, "b": 0.5}), "patient"),
        (lambda who: apply_split({"patient": who}, {"a": ["P1", "P2"], "b": ["P3"]}), "patient"),
        (lambda who: save_split("no.json", {"a": ["P1", "P2", "P3"]}, {"patient": who}), "patient"),
        (lambda who: check_disjoint(who, ["P9"]), "an id of calibration"),
        (lambda who: check_splits({"a": {"id": ["P9"]}, "b": {"id": who}}), "an id of b"),
        (lambda who: Batches(with_ids(who)), "id"),
        (lambda who: predicted(list(who)), "id"),
        (lambda who: as_case(list(who), torch.zeros(5, 1, 1, 1)), "case"),
        (calibrated, "case"),
    ],
    ids=[
        *[
            "split",
            "list",
            "apply",
            "save",
            "disjoint",
            "splits",
            "Batches",
            "predict",
            "attribute",
        ],
        "conformal",
    ],
)
def test_missing_ids_do_not_become_somebody(use, name, missing):
    who = np.array(["P1", missing, "P2", "P3", missing], object)
    with pytest.raises(ValueError, match=rf"{name} is missing .* in 2 of 5 .* position\(s\) 1, 4;"):
        use(who)


def test_patients_may_be_numbers_but_not_nan():
    assert split_patients(np.array([7, 8]), {"a": 0.5, "b": 0.5}, seed=1).keys() == {"a", "b"}
    with pytest.raises(ValueError, match=r"patient is missing .* in 1 of 3"):
        split_patients(np.array([7.0, np.nan, 8.0]), {"a": 0.5, "b": 0.5})
