"""Datasets as batches of named arrays: readers, synthetic cases with a known truth, checks.

Names load on first use, so ``import ppl_med.data`` costs nothing, and the readers and
generators, which are numpy only, work without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ppl_med.data.augmentation import flips_and_turns
    from ppl_med.data.batches import Batches
    from ppl_med.data.blood_smear import blood_smear
    from ppl_med.data.disjoint import check_disjoint
    from ppl_med.data.malaria import load_malaria
    from ppl_med.data.standardization import standardization
    from ppl_med.data.validation import check_batch

__all__ = [
    "Batches",
    "blood_smear",
    "check_batch",
    "check_disjoint",
    "flips_and_turns",
    "load_malaria",
    "standardization",
]

_MODULES = {
    "Batches": "batches",
    "blood_smear": "blood_smear",
    "check_batch": "validation",
    "check_disjoint": "disjoint",
    "flips_and_turns": "augmentation",
    "load_malaria": "malaria",
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
