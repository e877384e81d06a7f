"""Brain scans with a table of their participants: OASIS-1, ADNI, and folders in the layout of BIDS.

Read from a folder that holds NIfTI files, in any folders below it, and one table:

    participants.tsv                     BIDS: participant_id, group or diagnosis, age, sex, ...
    oasis_cross-sectional.csv            OASIS-1: ID, M/F, Age, CDR, eTIV, nWBV, ...
    any other .csv or .tsv, if only one  ADNI: Image Data ID, Subject, Group, Sex, Age, Visit, ...

A file belongs to the participant whose id is the name of a folder on its way, or the beginning of
its own name: "sub-01/anat/sub-01_T1w.nii.gz", "OAS1_0001_MR1_t88.nii.gz"; where the table names
images (Image Data ID), to the one whose image id stands in its path. Several scans of one person
stay in one split: "patient" is the participant, for OASIS "OAS1_0001" without its session "_MR1".

The label is the column that is asked for, or else label, diagnosis, dx, group or CDR, whichever the
table has first. A CDR (clinical dementia rating) above 0 is "dementia". OASIS-1 has 201 young
controls without a CDR: as healthy cases they would make the task one of telling age.

References: Marcus et al., "Open Access Series of Imaging Studies (OASIS)", Journal of Cognitive
Neuroscience 19, 2007; Gorgolewski et al., "The brain imaging data structure", Scientific Data 3,
2016; Wen et al., "Convolutional neural networks for classification of Alzheimer's disease",
Medical Image Analysis 63, 2020 (how such data leak).
"""

import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from ppl_med.checks import a_path, choice, different_names
from ppl_med.data.readers import table_columns
from ppl_med.data.readers.case_tables import from_table
from ppl_med.data.readers.folders import some_of
from ppl_med.data.readers.named_splits import Splits
from ppl_med.data.readers.resampling import Resize
from ppl_med.data.readers.spacings import Spacing

_TABLES = ("participants.tsv", "participants.csv", "oasis_cross-sectional.csv")
_PEOPLE = ("participant_id", "subject_id", "subject", "ptid", "patient", "id")
_IMAGES = ("image data id", "image_id", "image id")
_LABELS = ("label", "diagnosis", "dx", "group", "cdr")
_DEMENTIA = ("healthy", "dementia")


