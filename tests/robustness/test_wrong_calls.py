"""Every argument of every verb, given what it cannot take: an error that names it, or a result.

A value that an argument happens to take is no fault here; an error of Python about the library's
insides is one.
"""

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import killed_runs
import numpy as np
import pytest
import torch
from posterior_trees import classification_tree
from test_readers import READERS

from ppl_med import data, storage
from ppl_med.data import Batches
from ppl_med.inference import MeanFieldNormal, fit, functions, load, predict, save

WRONG: dict[str, Any] = {
    "nothing": None,
    "an empty text": "",
    "a word": "banana",
    "minus one": -1,
    "not a number": float("nan"),
    "a half": 0.5,
    "an object": object(),
    "an empty list": [],
    "an empty dict": {},
    "a list of texts": ["a", "b"],
    "an array": np.zeros((2, 2)),
    "a class": dict,
}
TELLING = (ValueError, TypeError, OSError, ModuleNotFoundError)
CALLED = {("fit", name) for name in ("schedule", "kl_weight", "optimizer")}  # so is a class
Call = tuple[Callable[..., Any], dict[str, Any]]
pytestmark = pytest.mark.usefixtures("types_unchecked")


def cases() -> Batches:
    return Batches(killed_runs.cases(6), batch_size=3)


def pair() -> dict[str, Any]:
    model = killed_runs.classifier()
    return {"model": model, "guide": MeanFieldNormal(model)}


QUIET = {"progress": False, "device": "cpu"}


def calls(folder: Path) -> dict[str, Call]:
    """Every verb with arguments that work."""
    tree = classification_tree(cases=6, draws=4)
    storage.save(tree, folder / "saved.nc")
    programs = pair()
    save(folder / "saved.pt", **programs)
    number = iter(range(10**6))
    found: dict[str, Call] = {
        "fit": (fit, {**programs, "batches": cases(), **QUIET}),
        "predict": (predict, {**programs, "batches": cases(), "draws": 2, **QUIET}),
        "functions": (functions, {**programs, "draws": 2}),
        "save": (save, {"path": folder / f"{next(number)}.pt", **programs}),
        "load": (load, {"path": folder / "saved.pt", **programs}),
        "storage.save": (storage.save, {"tree": tree, "path": folder / f"{next(number)}.nc"}),
        "storage.load": (storage.load, {"path": folder / "saved.nc"}),
        "storage.join_chains": (storage.join_chains, {"trees": [tree, tree]}),
        "Batches": (Batches, {"arrays": killed_runs.cases(6)}),
    }
    for name in ("load_bccd_counts", "load_camvid", "load_wbc_seg", "load_malaria", "load_nyuv2"):
        place = folder / name
        place.mkdir()
        READERS[name].write(place)
        found[name] = (getattr(data, name), {"folder": place})
    READERS["from_table"].write(folder)
    found["from_table"] = (data.from_table, {"table": folder / "cases.csv"})
    return found


VERBS = (
    *("fit", "predict", "functions", "save", "load"),
    *("storage.save", "storage.load", "storage.join_chains", "Batches"),
    *("load_bccd_counts", "load_camvid", "load_wbc_seg", "load_malaria", "load_nyuv2"),
    "from_table",
)


def faults(name: str, function: Callable[..., Any], good: dict[str, Any]) -> list[str]:
    found = []
    for argument, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if isinstance(parameter.default, bool):
            continue  # anything is true or false
        for kind, value in WRONG.items():
            if callable(value) and (name, argument) in CALLED:
                continue
            torch.manual_seed(0)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    function(**good | {argument: value})
            except TELLING as error:
                said = f"{error} {' '.join(getattr(error, '__notes__', []))}"
                shown = [repr(value)] + ([value] if isinstance(value, str) and value else [])
                if argument[:5] not in said and not any(one in said for one in shown):
                    found.append(f"{name}({argument}={kind}): {type(error).__name__}: {said[:150]}")
            except Exception as error:
                found.append(f"{name}({argument}={kind}): {type(error).__name__}: {error}"[:250])
    return found


@pytest.mark.parametrize("name", VERBS)
def test_a_wrong_argument_is_named(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    function, good = calls(tmp_path)[name]
    found = faults(name, function, good)
    assert not found, "\n".join(found)
