"""ISIC: pictures of skin lesions with one diagnosis each, split so that a lesion stays together.

Read from the folder of a challenge as it was released (2017 to 2020), wherever its pictures lie:

    ISIC_2019_Training_GroundTruth.csv   image,MEL,NV,BCC,...      one 1 in each row, else 0
    ISIC_2019_Training_Metadata.csv      image,age_approx,anatom_site_general,lesion_id,sex
    ISIC_2019_Training_Input/ISIC_0000000.jpg

The table of diagnoses is the one whose name has "GroundTruth"; any other table beside it adds
columns, and the row's name stands in ``image``, ``image_id``, ``image_name`` or ``isic_id``. Of
2017, where a row may hold no 1, that is the class "other"; of 2020 ``target`` is "benign" or
"malignant". Where tables of Training, Validation and Test lie side by side, they are the splits.

One lesion has several pictures, and one patient several lesions: pictures are kept together by the
patient where a table names one, else by the lesion, else each stands alone.

References: Tschandl, Rosendahl and Kittler, "The HAM10000 dataset", Scientific Data 5, 2018;
Combalia et al., "BCN20000", arXiv:1908.02288; Rotemberg et al., "A patient-centric dataset",
Scientific Data 8, 2021 (ISIC 2020).
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ppl_med.checks import a_path
from ppl_med.data.readers import table_columns
from ppl_med.data.readers.folders import check_memory, some_of
from ppl_med.data.readers.image_files import check_size, read_rgb
from ppl_med.data.readers.named_splits import Splits
from ppl_med.data.splits import apply_split, check_splits, split_patients

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
_NAMES = ("image", "image_id", "image_name", "isic_id")
_SPLITS = {"training": "train", "validation": "val", "test": "test"}
_KEPT_BY = ("patient_id", "lesion_id")


def load_isic(
    folder: str | PathLike[str],
    *,
    size: tuple[int, int] = (64, 64),
    shares: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Splits:
    """Read pictures, diagnoses and what else the tables say.

    Args:
        folder: Holds the tables, itself or in a subfolder ``isic``, and the pictures, anywhere
            below.
        size: Rows and columns to which the pictures are stretched, by averages over areas.
        shares: Share of the patients (lesions) for every split, drawn within diagnoses, where the
            folder has no splits of its own; by default 0.6, 0.2 and 0.2.
        seed: Seed of the splits.

    Returns:
        For each split, arrays for ``Batches``: "image" uint8 (case, channel=3, row, col); "label"
        int64 (case), places in ``classes`` of the result, those that occur; "patient" str (case),
        what pictures are kept together by: patient, lesion or picture; "id" str (case), the
        picture's name; "age_approx" float32 in years, NaN where not known, and columns of text
        ("sex", "anatom_site_general", ...), "" where there is none.

    Raises:
        FileNotFoundError: There is no such folder, no table of diagnoses in it, or pictures that a
            table names are missing.
        ValueError: A table or picture is damaged, a row has several diagnoses, a picture stands in
            a table twice, or a patient is in two splits.
    """
    check_size(size, ("rows", "cols"))
    place, truths = _tables(folder)
    parts = [_read_truth(path) for path in truths]
    columns = {name: None for part in parts for name in part.columns if name not in ("id", "part")}
    frame = pd.concat(parts, ignore_index=True)
    diagnoses = frame[list(columns)].fillna(0)
    _check_once(frame["id"], "the tables of diagnoses", truths)
    label, classes = _labels(diagnoses, frame["id"], truths)
    arrays: dict[str, Any] = {"id": frame["id"].to_numpy(str), "label": label}
    arrays |= _more(place, truths, frame["id"])
    kept_by = [arrays.pop(name) for name in _KEPT_BY if name in arrays]
    who = arrays["id"].copy()
    for names in reversed(kept_by):
        who = np.where(names == "", who, names)
    arrays["patient"] = who
    paths = _pictures(place, truths, arrays["id"])
    check_memory(3 * len(paths) * size[0] * size[1])
    arrays["image"] = np.stack([read_rgb(path, size, "area") for path in paths])
    named = frame["part"].to_numpy(str)
    if shares is None and len(set(named)) > 1:
        order = [name for name in _SPLITS.values() if name in named]
        splits = {
            name: {key: values[named == name] for key, values in arrays.items()} for name in order
        }
        check_splits(splits, "patient")
    else:
        shares = SHARES if shares is None else shares
        try:
            drawn = split_patients(who, shares, seed=seed, stratify=label)
        except ValueError as error:
            raise ValueError(f"{_listed(truths)}: {error}") from error
        splits = apply_split(arrays, drawn)
    return Splits(splits, classes)


def _tables(folder: str | PathLike[str]) -> tuple[Path, list[Path]]:
    """The place of the tables, and those of diagnoses."""
    root = a_path("folder", folder)
    if not root.is_dir():
        raise FileNotFoundError(f"folder {str(root)!r} is not there")
    for place in (root, root / "isic"):
        found = sorted(path for path in place.glob("*.csv") if "groundtruth" in path.name.lower())
        if found:
            return place, found
    raise FileNotFoundError(
        f"folder {str(root)!r} has no table *GroundTruth*.csv, nor has isic/ in it; the layout is "
        f"described in {__name__}"
    )


def _named(path: Path) -> pd.DataFrame:
    """A table, the picture's name under "id"."""
    frame = table_columns.read_csv(path)
    name = next((one for one in _NAMES if one in frame), None)
    if name is None:
        raise ValueError(f"{path} has no column of pictures, {' or '.join(_NAMES)}")
    frame[name] = table_columns.names_of(frame[name], f"{path}: {name}")
    return frame.rename(columns={name: "id"})


