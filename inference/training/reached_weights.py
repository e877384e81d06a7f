"""Whether every random weight of a model has a part in its likelihood."""

from collections.abc import Callable
from typing import Any

import torch

from ppl_med.programs.elbo import Terms, total
from ppl_med.programs.isolation import preserved_state
from ppl_med.programs.parameters import set_mode
from ppl_med.programs.sites import Program
from ppl_med.weights.drawn_weights import noting_weights

SHOWN = 3


def check_reached(model: Program, guide: Program, run: Callable[[], tuple[Terms, Any]]) -> None:
    """Raise where a network does not read weights that were drawn for it.

    It may read others of its parameters in training only, such as those of auxiliary outputs: a
    weight is refused that is read in neither mode. A gradient of 0 is one; none is meant here.

    Args:
        model: In evaluation mode, as it is left.
        guide: Likewise.
        run: Gives the negative log-likelihoods, by site, and more.

    Raises:
        ValueError: If there are such weights.
    """
    missed = _missed(run)
    if missed:
        with preserved_state(model, guide):
            set_mode((model,), True)
            missed &= _missed(run)
    if missed:
        names = sorted(missed)
        raise ValueError(
            f"the likelihood does not depend on {len(names)} random weight tensor(s), "
            f"{', '.join(map(repr, names[:SHOWN]))}{' …' if len(names) > SHOWN else ''}: the net "
            "does not use them, or reads them past the draw (through .data, under torch.no_grad, "
            "or by a copy kept outside its parameters), so that nothing would be learned of them; "
            "read them as self.<name> at every call, or leave them out: where=..."
        )


def _missed(run: Callable[[], tuple[Terms, Any]]) -> set[str]:
    """Names of drawn tensors that the likelihood does not depend on."""
    with torch.enable_grad(), noting_weights() as drawn:
        likelihood = total(run()[0])
    noted = {n: v for run_of_net in drawn for n, v in run_of_net.items() if v.requires_grad}
    if not noted or not likelihood.requires_grad:
        return set(noted)
    slopes = torch.autograd.grad(likelihood, list(noted.values()), allow_unused=True)
    return {name for name, slope in zip(noted, slopes, strict=True) if slope is None}
