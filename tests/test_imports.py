"""What an import brings along, counted in modules: time depends on the machine."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ppl_med.moved import on_demand

PACKAGES = ["ppl_med.inference", "ppl_med.models"]
HEAVY = ("torch", "pyro", "numpy", "xarray", "pandas", "scipy")
# What neither training nor prediction needs before it is asked for.
OTHERS = [
    *("torchvision", "torch._dynamo", "sympy", "scipy.stats", "sklearn", "dask", "arviz"),
    *("monai", "captum", "matplotlib", "torchmetrics", "numba"),
]
CODE = f"""
import json, sys
import {", ".join(PACKAGES)}
first = [name for name in {HEAVY} if name in sys.modules]
from ppl_med.inference import MeanFieldNormal, fit, predict
from ppl_med.models import BayesianClassifier
print(json.dumps([first, [name for name in {OTHERS} if name in sys.modules]]))
"""


def test_a_package_brings_nothing_and_the_verbs_what_they_need() -> None:
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    first, later = json.loads(run.stdout)
    assert first == [] and later == []


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_is_found_and_listed(name: str) -> None:
    package = importlib.import_module(name)
    attribute, names = on_demand(name, str(package.__file__))
    for public in package.__all__:
        assert getattr(package, public) is attribute(public)
        assert attribute(public).__module__.startswith("ppl_med.")
    assert {*package.__all__} <= {*names()} and {*package.__all__} <= {*dir(package)}


def test_modules_of_a_package_answer_as_after_an_import() -> None:
    attribute, _ = on_demand("ppl_med.inference", str(Path(__file__)))
    assert attribute("svi") is importlib.import_module("ppl_med.inference.svi")


@pytest.mark.parametrize("name", ["fitt", "__wrapped__", "_hidden"])
def test_what_does_not_exist_is_refused(name: str) -> None:
    package = importlib.import_module("ppl_med.inference")
    with pytest.raises(AttributeError, match=f"'ppl_med.inference' has no attribute '{name}'"):
        getattr(package, name)
