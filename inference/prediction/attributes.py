"""Attributes of a predicted tree: what was drawn, from what, and by which versions."""

import functools
import importlib.metadata
from collections.abc import Sequence
from typing import Any

from ppl_med.inference.checkpoint import digest, settings
from ppl_med.inference.prediction.posterior_sampler import PosteriorSampler
from ppl_med.programs import protocol
from ppl_med.programs.sites import Program, full_name

WHERE_GIVEN = ("samples", "window", "mirror", "keep", "lossy")


@functools.cache
def _versions() -> dict[str, str]:
    return {
        f"{name.replace('-', '_')}_version": importlib.metadata.version(name)
        for name in ("torch", "pyro-ppl", "xarray")
    }


def attributes(
    pairs: Sequence[tuple[Program, Program | None]],
    seed: int,
    draws: int,
    origin: str,
    sampler: PosteriorSampler,
) -> dict[str, Any]:
    """Attributes of the tree of ``predict``; ``origin`` is what the cases are."""
    model, guide = pairs[0]
    losses = protocol.training_losses(model)
    if protocol.loss_alone(model):
        origin = f"{origin} cases, but none is known: trained was {'; '.join(losses)}, no density"
    elif losses and origin == "training":
        origin = f"training cases, but not what was trained, which is {'; '.join(losses)}"
    elif origin == "held-out" and (recorded := protocol.recorded_losses(model)):
        origin = f"held-out cases, but the log-likelihood is no density: {'; '.join(recorded)}"
    elif sampler.local and not sampler.guide_has_local and origin == "training":
        origin = (
            f"training cases, but {', '.join(sampler.local)} of each case was drawn from their "
            "prior: no draw has seen the case, and leaving it out would do so twice"
        )
    elif sampler.generated and sampler.guide_has_local and origin == "training":
        origin = (
            f"training cases, but the guide draws {', '.join(sampler.local)} of each case from "
            "what is predicted: leaving it out would take other draws"
        )
    return {
        "model": full_name(model),
        "guide": "prior" if guide is None else full_name(guide),
        "network": protocol.network_name(model) or full_name(model),
        "parameters_sha256": digest(pairs),
        "seed": seed,
        "draws": draws,
        "chains": len(pairs),
        "log_likelihood_of": origin,
        "settings": settings(model),
        **protocol.drawn_by(model),
        "inference_library": "ppl_med",
        **({"training_loss": "; ".join(losses)} if losses else {}),
        **_versions(),
    }


def where_given(samples: int, keep: Sequence[str], **options: Any) -> dict[str, Any]:
    """Attributes of what was asked for beside the draws; see `WHERE_GIVEN`."""
    found = {name: str(option) for name, option in options.items() if option is not None}
    own = {"samples": samples} if samples > 1 else {}
    return {**own, **({"keep": ", ".join(keep)} if keep else {}), **found}
