"""Readers: ``load_NAME`` reads a folder into the arrays that ``Batches`` takes, split by split.

``READERS`` lists all of them by name, with the formats they read and the axes of their images;
``read_dataset`` calls one of them by its name, as a configuration file does.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any

from ppl_med.checks import reject
from ppl_med.data.readers.bccd import load_bccd_counts
from ppl_med.data.readers.brains import load_brains
from ppl_med.data.readers.camvid import load_camvid
from ppl_med.data.readers.case_tables import from_table
from ppl_med.data.readers.chest.lesions import load_cxr_lesion_boxes
from ppl_med.data.readers.chest.rsna import load_rsna_boxes
from ppl_med.data.readers.chest.vindr import load_vindr_boxes
from ppl_med.data.readers.cityscapes import load_cityscapes
from ppl_med.data.readers.coco_boxes import load_coco_boxes
from ppl_med.data.readers.decathlon import load_decathlon
from ppl_med.data.readers.dicom_series import load_dicom_films, load_dicom_series
from ppl_med.data.readers.hippocampus import load_hippocampus
from ppl_med.data.readers.isic import load_isic
from ppl_med.data.readers.lidc import load_lidc
from ppl_med.data.readers.lidc_pickle import load_lidc_crops
from ppl_med.data.readers.make3d import load_make3d
from ppl_med.data.readers.malaria import load_malaria
from ppl_med.data.readers.medmnist import load_medmnist
from ppl_med.data.readers.nyuv2 import load_nyuv2
from ppl_med.data.readers.pneumoniamnist import load_pneumoniamnist
from ppl_med.data.readers.voc_boxes import load_voc_boxes
from ppl_med.data.readers.wbc_seg import load_wbc_seg

__all__ = ["READERS", "Reader", "read_dataset"]

_PICTURE, _VOLUME = ("channel", "row", "col"), ("channel", "depth", "row", "col")


@dataclass(frozen=True)
class Reader:
    """One way to read a data set.

    Args:
        function: Reads a folder, or a file; its docstring shows the layout.
        formats: Endings of the files that hold the images.
        dims: Axes of the image of one case, in order; of both kinds where there are both.
        observed: What a model may be conditioned on, by the names of the arrays.
        split: Whether it gives splits; otherwise arrays for ``apply_split``.
    """

    function: Callable[..., Any]
    formats: tuple[str, ...]
    dims: tuple[tuple[str, ...], ...]
    observed: tuple[str, ...]
    split: bool = True


READERS = {
    "bccd_counts": Reader(load_bccd_counts, ("jpg",), (_PICTURE,), ("value",)),
    "brains": Reader(load_brains, ("nii.gz", "nii"), (_VOLUME,), ("label",)),
    "camvid": Reader(load_camvid, ("png", "jpg"), (_PICTURE,), ("mask",)),
    "cityscapes": Reader(load_cityscapes, ("png",), (_PICTURE,), ("mask",)),
    "coco_boxes": Reader(load_coco_boxes, ("jpg", "png"), (_PICTURE,), ("box", "box_label")),
    "cxr_lesion_boxes": Reader(
        load_cxr_lesion_boxes, ("jpg", "png"), (_PICTURE,), ("box", "box_label")
    ),
    "decathlon": Reader(load_decathlon, ("nii.gz", "nii"), (_VOLUME,), ("mask",)),
    "dicom_films": Reader(load_dicom_films, ("dcm",), (_PICTURE,), (), split=False),
    "dicom_series": Reader(load_dicom_series, ("dcm",), (_VOLUME,), (), split=False),
    "hippocampus": Reader(load_hippocampus, ("nii.gz",), (_VOLUME,), ("mask",)),
    "isic": Reader(load_isic, ("jpg", "png"), (_PICTURE,), ("label",)),
    "lidc": Reader(load_lidc, ("npz", "png"), (_PICTURE,), ("mask",)),
    "lidc_crops": Reader(load_lidc_crops, ("npz",), (_PICTURE,), ("mask",), split=False),
    "make3d": Reader(load_make3d, ("jpg",), (_PICTURE,), ("depth",)),
    "malaria": Reader(load_malaria, ("npz", "png"), (_PICTURE,), ("label",)),
    "medmnist": Reader(load_medmnist, ("npz",), (_PICTURE, _VOLUME), ("label", "findings")),
    "nyuv2": Reader(load_nyuv2, ("mat",), (_PICTURE,), ("depth",)),
    "pneumoniamnist": Reader(load_pneumoniamnist, ("npz",), (_PICTURE,), ("label",)),
    "rsna_boxes": Reader(load_rsna_boxes, ("dcm",), (_PICTURE,), ("box", "box_label")),
    "table": Reader(
        from_table,
        ("png", "jpg", "tif", "bmp", "dcm", "nii", "nii.gz"),
        (_PICTURE, _VOLUME),
        ("label", "findings", "value", "mask"),
    ),
    "vindr_boxes": Reader(
        load_vindr_boxes, ("dicom", "dcm", "png", "jpg"), (_PICTURE,), ("box", "box_label")
    ),
    "voc_boxes": Reader(load_voc_boxes, ("jpg", "png"), (_PICTURE,), ("box", "box_label")),
    "wbc_seg": Reader(load_wbc_seg, ("png",), (_PICTURE,), ("mask",)),
}


def read_dataset(name: str, folder: str | PathLike[str], **options: Any) -> dict[str, Any]:
    """Call a reader by its name.

    Args:
        name: One of ``READERS``.
        folder: Where the data set lies; of "table" the CSV file.
        **options: Arguments of the reader.

    Returns:
        What the reader does: for every split its arrays.

    Raises:
        ValueError: There is no such reader; it names the nearest.
    """
    if name not in READERS:
        near = difflib.get_close_matches(str(name), READERS, 1, 0.4)
        reject(
            "name", f"one of {sorted(READERS)}", name, f"did you mean {near[0]!r}?" if near else ""
        )
    found: dict[str, Any] = READERS[name].function(folder, **options)
    return found
