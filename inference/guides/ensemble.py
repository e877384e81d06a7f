"""Ensemble: independently started and trained members, the ``chain`` axis of the results.

    (model, guide)_m  for m = 1..M        trained one after the other, each with its own seed

Each member has its own copy of the model, so norm layers and batch statistics are its own too.
Any guide can be a member's: ``Ensemble(model, PointEstimate)`` is the deep ensemble of
Lakshminarayanan et al., NeurIPS 2017.
"""

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from ppl_med.checks import choice, whole
from ppl_med.inference.guides.kept_draws import KeptChains
from ppl_med.inference.guides.pairs import check_pair
from ppl_med.programs import protocol


class Ensemble(nn.Module):
    """Members of one kind, started apart.

    Args:
        model: The model; every member starts from a copy of it and leaves it as it is.
        guide_factory: From a member's model to its guide, such as ``PointEstimate``.
        members: How many, at least 2.
        start: ``"reset"``: every layer draws its initial parameters anew by its
            ``reset_parameters``; ``"keep"``: all members start at the model's values (for
            pretrained nets) and differ by the order of the data; or a function that
            re-initialises a model in place.
        seed: Seed of the initial values.

    Raises:
        ValueError: If a member count is below 2, or if parameters belong to a module without
            ``reset_parameters`` (pass a function as ``start``).
    """

    def __init__(
        self,
        model: nn.Module,
        guide_factory: Callable[[Any], nn.Module],
        members: int = 5,
        start: Literal["reset", "keep"] | Callable[[nn.Module], None] = "reset",
        seed: int = 0,
    ) -> None:
        super().__init__()
        members = whole("members", members, least=2)
        if not callable(start):
            choice("start", start, ("reset", "keep"), fix="or pass a function")
        self.models, self.guides = nn.ModuleList(), nn.ModuleList()
        with torch.random.fork_rng(devices=[]):
            for member in range(members):
                torch.manual_seed(seed + member)
                own = copy.deepcopy(model)
                if callable(start):
                    start(own)
                elif start == "reset":
                    _reset(own)
                self.models.append(own)
                self.guides.append(guide_factory(own))

    @property
    def members(self) -> list[tuple[nn.Module, nn.Module]]:
        """Pairs of model and guide."""
        return list(zip(self.models, self.guides, strict=True))

    def forward(self, *inputs: Any, **options: Any) -> None:
        """Not a single program."""
        raise TypeError(
            "an Ensemble is not one program: pass it to fit, predict or functions as the guide, "
            "or use its pairs of model and guide in ensemble.members"
        )


def _reset(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        elif any(True for _ in module.parameters(recurse=False)):
            raise ValueError(
                f"{name or type(model).__name__} ({type(module).__name__}) holds parameters and "
                "has no reset_parameters(); pass start=a function that re-initialises the model"
            )


def members_of(model: Any, guide: Any) -> list[tuple[Any, Any]]:
    """The pairs to train or to draw from: members of an ensemble, kept chains, or the one pair.

    Raises:
        ValueError: If model and guide are exchanged, or were not built for each other.
    """
    if isinstance(model, Ensemble):
        raise ValueError("model is an Ensemble, a guide; the model comes first: (model, guide)")
    pairs = [(model, guide)]
    if isinstance(guide, Ensemble):
        pairs = [(protocol.of_member(model, own), its_guide) for own, its_guide in guide.members]
    if isinstance(guide, KeptChains):
        pairs = [(model, chain) for chain in guide.chains]
    for pair in pairs:
        check_pair(*pair)
    return pairs
