"""Splits by patient, drawn from a seed and kept in files that tell when something has changed.

Published figures on LIDC come from random splits that nobody can repeat, some of them by image, so
that one patient is in training and in test. A split file names every patient of every split, and
carries two SHA-256 digests: of the split itself and of the data it was made for.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import is_finite, present, reject, whole
from ppl_med.storage.atomic import write_text

_FORMAT = 1


def split_patients(
    patients: Sequence[str] | NDArray,
    shares: Mapping[str, float],
    *,
    seed: int = 0,
    stratify: Sequence[Any] | NDArray | None = None,
) -> dict[str, list[str]]:
    """Divide patients among splits at random.

    The same patients, shares and seed give the same split, in whatever order they come.

    Args:
        patients: Patient of every case, or every patient once.
        shares: Share of the patients for every split, such as {"train": 0.6, "val": 0.2,
            "test": 0.2}; they sum to 1.
        seed: Seed of the permutation of the patients.
        stratify: What every split shall have its share of, such as the label of every case; a
            patient of several counts by the rarest of them. None leaves it to chance.

    Returns:
        For every split its patients, sorted. Numbers are the shares, rounded at the running sum.

    Raises:
        ValueError: Shares that are not positive or do not sum to 1, a patient that is missing
            (None, NaN or empty), a split left without patients, or ``stratify`` of another length.
    """
    if not isinstance(shares, Mapping) or not all(map(is_finite, shares.values())):
        reject("shares", 'a dict of numbers, such as {"train": 0.8, "test": 0.2}', shares)
    whole("seed", seed, 0)
    total = sum(shares.values())
    if not shares or min(shares.values()) <= 0 or abs(total - 1) > 1e-9:
        raise ValueError(f"shares is {dict(shares)}; expected positive numbers that sum to 1")
    everyone = np.unique(_names(patients))
    order = np.random.default_rng(seed).permutation(everyone)
    if stratify is not None:
        order = _spread(order, _strata(_names(patients), stratify))
    ends = np.round(np.cumsum(list(shares.values())) / total * len(order)).astype(int)
    parts = np.split(order, ends[:-1])
    split = {name: sorted(part.tolist()) for name, part in zip(shares, parts, strict=True)}
    empty = [name for name, members in split.items() if not members]
    if empty:
        raise ValueError(f"{empty} would get none of the {len(order)} patients; change the shares")
    return split


def _strata(patients: NDArray, values: Sequence[Any] | NDArray) -> dict[str, str]:
    """The rarest value of each patient, counted over patients."""
    named = [str(one) for one in present("stratify", values)]
    if len(named) != len(patients):
        raise ValueError(
            f"stratify has {len(named)} entries and patients {len(patients)}; give one for each"
        )
    pairs = sorted(set(zip(patients.tolist(), named, strict=True)))
    count = Counter(value for _, value in pairs)
    strata: dict[str, str] = {}
    for patient, value in pairs:
        known = strata.setdefault(patient, value)
        if (count[value], value) < (count[known], known):
            strata[patient] = value
    return strata


def _spread(order: NDArray, strata: Mapping[str, str]) -> NDArray:
    """The order in which any run of patients holds of every stratum about its share."""
    value = np.array([strata[one] for one in order.tolist()])
    place = np.empty(len(order))
    for stratum in np.unique(value):
        rows = np.flatnonzero(value == stratum)
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return order[np.argsort(place, kind="stable")]


def save_split(
    path: str | PathLike[str], split: Mapping[str, Sequence[str]], arrays: Mapping[str, Any]
) -> None:
    """Write a split file, JSON, beside which the data can be checked.

    Args:
        path: Path of the file; an older one is replaced.
        split: Patients of every split, as ``split_patients`` returns them.
        arrays: The data: "patient" str (case), "id", "image", "mask", and others that are not
            looked at.

    Raises:
        ValueError: Splits share a patient, or patients of the data are in none.
    """
    _check_cover(split, arrays)
    patients = {name: sorted(map(str, members)) for name, members in split.items()}
    content = {
        "format": _FORMAT,
        "patients": patients,
        "split_sha256": _split_digest(patients),
        "data_sha256": data_digest(arrays),
    }
    write_text(Path(path), json.dumps(content, indent=1) + "\n")


def load_split(
    path: str | PathLike[str], arrays: Mapping[str, Any] | None = None
) -> dict[str, list[str]]:
    """Read a split file and verify it.

    Args:
        path: Path of the file.
        arrays: The data that it is for, verified too if given; see ``save_split``.

    Returns:
        Patients of every split.

    Raises:
        ValueError: No split file, one that was edited, or one that was made for other data.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        patients, known = content["patients"], content["format"] == _FORMAT
        digests = content["split_sha256"], content["data_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no split file as written by save_split: {error}") from error
    if not known or _split_digest(patients) != digests[0]:
        raise ValueError(
            f"{path} was changed after it was written, or is of another format: its digest does "
            "not match; make a new one with save_split"
        )
    if arrays is not None and data_digest(arrays) != digests[1]:
        raise ValueError(
            f"{path} was made for other data: ids, pixels or masks differ, so figures would not be "
            "comparable; make a new split file for this data"
        )
    return patients


