"""The file that describes a run: its sections, their keys, and changes from the command line.

seed: 0                                   of start values, order of the cases, draws
net: {name: ...}                          argument ``net`` of the model
prior: {name: ...}                        argument ``prior`` of the model
model: {name: ppl_med.models....}         its arguments
guide: {name: ppl_med.inference....}      its arguments; ``model`` is supplied
data:
  source: {name: ppl_med.data....}        a reader of arrays, or of several splits
  train: ...                              a split of the source, or a component of its own
  validation, calibration, test: ...      likewise, optional
  batches: {batch_size: 32, ...}          arguments of ``ppl_med.data.Batches``
  standardize: true                       by mean and standard deviation of the training images
  keep: [image, label, id]                which arrays count; all by default
fit: {epochs: 10, ...}                    arguments of ``ppl_med.inference.fit``
predict: {draws: 32, ...}                 arguments of ``ppl_med.inference.predict``
card: {intended_use: ...}                 text of the model card
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ppl_med.checks import known_keys, reject, whole
from ppl_med.inference import fit, predict
from ppl_med.runs.components import is_component
from ppl_med.runs.yaml_files import parse_yaml, read_yaml

SECTIONS = (
    *("seed", "net", "pretrained", "prior", "model", "guide", "data", "fit", "predict", "card"),
)
SPLITS = ("train", "validation", "calibration", "test")
DATA = ("source", *SPLITS, "batches", "standardize", "keep")
CARD = (
    *("title", "version", "intended_use", "not_intended_for", "data", "data_license", "license"),
    *("authors", "copyright", "modality", "limitations", "references"),
)
# What a run gives itself.
_SUPPLIED = {
    "fit": ("model", "guide", "batches", "checkpoint", "resume", "validation", "seed", "progress"),
    "predict": ("model", "guide", "batches", "store", "resume", "seed", "progress"),
}
Config = dict[str, Any]


def arguments_of(verb: str) -> list[str]:
    """Arguments of ``fit`` or ``predict`` that a file may set."""
    functions: dict[str, Callable[..., Any]] = {"fit": fit, "predict": predict}
    names = inspect.signature(functions[verb]).parameters
    return [name for name in names if name not in _SUPPLIED[verb]]


def read_config(config: str | Path | Mapping[str, Any], changes: Sequence[str] = ()) -> Config:
    """Read and check the description of a run; nothing that it names is imported yet.

    Args:
        config: A YAML file, or its content.
        changes: Settings that replace the file's, such as ``"fit.epochs=3"``; values are YAML.

    Returns:
        The content, complete with ``seed``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no YAML, or a section or a key is missing or unknown; a message names
            the nearest key.
    """
    content = copy.deepcopy(dict(config)) if isinstance(config, Mapping) else read_yaml(config)
    if not isinstance(content, dict):
        reject("config", f"a mapping with the keys {', '.join(SECTIONS)}", content)
    for change in changes:
        _set(content, change)
    known_keys("config", content, SECTIONS)
    for section in ("model", "guide"):
        if not is_component(content.get(section)):
            given = content.get(section)
            reject(f"config.{section}", "a mapping with a name", given, "name: ppl_med....")
    for section in ("pretrained", "data", "fit", "predict", "card"):
        if content.get(section) is None:
            content.pop(section, None)
        elif not isinstance(content[section], Mapping):
            reject(f"config.{section}", "a mapping", content[section])
    _check_data(content.get("data"))
    for verb in ("fit", "predict"):
        known_keys(verb, content.get(verb, {}), arguments_of(verb))
    known_keys("card", content.get("card", {}), CARD)
    return {"seed": whole("seed", content.pop("seed", 0), 0), **content}


def _check_data(data: Any) -> None:
    if data is None:
        return
    known_keys("data", data, DATA)
    batches = data.get("batches")
    if batches is not None and not isinstance(batches, Mapping):
        reject("data.batches", "a mapping of arguments of ppl_med.data.Batches", batches)
    for split in ("source", *SPLITS):
        value = data.get(split)
        if value is None or is_component(value):
            continue
        if split == "source" or not (isinstance(value, str) and "source" in data):
            rule = "a mapping with a name" + ("" if split == "source" else ", or a split of source")
            reject(f"data.{split}", rule, value)


def _set(content: Config, change: str) -> None:
    """Replace one value: ``fit.epochs=3``, ``model.classes.0=healthy``."""
    path, found, text = change.partition("=")
    keys = path.strip().split(".")
    if not found or not all(keys):
        reject("set", "such as fit.epochs=3", change)
    place: Any = content
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(place, list):
            if not (key.isdigit() and int(key) < len(place)):
                reject("set", f"an index below {len(place)} at {key!r}", change)
            index: Any = int(key)
        elif isinstance(place, dict):
            index = key
        else:
            reject("set", f"a path; {'.'.join(keys[:depth])} is {place!r}", change)
        if last:
            place[index] = parse_yaml(text, f"set {path}")
        elif isinstance(place, dict) and place.get(index) is None:
            place[index] = {}
        place = place[index]


def first_difference(one: Any, other: Any, where: str = "", free: Iterable[str] = ()) -> str | None:
    """Path of the first value in which two descriptions differ, leaving out some sections."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in dict.fromkeys([*one, *other]):
            if key in free:
                continue
            found = first_difference(one.get(key), other.get(key), f"{where}.{key}".lstrip("."))
            if found is not None:
                return found
        return None
    return None if one == other else where
