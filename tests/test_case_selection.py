"""Cases joined, chosen and described: trees of test sets, subsets, metadata as coordinates."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from analysis_table import class_tree, number_tree, pixel_tree
from posterior_trees import array

from ppl_med import storage
from ppl_med.analysis import calibration, class_subsets, conformal, scoring, uncertainty


def test_test_sets_of_other_sizes_are_joined_and_filled_up() -> None:
    small = pixel_tree(3, "s").isel(row=slice(3), col=slice(2), missing_dims="ignore")
    joined = storage.concat([small, pixel_tree(2, "t")])
    assert joined["posterior/probs"].sizes["case"] == 5
    assert bool(array(joined, "observed_data/mask")[:3, 3:].isin([-1]).all())
    scores = scoring.entry_scores(joined)["nll"]
    assert int(scores.notnull().sum()) == 3 * 6 + 2 * 16
    whole = scoring.entry_scores(small)["nll"]
    np.testing.assert_allclose(scores[:3, :3, :2], whole)


def test_joined_cases_are_of_one_kind_and_have_ids_of_their_own() -> None:
    tree = class_tree()
    other = class_tree(4, "t")
    other.attrs["log_likelihood_of"] = "training"
    with pytest.raises(ValueError, match=r"different kinds of cases, \['held-out', 'training'\]"):
        storage.concat([tree, other])
    with pytest.raises(ValueError, match=r"share 2 case id\(s\), first 'c3'"):
        storage.concat([tree, tree.isel(case=[3, 4])])
    with pytest.raises(ValueError, match="one or more trees"):
        storage.concat([])


def test_one_case_chosen_by_its_id_is_a_tree_of_one_case() -> None:
    for tree in (class_tree(), pixel_tree()):
        one, kept = tree.sel(case="c4"), tree.sel(case=["c4"])
        for analysis in (scoring.score, scoring.entry_scores, uncertainty.entropy):
            xr.testing.assert_allclose(analysis(one), analysis(kept))
    tree = number_tree()
    found, expected = (scoring.crps(tree.sel(case=one)) for one in ("c4", ["c4"]))
    assert float(found["crps"][0]) == pytest.approx(float(expected["crps"][0]))


def test_some_classes_are_refused_until_they_are_renormalised() -> None:
    tree = class_tree(40)
    with pytest.raises(ValueError, match=r"class_subsets\.select"):
        uncertainty.entropy(tree.sel({"class": ["x", "y"]}))
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        scoring.score(tree.sel({"class": ["x", "y"]}))
    found = class_subsets.select(tree, ["z", "x"])
    label = array(tree, "observed_data/label")
    rows = np.flatnonzero(label != 1)
    probs = array(tree, "posterior/probs").isel(case=rows)
    expected = probs[..., [2, 0]] / probs[..., [2, 0]].sum("class")
    np.testing.assert_allclose(found["posterior/probs"], expected)
    new = array(found, "observed_data/label").values
    np.testing.assert_array_equal(new, np.where(label[rows] == 2, 0, 1))
    hit = np.take_along_axis(expected.values, new[None, None, :, None], 3)[..., 0]
    np.testing.assert_allclose(found["log_likelihood/label"], np.log(hit))
    masks = pixel_tree()
    mask = array(masks, "observed_data/mask")
    kept = array(class_subsets.select(masks, ["y", "z"]), "observed_data/mask")
    np.testing.assert_array_equal(kept, mask.values - 1)  # class 0 is -1: of another class
    with pytest.raises(ValueError, match="of which the tree has none"):
        class_subsets.select(tree, ["x", "w"])
    with pytest.raises(ValueError, match="two or more different names"):
        class_subsets.select(tree, ["x"])


def test_metadata_of_a_table_serve_every_analysis_by_groups(tmp_path: Path) -> None:
    tree = class_tree(40)
    ids = [f"c{index}" for index in range(41)][::-1]  # another order, and a case too many
    table = pd.DataFrame({"id": ids, "hospital": [f"h{int(i[1:]) % 3 % 2}" for i in ids]})
    table.to_csv(tmp_path / "cases.csv", index=False)
    given = (table, table.set_index("id"), dict(table), tmp_path / "cases.csv")
    for columns in given:
        found = storage.with_columns(tree, columns)
        expected = [f"h{index % 3 % 2}" for index in range(40)]
        assert array(found, "posterior/probs")["hospital"].values.tolist() == expected
    own = storage.with_columns(tree, ["site"])
    by_site = calibration.errors_by_group(own, "site", replicates=0)
    column = calibration.errors_by_group(tree, "site", replicates=0)
    np.testing.assert_allclose(column["ece"], by_site["ece"])
    learnt = conformal.calibrate(found.isel(case=slice(0, 30)), 0.2, within="hospital")
    assert learnt.sizes["group"] == 2
    test = found.isel(case=slice(30, None))
    sets = conformal.predict_sets(learnt, test, shift_alarm=0)
    assert sets["hospital"].values.tolist() == expected[30:]
    assert conformal.coverage(sets, test, "hospital")["count"].values.tolist() == [7, 3]
    again = storage.load(storage.save(found, tmp_path / "run.nc"))
    assert isinstance(again, xr.DataTree)
    xr.testing.assert_identical(again, found)
    assert scoring.discrimination(found, group="hospital", resamples=0).attrs["num_units"] == 2
    assert uncertainty.entropy(own).groupby("site").mean().sizes["site"] == 2


def test_wrong_tables_of_metadata_are_refused() -> None:
    tree = class_tree(4)
    for columns, message in (
        (["nope"], r"columns of constant_data, some of \['site'\]"),
        ({"id": ["c1"], "age": [1]}, "lacks 3 of 4 cases, first 'c0'; its first id is 'c1'"),
        ({"id": ["c0", *"0123"], "age": range(5)}, "lacks 3 of 4"),
        ({"id": ["c0", "c0", "c1", "c2", "c3"], "age": range(5)}, "case 'c0' more than once"),
        ({"age": [1]}, "key must be a column of the table"),
        ({"id": ["c0", "c1", "c2", "c3"], "age": [1, 2, np.nan, 4]}, "columns: age is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            storage.with_columns(tree, columns)
    with pytest.raises(ValueError, match=r"by storage\.with_columns"):
        calibration.errors_by_group(tree, "hospital", replicates=0)
