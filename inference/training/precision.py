"""Which precision a machine is fast in: whether it computes in bfloat16 or only imitates it."""

import platform
import warnings
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def chosen_precision(precision: str, device: torch.device) -> str:
    """The precision that is meant: of "auto", bfloat16 where the device has it.

    By capability and not by a measurement, so that a run and its resumption choose alike.
    """
    if precision != "auto":
        return precision
    return "bfloat16" if has_bfloat16(device) else "float32"


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16.

    A processor without them computes the same numbers many times slower than in float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True  # slower where it lacks them, but not by much
    return bool(torch.cpu._is_avx512_bf16_supported())


def warn_if_slow(precision: str, device: torch.device) -> None:
    """Warn where ``precision`` is "bfloat16" and a device only imitates it.

    Warns:
        RuntimeWarning: It does.
    """
    if precision == "bfloat16" and not has_bfloat16(device):
        warnings.warn(
            "precision='bfloat16' on a device without instructions for it is up to 12 times slower "
            "than float32, and no more exact; use precision='auto', which chooses.",
            RuntimeWarning,
            stacklevel=3,
        )
