"""Whether a machine computes in bfloat16 or only imitates it."""

import platform
import warnings

import torch


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
            "than float32, and no more exact; use precision='float32'.",
            RuntimeWarning,
            stacklevel=3,
        )
