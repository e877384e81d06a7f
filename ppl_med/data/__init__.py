"""Datasets as batches of named arrays: readers, synthetic cases with a known truth, checks.

Names load on first use, so ``import ppl_med.data`` costs nothing, and the readers and
generators, which are numpy only, work without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ppl_med.data.augmentation import (
        RotateAndScale,
        flips_and_turns,
        flips_and_turns_with_mask,
        mirror_with_mask,
    )
    from ppl_med.data.batches import Batches
    from ppl_med.data.bccd import load_bccd_counts
    from ppl_med.data.blood_smear import blood_smear
    from ppl_med.data.camvid import CAMVID_FLIPS, load_camvid
    from ppl_med.data.class_flips import ClassFlips
    from ppl_med.data.confounders import plant
    from ppl_med.data.depth_scenes import depth_scenes
    from ppl_med.data.disjoint import check_disjoint
    from ppl_med.data.fresh import FreshBatches
    from ppl_med.data.graders import one_grader_per_case, random_grader
    from ppl_med.data.hippocampus import load_hippocampus
    from ppl_med.data.lesion_generator import lesions
    from ppl_med.data.lidc import load_lidc
    from ppl_med.data.lidc_pickle import convert_lidc_pickle, load_lidc_crops
    from ppl_med.data.make3d import load_make3d
    from ppl_med.data.malaria import load_malaria
    from ppl_med.data.masks import check_divisible, check_masks
    from ppl_med.data.nyuv2 import load_nyuv2
    from ppl_med.data.pneumoniamnist import load_pneumoniamnist
    from ppl_med.data.scene_generator import SCENE_FLIPS, scenes
    from ppl_med.data.splits import apply_split, load_split, save_split, split_patients
    from ppl_med.data.standardization import standardization
    from ppl_med.data.validation import check_batch
    from ppl_med.data.wbc_seg import load_wbc_seg

__all__ = [
    "CAMVID_FLIPS",
    "SCENE_FLIPS",
    "Batches",
    "ClassFlips",
    "FreshBatches",
    "RotateAndScale",
    "apply_split",
    "blood_smear",
    "check_batch",
    "check_disjoint",
    "check_divisible",
    "check_masks",
    "convert_lidc_pickle",
    "depth_scenes",
    "flips_and_turns",
    "flips_and_turns_with_mask",
    "lesions",
    "load_bccd_counts",
    "load_camvid",
    "load_hippocampus",
    "load_lidc",
    "load_lidc_crops",
    "load_make3d",
    "load_malaria",
    "load_nyuv2",
    "load_pneumoniamnist",
    "load_split",
    "load_wbc_seg",
    "mirror_with_mask",
    "one_grader_per_case",
    "plant",
    "random_grader",
    "save_split",
    "scenes",
    "split_patients",
    "standardization",
]

_MODULES = {
    "Batches": "batches",
    "CAMVID_FLIPS": "camvid",
    "ClassFlips": "class_flips",
    "FreshBatches": "fresh",
    "RotateAndScale": "augmentation",
    "SCENE_FLIPS": "scene_generator",
    "apply_split": "splits",
    "blood_smear": "blood_smear",
    "check_batch": "validation",
    "check_disjoint": "disjoint",
    "check_divisible": "masks",
    "check_masks": "masks",
    "convert_lidc_pickle": "lidc_pickle",
    "depth_scenes": "depth_scenes",
    "flips_and_turns": "augmentation",
    "flips_and_turns_with_mask": "augmentation",
    "lesions": "lesion_generator",
    "load_bccd_counts": "bccd",
    "load_camvid": "camvid",
    "load_hippocampus": "hippocampus",
    "load_lidc": "lidc",
    "load_lidc_crops": "lidc_pickle",
    "load_make3d": "make3d",
    "load_malaria": "malaria",
    "load_nyuv2": "nyuv2",
    "load_pneumoniamnist": "pneumoniamnist",
    "load_split": "splits",
    "load_wbc_seg": "wbc_seg",
    "mirror_with_mask": "augmentation",
    "one_grader_per_case": "graders",
    "plant": "confounders",
    "random_grader": "graders",
    "save_split": "splits",
    "scenes": "scene_generator",
    "split_patients": "splits",
    "standardization": "standardization",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # ``blood_smear`` is a function and its module; binding it here lets the function win.
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
