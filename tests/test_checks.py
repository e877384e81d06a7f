"""One dialect of argument checks: what is refused, what comes back, what the message says."""

import numpy as np
import pytest

from ppl_med import checks


@pytest.mark.parametrize("value", [True, 2.0, "2", None, 0, np.float64(3)])
def test_whole_refuses_what_is_no_whole_number_from_one_on(value):
    with pytest.raises(ValueError, match=r"draws must be a whole number, 1 or more, got"):
        checks.whole("draws", value)


def test_numbers_come_back_as_plain_python():
    assert type(checks.whole("draws", np.int64(3))) is int
    assert type(checks.finite("margin", np.float32(3))) is float
    assert checks.whole("seed", 0, least=0) == 0
    assert checks.finite("weight", -5) == -5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "1", None, [1.0, 2.0]])
def test_finite_refuses_what_is_no_finite_number(value):
    with pytest.raises(ValueError, match="margin must be a finite number, 0 or more, got"):
        checks.finite("margin", value, least=0)


def test_ends_of_ranges():
    assert checks.finite("x", 1, least=0, most=1) == 1
    assert checks.share("x", 0) == 0
    for call in (
        lambda: checks.whole("x", 5, 1, 4),
        lambda: checks.finite("x", 1.1, 0, 1),
        lambda: checks.positive("x", 0),
        lambda: checks.inside("x", 1),
        lambda: checks.inside("x", 0),
        lambda: checks.share("x", 1),
    ):
        with pytest.raises(ValueError, match="x must be"):
            call()


def test_choice_names_the_options_and_the_fix():
    assert checks.choice("kind", "aps", ("lac", "aps")) == "aps"
    with pytest.raises(ValueError, match="kind must be 'lac' or 'aps', got 'saps'; see the list"):
        checks.choice("kind", "saps", ("lac", "aps"), fix="see the list")
    with pytest.raises(ValueError, match="kind must be 'lac', got"):
        checks.choice("kind", np.zeros(2), ("lac",))


def test_different_names():
    assert checks.different_names("classes", ["a", "b"], 2) == ("a", "b")
    for bad in ("ab", ["a"], ["a", "a"], None):
        with pytest.raises(ValueError, match="classes must be two or more different names, got"):
            checks.different_names("classes", bad, 2)


MISSING = [
    np.array(["a", None, "b", float("nan"), ""], object),
    ["a", None, "b", float("nan"), "  "],
    np.array([1.0, np.nan, 2.0, np.nan, np.nan]),
]


@pytest.mark.parametrize("values", MISSING)
def test_missing_names_are_counted_and_placed(values):
    with pytest.raises(ValueError, match=r"site is missing .* in 3 of 5 .* position\(s\) 1, 3, 4;"):
        checks.present("site", values)


def test_names_that_are_there_come_back_as_they_are():
    assert checks.present("site", np.array(["a", "None", "0"])) == ["a", "None", "0"]
    assert checks.present("site", np.array([0, -1])) == [0, -1]
