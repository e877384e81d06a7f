"""The objects of a run: batches of its splits, model and guide, arguments of fit and predict."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_med.checks import reject
from ppl_med.data import Batches, DatasetBatches, standardization
from ppl_med.data.dataset_batches import is_dataset
from ppl_med.data.splits import check_splits
from ppl_med.inference.adapted import adapted
from ppl_med.inference.batches import first_batch
from ppl_med.programs.sites import select_arguments
from ppl_med.runs.allowed_names import resolve
from ppl_med.runs.components import CALL, Builder, check_arguments
from ppl_med.runs.configuration import SPLITS, Config
from ppl_med.weights import load_pretrained

# The names under which readers know a split, by what the file calls it.
_SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
# Arguments of Batches that are meant for training.
_TRAINING = ("shuffle", "augment", "transform", "drop_last")
_PRETRAINED = {"weights": None, "weights_backbone": None, "pretrained": False}


@dataclass
class RunData:
    """Batches of every split, and how their images were brought to one scale.

    Attributes:
        splits: Batches by the name of the split.
        loc: Subtracted from the images, one number a channel; None where the batches come ready.
        scale: The images are divided by it.
        unit: ``"uint8"`` where images were divided by 255 before, ``"float"`` elsewhere.
    """

    splits: dict[str, Any]
    loc: list[float] | None = None
    scale: list[float] | None = None
    unit: str = "float"


def build_data(
    config: Config,
    allow: Iterable[str] = (),
    *,
    only: Iterable[str] = SPLITS,
    normalization: tuple[list[float], list[float]] | None = None,
    training: bool = True,
) -> RunData:
    """Build the batches of a description.

    Args:
        config: What ``read_config`` returned.
        allow: Modules of the user's own.
        only: Splits that are wanted.
        normalization: ``loc`` and ``scale`` of a run that exists; fitted on its own training images
            otherwise.
        training: Shuffle and augment the training split; else it is as the others.

    Raises:
        ValueError: On names or arguments that do not fit, on splits that are not there.
    """
    section = config.get("data")
    if not section or not (section.get("source") or section.get("train")):
        reject("config.data", "a mapping with source or train", section)
    build = Builder(allow)
    source = build(section["source"], "data.source") if "source" in section else None
    wanted = [split for split in SPLITS if split in only or split == "train"]
    found: dict[str, Any] = {}
    for split in wanted:
        needed = split != "train" or normalization is None or "train" in only
        value = _split(section, split, source, build) if needed else None
        if value is not None:
            found[split] = value
    _check_patients(found)
    settings = build(dict(section.get("batches") or {}), "data.batches")
    arrays = {name: value for name, value in found.items() if isinstance(value, Mapping)}
    for kind in sorted({_kind(value) for value in found.values()}):
        _check_settings(settings, kind)
    data = RunData({})
    if arrays:
        _normalize(data, section, settings, arrays.get("train"), normalization)
    for name, value in found.items():
        if name in only:
            value = _kept(value, section.get("keep"), name) if name in arrays else value
            trains = config["seed"] if training and name == "train" else None
            data.splits[name] = _batches(value, settings, trains)
    return data


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "arrays"
    return "dataset" if is_dataset(value) else "batches"


def _check_settings(settings: Mapping[str, Any], kind: str) -> None:
    if kind == "batches" and settings:
        raise ValueError(
            "data.batches holds arguments for arrays and data sets, but the data come as batches; "
            "give them to the loader instead"
        )
    target = Batches if kind == "arrays" else DatasetBatches
    check_arguments(target, inspect.signature(target), settings, "data.batches")


def _split(section: Mapping[str, Any], split: str, source: Any, build: Builder) -> Any:
    """What the file says of a split: arrays, or batches; None where it says nothing."""
    value = section.get(split)
    if value is not None and not isinstance(value, str):
        return _only_one(build(value, f"data.{split}"), split)
    if source is None:
        return None
    if not _is_splits(source):
        if value is None and split == "train":
            return source
        if value is None:
            return None
        raise ValueError(f"data.{split} names {value!r}, but data.source has no splits")
    names = [value] if value else [n for n in _SPLIT_NAMES.get(split, (split,)) if n in source]
    if (value and value not in source) or (not names and split == "train"):
        reject(f"data.{split}", f"a split of data.source: {', '.join(source)}", value)
    return source[names[0]] if names else None


def _is_splits(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(one, Mapping) for one in value.values())


def _only_one(value: Any, split: str) -> Any:
    """The arrays of a reader of splits that gives one."""
    if not _is_splits(value):
        return value
    if len(value) > 1:
        raise ValueError(
            f"data.{split} gives the splits {', '.join(value)} and needs one; put the reader at "
            'data.source to use them all, or have it read one: of from_table shares: {"all": 1.0}'
        )
    return next(iter(value.values()))


def _check_patients(found: Mapping[str, Any]) -> None:
    """Raise where a patient is in two splits, of those that name the patients of all cases."""
    named = {name: one for name, one in found.items() if isinstance(one, Mapping)}
    known = {name: one for name, one in named.items() if all(map(str, one.get("patient", [""])))}
    check_splits(known, "patient")


def _normalize(
    data: RunData,
    section: Mapping[str, Any],
    settings: dict[str, Any],
    train: Mapping[str, Any] | None,
    normalization: tuple[list[float], list[float]] | None,
) -> None:
    """Settle ``loc`` and ``scale``, and put them among the settings of the batches."""
    if train is not None and np.asarray(train["image"]).dtype == np.uint8:
        data.unit = "uint8"
    given = "loc" in settings or "scale" in settings
    if normalization is not None:
        settings["loc"], settings["scale"] = normalization
    elif section.get("standardize", not given):
        if given:
            raise ValueError("data has loc or scale and standardize: true; give one of the two")
        if train is None:
            raise ValueError(
                "data.standardize needs the training images as arrays; give loc and scale among "
                "data.batches, or standardize: false"
            )
        settings["loc"], settings["scale"] = standardization(np.asarray(train["image"]))
    for name, default in (("loc", 0.0), ("scale", 1.0)):
        numbers = np.asarray(settings.get(name, default), np.float32).reshape(-1).tolist()
        settings[name] = numbers
    data.loc, data.scale = settings["loc"], settings["scale"]


def _kept(arrays: Mapping[str, Any], keep: Any, split: str) -> dict[str, Any]:
    if keep is None:
        return dict(arrays)
    missing = [name for name in keep if name not in arrays]
    if missing:
        reject("data.keep", f"among the arrays of {split}: {', '.join(arrays)}", missing[0])
    return {name: arrays[name] for name in keep}


def _batches(value: Any, settings: Mapping[str, Any], seed: int | None) -> Any:
    """Batches for training, in an order by the seed, or plain ones where there is none."""
    kind = _kind(value)
    if kind == "batches":
        return value
    order: dict[str, Any] = {} if seed is None else {"shuffle": True, "seed": seed}
    if seed is None:
        settings = {n: v for n, v in settings.items() if n not in _TRAINING}
    return (Batches if kind == "arrays" else DatasetBatches)(value, **{**order, **settings})


def build_programs(
    config: Config,
    allow: Iterable[str] = (),
    *,
    example: Mapping[str, Any] | None = None,
    trained: bool = False,
) -> tuple[Any, Any]:
    """Build the model and the guide, with start values of the description's seed.

    The process's random number generators are left as they were.

    Args:
        config: What ``read_config`` returned.
        allow: Modules of the user's own.
        example: A batch, for guides that read a model's latents off a trace of it and are given
            ``example: true``.
        trained: Leave out pretrained weights, because trained ones take their place.

    Raises:
        ValueError: On names or arguments that do not fit.
    """
    build = Builder(allow, without=_PRETRAINED if trained else None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        parts = {name: build(config[name], name) for name in ("net", "prior") if name in config}
        if "pretrained" in config and not trained:
            _load_into(parts.get("net"), build(dict(config["pretrained"]), "pretrained"))
        target = resolve(config["model"][CALL], allow, "model.name")
        takes = inspect.signature(target).parameters
        for name in parts:
            if name not in takes or name in config["model"]:
                raise ValueError(
                    f"config.{name} has no place: {config['model'][CALL]} "
                    + ("is given one already" if name in takes else f"takes no {name}")
                )
        model = build({**config["model"], **parts}, "model")
        build.given = {"model": model}
        chosen = None if example is None else select_arguments(model, example)
        guide = build(_with_example(config["guide"], chosen), "guide")
    return model, guide


def _load_into(net: Any, settings: Mapping[str, Any]) -> None:
    if net is None:
        raise ValueError("config.pretrained is for config.net, and there is none")
    check_arguments(load_pretrained, inspect.signature(load_pretrained), settings, "pretrained")
    load_pretrained(net, **settings)


def _with_example(section: Any, example: Mapping[str, Any] | None) -> Any:
    """The section of the guide with a batch wherever it says ``example: true``."""
    if isinstance(section, list):
        return [_with_example(one, example) for one in section]
    if not isinstance(section, Mapping):
        return section
    found = {key: _with_example(one, example) for key, one in section.items()}
    if section.get("example") is True:
        found["example"] = example
    return found


def first_of(config: Config, batches: Any, verb: str = "fit") -> dict[str, Any]:
    """The first batch, with the names that ``keys`` among the arguments of a verb gives."""
    return first_batch(adapted(batches, config.get(verb, {}).get("keys")))


def outline_of(example: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes and types of an example with two cases, from which ``empty_example`` makes one."""
    return {
        name: {"shape": [min(len(value), 2), *value.shape[1:]], "dtype": str(value.dtype)[6:]}
        for name, value in example.items()
        if isinstance(value, Tensor)
    }


def empty_example(outline: Mapping[str, Any]) -> dict[str, Tensor]:
    """A batch of zeros in the shapes of an outline."""
    return {
        name: torch.zeros(one["shape"], dtype=getattr(torch, one["dtype"]))
        for name, one in outline.items()
    }
