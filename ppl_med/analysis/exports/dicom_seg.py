"""Masks and probabilities as DICOM Segmentation objects, in register with the series they are of.

    exports.write_dicom_seg(tree, "seg/", {"scan-1": "dicom/scan-1/"})

Probabilities are brought to the frames of the series as `case_maps` says. A mask goes into a BINARY
object, probabilities into a FRACTIONAL one (255 levels), one segment per class.

Standard: DICOM PS3.3, A.51 (Segmentation IOD).
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from ppl_med import __version__, checks
from ppl_med.analysis.exports.case_maps import Grid, case_maps
from ppl_med.analysis.exports.nifti import own_grid, safe_name
from ppl_med.analysis.tree import ClassList, class_indices, open_classes, open_probabilities
from ppl_med.storage import replacing

_EVEN = 0.01  # share of the distance of slices by which it may differ


def write_dicom_seg(
    tree: xr.DataTree,
    folder: str | os.PathLike[str],
    series: Mapping[Any, str | os.PathLike[str] | Sequence[str | os.PathLike[str]]],
    *,
    kind: Literal["mask", "probability"] = "mask",
    classes: ClassList = None,
) -> pd.DataFrame:
    """Write ``<folder>/<case>_<kind>.dcm`` for every case that has a series.

    Args:
        tree: The tree of `predict` of masks, with ``affine`` (case, 4, 4) in constant_data.
        folder: Where the files go; it is made. Earlier files of the same names are replaced.
        series: By case id, the folder of the DICOM series that was predicted, or its files.
        kind: "mask", the most probable class of the mean over draws, or "probability", the mean.
        classes: Classes that become segments; by default all but the first.

    Returns:
        Table of the files: id, path, and ``outside``, the share of the voxels of the series that
        were not predicted and are 0.

    Raises:
        ImportError: highdicom is not installed.
        TypeError, ValueError: ``tree`` is of something else or has no affine, an id or a class is
            unknown, or a series has slices of different places, sizes or distances.
        OSError: A file cannot be read or written.
    """
    try:
        import highdicom
    except ImportError as error:
        raise ImportError(
            "write_dicom_seg needs highdicom: pip install 'ppl-med[dicom]'"
        ) from error
    checks.choice("kind", kind, ("mask", "probability"))
    source = open_classes(tree)
    numbers = class_indices(classes, open_probabilities(tree))
    ids = source.array["case"].values.tolist() if "case" in source.array.coords else []
    unknown = [one for one in series if one not in ids]
    if unknown or not series:
        checks.reject("series", f"series of cases of the tree, such as {ids[:3]}", unknown)
    place = checks.a_path("folder", folder)
    place.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, given in series.items():
        images, grid = _opened(name, given)
        position = ids.index(name)
        found = case_maps(source, position, own_grid(tree, source.array, position, name), grid)
        if kind == "mask":
            pixels = np.stack([found.mask == number for number in numbers], -1).astype(np.uint8)
        else:
            pixels = np.stack([np.nan_to_num(found.probability[number]) for number in numbers], -1)
        made = highdicom.seg.Segmentation(
            source_images=images,
            pixel_array=pixels,
            segmentation_type="BINARY" if kind == "mask" else "FRACTIONAL",
            segment_descriptions=_segments([source.names[number] for number in numbers]),
            series_instance_uid=highdicom.UID(),
            series_number=100,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="ppl_med",
            manufacturer_model_name=str(tree.attrs.get("model", "ppl_med"))[:64],
            software_versions=__version__,
            device_serial_number="0",
        )
        path = place / f"{safe_name(name)}_{kind}.dcm"
        with replacing(path, "segmentation") as partial:
            made.save_as(partial)
        rows.append({"id": name, "path": str(path), "outside": float(found.outside.mean())})
    return pd.DataFrame(rows)


def _segments(names: Iterable[str]) -> list[Any]:
    import highdicom
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="ppl_med", version=__version__, family=codes.DCM.ArtificialIntelligence
    )
    return [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.AnatomicalStructure,
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(names, 1)
    ]


def _opened(
    name: Any, given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
) -> tuple[list[Any], Grid]:
    """The slices of a series along their normal, and where their voxels (slice, row, col) lie."""
    import pydicom

    single = isinstance(given, str | os.PathLike)
    files = sorted(Path(given).iterdir()) if single else list(map(Path, given))  # type: ignore[arg-type]
    images = [pydicom.dcmread(file) for file in files if file.is_file()]
    if not images:
        raise ValueError(f"series of case {name!r} holds no files")
    first = images[0]
    across, down = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    places = np.array([one.ImagePositionPatient for one in images], float)
    order = np.argsort(places @ np.cross(across, down))
    images, places = [images[index] for index in order], places[order]
    alike = {
        (one.Rows, one.Columns, *map(float, (*one.PixelSpacing, *one.ImageOrientationPatient)))
        for one in images
    }
    steps = np.diff(places, axis=0)
    normal = np.cross(across, down) * float(first.get("SliceThickness") or 1.0)
    step = steps.mean(0) if len(steps) else normal
    if len(alike) > 1 or (len(steps) and np.abs(steps - step).max() > _EVEN * np.linalg.norm(step)):
        raise ValueError(
            f"series of case {name!r} has slices of different sizes, directions or distances, so "
            "that it is no grid of voxels; give the files of one volume"
        )
    if len(steps) and not np.linalg.norm(step):
        raise ValueError(f"series of case {name!r} has two slices in one place; give one volume")
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = down * float(first.PixelSpacing[0])
    affine[:3, 2] = across * float(first.PixelSpacing[1])
    affine[:3, 3] = places[0]
    affine[:2] *= -1  # DICOM counts to the left and to the back, affines to the right and the front
    return images, Grid(affine, (len(images), int(first.Rows), int(first.Columns)))