def _read_truth(path: Path) -> pd.DataFrame:
    """Columns of 0 and 1, one a diagnosis, "id" and "part", the split that the name tells."""
    frame = _named(path)
    if "target" in frame:
        values = pd.to_numeric(frame["target"], errors="coerce")
        found = pd.DataFrame({"benign": values == 0, "malignant": values == 1}).astype(float)
        wrong = found.sum(axis=1) != 1
        if wrong.any():
            rows = some_of(frame["id"][wrong].tolist(), len(frame), "rows")
            raise ValueError(f"{path}: target must be 0 or 1, which it is not in {rows}")
    else:
        numbers = frame.drop(columns="id").apply(pd.to_numeric, errors="coerce")
        found = numbers.loc[:, numbers.isin((0, 1)).all()]
        if found.shape[1] < 2:
            raise ValueError(
                f"{path} has {found.shape[1]} columns of 0 and 1, {list(found.columns)}; expected "
                "one for each diagnosis"
            )
    lower = path.name.lower()
    part = next((split for word, split in _SPLITS.items() if f"_{word}_" in lower), "train")
    return found.assign(id=frame["id"], part=part)


def _labels(
    diagnoses: pd.DataFrame, names: pd.Series, tables: Sequence[Path]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Class numbers, and the names of the classes that occur."""
    total = diagnoses.sum(axis=1)
    if (total > 1).any():
        wrong = names[total > 1].tolist()
        raise ValueError(
            f"{_listed(tables)}: {some_of(wrong, len(names), 'rows')} have several diagnoses; "
            "expected one"
        )
    if (total == 0).any():
        diagnoses = diagnoses.assign(other=(total == 0).astype(float))
    diagnoses = diagnoses.loc[:, diagnoses.any()]
    return diagnoses.to_numpy().argmax(1).astype(np.int64), tuple(map(str, diagnoses.columns))


def _more(place: Path, truths: list[Path], ids: pd.Series) -> dict[str, NDArray[Any]]:
    """What the tables say besides, in the order of the cases."""
    found: dict[str, NDArray[Any]] = {}
    others = [path for path in sorted(place.glob("*.csv")) if path not in truths]
    tables = [*others, *truths]
    frames = [_named(path) for path in tables]
    for path, frame in zip(tables, frames, strict=True):
        _check_once(frame["id"], "one table", [path])
    columns: dict[str, pd.Series] = {}
    for frame in frames:
        for name in frame.columns.drop("id"):
            own = frame.set_index("id")[name]
            columns[name] = own if name not in columns else columns[name].combine_first(own)
    table = pd.DataFrame({name: one.reindex(ids.to_numpy()) for name, one in columns.items()})
    for name in table:
        if pd.api.types.is_numeric_dtype(table[name]) and name not in _KEPT_BY:
            if name == "age_approx":
                found[name] = table[name].to_numpy(np.float32)
            continue
        found[name] = np.array(["" if pd.isna(one) else str(one) for one in table[name]], dtype=str)
    return found


def _listed(tables: Sequence[Path]) -> str:
    return ", ".join(map(str, tables))


def _check_once(names: pd.Series, what: str, tables: Sequence[Path]) -> None:
    twice = names[names.duplicated()].unique().tolist()
    if twice:
        raise ValueError(
            f"{_listed(tables)}: {some_of(twice, len(names), 'pictures')} stand twice in {what}; "
            "keep one row of each"
        )


def _pictures(place: Path, truths: list[Path], ids: NDArray[Any]) -> list[Path]:
    """The file of every case."""
    there = {
        path.stem: path
        for path in sorted(place.rglob("*"))
        if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    }
    missing = [name for name in ids.tolist() if name not in there]
    if missing:
        raise FileNotFoundError(
            f"{some_of([f'{name}.jpg' for name in missing], len(ids), 'pictures')} of "
            f"{_listed(truths)} are not there; unpack them below {place}"
        )
    return [there[name] for name in ids.tolist()]
