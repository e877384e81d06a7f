"""``minimise_entropy``: scales and shifts of BatchNorm that make predictions of a domain certain.

    loss_s = mean over a batch of -sum_c p_s log p_s    of posterior draw s

Source: Wang et al., TENT, ICLR 2021, arXiv:2006.10726. Steps, brakes and departures: `descent`.
"""

from collections.abc import Mapping
from typing import Any

import torch
import xarray as xr
from torch import nn

from ppl_med.data.reversible import symmetries
from ppl_med.inference.adaptation.descent import Brakes, descend
from ppl_med.programs.sites import Program


def minimise_entropy(
    model: Program,
    guide: Program,
    batches: Any,
    *,
    learning_rate: float = 1e-3,
    epochs: int = 1,
    most_entropy: float | None = 0.4,
    guard: float = 0.5,
    reset_every: int | None = None,
    floor: float | None = None,
    keys: Mapping[str, str] | None = None,
    draws: int = 32,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> tuple[nn.Module, Any, xr.Dataset]:
    """Adapt scales and shifts of BatchNorm to a domain by the entropy of its predictions.

    Args:
        model: A model of classes, trained.
        guide: Its guide, trained, or an ``Ensemble``. Both stay as they are.
        batches: Images of the domain, as in ``predict``, two cases a batch or more.
        learning_rate: Of gradient descent without momentum.
        epochs: Passes over the domain.
        most_entropy: Cases, or pixels of a mask, above this share of ln K take no part; None takes
            all (TENT).
        guard: Share in (0, 1) of the first pass's marginal entropy below which a draw goes back
            to its start and stays there; 0 never. A class of a mask that is lost lowers it by less
            than half: use 0.9 there.
        reset_every: Steps after which a draw goes back to its start, and on from there.
        floor: Moving mean of the entropy, in nats, below which a draw does the same.
        keys: As in ``predict``.
        draws: Draws per chain, as many as will be predicted with.
        seed: Seed of all draws.
        device: Where to run; a GPU where there is one, by default.
        progress: Show a bar with ETA.

    Returns:
        Model and guide for ``predict``, as of ``adapt``, and a Dataset over (chain, draw, step):
        ``entropy`` and ``marginal_entropy`` (nats) before each step, ``share_used`` of the cases
        or pixels, and ``restored``, whether the draw went back to its start at that step;
        ``collapsed`` (chain, draw), whether the guard took the draw back for good.

    Raises:
        ValueError: As for ``adapt``; the model has no site of classes, or a batch has one case.
    """
    return descend(
        model, guide, batches, symmetries(1), Brakes(most_entropy, guard, reset_every, floor),
        learning_rate=learning_rate, epochs=epochs, keys=keys, draws=draws, seed=seed,
        device=device, progress=progress,
    )  # fmt: skip
