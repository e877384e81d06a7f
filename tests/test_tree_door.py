"""What counts as not observed: -1 of classes, NaN of numbers, and nothing else."""

import numpy as np
import pytest
import xarray as xr
from analysis_table import class_tree, number_tree, pixel_tree
from posterior_trees import array

from ppl_med.analysis import calibration, scoring, segmentation
from ppl_med.analysis.tree import count_left_out, known, open_classes


def observed(tree: xr.DataTree, name: str, values: np.ndarray) -> xr.DataTree:
    """The tree with other observations."""
    group = tree["observed_data"].to_dataset()
    result = tree.copy()
    result["observed_data"] = xr.DataTree(group.assign({name: group[name].copy(data=values)}))
    return result


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([-1, 0, 2]), [False, True, True]),
        (np.array([np.nan, -1.0, 2.0]), [False, True, True]),
        (np.array([255, 0, 1], np.uint8), [True, True, True]),
        (np.array([False, True, False]), [True, True, True]),
    ],
)
def test_what_is_known(values: np.ndarray, expected: list[bool]) -> None:
    assert known(xr.DataArray(values, dims="case")).values.tolist() == expected


def test_counts_of_entries_and_cases() -> None:
    mask = xr.DataArray(np.array([[-1, -1], [0, -1], [1, 1]]), dims=("case", "row"))
    assert count_left_out(mask) == {"num_cases": 2, "left_out": 3, "left_out_cases": 1}
    with pytest.raises(ValueError, match="NaN everywhere, or -1"):
        count_left_out(mask[:1])
    assert count_left_out(mask[:1], empty=True)["num_cases"] == 0


def test_minus_one_is_a_number_like_others() -> None:
    """Whole numbers are observed where a class would not be: temperatures, differences."""
    values = np.arange(12) - 4
    tree = observed(number_tree(), "value", values)
    same = observed(number_tree(), "value", values.astype(float))
    for analysis in (scoring.crps, scoring.elpd_heldout, calibration.pit, calibration.coverage):
        xr.testing.assert_identical(analysis(tree), analysis(same))
        assert analysis(tree).attrs["left_out"] == 0
    assert calibration.dispersion(tree, replicates=0).attrs["left_out"] == 0


def test_masks_of_truth_values_are_observed_everywhere() -> None:
    tree = pixel_tree()
    mask = np.asarray(array(tree, "observed_data/mask") > 0)
    found = scoring.elpd_heldout(observed(tree, "mask", mask))
    xr.testing.assert_equal(found, scoring.elpd_heldout(tree))


def test_graders_may_draw_truth_values() -> None:
    tree = pixel_tree()
    mask = (array(tree, "observed_data/mask") > 0).expand_dims(grader=2)
    found = segmentation.dice_max(tree, mask, classes=[1])
    assert (found.attrs["left_out"], found.attrs["num_cases"]) == (0, mask.sizes["case"])
    xr.testing.assert_equal(found, segmentation.dice_max(tree, mask.astype(int), classes=[1]))


def test_a_further_value_may_say_that_there_is_no_class() -> None:
    label = np.array([0, 1, 2, 255] * 3, np.uint8)
    source = open_classes(observed(class_tree(), "label", label))
    found = source.labels(ignore=255).values
    np.testing.assert_array_equal(found, np.where(label == 255, -1, label.astype(int)))
    with pytest.raises(ValueError, match=r"outside 0\.\.2"):
        source.labels()
    with pytest.raises(ValueError, match="-1 \\(not annotated\\) in 3 entries"):
        source.labels(ignore=255, complete=True)
