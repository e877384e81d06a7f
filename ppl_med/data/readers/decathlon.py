"""Medical Segmentation Decathlon: volumes of one of its ten tasks, with the outlines of a part.

Read from a folder in the layout of the decathlon:

    dataset.json              "training": pairs of "image" and "label"; "labels" and "modality"
    imagesTr/<case>.nii.gz    volume, or several modalities of it along a fourth axis
    labelsTr/<case>.nii.gz    class numbers
    train.txt, val.txt        where they are there: file names in imagesTr, one a line; test.txt

Without lists the cases of "training" are divided at random: those of "test" have no outlines. Each
case is another person.

Reference: Antonelli et al., "The Medical Segmentation Decathlon", Nature Communications 13, 2022.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ppl_med.checks import choice, whole
from ppl_med.data.readers.folders import (
    check_files,
    check_memory,
    find_place,
    naming_file,
    read_list,
    some_of,
    split_files,
)
from ppl_med.data.readers.image_files import centred, check_nothing_cut, check_size
from ppl_med.data.readers.named_splits import Splits
from ppl_med.data.readers.nifti_files import affine_of, check_one_grid, read_volume, volume_header
from ppl_med.data.readers.resampling import at_spacing, moved_affine
from ppl_med.data.splits import check_splits, split_patients

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
_ALIKE = 0.01  # share by which two spacings may differ and count as one
_MOST_BYTES = 2**24  # of a dataset.json


@dataclass(frozen=True)
class VolumeSettings:
    """How volumes are read; see ``load_decathlon``."""

    size: tuple[int, int, int]
    outside: Literal["background", "ignore"]
    standardize: bool
    num_classes: int
    spacing: tuple[float, float, float] | None = None
    volume: int | Literal["all"] | None = None


def load_decathlon(
    folder: str | PathLike[str],
    *,
    size: tuple[int, int, int],
    spacing: tuple[float, float, float] | Literal["same", "mixed"] = "same",
    outside: Literal["background", "ignore"] = "ignore",
    standardize: bool = True,
    modality: int | None = None,
    shares: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Splits:
    """Read the cases of ``dataset.json`` that have outlines, split by case.

    Volumes are turned to the same axes: depth from feet to head, rows from back to front, columns
    from left to right. Each is brought to one size about its middle: where it is larger it is
    cropped, which must not cut a labelled voxel, where it is smaller its border is repeated. All
    are held in memory: tasks of whole bodies want a ``spacing`` of some millimetres.

    Args:
        folder: The task: holds ``dataset.json``, ``imagesTr`` and ``labelsTr``.
        size: Depth, rows and columns wanted, in voxels.
        spacing: "same" wants one spacing in all files; a tuple, mm along depth, row and col,
            resamples to it, outlines at the middles of the new voxels; "mixed" takes them as they
            are.
        outside: What padded voxels count as in the mask: "background", or "ignore", -1.
        standardize: Bring each volume to mean 0 and standard deviation 1 over its own voxels; False
            keeps the grey levels, for CT in HU.
        modality: Which of several modalities, from 0; None keeps all as channels.
        shares: Share of the cases for every split; None takes the lists, or without lists 0.6 for
            "train", 0.2 for "val" and "test".
        seed: Seed of the splits.

    Returns:
        For each split, arrays for ``Batches``: "image" float32 (case, channel, depth, row, col);
        "mask" int8 (case, depth, row, col), -1 where padded; "spacing" float64 (case, 3), mm;
        "voxel_volume" float64 (case), mm³; "affine" float64 (case, 4, 4), from index (depth, row,
        col) to mm, RAS+; "filename_or_obj" and "id" str (case). ``classes`` of the result are the
        names of the labels.

    Raises:
        FileNotFoundError: There is no such folder, or files that it names are missing.
        ModuleNotFoundError: nibabel is not installed.
        ValueError: ``size`` would cut labelled voxels, spacings differ, an argument is out of range
            or a file is not as described above.
    """
    check_size(size, ("depth", "rows", "cols"))
    choice("outside", outside, ("background", "ignore"))
    if modality is not None:
        whole("modality", modality, 0)
    if not isinstance(spacing, str):
        check_spacing(spacing)
    else:
        choice("spacing", spacing, ("same", "mixed"))
    place = find_place(folder, "decathlon", ("dataset.json", "imagesTr"), module=__name__)
    names, classes = _contents(place / "dataset.json")
    lists = split_files(place, "{}.txt") if shares is None else {}
    if lists:
        parts = {split: read_list(path) for split, path in lists.items()}
    else:
        parts = split_patients(names, SHARES if shares is None else shares, seed=seed)
    settings = VolumeSettings(
        size, outside, standardize, len(classes),
        None if isinstance(spacing, str) else spacing, "all" if modality is None else modality,
    )  # fmt: skip
    if spacing == "same":
        _check_one_spacing(place, [name for part in parts.values() for name in part])
    return Splits(read_outlined(place, parts, settings, needed_by=place), classes)


def check_spacing(spacing: Any) -> None:
    """Raise unless a spacing is three numbers of mm above 0."""
    values = np.asarray(spacing, dtype=object)
    right = values.shape == (3,) and all(isinstance(one, int | float) for one in values)
    if not right or not (np.asarray(spacing, float) > 0).all():
        raise ValueError(f"spacing must be (depth, row, col) in mm, all above 0, got {spacing!r}")


def read_outlined(
    place: Path, parts: Mapping[str, Sequence[str]], settings: VolumeSettings, *, needed_by: Path
) -> dict[str, dict[str, Any]]:
    """Pairs of volumes and outlines of every split, all of one size; see ``load_decathlon``."""
    for names in parts.values():
        files = [place / part / one for one in names for part in ("imagesTr", "labelsTr")]
        check_files(files, needed_by=needed_by)
    check_splits({split: {"id": list(values)} for split, values in parts.items()})
    everything = sum(map(len, parts.values()))
    check_memory(5 * everything * int(np.prod(settings.size)))
    cases = {
        split: [_read(place, name, settings) for name in names] for split, names in parts.items()
    }
    masks = [case["mask"] for split in parts for case in cases[split]]
    check_nothing_cut(masks, [name for part in parts.values() for name in part], settings.size)
    return {split: _stacked(cases[split], parts[split], settings) for split in parts}


def _contents(path: Path) -> tuple[list[str], tuple[str, ...]]:
    """File names of the cases that have outlines, and names of the classes."""
    with naming_file(path, "list of a task of the decathlon"):
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it is larger than the {_MOST_BYTES} bytes of any such list")
        found = json.loads(path.read_text(encoding="utf-8"))
        pairs = [(PurePosixPath(p["image"]).name, PurePosixPath(p["label"]).name)
                 for p in found["training"]]  # fmt: skip
        numbers = sorted(int(key) for key in found["labels"])
        if numbers != list(range(len(numbers))) or len(numbers) < 2:
            raise ValueError(f'"labels" has the numbers {numbers}; expected 0, 1, ...')
        classes = tuple(str(found["labels"][str(number)]) for number in numbers)
        other = [image for image, label in pairs if image != label]
        if other or not pairs or len(set(pairs)) < len(pairs):
            raise ValueError(
                f'"training" has {len(pairs)} pairs, {some_of(other, len(pairs), "of them")} of '
                "two names; expected an image and a label of one name for each case"
            )
    return [image for image, _ in pairs], classes


def _check_one_spacing(place: Path, names: Sequence[str]) -> None:
    check_files([place / "imagesTr" / name for name in names], needed_by=place / "dataset.json")
    steps = np.array([volume_header(place / "imagesTr" / name)[1] for name in names])
    usual = np.median(steps, axis=0)
    shown = tuple(round(float(mm), 3) for mm in usual)
    others = [
        f"{name} {tuple(round(float(mm), 3) for mm in step)}"
        for name, step in zip(names, steps, strict=True)
        if not np.allclose(step, usual, rtol=_ALIKE)
    ]
    if others:
        raise ValueError(
            f"spacing differs from the median, {shown} mm, in {some_of(others, len(names))}; give "
            f'spacing={shown}, to which all are resampled, or spacing="mixed" to keep them'
        )


def _read(place: Path, name: str, settings: VolumeSettings) -> dict[str, Any]:
    """One volume and its mask at their own size, on the axes of ``load_decathlon``."""
    path, outlines = (place / part / name for part in ("imagesTr", "labelsTr"))
    image, grey = read_volume(path, np.float32, volume=settings.volume)
    label, mask = read_volume(outlines)
    check_one_grid(name, image, label)
    grey = grey.T if grey.ndim == 4 else grey.T[None]
    level = grey.reshape(len(grey), -1)
    if not np.isfinite(grey).all() or (level.min(1) == level.max(1)).any():
        raise ValueError(f"{path} has NaN or infinite voxels, or one level")
    found = np.unique(mask)
    if not np.isin(found, range(settings.num_classes)).all():
        *most, last = map(str, range(settings.num_classes))
        raise ValueError(f"{outlines} holds {found[:5]}; expected {', '.join(most)} and {last}")
    affine, mask = affine_of(image), mask.T.astype(np.int8)
    if settings.standardize:
        grey = np.stack([(one - one.mean(dtype=np.float64)) / one.std(dtype=np.float64)
                         for one in grey])  # fmt: skip
    old = mask.shape
    if settings.spacing is not None:
        step = np.linalg.norm(affine[:3, :3], axis=0)
        grey = at_spacing(grey.astype(np.float32), step, settings.spacing)
        mask = at_spacing(mask, step, settings.spacing, labels=True)
    growth = np.array(old) / mask.shape
    affine = moved_affine(affine, old, mask.shape, growth)
    return {
        "image": grey,
        "mask": mask,
        "affine": moved_affine(affine, mask.shape, settings.size, np.ones(3)),
        "spacing": np.linalg.norm(affine[:3, :3], axis=0),
        "voxel_volume": np.abs(np.linalg.det(affine[:3, :3])),
        "filename_or_obj": str(path),
    }


def _stacked(
    cases: Sequence[Mapping[str, Any]], names: Sequence[str], settings: VolumeSettings
) -> dict[str, NDArray[Any]]:
    channels = {len(case["image"]) for case in cases}
    if len(channels) > 1:
        raise ValueError(f"files have {sorted(channels)} modalities; choose one by modality=")
    image = np.empty((len(cases), *channels, *settings.size), np.float32)
    for index, case in enumerate(cases):
        image[index] = centred(case["image"], settings.size)
    fill = 0 if settings.outside == "background" else -1
    masks = [centred(case["mask"], settings.size, fill=fill) for case in cases]
    columns = ("voxel_volume", "spacing", "affine", "filename_or_obj")
    return {
        "image": image,
        "mask": np.stack(masks),
        **{name: np.array([case[name] for case in cases]) for name in columns},
        "id": np.array([name.removesuffix(".gz").removesuffix(".nii") for name in names]),
    }
