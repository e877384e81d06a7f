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
    from ppl_med.data.blood_smear import blood_smear
    from ppl_med.data.camvid import CAMVID_FLIPS, load_camvid
    from ppl_med.data.class_flips import ClassFlips
    from ppl_med.data.disjoint import check_disjoint
    from ppl_med.data.fresh import FreshBatches
    from ppl_med.data.graders import one_grader_per_case, random_grader
    from ppl_med.data.lesion_generator import lesions
    from ppl_med.data.lidc import load_lidc
    from ppl_med.data.lidc_pickle import convert_lidc_pickle, load_lidc_crops
    from ppl_med.data.malaria import load_malaria
    from ppl_med.data.masks import check_divisible, check_masks
    from ppl_med.data.scene_generator import SCENE_FLIPS, scenes
    from ppl_med.data.splits import apply_split, load_split, save_split, split_patients
    from ppl_med.data.standardization import standardization
    from ppl_med.data.validation import check_batch

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
    "flips_and_turns",
    "flips_and_turns_with_mask",
    "lesions",
    "load_camvid",
    "load_lidc",
    "load_lidc_crops",
    "load_malaria",
    "load_split",
    "mirror_with_mask",
    "one_grader_per_case",
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
    "flips_and_turns": "augmentation",
    "flips_and_turns_with_mask": "augmentation",
    "lesions": "lesion_generator",
    "load_camvid": "camvid",
    "load_lidc": "lidc",
    "load_lidc_crops": "lidc_pickle",
    "load_malaria": "malaria",
    "load_split": "splits",
    "mirror_with_mask": "augmentation",
    "one_grader_per_case": "graders",
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
