"""The columns of a table of cases: labels, patients, splits and what else is said of each."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ppl_med.checks import a_path, different_names, present
from ppl_med.data.readers.folders import naming_file, some_of
from ppl_med.data.splits import check_splits, split_patients

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
_SEPARATORS = (",", ";", "\t")
_RESERVED = ("image", "label", "findings", "value", "mask", "id")


def read_csv(table: str | PathLike[str] | pd.DataFrame) -> pd.DataFrame:
    """A table whose first line names its columns, or a copy of one in memory.

    Separated by comma, semicolon or tab, whichever the first line has most of. Text that looks like
    a number stays text in columns where any leading zero would be lost.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no table, is empty, or has two columns of one name.
    """
    if isinstance(table, pd.DataFrame):
        frame = table.reset_index(drop=True)
    else:
        path = a_path("table", table)
        if not path.is_file():
            raise FileNotFoundError(f"table {str(path)!r} is not there")
        with naming_file(path, "table"):
            with path.open(encoding="utf-8-sig") as file:
                first = file.readline()
            separator = max(_SEPARATORS, key=first.count)
            text = pd.read_csv(path, sep=separator, dtype=str, encoding="utf-8-sig")
            frame = text.apply(_as_numbers)
    name = "table" if isinstance(table, pd.DataFrame) else f"table {str(table)!r}"
    frame.attrs["table"] = name
    if frame.empty:
        raise ValueError(f"{name} has no rows; its columns are {list(map(str, frame.columns))}")
    frame.columns = frame.columns.map(lambda name: str(name).strip())
    if frame.columns.has_duplicates:
        twice = frame.columns[frame.columns.duplicated()].tolist()
        raise ValueError(f"{name} has {len(twice)} column names twice: {twice[:5]}; rename them")
    return frame


@contextmanager
def naming_table(frame: pd.DataFrame) -> Iterator[None]:
    """Put the file of a table before what is said of its contents."""
    name = frame.attrs["table"]
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if name in str(error):
            raise
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{name}: {error}") from error


def column(frame: pd.DataFrame, name: str, argument: str, fix: str = "") -> pd.Series:
    """A column by name.

    Raises:
        ValueError: There is none; it names those that are there and the nearest.
    """
    if name in frame:
        return frame[name]
    names = list(map(str, frame.columns))
    near = difflib.get_close_matches(name, names, 1, 0.5)
    raise ValueError(
        f"{frame.attrs['table']} has no column {name!r} ({argument}=); it has {names}"
        + (f": did you mean {argument}={near[0]!r}?" if near else "")
        + (f"; {fix}" if fix else "")
    )


def observations(
    frame: pd.DataFrame,
    rows: Sequence[str],
    *,
    label: str | Sequence[str] | None,
    value: str | None,
    classes: Sequence[str] | None,
    masked: bool,
) -> tuple[dict[str, NDArray[Any]], tuple[str, ...], str]:
    """What a model would be conditioned on, what its classes are called, and their likelihood.

    Raises:
        ValueError: See the functions for one column each.
    """
    arrays: dict[str, NDArray[Any]] = {}
    found, likelihood = tuple(classes or ()), "categorical"
    if isinstance(label, str):
        by_default = label == "label" and (value is not None or masked)
        if not by_default or label in frame:
            arrays["label"], own = label_column(frame, label, None if masked else classes, rows)
            found = found if masked else own
    elif label is not None:
        arrays["findings"] = findings_columns(frame, label, rows)
        found, likelihood = tuple(label), "findings"
    if value is not None:
        arrays["value"] = number_column(frame, value, rows)
    return arrays, found, likelihood


def people(
    frame: pd.DataFrame, role: str, name: str | None, files: Sequence[Mapping[str, str]]
) -> dict[str, NDArray[Any]]:
    """The column of patients or of sites; without one, what all DICOM files say.

    Raises:
        ValueError: An entry is missing, or there is no column of patients, or none that was named.
    """
    if name is None:
        return {}
    if name in frame:
        return {role: names_of(frame[name], name)}
    if name == role and all(role in one for one in files):
        return {role: np.array([one[role] for one in files])}
    if name == role == "site":
        return {}
    fix = "or patient=None where every row is another person" if role == "patient" else ""
    column(frame, name, role, fix)
    return {}


def label_column(
    frame: pd.DataFrame, name: str, classes: Sequence[str] | None, rows: Sequence[str]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Class numbers (case), and the names of the classes.

    Without ``classes`` these are the values of the column, sorted, numbers by size. With them, the
    column holds their names, or their positions from 0.

    Raises:
        ValueError: Labels are missing, or are no classes; it counts them and names the first rows.
    """
    values = column(frame, name, "label", "or label=None for images without")
    _check_no_gap(values, name, rows)
    whole = _whole(values)
    texts = (values.astype(int) if whole else values).astype(str).str.strip()
    if classes is None:
        found = sorted(texts.unique().tolist(), key=(lambda one: int(one)) if whole else None)
        if len(found) < 2:
            raise ValueError(f"column {name!r} holds one class, {found[0]!r}; two are needed")
        if 10 < len(found) > len(values) / 2 or (values.dtype.kind == "f" and not whole):
            raise ValueError(
                f"column {name!r} holds {len(found)} different values, first {found[:5]}, which "
                "are no classes; numbers to be predicted are named by value="
            )
        classes = found
    names = different_names("classes", classes, 2)
    known = {one: number for number, one in enumerate(names)}
    if whole and not set(texts) <= set(known):
        known = {str(number): number for number in range(len(names))}
    wrong = np.flatnonzero(~texts.isin(list(known)).to_numpy())
    if len(wrong):
        shown = [f"{rows[at]}: {texts.iloc[at]!r}" for at in wrong[:6].tolist()]
        raise ValueError(
            f"column {name!r} holds values that are none of classes={list(names)} in "
            f"{some_of(shown + [''] * (len(wrong) - len(shown)), len(texts), 'rows')}"
        )
    return texts.map(known).to_numpy(np.int64), names


