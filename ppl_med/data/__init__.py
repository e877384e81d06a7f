"""Datasets as batches of named arrays: readers, synthetic cases with a known truth, checks.

    batches, fresh     batches of arrays in memory, and of cases made on the way
    dataset_batches    batches of a data set that returns dicts, MONAI's or one's own
    augmentation       functions of a batch and a generator, as in graders and class_flips
    reversible         augmentations for prediction, undone on maps
    splits             by patient, in files that tell when something has changed
    validation, masks, boxes  what is wrong with a batch, said before any work starts
    readers            one data set a file, all of them in READERS; from_table for one's own
    synthetic          generators and planted confounders

Readers and generators are numpy only and work without torch; what needs torch loads on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from ppl_med.data.boxes import check_boxes
from ppl_med.data.channel_statistics import standardization
from ppl_med.data.graders import one_grader_per_case, random_grader
from ppl_med.data.masks import check_divisible, check_masks
from ppl_med.data.readers import READERS, read_dataset
from ppl_med.data.readers.bccd import load_bccd_counts
from ppl_med.data.readers.brains import load_brains
from ppl_med.data.readers.camvid import CAMVID_FLIPS, load_camvid
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
from ppl_med.data.readers.lidc_pickle import convert_lidc_pickle, load_lidc_crops
from ppl_med.data.readers.make3d import load_make3d
from ppl_med.data.readers.malaria import load_malaria
from ppl_med.data.readers.medmnist import MEDMNIST, load_medmnist
from ppl_med.data.readers.nyuv2 import load_nyuv2
from ppl_med.data.readers.pneumoniamnist import load_pneumoniamnist
from ppl_med.data.readers.voc_boxes import load_voc_boxes
from ppl_med.data.readers.wbc_seg import load_wbc_seg
from ppl_med.data.slices import slices_of
from ppl_med.data.splits import (
    apply_split,
    check_disjoint,
    check_splits,
    load_split,
    save_split,
    split_patients,
)
from ppl_med.data.synthetic.brain_generator import brains
from ppl_med.data.synthetic.cell_generator import blood_smear
from ppl_med.data.synthetic.chest_generator import CHEST_CLASSES, chest_films
from ppl_med.data.synthetic.class_flips import ClassFlips
from ppl_med.data.synthetic.confounders import plant
from ppl_med.data.synthetic.depth_generator import depth_scenes
from ppl_med.data.synthetic.lesion_generator import lesions
from ppl_med.data.synthetic.scene_generator import SCENE_FLIPS, scenes

if TYPE_CHECKING:
    from ppl_med.data.augmentation import (
        RandomPixels,
        RotateAndScale,
        flips_and_turns,
        flips_and_turns_with_mask,
        mirror_with_mask,
    )
    from ppl_med.data.batches import Batches
    from ppl_med.data.box_moves import MoveWithBoxes
    from ppl_med.data.dataset_batches import DatasetBatches
    from ppl_med.data.fresh import FreshBatches
    from ppl_med.data.reversible import Augmentation, drawn, symmetries, turns
    from ppl_med.data.validation import check_batch

__all__ = [
    "CAMVID_FLIPS",
    "CHEST_CLASSES",
    "MEDMNIST",
    "READERS",
    "SCENE_FLIPS",
    "Augmentation",
    "Batches",
    "ClassFlips",
    "DatasetBatches",
    "FreshBatches",
    "MoveWithBoxes",
    "RandomPixels",
    "RotateAndScale",
    "apply_split",
    "blood_smear",
    "brains",
    "check_batch",
    "check_boxes",
    "check_disjoint",
    "check_divisible",
    "check_masks",
    "check_splits",
    "chest_films",
    "convert_lidc_pickle",
    "depth_scenes",
    "drawn",
    "flips_and_turns",
    "flips_and_turns_with_mask",
    "from_table",
    "lesions",
    "load_bccd_counts",
    "load_brains",
    "load_camvid",
    "load_cityscapes",
    "load_coco_boxes",
    "load_cxr_lesion_boxes",
    "load_decathlon",
    "load_dicom_films",
    "load_dicom_series",
    "load_hippocampus",
    "load_isic",
    "load_lidc",
    "load_lidc_crops",
    "load_make3d",
    "load_malaria",
    "load_medmnist",
    "load_nyuv2",
    "load_pneumoniamnist",
    "load_rsna_boxes",
    "load_split",
    "load_vindr_boxes",
    "load_voc_boxes",
    "load_wbc_seg",
    "mirror_with_mask",
    "one_grader_per_case",
    "plant",
    "random_grader",
    "read_dataset",
    "save_split",
    "scenes",
    "slices_of",
    "split_patients",
    "standardization",
    "symmetries",
    "turns",
]

_NEED_TORCH = {
    "Augmentation": "reversible",
    "Batches": "batches",
    "DatasetBatches": "dataset_batches",
    "FreshBatches": "fresh",
    "MoveWithBoxes": "box_moves",
    "RandomPixels": "augmentation",
    "RotateAndScale": "augmentation",
    "check_batch": "validation",
    "drawn": "reversible",
    "flips_and_turns": "augmentation",
    "flips_and_turns_with_mask": "augmentation",
    "mirror_with_mask": "augmentation",
    "symmetries": "reversible",
    "turns": "reversible",
}


def __getattr__(name: str) -> object:
    if name not in _NEED_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_NEED_TORCH[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
