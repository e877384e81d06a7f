"""Likelihoods of classes by name, and what is asked of one that is passed as an object."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ppl_med.checks import reject
from ppl_med.likelihoods.classes import Bernoulli, Categorical, ClassLikelihood
from ppl_med.likelihoods.focal import FocalLoss
from ppl_med.likelihoods.logit_normal import LogitNormal
from ppl_med.likelihoods.neighbourhood import NeighbourAware, SpatialSmoothing
from ppl_med.likelihoods.ordinal import Ordinal
from ppl_med.likelihoods.smoothing import LabelNoise, LabelSmoothing, MarginSmoothing

OF_CASES: Mapping[str, Callable[..., ClassLikelihood]] = {
    "categorical": Categorical,
    "bernoulli": Bernoulli,
    "ordinal": Ordinal,
    "logit_normal": LogitNormal,
    "label_noise": LabelNoise,
    "label_smoothing": LabelSmoothing,
    "margin_smoothing": MarginSmoothing,
    "focal": FocalLoss,
}
OF_PIXELS: Mapping[str, Callable[..., ClassLikelihood]] = {
    **{name: kind for name, kind in OF_CASES.items() if name != "bernoulli"},
    "spatial_smoothing": SpatialSmoothing,
    "neighbour_aware": NeighbourAware,
}


def class_likelihood(
    chosen: str | ClassLikelihood, classes: Sequence[str], event: tuple[str, ...], site: str
) -> ClassLikelihood:
    """Return the likelihood of a name with its default settings, or the one that was passed.

    Args:
        chosen: A name in ``OF_CASES``, or with an event in ``OF_PIXELS``; or a likelihood.
        classes: Class names of the model.
        event: Names of the axes after the class axis.
        site: Name of the observed site.

    Raises:
        ValueError: If the name is unknown, or the object is of other classes, axes or another site.
    """
    kinds = OF_PIXELS if event else OF_CASES
    if isinstance(chosen, str) and chosen in kinds:
        settings: dict[str, Any] = {"event": event, "site": site}
        return kinds[chosen](classes, **settings, **({"partial": True} if event else {}))
    if isinstance(chosen, ClassLikelihood):
        if chosen.classes != tuple(classes):
            reject("likelihood", f"of the classes {tuple(classes)}", chosen.classes)
        chosen.check_fits(site, event)
        return chosen
    raise ValueError(
        f"likelihood must be one of {sorted(kinds)} or a likelihood of classes such as "
        f"Categorical({list(classes)}, event={event}, site={site!r}), got {chosen!r}"
    )
