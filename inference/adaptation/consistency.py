"""``minimise_disagreement``: scales and shifts of BatchNorm under which views of an image agree.

    loss_s = mean over a batch of H(mean_v p_sv) - mean_v H(p_sv)     of posterior draw s, views v

Views are augmentations under which the truth is the same, undone on maps: the Jensen-Shannon
divergence of the predictions, 0 where they agree, whatever their entropy. Mirror images suit tasks
that have no left and right; a net that was trained with them agrees from the start, so that its
disagreement on a domain tells of the domain.

Source: the consistency loss of AugMix, Hendrycks et al., ICLR 2020, arXiv:1912.02781, on images
without labels. Steps, brakes and departures: `descent`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import xarray as xr
from torch import nn

from ppl_med.data.reversible import Augmentation
from ppl_med.inference.adaptation.descent import Brakes, descend
from ppl_med.inference.adaptation.domain import checked_views
from ppl_med.programs.sites import Program


def minimise_disagreement(
    model: Program,
    guide: Program,
    batches: Any,
    *,
    views: Sequence[Augmentation] | None = None,
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
    """Adapt scales and shifts of BatchNorm to a domain by the agreement of views of an image.

    Args:
        model: A model of classes or of masks of classes, trained.
        guide: Its guide, trained, or an ``Ensemble``. Both stay as they are.
        batches: Images of the domain, as in ``predict``, two cases a batch or more.
        views: Augmentations to compare, the identity among them; ``symmetries(2)`` by default, the
            image and its mirror image.
        learning_rate: As of ``minimise_entropy``, as all arguments from here on.
        epochs: As there.
        most_entropy: As there, of the mean prediction over the views.
        guard: As there.
        reset_every: As there.
        floor: As there.
        keys: As there.
        draws: As there.
        seed: As there.
        device: As there.
        progress: As there.

    Returns:
        As ``minimise_entropy``, with ``disagreement`` (chain, draw, step) in nats; the entropies
        are those of the mean prediction over the views.

    Raises:
        ValueError: As for ``minimise_entropy``; fewer than two views, or one
            that cannot be undone at every pixel, of a model of maps.
    """
    brakes = Brakes(most_entropy, guard, reset_every, floor)
    return descend(
        model, guide, batches, checked_views(views), brakes,
        learning_rate=learning_rate, epochs=epochs, keys=keys, draws=draws, seed=seed,
        device=device, progress=progress,
    )  # fmt: skip