def findings_columns(
    frame: pd.DataFrame, names: Sequence[str], rows: Sequence[str]
) -> NDArray[np.int8]:
    """Findings (case, finding): 1, 0, and -1 where a field is empty.

    Raises:
        ValueError: A field holds something else; it counts them and names the first rows.
    """
    parts = []
    for name in different_names("label", names):
        values = pd.to_numeric(column(frame, name, "label"), errors="coerce").fillna(-1)
        empty = column(frame, name, "label").isna()
        minus = frame[name].astype(str).str.strip().isin(("-1", "-1.0"))
        right = values.isin((0, 1)) | (values == -1) & (empty | minus)
        wrong = np.flatnonzero(~right.to_numpy())
        if len(wrong):
            raise ValueError(
                f"column {name!r} holds other values than 0, 1 and -1 or nothing (not known) in "
                f"{some_of([rows[at] for at in wrong.tolist()], len(values), 'rows')}"
            )
        parts.append(values.to_numpy(np.int8))
    return np.stack(parts, axis=1)


def number_column(frame: pd.DataFrame, name: str, rows: Sequence[str]) -> NDArray[np.float32]:
    """Numbers to be predicted (case), NaN where a field is empty.

    Raises:
        ValueError: A field holds no number.
    """
    found = column(frame, name, "value")
    values = pd.to_numeric(found, errors="coerce")
    wrong = np.flatnonzero((values.isna() & found.notna()).to_numpy())
    if len(wrong):
        shown = [f"{rows[at]}: {found.iloc[at]!r}" for at in wrong.tolist()]
        raise ValueError(
            f"column {name!r} holds no number in {some_of(shown, len(values), 'rows')}"
        )
    return values.to_numpy(np.float32)


def metadata(frame: pd.DataFrame, used: Sequence[str | None]) -> dict[str, NDArray[Any]]:
    """All other columns: numbers with NaN for nothing, texts with "" for nothing."""
    found = {}
    for name in map(str, frame.columns):
        if name in used:
            continue
        values = frame[name]
        key = f"{name}_of_table" if name in _RESERVED else name
        if values.dtype.kind in "iufb":
            found[key] = values.to_numpy()
        else:
            found[key] = np.array(["" if pd.isna(one) else str(one) for one in values], dtype=str)
    return found


def names_of(values: pd.Series, name: str) -> NDArray[Any]:
    """Patients or sites as text, none missing."""
    return np.array([str(one).strip() for one in present(name, values)], dtype=str)


def split_rows(
    frame: pd.DataFrame,
    split: str | None,
    shares: Mapping[str, float] | None,
    patient: NDArray[Any],
    strata: Sequence[NDArray[Any]],
    seed: int,
) -> dict[str, NDArray[np.int64]]:
    """The rows of every split: of a column, or drawn by patient within combinations of strata.

    Raises:
        ValueError: A patient is in two splits, or the column has gaps.
    """
    if split is not None and split in frame and shares is None:
        names = names_of(frame[split], split)
        order = sorted(set(names.tolist()), key=lambda one: (_usual(one), one))
        rows = {one: np.flatnonzero(names == one) for one in order}
        check_splits({one: {"patient": patient[kept]} for one, kept in rows.items()}, "patient")
        return rows
    joined = [" / ".join(row) for row in zip(*strata, strict=True)] or None
    parts = split_patients(
        patient, SHARES if shares is None else shares, seed=seed, stratify=joined
    )
    return {name: np.flatnonzero(np.isin(patient, members)) for name, members in parts.items()}


def _usual(name: str) -> int:
    return list(SHARES).index(name) if name in SHARES else len(SHARES)


def _check_no_gap(values: pd.Series, name: str, rows: Sequence[str]) -> None:
    gaps = np.flatnonzero((values.isna() | (values.astype(str).str.strip() == "")).to_numpy())
    if len(gaps):
        shown = some_of([rows[at] for at in gaps.tolist()], len(rows), "rows")
        raise ValueError(
            f"column {name!r} has no label in {shown}; fill the gaps, or drop the rows: "
            f"table.dropna(subset=[{name!r}])"
        )


def _whole(values: pd.Series) -> bool:
    if values.dtype.kind not in "iuf":
        return False
    return bool(np.equal(np.mod(values.to_numpy(np.float64), 1), 0).all())


def _as_numbers(values: pd.Series) -> pd.Series:
    """Numbers where every field is one; "007" is none."""
    known = values.dropna().str.strip()
    padded = known.str.match(r"^[+-]?0\d").any()
    numbers = pd.to_numeric(values, errors="coerce")
    if padded or known.empty or bool((numbers.isna() & values.notna()).any()):
        return values
    return numbers
