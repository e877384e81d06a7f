"""Old import paths and old names still work, and say where they went."""

import importlib
import subprocess
import sys

import pytest

from ppl_med import moved


@pytest.mark.parametrize("old", moved.MODULES)
def test_an_old_module_gives_the_new_one_and_warns(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {moved.MODULES[old]}"):
        module = importlib.import_module(old)
    new = importlib.import_module(moved.MODULES[old])
    names = [name for name in vars(new) if not name.startswith("_")]
    assert all(getattr(module, name) is getattr(new, name) for name in names)


def test_an_old_name_gives_the_new_one_and_warns():
    from ppl_med.axes import dims

    lookup = moved.renamed("somewhere", {"names": "ppl_med.axes.dims"})
    with pytest.warns(DeprecationWarning, match=r"somewhere.names is now ppl_med.axes.dims"):
        assert lookup("names") is dims
    with pytest.raises(AttributeError, match="'somewhere' has no attribute 'other'"):
        lookup("other")


def test_a_warning_points_at_the_line_that_imports():
    run = [sys.executable, "-W", "always", "-c", "\nimport ppl_med.dims"]
    found = subprocess.run(run, check=True, capture_output=True, text=True)
    assert found.stderr.startswith("<string>:2: DeprecationWarning: ppl_med.dims is now")
