"""How much of the mask is left after every step of noise.

    kept_t = product of (1 - beta_s) over s <= t,    kept_0 = 1

``cosine`` is that of Nichol and Dhariwal (ICML 2021, eq. 17), beta at most 0.999; ``linear`` that
of Ho, Jain and Abbeel (NeurIPS 2020), its betas times 1000 / T so that any number of steps ends in
noise.

A mask is readable at noise where a photograph is not, for its regions are large. ``hardening``
b < 1 scales the input, so that the signal-to-noise ratio is b^2 times as large at every step
(Chen, "On the importance of noise scheduling for diffusion models", arXiv:2301.10972):

    kept' = b^2 kept / ((b^2 - 1) kept + 1)
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from ppl_med.checks import choice, positive, whole

Schedule = Literal["cosine", "linear"]


def signal_kept(num_steps: int, schedule: Schedule = "cosine", hardening: float = 1.0) -> Tensor:
    """The share of the signal after 0, 1, ..., T steps.

    Args:
        num_steps: T.
        schedule: "cosine" or "linear".
        hardening: b above; 1 leaves the schedule as it is, less is harder.

    Returns:
        float64 (step), T + 1 of them, falling from 1 to nearly 0.

    Raises:
        ValueError: On a number of steps below 1, an unknown schedule, or a hardening that is not
            positive.
    """
    whole("num_steps", num_steps)
    choice("schedule", schedule, get_args(Schedule))
    positive("hardening", hardening)
    if schedule == "cosine":
        place = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
        level = ((place + 0.008) / 1.008 * torch.pi / 2).cos() ** 2
        beta = 1 - level[1:] / level[:-1]
    else:
        scale = 1000 / num_steps
        beta = torch.linspace(1e-4 * scale, 0.02 * scale, num_steps, dtype=torch.float64)
    left = (1 - beta.clamp(max=0.999)).cumprod(0)
    kept = torch.cat([torch.ones(1, dtype=torch.float64), left])
    return hardening**2 * kept / ((hardening**2 - 1) * kept + 1)