def apply_split(
    arrays: Mapping[str, Any], split: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, NDArray]]:
    """Divide arrays by patient.

    Args:
        arrays: "patient" str (case), and any others with first axis case.
        split: Patients of every split.

    Returns:
        For every split the arrays of its patients, in the order given.

    Raises:
        ValueError: Splits share a patient, or patients of the data are in none.
    """
    _check_cover(split, arrays)
    patient = _names(arrays["patient"])
    rows = {name: np.isin(patient, list(map(str, members))) for name, members in split.items()}
    return {
        name: {key: np.asarray(values)[kept] for key, values in arrays.items()}
        for name, kept in rows.items()
    }


def check_disjoint(
    ids_a: Iterable[Hashable],
    ids_b: Iterable[Hashable],
    names: tuple[str, str] = ("calibration", "test"),
) -> None:
    """Raise if two sets of ids overlap.

    A threshold, a temperature or a network judged on the cases it was fitted to looks better
    than it is; the same holds for two images of one patient.

    Args:
        ids_a: Case (or patient) ids of the first set: a list or an array, str or int.
        ids_b: Ids of the second set.
        names: What the two sets are called in the message.

    Raises:
        ValueError: At least one id is in both, of which the message names up to five; or one is
            missing (None, NaN or empty).
    """
    shared = sorted(_plain(names[0], ids_a) & _plain(names[1], ids_b), key=str)
    if shared:
        examples = ", ".join(map(repr, shared[:5])) + (", ..." if len(shared) > 5 else "")
        raise ValueError(
            f"{names[0]} and {names[1]} share {len(shared)} id(s): {examples}. "
            f"Remove them from one of the two sets."
        )


def check_splits(splits: Mapping[str, Mapping[str, Any]], key: str = "id") -> None:
    """Raise if two splits share an entry of an array: an id, or a patient."""
    for first, second in combinations(splits, 2):
        names = (first, second) if key == "id" else (f"{key}s of {first}", f"{key}s of {second}")
        check_disjoint(splits[first][key], splits[second][key], names=names)


def data_digest(arrays: Mapping[str, Any]) -> str:
    """SHA-256 of "id", "patient", "image" and "mask", whichever are there, as hexadecimal digits.

    The same on every machine; another order of the cases, or another dtype, is other data.
    """
    digest = hashlib.sha256()
    for name in ("id", "patient", "image", "mask"):
        if name not in arrays:
            continue
        values = _plain_strings(name, np.ascontiguousarray(arrays[name]))
        if values.dtype.kind in "US":  # not the width of the longest string
            content = json.dumps(values.astype(str).tolist()).encode()
        else:
            content = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
        digest.update(f"{name} {values.dtype.kind} {values.shape} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _plain_strings(name: str, values: NDArray[Any]) -> NDArray[Any]:
    """Strings that numpy holds as objects as strings: else their addresses would be digested."""
    if values.dtype.kind in "biufcUS":
        return values
    if all(isinstance(one, str) for one in values.flat):
        return values.astype(str)
    raise TypeError(f"{name} is of dtype {values.dtype}; expected numbers or str")


def _split_digest(patients: Mapping[str, Sequence[str]]) -> str:
    return hashlib.sha256(json.dumps(patients, sort_keys=True).encode()).hexdigest()


def _check_cover(split: Mapping[str, Sequence[str]], arrays: Mapping[str, Any]) -> None:
    if "patient" not in arrays:
        raise ValueError(f'arrays has no "patient"; its keys are {sorted(arrays)}')
    check_splits({name: {"patient": members} for name, members in split.items()}, "patient")
    named = {str(who) for members in split.values() for who in members}
    missing = sorted(set(_names(arrays["patient"]).tolist()) - named)
    if missing:
        raise ValueError(f"{len(missing)} patient(s) are in no split, first {missing[:5]}")


def _names(patients: Any) -> NDArray:
    """Patients as text; nobody whose name is missing becomes a patient called "None" or "nan"."""
    return np.asarray([str(one) for one in present("patient", patients)], dtype=str)


def _plain(name: str, ids: Iterable[Hashable]) -> set[Hashable]:
    """Ids as Python values, so that ``np.str_``, tensors and str compare equal."""
    listed = present(f"an id of {name}", ids)
    return {one.item() if hasattr(one, "item") else one for one in listed}
