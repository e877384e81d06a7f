"""Whether a model and a guide can be a pair, as far as that shows before they run."""

from typing import Any

from torch import nn

from ppl_med.inference.guides.conditional_guide import ConditionalGuide
from ppl_med.inference.guides.joined import Guides
from ppl_med.inference.guides.weight_guide import WeightGuide
from ppl_med.weights.random_weights import find_random_weights

GUIDES = (WeightGuide, ConditionalGuide, Guides)


def check_pair(model: Any, guide: Any) -> None:
    """Raise where the two are exchanged, or the guide was built for another model.

    Raises:
        ValueError: If ``model`` is a guide, or the guide's weights have other names or shapes than
            those of the model.
    """
    if isinstance(model, GUIDES):
        raise ValueError(
            f"model is a guide, {type(model).__name__}; the model comes first: (model, guide, ...)"
        )
    if not isinstance(guide, nn.Module):
        return
    known = find_random_weights([model])
    for part in guide.modules():
        if not isinstance(part, WeightGuide):
            continue
        for site in part.parts.keys() & known.keys():
            theirs, ours = (
                [(e.name, tuple(e.shape)) for e in one.entries]
                for one in (part.layout(site), known[site].layout)
            )
            if theirs != ours:
                differing = next(
                    (pair for pair in zip(theirs, ours, strict=False) if pair[0] != pair[1]),
                    (f"{len(theirs)} tensors", f"{len(ours)}"),
                )
                raise ValueError(
                    f"guide {type(part).__name__} was built for another model: at the site "
                    f"{site!r} it has {differing[0]} where the model has {differing[1]}; build it "
                    "from this model"
                )