def load_brains(
    folder: str | PathLike[str],
    *,
    size: tuple[int, int, int] | None = None,
    spacing: Spacing = "same",
    resize: Resize = "fit",
    label: str | None = None,
    classes: Sequence[str] | None = None,
    incomplete: Literal["raise", "drop"] = "raise",
    files: str = "**/*.nii*",
    standardize: bool = True,
    shares: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Splits:
    """Read scans with a class, split by participant.

    Volumes are turned to the same axes: depth from feet to head, rows from back to front, columns
    from left to right; their affines go along with every change of size and spacing.

    Args:
        folder: Holds the table and the files, itself or in ``brains``.
        size: Depth, rows and columns wanted, in voxels; needed where files differ.
        spacing: "same" wants one spacing in all files; a tuple, mm along depth, row and col,
            resamples to it; "mixed" takes them as they are.
        resize: How ``size`` is reached, as in ``from_table``.
        label: Column of the class; by default see the module.
        classes: Classes in the order of their numbers; rows of other groups are left out, as in
            classes=("CN", "AD"). By default all that there are; of a CDR "healthy" and "dementia".
        incomplete: Rows without a label, rows without a scan and scans without a row: "raise", or
            "drop" to leave them out.
        files: Which files are scans, as a pattern; ``"**/*_T1w.nii.gz"`` for BIDS with more.
        standardize: Bring each volume to mean 0 and standard deviation 1 over its voxels other than
            0, which stay 0: a scanner's grey levels have no unit. False keeps them.
        shares: Share of the participants for every split; by default 0.6 for "train", 0.2 for "val"
            and "test", each with its share of every class.
        seed: Seed of the splits.

    Returns:
        For every split arrays for ``Batches``: "image" float32 (case, channel=1, depth, row, col);
        "label" int64 (case); "patient" and "id" str (case); "spacing" float64 (case, 3), mm;
        "affine" float64 (case, 4, 4), index to mm, RAS+; "filename_or_obj" str (case); every other
        column of the table by its name. ``classes`` of the result names the classes.

    Raises:
        FileNotFoundError: No such folder, table or scans.
        ModuleNotFoundError: nibabel is not installed.
        ValueError: The table has no column of participants or labels, rows or scans have no
            partner, a participant has two labels, spacings or sizes differ, a file is damaged, or
            an argument is out of range. It counts them and names the first.
    """
    choice("incomplete", incomplete, ("raise", "drop"))
    if classes is not None:
        different_names("classes", classes, 2)
    place, path = _table(folder)
    frame = table_columns.read_csv(path)
    with table_columns.naming_table(frame):
        people, image = _column(frame, _PEOPLE, "participants"), _column(frame, _IMAGES)
        assert people is not None
        name = label or _column(frame, _LABELS, "labels")
        table_columns.column(frame, str(name), "label")
        values, names = _labels(frame[name], classes)
        rows = pd.DataFrame({
            "patient": [_person(one) for one in table_columns.names_of(frame[people], people)],
            "key": table_columns.names_of(frame[image or people], image or people),
            "label": values,
        })  # fmt: skip
        kept = np.ones(len(rows), bool) if classes is None else _chosen(frame[name], rows, names)
        rows, frame = rows[kept], frame[kept]
        scans = sorted(one for one in place.glob(files) if one.is_file())
        if not scans:
            raise FileNotFoundError(f"folder {str(place)!r} holds no scan, files={files!r}")
        owner = _owners([one.relative_to(place) for one in scans], rows["key"].tolist())
        _check_complete(rows, owner, scans, incomplete, classes is not None)
        chosen = [
            (at, scan) for at, scan in zip(owner, scans, strict=True)
            if at is not None and isinstance(rows["label"].iloc[at], str)
        ]  # fmt: skip
        if not chosen:
            raise ValueError("no scan has a row with a label")
        found = rows.iloc[[at for at, _ in chosen]].drop(columns="key").reset_index(drop=True)
        found["path"] = [str(scan.relative_to(place)) for _, scan in chosen]
        found["id"] = [re.sub(r"\.nii(\.gz)?$", "", one) for one in found["path"]]
        _check_one_label(found)
        other = frame.iloc[[at for at, _ in chosen]].reset_index(drop=True)
        used = {people, image, *found.columns}
        columns = {one: other[one] for one in other.columns if one not in used}
        found = found.assign(**columns)
    splits = from_table(
        found, place, classes=names, size=size, resize=resize, spacing=spacing, site=None,
        shares=shares, seed=seed,
    )  # fmt: skip
    for arrays in splits.values():
        for number, values in enumerate(arrays["image"]):
            _check(values, arrays["filename_or_obj"][number])
            if standardize:
                inside = values != 0
                mean, sd = values[inside].mean(dtype=np.float64), values[inside].std()
                values[inside] = (values[inside] - mean) / sd
    return splits


def _table(folder: str | PathLike[str]) -> tuple[Path, Path]:
    """The place of the data set, and its table."""
    root = a_path("folder", folder)
    if not root.is_dir():
        raise FileNotFoundError(f"folder {str(root)!r} is not there")
    for place in (root, root / "brains"):
        named = [place / one for one in _TABLES if (place / one).is_file()]
        others = sorted([*place.glob("*.csv"), *place.glob("*.tsv")])
        if named or len(others) == 1:
            return place, (named or others)[0]
        if others:
            raise ValueError(
                f"folder {str(place)!r} has {len(others)} tables, {[one.name for one in others]}, "
                f"none of them called {' or '.join(_TABLES)}; rename the one of the participants"
            )
    raise FileNotFoundError(
        f"folder {str(root)!r} has no {_TABLES[0]} or other table, nor has brains/ in it; the "
        f"layout is described in {__name__}"
    )


def _column(frame: pd.DataFrame, known: Sequence[str], what: str = "") -> str | None:
    """The column that is called by the first of some names, in any case."""
    lower = {str(one).lower(): str(one) for one in reversed(frame.columns)}
    found = next((lower[one] for one in known if one in lower), None)
    if found is None and what:
        raise ValueError(
            f"no column of {what}, {', '.join(known)}; it has {list(map(str, frame.columns))}"
            + ("; name it by label=" if what == "labels" else "")
        )
    return found


def _person(name: str) -> str:
    """OASIS numbers the sessions of a person: OAS1_0001_MR1."""
    return re.sub(r"^(OAS\d_\d+)_MR\d+$", r"\1", name)


def _labels(
    values: pd.Series, classes: Sequence[str] | None
) -> tuple[list[str | None], tuple[str, ...]]:
    """Names of the classes, None where there is no label, and the classes in order."""
    known = values.notna() & (values.astype(str).str.strip() != "")
    if str(values.name).lower() == "cdr" and classes is None:
        rating = pd.to_numeric(values.where(known), errors="coerce")
        wrong = known & ~rating.isin((0, 0.5, 1, 2, 3))
        if wrong.any():
            raise ValueError(
                f"column {values.name!r} holds {values[wrong].iloc[0]!r}, which is no CDR: 0, 0.5, "
                "1, 2 or 3"
            )
        return [None if np.isnan(one) else _DEMENTIA[int(one > 0)] for one in rating], _DEMENTIA
    texts = values.astype(str).str.strip()
    found = tuple(classes or sorted(texts[known].unique().tolist()))
    if len(found) < 2:
        raise ValueError(f"column {values.name!r} holds one class, {found}; two are needed")
    return [one if there else None for one, there in zip(texts, known, strict=True)], found


def _chosen(column: pd.Series, rows: pd.DataFrame, classes: Sequence[str]) -> Any:
    """Rows of the classes that were asked for."""
    kept = rows["label"].isin(list(classes)).to_numpy()
    absent = [one for one in classes if not (rows["label"] == one).any()]
    if absent:
        groups = sorted({one for one in rows["label"] if isinstance(one, str)})
        raise ValueError(f"column {column.name!r} has no {absent}; it holds {groups}")
    return kept


def _owners(scans: Sequence[Path], keys: Sequence[str]) -> list[int | None]:
    """The row of each scan, None without one; of two ids that fit, the longer."""
    rows = {re.sub(r"^sub-", "", key): number for number, key in enumerate(keys)}
    found = []
    for scan in scans:
        fits: set[str] = set()
        for part in scan.parts:
            name = re.sub(r"^sub-", "", part)
            pieces = [match.start() for match in re.finditer(r"[_.\-]", name)]
            starts = {name, *(name[:at] for at in pieces)}
            fits |= rows.keys() & (starts | set(re.split(r"[_.\-]", name)))
        found.append(rows[max(fits, key=len)] if fits else None)
    return found


def _check_complete(
    rows: pd.DataFrame, owner: Sequence[int | None], scans: Sequence[Path], rule: str, some: bool
) -> None:
    if rows["key"].duplicated().any():
        twice = rows["key"][rows["key"].duplicated()].tolist()
        raise ValueError(f"{some_of(twice, len(rows), 'rows')} stand twice; keep one row of each")
    if rule == "drop":
        return
    gaps = rows["key"][[not isinstance(one, str) for one in rows["label"]]].tolist()
    lost = [key for number, key in enumerate(rows["key"]) if number not in set(owner)]
    loose = [] if some else [s for s, at in zip(scans, owner, strict=True) if at is None]
    for names, total, what in (
        (gaps, len(rows), "rows have no label"),
        (lost, len(rows), "rows have no scan"),
        (loose, len(scans), "scans have no row"),
    ):
        if names:
            shown = some_of(names, total, what.split(" ")[0])
            rest = what.split(" ", 1)[1]
            raise ValueError(f'{shown} {rest}; correct that, or give incomplete="drop"')


def _check_one_label(found: pd.DataFrame) -> None:
    """A label is the person's; one who changed has several, and a split could not balance them."""
    many = found.groupby("patient")["label"].nunique()
    names = many[many > 1].index.tolist()
    if names:
        raise ValueError(
            f"{some_of(names, len(many), 'participants')} have different labels in several scans; "
            "keep the scans of one visit, or one label a person"
        )


def _check(values: Any, path: str) -> None:
    if not np.isfinite(values).all() or values.min() == values.max():
        raise ValueError(f"{path} has NaN or infinite voxels, or one level")
